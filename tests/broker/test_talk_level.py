"""The service level of talks: each counts once, however often it was connected."""

import pytest

from token_broker.sessions.talk_level import TalkLevelCounters


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def level(clock: Clock) -> TalkLevelCounters:
    return TalkLevelCounters(clock=clock)


def test_fallback_is_one_talk(level: TalkLevelCounters, clock: Clock) -> None:
    level.begin("a")
    clock.now_s += 2
    level.end("a")  # the first connection came to nothing
    level.begin("a")
    clock.now_s += 1
    level.went_live("a")
    level.went_live("a")
    assert (level.asked, level.live) == (1, 1)
    assert (level.time_to_live_ms(50), level.time_to_live_ms(95)) == (3000.0, 3000.0)


def test_reconnect_within_a_minute_is_one_talk(level: TalkLevelCounters, clock: Clock) -> None:
    level.begin("a")
    level.went_live("a")
    level.end("a")
    clock.now_s += 59
    level.begin("a")
    level.went_live("a")
    assert (level.asked, level.live) == (1, 1)
    level.end("a")
    clock.now_s += 61
    level.begin("a")
    assert (level.asked, level.live) == (2, 1)


def test_hang_up_ends_the_talk(level: TalkLevelCounters) -> None:
    for _ in range(2):
        level.begin("a")
        level.went_live("a")
        level.end("a", hung_up=True)
    assert (level.asked, level.live) == (2, 2)


def test_dead_talks_count_as_asked(level: TalkLevelCounters) -> None:
    for name in "abc":
        level.begin(name)
        level.end(name, hung_up=True)
    level.end("nobody")
    assert (level.asked, level.live, level.time_to_live_ms(50)) == (3, 0, None)


def test_percentiles_are_of_the_latest(clock: Clock) -> None:
    told: list[float] = []
    level = TalkLevelCounters(told.append, clock=clock)
    for number in range(1, 101):
        level.begin(str(number))
        clock.now_s += number
        level.went_live(str(number))
    assert (level.time_to_live_ms(50), level.time_to_live_ms(95)) == (50_000.0, 95_000.0)
    assert len(told) == 100
