"""The service level of talks: each counts once, however often it was connected."""

import asyncio
from dataclasses import replace

import pytest

from tests.strategies.clock import Clock
from token_broker.security.tokens import Owner
from token_broker.sessions.talk_level import TalkLevelCounters
from token_broker.web.requests import Problem


def of(talk: str) -> Owner:
    return Owner("session", "anonymous", 1, talk_id=talk)


@pytest.fixture
def clock() -> Clock:
    return Clock(100.0)


@pytest.fixture
def level(clock: Clock) -> TalkLevelCounters:
    return TalkLevelCounters(clock=clock)


def test_fallback_is_one_talk(level: TalkLevelCounters, clock: Clock) -> None:
    level.begin(of("a"))
    clock.now_s += 2
    level.end(of("a"))  # the first connection came to nothing
    level.begin(of("a"))
    clock.now_s += 1
    level.went_live("a")
    level.went_live("a")
    assert (level.asked, level.live) == (1, 1)
    assert (level.time_to_live_ms(50), level.time_to_live_ms(95)) == (3000.0, 3000.0)


def test_reconnect_within_a_minute_is_one_talk(level: TalkLevelCounters, clock: Clock) -> None:
    level.begin(of("a"))
    level.went_live("a")
    level.end(of("a"))
    clock.now_s += 59
    level.begin(of("a"))
    level.went_live("a")
    assert (level.asked, level.live) == (1, 1)
    level.end(of("a"))
    clock.now_s += 61
    level.begin(of("a"))
    level.end(of("a"))
    assert (level.asked, level.live) == (2, 1)


def test_hang_up_ends_the_talk(level: TalkLevelCounters) -> None:
    for _ in range(2):
        level.begin(of("a"))
        level.went_live("a")
        level.end(of("a"), ends_talk=True)
        assert level.goes_on("a") is False
    assert (level.asked, level.live) == (2, 2)


def test_hung_up_way_leaves_the_other(level: TalkLevelCounters) -> None:
    level.begin(of("a"))
    level.went_live("a")
    level.begin(of("a"))
    level.end(of("a"), ends_talk=True)
    assert level.goes_on("a")
    level.end(of("a"), ends_talk=True)
    assert not level.goes_on("a")


def test_dead_talks_count_as_asked(level: TalkLevelCounters) -> None:
    for name in "abc":
        level.begin(of(name))
        level.end(of(name))
    level.end(of("nobody"))
    assert (level.asked, level.live, level.time_to_live_ms(50)) == (3, 0, None)


def test_client_that_left_is_no_failure(level: TalkLevelCounters, clock: Clock) -> None:
    for name in ("left", "back", "failed"):
        level.begin(of(name))
        level.end(of(name), has_left=name != "failed")
    assert level.left == 0, "they may come back"
    clock.now_s += 59
    level.begin(of("back"))
    level.went_live("back")
    clock.now_s += 2
    assert (level.asked, level.live, level.left) == (2, 1, 1)
    level.end(of("back"), ends_talk=True, has_left=True)
    clock.now_s += 61
    assert level.left == 1, "it was live"


def test_cancelled_call_has_left(level: TalkLevelCounters, clock: Clock) -> None:
    errors = [asyncio.CancelledError(), Problem(400, "client_left", ""), Problem(502, "azure_refused", "")]
    for number, error in enumerate(errors):
        with pytest.raises(type(error)), level.connection(of(str(number))):
            raise error
    clock.now_s += 61
    assert (level.asked, level.left) == (1, 2)


def test_closed_before_it_was_live_goes_on(level: TalkLevelCounters) -> None:
    level.begin(of("a"))
    level.end(of("a"), ends_talk=True, has_left=True)  # a client that tries another way
    assert level.goes_on("a")
    level.begin(of("a"))
    level.end(of("a"), ends_talk=True)  # a block
    assert not level.goes_on("a")


def test_plan_keeps_a_lost_talk_alive(level: TalkLevelCounters, clock: Clock) -> None:
    level.begin(of("a"))
    level.end(of("a"))
    clock.now_s += 50
    level.seen("a")
    clock.now_s += 50
    assert level.goes_on("a")
    clock.now_s += 11
    assert not level.goes_on("a")
    owner = Owner("session", "anonymous", 1, talk_id="a")
    assert level.of(owner).talk_id != "a"
    assert level.of(replace(owner, talk_id="b")).talk_id == "b"


def test_percentiles_are_of_the_latest(clock: Clock) -> None:
    told: list[float] = []
    level = TalkLevelCounters((), lambda _, time_s: told.append(time_s), clock=clock)
    for number in range(1, 101):
        level.begin(of(str(number)))
        clock.now_s += number
        level.went_live(str(number))
    assert (level.time_to_live_ms(50), level.time_to_live_ms(95)) == (50_000.0, 95_000.0)
    assert len(told) == 100


def test_store_is_told_when_a_talk_is_over(clock: Clock) -> None:
    notes: list[tuple[str, float, bool]] = []

    def note(owner: Owner, over_in_s: float, begins: bool) -> None:
        notes.append((owner.talk_id, over_in_s, begins))

    level = TalkLevelCounters(note=note, longest_s=7200, clock=clock)
    level.begin(of("a"))
    level.went_live("a")
    level.begin(of("a"))
    level.end(of("a"))
    level.end(of("a"))
    level.begin(of("a"))
    level.end(of("a"), ends_talk=True)
    assert notes == [("a", 7260, True), ("a", 60, False), ("a", 7260, True), ("a", 0, False)]


def test_talk_of_another_replica_is_not_counted_again(level: TalkLevelCounters) -> None:
    level.seen("a", elsewhere=True)
    assert not level.greets("a")
    level.begin(of("a"))
    level.went_live("a")
    level.end(of("a"))
    assert (level.asked, level.live) == (0, 0)
    assert level.goes_on("a")
