"""The pool: whom an answer blames, when a resource is left out, and what a client is told."""

from collections.abc import Sequence

import pytest

from strategies.endpoint import parse_target
from strategies.errors import (
    CredentialError,
    MalformedError,
    MintError,
    MisconfiguredError,
    PermanentError,
    RateLimitedError,
    RejectedError,
    TimedOutError,
    TransientError,
)  # fmt: skip
from strategies.health import BreakerPolicy, BreakerState
from strategies.pool import Pool, PoolPermit
from strategies.resources import Quotas, Resource, Wanted
from tests.strategies.clock import Clock

POLICY = BreakerPolicy(failures=3, open_s=10, misconfigured_s=60, missing_s=600)
REFUSED = TransientError("refused")
BUSY = TransientError("503", status=503)
SOCKETS = ("voice_live", "openai_realtime")
ROUTES = ("ga", "unified", *SOCKETS)


def resource(name: str, *, priority: int = 1, quotas: Quotas | None = None) -> Resource:
    return Resource(
        name=name, target=parse_target(f"https://{name}.services.ai.azure.com"), model="gpt-realtime",
        model_family="gpt-realtime", transcription_model="transcribe", priority=priority, quotas=quotas or Quotas(),
    )  # fmt: skip


A, B, C = resource("a", priority=1), resource("b", priority=2), resource("c", priority=3)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pool(clock: Clock) -> Pool:
    return Pool([A, B], policy=POLICY, clock=clock)


def wanted(agent: str = "elena", session: str = "s") -> Wanted:
    return Wanted(session_id=session, agent_id=agent)


def order(pool: Pool, session: str = "s") -> str:
    return "".join(each.name for each in pool.order(wanted(session=session)))


def admitted(
    pool: Pool, of: Resource = A, route: str = "ga", *, agent: str = "elena", model: str = "", running: bool = False
) -> PoolPermit:
    permit = pool.admit(of, route, agent_id=agent, model=model, running=running)
    assert permit is not None, pool.why_not(of, route, agent_id=agent, model=model)
    return permit


def ask(pool: Pool, *errors: MintError | None, of: Resource = A, route: str = "ga", agent: str = "elena") -> None:
    """One call after another, each of which fails with its error, or succeeds."""
    for error in errors:
        permit = admitted(pool, of, route, agent=agent)
        if error is None:
            pool.answered(permit)
        else:
            pool.refused(permit, error)


def condition(pool: Pool, name: str = "a") -> str:
    return next(status.health.value for status in pool.snapshot() if status.name == name)


# --- the health of a resource


@pytest.mark.parametrize(
    ("routes", "outcomes", "expected"),
    [
        ("ga unified voice_live", [REFUSED, TimedOutError("silence"), REFUSED], "failing"),
        ("ga unified", [REFUSED, REFUSED], "good"),  # fewer than three
        ("ga unified", [None, None, REFUSED, REFUSED, None, REFUSED], "failing"),  # 3 of 6
        ("ga unified", [None, None, None, None, REFUSED, REFUSED, REFUSED], "good"),  # 3 of 7
        ("ga unified", [RejectedError("400", status=400), MisconfiguredError("401", status=401)], "good"),
        ("ga unified", [REFUSED, MalformedError("HTML"), REFUSED, MalformedError("HTML"), REFUSED], "failing"),
        ("ga unified", [CredentialError("no Entra")] * 8, "good"),
        ("ga unified", [PermanentError("404", status=404), PermanentError("404", status=404)], "good"),
        ("ga unified", [BUSY] * 8, "good"),  # one agent's
    ],
)
def test_faults_of_all_routes_count_together(
    pool: Pool, routes: str, outcomes: Sequence[MintError | None], expected: str
) -> None:
    names = routes.split()
    for number, outcome in enumerate(outcomes):
        if pool.admit(A, names[number % len(names)], agent_id="elena") is None:
            continue
        ask(pool, outcome, route=names[number % len(names)])
    assert condition(pool) == expected
    assert order(pool) == ("b" if expected == "failing" else "ab")


def test_old_faults_do_not_count(pool: Pool, clock: Clock) -> None:
    ask(pool, REFUSED, REFUSED)
    clock.now_s += 61
    ask(pool, REFUSED, route="unified")
    assert condition(pool) == "good"


