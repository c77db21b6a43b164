"""Quotas: never more than Azure allows in any window, running talks first, and shares for replicas."""

import random

import pytest

from strategies.quotas import Allowance, Quotas, Window, allowances_of

MINUTE_S = 60.0


def move(quota: Allowance, now_s: float, name: str) -> float:
    """A running talk takes a token, or waits for one."""
    if (wait_s := quota.take(now_s, running=True, claimant=name)) > 0:
        quota.claim(name, now_s + wait_s)
    return wait_s


def voice_live(per_minute: int, per_second: int = 0) -> Allowance:
    return allowances_of(Quotas(voice_live_per_minute=per_minute, voice_live_per_second=per_second))["voice_live"]


@pytest.mark.parametrize(
    ("quotas", "names"),
    [
        (Quotas(), []),
        (Quotas(voice_live_per_second=5), ["voice_live"]),
        (Quotas(voice_live_per_minute=30, mints_per_minute=20), ["voice_live", "mints"]),
    ],
)
def test_only_known_quotas_exist(quotas: Quotas, names: list[str]) -> None:
    assert list(allowances_of(quotas)) == names


@pytest.mark.parametrize(("per_minute", "per_second"), [(30, 5), (30, 0), (7, 2), (1, 1)])
def test_no_window_has_more_than_its_quota(per_minute: int, per_second: int) -> None:
    quota = voice_live(per_minute, per_second)
    arrivals, taken, now_s = random.Random(per_minute), [], 0.0
    for _ in range(2000):
        now_s += arrivals.expovariate(2)
        if (move(quota, now_s, arrivals.choice("abc")) if arrivals.random() < 0.3 else quota.take(now_s)) == 0:
            taken.append(now_s)
    for length_s, limit in ((MINUTE_S, per_minute), (1.0, per_second or per_minute)):
        for first, later in zip(taken, taken[limit:], strict=False):
            assert later - first >= length_s
    assert len(taken) > 0.7 * per_minute * now_s / MINUTE_S, "and most of it is used"


def test_window_counts_from_the_answer() -> None:
    """Calls that leave together arrive when they may: until its answer, each may be the one that Azure counts last."""
    quota, chance = voice_live(30, 5), random.Random(3)
    arrived: list[float] = []
    under_way: list[tuple[float, float]] = []
    for tick in range(4000):
        now_s = tick / 50
        for call in [each for each in under_way if each[1] <= now_s]:
            under_way.remove(call)
            quota.answered(call[0], now_s)
        if quota.take(now_s, running=True) == 0:
            answered_s = now_s + chance.uniform(0.02, 0.9)
            under_way.append((now_s, answered_s))
            arrived.append(chance.uniform(now_s, answered_s))
    arrived.sort()
    for length_s, limit in ((MINUTE_S, 30), (1.0, 5)):
        assert all(later - first >= length_s for first, later in zip(arrived, arrived[limit:], strict=False))
    assert len(arrived) > 40


def test_wait_is_until_the_oldest_returns() -> None:
    quota = voice_live(2)
    assert [quota.take(now_s) for now_s in (0, 10, 20, 59.5, 60)] == [0, 0, 40, 0.5, 0]


def test_evenly_arriving_talks_all_fit() -> None:
    """85 a minute at three resources that allow 30: new talks leave one token of 30 to running ones."""
    quotas = [voice_live(30, 5) for _ in range(3)]
    for number in range(850):
        assert any(quota.take(number * MINUTE_S / 85) == 0 for quota in quotas)


def test_running_talks_come_first() -> None:
    quota = voice_live(10)
    for _ in range(10):
        assert quota.take(0.0) == 0
    assert move(quota, 5.0, "mover") == 55
    assert quota.take(5.0) == 55, "all return at once"
    assert [quota.take(60.0) for _ in range(10)] == [0] * 9 + [60], "one is left to the running talk"
    assert move(quota, 60.0, "mover") == 0


def test_promised_token_is_kept() -> None:
    quota = voice_live(10)
    for second in range(10):
        quota.take(float(second))
    assert move(quota, 20.0, "first") == 40
    assert move(quota, 20.0, "second") == 41
    assert move(quota, 20.0, "first") == 40, "asked again, it keeps its place"
    assert quota.take(60.5) == pytest.approx(1.5), "the third token"
    assert move(quota, 60.5, "first") == 0
    assert quota.take(61.5) == pytest.approx(0.5)
    assert move(quota, 61.5, "second") == 0
    assert quota.take(62.0) == 0


def test_unused_promise_ends() -> None:
    quota = voice_live(1)
    quota.take(0.0)
    move(quota, 10.0, "gone")
    assert quota.take(61.0) > 0
    assert quota.take(62.1) == 0


def test_many_waiting_are_paced_by_the_second() -> None:
    quota = voice_live(100, 5)
    waits = [move(quota, 0.0, str(number)) for number in range(20)]
    assert waits == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5


@pytest.mark.parametrize(
    ("limit", "length_s", "replicas", "share"),
    [
        (30, 60, 1, (30, 60)),
        (30, 60, 2, (15, 60)),
        (30, 60, 4, (7, 60)),
        (5, 1, 3, (1, 1)),
        (5, 1, 10, (1, 2)),  # half a token a second
        (1, 60, 3, (1, 180)),
    ],
)
def test_replicas_divide_a_window(limit: int, length_s: float, replicas: int, share: tuple[int, float]) -> None:
    window = Window(limit, length_s)
    window.divide(replicas, 0.0)
    assert (window.limit, window.length_s) == share
    window.divide(1, 0.0)
    assert window.used(share[1]) == 0
    assert (window.limit, window.length_s) == (limit, length_s)


def test_smaller_share_counts_what_was_taken() -> None:
    quota = voice_live(30)
    for second in range(30):
        quota.take(float(second), running=True)
    quota.divide(3, 30.0)
    assert quota.take(60.5) == pytest.approx(20 + MINUTE_S - 60.5), "21 must return before the 10th is free"


def test_fresh_replica_begins_at_its_rate() -> None:
    quota = voice_live(30)
    quota.divide(3, 100.0)
    quota.begin_used(100.0)
    free = [second for second in range(61) if quota.take(100.0 + second, running=True) == 0]
    assert free == list(range(3, 61, 6))


def test_fresh_replica_keeps_what_it_took() -> None:
    quota = voice_live(4)
    assert quota.take(100.0) == 0
    quota.begin_used(101.0)
    free = [second for second in range(61) if quota.take(101.0 + second, running=True) == 0]
    assert free == [23, 38, 53, 59], "one of five at 7.5 s is owed"


def test_share_grows_a_window_later() -> None:
    three = [voice_live(30) for _ in range(3)]
    taken: list[float] = []
    for quota in three:
        quota.divide(3, 0.0)
    for now_s in range(100, 300):
        live = three if now_s < 120 else three[:2]  # the third one ends
        for quota in live:
            if now_s == 120:
                quota.divide(2, 120.0)
            while quota.take(float(now_s), running=True) == 0:
                taken.append(float(now_s))
    assert max(sum(first <= each < first + MINUTE_S for each in taken) for first in taken) <= 30
    assert sum(180 <= each < 240 for each in taken) == 30, "the two have all of it"


def test_share_that_never_grew_is_whole() -> None:
    quota = voice_live(30)
    quota.divide(3, 0.0)
    quota.divide(1, 100.0)  # the store was away, and the others are not back yet
    quota.divide(3, 106.0)
    assert [quota.take(106.0, running=True) for _ in range(11)] == [0.0] * 10 + [MINUTE_S]
