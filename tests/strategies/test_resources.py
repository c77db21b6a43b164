"""The order of resources: residency, priority, and a weighted share of the sessions."""

import random
from collections import Counter

import pytest

from strategies.endpoint import parse_target
from strategies.pool import Pool
from strategies.resources import Resource, Wanted, by_preference


def resource(name: str, *, priority: int = 1, weight: int = 1, zone: str = "") -> Resource:
    return Resource(
        name=name, target=parse_target(f"https://{name}.services.ai.azure.com"), model="gpt-realtime",
        model_family="gpt-realtime", transcription_model="transcribe", priority=priority, weight=weight, zone=zone,
    )  # fmt: skip


def wanted(session: str = "s", zones: tuple[str, ...] = (), resources: tuple[str, ...] = ()) -> Wanted:
    return Wanted(session_id=session, agent_id="elena", zones=zones, resources=resources)


def names(resources: tuple[Resource, ...]) -> list[str]:
    return [each.name for each in resources]


SESSIONS = [f"session-{number}" for number in range(2000)]


@pytest.mark.parametrize(
    ("zones", "patterns", "expected"),
    [
        ((), (), ["eus2", "swe", "fra"]),
        (("eu",), (), ["swe", "fra"]),
        (("eu", "us"), (), ["eus2", "swe", "fra"]),
        ((), ("swe",), ["swe"]),
        ((), ("s*", "f??"), ["swe", "fra"]),
        (("us",), ("swe",), []),  # both hold
        (("mars",), (), []),
        ((), ("SWE",), []),
    ],
)
def test_residency(zones: tuple[str, ...], patterns: tuple[str, ...], expected: list[str]) -> None:
    pool = Pool([resource("eus2", zone="us"), resource("swe", zone="eu"), resource("fra", zone="eu")])
    assert names(pool.allowed(wanted(zones=zones, resources=patterns))) == expected


def test_lower_priority_comes_first() -> None:
    some = [resource("a", priority=2), resource("b", priority=1), resource("c", priority=3)]
    assert all(names(by_preference(some, session)) == ["b", "a", "c"] for session in SESSIONS[:50])


def test_weight_0_comes_last_of_all() -> None:
    some = [resource("spare", weight=0), resource("b", priority=9), resource("c", priority=2)]
    assert all(names(by_preference(some, session)) == ["c", "b", "spare"] for session in SESSIONS[:50])


def test_order_of_the_file_changes_nothing() -> None:
    some = [resource(name, weight=weight) for name, weight in (("a", 1), ("b", 3), ("c", 0), ("d", 0), ("e", 2))]
    shuffled = random.Random(1)
    for session in SESSIONS[:50]:
        expected = by_preference(some, session)
        shuffled.shuffle(some)
        assert by_preference(some, session) == expected


def test_shares_follow_the_weights() -> None:
    some = [resource("a", weight=1), resource("b", weight=3), resource("c", weight=4)]
    first = Counter(by_preference(some, session)[0].name for session in SESSIONS)
    # 2,000 sessions: 250, 750 and 1,000, each with a standard deviation of at most 22
    assert first["a"] == pytest.approx(250, abs=90)
    assert first["b"] == pytest.approx(750, abs=90)
    assert first["c"] == pytest.approx(1000, abs=90)


def test_only_sessions_of_a_lost_resource_move() -> None:
    some = [resource("a"), resource("b", weight=2), resource("c")]
    moved_to = Counter[str]()
    for session in SESSIONS:
        before, after = by_preference(some, session), by_preference([some[0], some[2]], session)
        if before[0].name == "b":
            moved_to[after[0].name] += 1
        else:
            assert after[0] == before[0]
    assert min(moved_to["a"], moved_to["c"]) > 400, "they are spread over the whole tier"


def test_disabled_resource_is_left_out() -> None:
    pool = Pool([resource("a"), resource("b")])
    pool.set_enabled("a", False)
    assert names(pool.order(wanted())) == ["b"]
    assert names(pool.allowed(wanted())) == ["a", "b"]
    pool.set_enabled("a", True)
    assert sorted(names(pool.order(wanted()))) == ["a", "b"]