@pytest.mark.parametrize(
    ("second", "expected"), [("elena", "good"), ("marcus", "failing"), ("elena with another model", "failing")]
)
def test_5xx_counts_once_two_had_it(pool: Pool, second: str, expected: str) -> None:
    agent, _, other = second.partition(" with ")
    ask(pool, BUSY, BUSY)
    permit = admitted(pool, agent=agent, model=other)
    pool.refused(permit, BUSY)
    assert condition(pool) == expected


def test_odd_agent_rests_alone(pool: Pool, clock: Clock) -> None:
    for route in ROUTES:
        ask(pool, BUSY, BUSY, BUSY, route=route, agent="odd")
        assert pool.admit(A, route, agent_id="odd") is None
        assert "503" in pool.why_not(A, route, agent_id="odd").why
        assert pool.breaker("a", route).state is BreakerState.CLOSED
        ask(pool, None, route=route, agent="elena")
    assert condition(pool) == "good"
    pool.set_enabled("b", False)
    assert pool.outlook(wanted("odd"), SOCKETS).state == "poor"
    assert pool.outlook(wanted("elena"), SOCKETS).state == "good"
    clock.now_s += 11
    probe = admitted(pool, agent="odd")
    assert pool.admit(A, "ga", agent_id="odd") is None, "one probe"
    pool.answered(probe)
    assert pool.admit(A, "ga", agent_id="odd") is not None


def test_status_shows_what_rests_for_an_agent(pool: Pool) -> None:
    ask(pool, BUSY, BUSY, BUSY, agent="odd")
    shown = pool.route_status("a", "ga")
    assert (shown.breaker, shown.retry_in_s, shown.attempts) == ("open", 10, 3)
    assert shown.why is not None
    assert shown.why.startswith("agent odd: ")
    ask(pool, None, agent="elena")
    assert pool.route_status("a", "ga").breaker == "closed", "the route works"


def test_nobodys_faults_during_a_stall(pool: Pool, clock: Clock) -> None:
    calls = [admitted(pool) for _ in range(8)]
    clock.now_s += 4
    pool.stalled(3.5)
    for call in calls:
        pool.refused(call, TimedOutError("silence"))
    assert condition(pool) == "good"
    assert pool.breaker("a", "ga").state is BreakerState.CLOSED
    clock.now_s += 2
    ask(pool, *[TimedOutError("silence")] * 3)
    assert condition(pool) == "failing", "faults after it count again"


def test_all_failing_are_all_asked(pool: Pool, clock: Clock) -> None:
    for each in (A, B):
        ask(pool, REFUSED, REFUSED, REFUSED, of=each)
    assert order(pool) == "ab"
    assert pool.outlook(wanted(), SOCKETS).state == "poor"
    assert pool.admit(A, "ga", agent_id="elena") is None
    clock.now_s += 2.5
    pool.ease(wanted(), ("ga",))
    ask(pool, None, of=A)
    assert condition(pool) == "recovering"
    assert order(pool) == "a", "b still fails"


def test_shortened_rest_leaves_outlook_poor(pool: Pool, clock: Clock) -> None:
    for each in (A, B):
        for route in SOCKETS:
            while (permit := pool.admit(each, route, agent_id="elena")) is not None:
                pool.refused(permit, BUSY)
    pool.ease(wanted(), SOCKETS)
    clock.now_s += 2.5
    outlook = pool.outlook(wanted(), SOCKETS)
    assert (outlook.state, outlook.retry_after_s) == ("poor", 7.5)
    assert pool.outlook(wanted("greta"), SOCKETS).state == "good", "another agent had no fault"
    ask(pool, None, route="voice_live")
    assert pool.outlook(wanted(), SOCKETS).state == "good", "a talk that is asked for early found it well again"


def test_probe_of_a_resource_is_one(pool: Pool, clock: Clock) -> None:
    ask(pool, REFUSED, REFUSED, REFUSED, route="unified")
    assert order(pool) == "b"
    clock.now_s += 10
    assert order(pool) == "ab"
    probe = admitted(pool)
    assert order(pool) == "b"
    pool.abandoned(probe)
    assert order(pool) == "ab", "a probe that nobody waited for is given back"
    ask(pool, TimedOutError("silence"))
    assert order(pool) == "b"


@pytest.mark.parametrize("answer", [RejectedError("400", status=400), PermanentError("404", status=404), None])
def test_any_answer_shows_that_it_lives(pool: Pool, clock: Clock, answer: MintError | None) -> None:
    ask(pool, REFUSED, REFUSED, REFUSED, route="unified")
    clock.now_s += 10
    ask(pool, answer)
    assert condition(pool) == "recovering"


def test_late_answers_are_ignored(pool: Pool, clock: Clock) -> None:
    late = [admitted(pool, route="unified") for _ in range(6)]
    ask(pool, REFUSED, REFUSED, REFUSED)
    pool.answered(late.pop())
    assert condition(pool) == "failing"
    clock.now_s += 10
    pool.answered(late.pop())
    assert condition(pool) == "failing"
    ask(pool, None)
    for each in late:
        pool.refused(each, TimedOutError("silence"))
    assert condition(pool) == "recovering"


def test_recovered_gets_talks_gradually(pool: Pool, clock: Clock) -> None:
    ask(pool, REFUSED, REFUSED, REFUSED)
    clock.now_s += 10
    ask(pool, None)
    firsts = []
    for _ in range(7):
        firsts.append(sum(order(pool, session=f"s{number}") == "ab" for number in range(200)))
        clock.now_s += 10
    assert firsts[0] == 0
    assert firsts == sorted(firsts)
    assert 40 < firsts[3] < 160
    assert firsts[6] == 200
    assert condition(pool) == "good"


# --- handshakes


def test_handshake_proves_nothing(pool: Pool, clock: Clock) -> None:
    """Each handshake succeeds, each answer fails."""
    for _ in range(3):
        permit = admitted(pool, route="voice_live")
        with pool.connecting(permit):
            clock.now_s += 0.3
        pool.failed(permit, TransientError("the answer failed"))
    assert pool.admit(A, "voice_live", agent_id="elena") is None
    assert condition(pool) == "failing"


def test_handshakes_probe_one_after_another(pool: Pool, clock: Clock) -> None:
    ask(pool, REFUSED, REFUSED, REFUSED, route="voice_live")
    clock.now_s += 10
    first = admitted(pool, route="voice_live")
    assert pool.admit(A, "voice_live", agent_id="elena") is None
    pool.connected(first)
    assert condition(pool) == "failing"
    second = admitted(pool, route="voice_live")
    pool.connected(second)
    pool.succeeded(first)
    assert condition(pool) == "recovering"
    assert pool.breaker("a", "voice_live").state is BreakerState.CLOSED


def test_dying_talks_count_now(pool: Pool, clock: Clock) -> None:
    talks = [admitted(pool, route="voice_live") for _ in range(4)]
    for talk in talks:
        pool.connected(talk)
        pool.succeeded(talk)
    clock.now_s += 1200
    pool.failed(talks[0], REFUSED)
    assert condition(pool) == "good", "one silent talk is no reason"
    for talk in talks[1:]:
        pool.failed(talk, REFUSED)
    assert condition(pool) == "failing"


# --- limits that Azure told


def test_429_of_tokens_rests_the_model(pool: Pool, clock: Clock) -> None:
    limit = RateLimitedError("429", retry_after_s=20, is_of_tokens=True, status=429)
    ask(pool, limit)
    assert pool.admit(A, "unified", agent_id="elena") is None
    assert pool.admit(A, "unified", agent_id="elena", model="another") is not None
    assert pool.admit(B, "unified", agent_id="elena") is not None
    assert pool.breaker("a", "ga").state is BreakerState.CLOSED
    clock.now_s += 20
    ask(pool, None)
    assert pool.admit(A, "unified", agent_id="elena") is not None


def test_agents_deployment_that_is_missing_rests_alone(pool: Pool, clock: Clock) -> None:
    missing = PermanentError("no deployment", status=404, code="DeploymentNotFound")
    pool.refused(admitted(pool, model="typo"), missing)
    assert pool.admit(A, "unified", agent_id="elena", model="typo") is None
    assert pool.admit(A, "ga", agent_id="elena") is not None
    clock.now_s += 15
    pool.refused(admitted(pool), missing)
    assert pool.admit(A, "ga", agent_id="elena") is None, "the resource's own"


def test_429_of_connections_rests_the_route(pool: Pool) -> None:
    ask(pool, RateLimitedError("429", retry_after_s=20, status=429))
    assert pool.admit(A, "ga", agent_id="elena") is None
    assert pool.admit(A, "unified", agent_id="elena") is not None
    assert condition(pool) == "good"


def test_shortest_wait_is_told(clock: Clock) -> None:
    pool = Pool([A, B, C], policy=POLICY, clock=clock)
    waits_s = {A: 40, B: 20, C: 30}
    for each, wait_s in waits_s.items():
        for route in SOCKETS:
            ask(pool, RateLimitedError("429", retry_after_s=wait_s, status=429), of=each, route=route)
    outlook = pool.outlook(wanted(), SOCKETS)
    assert (outlook.state, outlook.retry_after_s) == ("poor", 20)
    assert "b: 429" in outlook.why
    eu = Wanted(session_id="s", agent_id="elena", resources=("a", "c"))
    assert pool.outlook(eu, SOCKETS).retry_after_s == 30
    assert pool.outlook(Wanted(session_id="s", agent_id="x", zones=("mars",)), SOCKETS).retry_after_s is None
    clock.now_s += 20
    assert pool.outlook(wanted(), SOCKETS).state == "good", "nobody knows that it is down"


# --- known quotas


def test_quota_spills_over(clock: Clock) -> None:
    pool = Pool([resource("a", quotas=Quotas(voice_live_per_minute=2)), B], policy=POLICY, clock=clock)
    first = pool.resources[0]
    for _ in range(2):
        pool.undone(admitted(pool, first, "voice_live"))
    assert pool.admit(first, "voice_live", agent_id="elena") is None
    assert pool.why_not(first, "voice_live", agent_id="elena").retry_after_s == 60
    assert pool.admit(first, "openai_realtime", agent_id="elena") is not None, "another quota"
    assert pool.admit(B, "voice_live", agent_id="elena") is not None
    assert pool.snapshot()[0].load == {"voice_live": 1.0}


def test_used_quota_is_a_poor_outlook(clock: Clock) -> None:
    pool = Pool([resource("a", quotas=Quotas(voice_live_per_minute=2))], policy=POLICY, clock=clock)
    for _ in range(2):
        admitted(pool, pool.resources[0], "voice_live")
        clock.now_s += 10
    outlook = pool.outlook(wanted(), ("voice_live",))
    assert (outlook.state, outlook.retry_after_s) == ("poor", 40)


# --- rests that are shortened


@pytest.mark.parametrize(
    ("resources", "error", "rest_s"),
    [
        ((A,), PermanentError("404"), 15),
        ((A, B), PermanentError("404"), 15),
        ((A, B), REFUSED, 2),
        ((A,), REFUSED, 10),  # as it is: 10 s are less than 15
        ((A, B), MisconfiguredError("401"), 60),
        ((A, B), RateLimitedError("429", retry_after_s=50), 50),
    ],
)
def test_last_routes_rest_shortly(
    resources: tuple[Resource, ...], error: MintError, rest_s: float, clock: Clock
) -> None:
    pool = Pool(resources, policy=POLICY, clock=clock)
    for each in resources:
        while (permit := pool.admit(each, "ga", agent_id="elena")) is not None:
            pool.refused(permit, error)
        if isinstance(error, PermanentError):
            clock.now_s += 15
            ask(pool, error, of=each)  # the second rest would be 30 s
    pool.ease(wanted(), ("ga",))
    assert pool.breaker(resources[-1].name, "ga").retry_in_s == rest_s


# --- nothing else is left


def ways(*routes: str, of: Sequence[Resource] = (A, B)) -> list[tuple[Resource, str]]:
    return [(each, route) for each in of for route in routes]


def test_last_hope_asks_during_a_rest(pool: Pool) -> None:
    for each in (A, B):
        assert not pool.all_fail(wanted(), ways("ga"))
        ask(pool, REFUSED, REFUSED, REFUSED, of=each)
    assert pool.all_fail(wanted(), ways("ga"))
    assert pool.admit(A, "ga", agent_id="elena") is None
    for _ in range(3):
        probe = pool.admit(A, "ga", agent_id="elena", early=True)
        assert probe is not None
        assert pool.admit(A, "ga", agent_id="marcus") is None, "somebody with another way waits for the probe"
        beside = pool.admit(A, "ga", agent_id="marcus", early=True)
        assert beside is not None
        assert not beside.permit.probe
        pool.refused(beside, REFUSED)
        pool.refused(probe, REFUSED)
    assert pool.outlook(wanted(), ("ga",)).state == "poor"
    probe = pool.admit(B, "ga", agent_id="elena", early=True)
    assert probe is not None
    pool.answered(probe)
    assert not pool.all_fail(wanted(), ways("ga"))
    assert pool.admit(B, "ga", agent_id="elena") is not None


@pytest.mark.parametrize(
    "error",
    [
        PermanentError("404", status=404),
        MisconfiguredError("401", status=401),
        RateLimitedError("429", retry_after_s=30, status=429),
        RateLimitedError("429", retry_after_s=30, is_of_tokens=True, status=429),
    ],
)
def test_failing_one_is_asked_where_others_rest(error: MintError, pool: Pool) -> None:
    ask(pool, REFUSED, REFUSED, REFUSED)
    assert order(pool) == "b"
    ask(pool, error, of=B)
    assert order(pool) == "ba"
    assert not pool.left_out(wanted())
    assert pool.all_fail(wanted(), ways("ga"))
    assert pool.admit(A, "ga", agent_id="elena", early=True) is not None
    assert pool.outlook(wanted(), ("ga",)).state == "poor"


def test_failing_one_is_left_out_where_a_route_works(pool: Pool) -> None:
    ask(pool, REFUSED, REFUSED, REFUSED)
    ask(pool, None, of=B, route="voice_live")
    ask(pool, MisconfiguredError("401", status=401), of=B)
    assert order(pool) == "b"


def test_a_crowd_without_hope_is_bounded(pool: Pool, clock: Clock) -> None:
    for each in (A, B):
        ask(pool, REFUSED, REFUSED, REFUSED, of=each)
    permits = [pool.admit(A, "ga", agent_id="elena", early=True) for _ in range(30)]
    asked = [permit for permit in permits if permit is not None]
    assert len(asked) == 21, "the probe, and twenty beside it"
    clock.now_s += 5
    assert pool.admit(A, "ga", agent_id="elena", early=True) is not None
    pool.answered(asked[-1])
    assert not pool.all_fail(wanted(), ways("ga")), "any of their answers shows that it is back"


def test_last_hope_asks_for_an_odd_agent(pool: Pool) -> None:
    for each in (A, B):
        ask(pool, BUSY, BUSY, BUSY, of=each, agent="odd")
    assert pool.all_fail(wanted("odd"), ways("ga"))
    assert not pool.all_fail(wanted("elena"), ways("ga"))
    assert pool.admit(A, "ga", agent_id="odd") is None
    assert pool.admit(A, "ga", agent_id="odd", early=True) is not None


@pytest.mark.parametrize(
    "error",
    [
        RateLimitedError("429", retry_after_s=20, status=429),
        RateLimitedError("429", retry_after_s=20, is_of_tokens=True, status=429),
        MisconfiguredError("401", status=401),
        PermanentError("404", status=404),
    ],
)
def test_other_rests_hold_in_any_case(pool: Pool, error: MintError) -> None:
    ask(pool, error)
    assert pool.admit(A, "ga", agent_id="elena", early=True) is None


def test_lone_resource_rests(clock: Clock) -> None:
    pool = Pool([A], policy=POLICY, clock=clock)
    ask(pool, REFUSED, REFUSED, REFUSED)
    assert not pool.all_fail(wanted(), ways("ga", of=[A]))


def test_all_failing_are_ordered_by_probe(pool: Pool, clock: Clock) -> None:
    ask(pool, REFUSED, REFUSED, REFUSED, of=B)
    clock.now_s += 5
    ask(pool, REFUSED, REFUSED, REFUSED, of=A)
    clock.now_s += 5
    assert order(pool) == "ba", "b's probe is due; a is asked as well"


@pytest.mark.parametrize(("agent", "expected"), [("elena", "poor"), ("marcus", "good")])
def test_5xx_of_all_routes_make_it_poor(pool: Pool, agent: str, expected: str) -> None:
    for each in (A, B):
        ask(pool, BUSY, of=each, route="ga")
        ask(pool, BUSY, of=each, route="voice_live")
        assert pool.outlook(wanted("elena"), SOCKETS).state == "good"
        ask(pool, BUSY, of=each, route="openai_realtime")
    assert pool.outlook(wanted(agent), SOCKETS).state == expected
    assert pool.admit(A, "ga", agent_id="elena") is not None, "a route rests for faults of its own"


def test_success_ends_the_pairs_rest(pool: Pool) -> None:
    for each in (A, B):
        ask(pool, BUSY, BUSY, of=each, route="ga")
        ask(pool, BUSY, of=each, route="voice_live")
    assert pool.outlook(wanted(), SOCKETS).state == "poor"
    ask(pool, None, of=B, route="voice_live")
    assert pool.outlook(wanted(), SOCKETS).state == "good"
