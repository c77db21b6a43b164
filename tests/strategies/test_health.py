"""The circuit breaker: when it opens, when it admits a call, and what it remembers of the route."""

import asyncio
from dataclasses import asdict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from strategies.errors import (
    ApiVersionError,
    CredentialError,
    KeysDisabledError,
    MalformedError,
    MintError,
    MisconfiguredError,
    PermanentError,
    RateLimitedError,
    RejectedError,
    TimedOutError,
    TransientError,
)  # fmt: skip
from strategies.health import BreakerPolicy, BreakerState, Capability, CircuitBreaker, Permit
from tests.strategies.clock import Clock

POLICY = BreakerPolicy(failures=3, open_s=10, misconfigured_s=60, missing_s=600)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker("ga", POLICY, clock=clock)


def admitted(breaker: CircuitBreaker) -> Permit:
    permit = breaker.admit()
    assert permit is not None
    return permit


def state(breaker: CircuitBreaker) -> str:
    return breaker.state.value


def fail(breaker: CircuitBreaker, error: MintError) -> None:
    breaker.failed(admitted(breaker), error, 1.0)


@pytest.mark.parametrize(
    ("error", "open_s", "capability"),
    [
        (PermanentError("no route"), 15, Capability.MISSING),  # at first: see below
        (ApiVersionError("no version"), 600, Capability.MISSING),
        (MisconfiguredError("wrong key"), 60, Capability.MISCONFIGURED),
        (KeysDisabledError("keys off"), 60, Capability.MISCONFIGURED),
        (RateLimitedError("slow down", retry_after_s=7), 7, Capability.UNKNOWN),
        (RateLimitedError("slow down", retry_after_s=9999), 600, Capability.UNKNOWN),  # 10 min at most
        (RateLimitedError("slow down"), None, Capability.UNKNOWN),  # counts as a transient failure
        (TransientError("503"), None, Capability.UNKNOWN),
        (TimedOutError("silence"), None, Capability.UNKNOWN),
        (CredentialError("no Entra"), None, Capability.UNKNOWN),
        (RejectedError("400"), None, Capability.UNKNOWN),
        (MalformedError("HTML"), None, Capability.UNKNOWN),
    ],
)
def test_failure_opens_for_its_kinds_time(
    error: MintError, open_s: float | None, capability: Capability, breaker: CircuitBreaker, clock: Clock
) -> None:
    fail(breaker, error)
    assert breaker.capability is capability
    if open_s is None:
        assert state(breaker) == "closed"
        return
    assert state(breaker) == "open"
    clock.now_s += open_s - 0.001
    assert breaker.admit() is None
    clock.now_s += 0.002
    assert state(breaker) == "half_open"
    assert admitted(breaker).probe


def test_transient_failures_in_a_row_open(
    breaker: CircuitBreaker,
) -> None:
    for _ in range(2):
        fail(breaker, TransientError("503"))
    breaker.succeeded(admitted(breaker), 1.0)
    for _ in range(2):
        fail(breaker, TransientError("503"))
    assert state(breaker) == "closed"
    fail(breaker, TransientError("503"))
    assert state(breaker) == "open"
    assert "3 failures in a row, the last: 503" in breaker.why_open


@pytest.mark.parametrize("answered", [RejectedError("400"), MalformedError("HTML")])
def test_any_answer_resets_the_failure_count(breaker: CircuitBreaker, answered: MintError) -> None:
    for error in (TransientError("503"), TransientError("503"), answered, TransientError("503"), TransientError("503")):
        fail(breaker, error)
    assert state(breaker) == "closed"


def test_successful_probe_closes_breaker(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, PermanentError("no route"))
    clock.now_s += 601
    probe = admitted(breaker)
    assert probe.probe
    assert breaker.admit() is None
    assert "a probe is under way" in breaker.why_open
    breaker.succeeded(probe, 5.0)
    assert (breaker.state, breaker.capability) == (BreakerState.CLOSED, Capability.AVAILABLE)
    assert admitted(breaker) == admitted(breaker)


def test_failed_probe_opens_breaker_again(breaker: CircuitBreaker, clock: Clock) -> None:
    for _ in range(3):
        fail(breaker, TransientError("503"))
    clock.now_s += 11
    fail(breaker, TimedOutError("silence"))
    assert state(breaker) == "open"
    clock.now_s += 9
    assert breaker.admit() is None


def test_abandoned_probe_frees_its_place(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, PermanentError("no route"))
    clock.now_s += 601
    breaker.abandoned(admitted(breaker))
    assert admitted(breaker).probe


def test_late_failure_does_not_extend_open_time(breaker: CircuitBreaker, clock: Clock) -> None:
    late = admitted(breaker)
    fail(breaker, RateLimitedError("slow down", retry_after_s=5))
    breaker.failed(late, PermanentError("no route"), 1.0)
    clock.now_s += 5.1
    assert state(breaker) == "half_open"
    probe = admitted(breaker)
    breaker.abandoned(late)
    assert breaker.admit() is None, "another call's permit does not free the probe's place"
    breaker.succeeded(probe, 1.0)


@pytest.mark.parametrize("rest_s", [0, 61])
def test_late_success_changes_nothing(breaker: CircuitBreaker, clock: Clock, rest_s: float) -> None:
    late = admitted(breaker)
    fail(breaker, MisconfiguredError("wrong key"))
    clock.now_s += rest_s
    before = breaker.state
    breaker.succeeded(late, 1.0)
    assert breaker.state is before
    assert breaker.successes == 1


@pytest.mark.parametrize("rest_s", [15, 30, 60, 120, 240, 480, 600])
def test_missing_route_rests_ever_longer(breaker: CircuitBreaker, clock: Clock, rest_s: float) -> None:
    while True:
        fail(breaker, PermanentError("no route"))
        if breaker.retry_in_s == rest_s:
            break
        assert breaker.retry_in_s < rest_s
        clock.now_s += breaker.retry_in_s
    clock.now_s += rest_s
    breaker.succeeded(admitted(breaker), 1.0)
    fail(breaker, PermanentError("no route"))
    assert breaker.retry_in_s == 15, "a success begins anew"


@pytest.mark.parametrize(
    ("error", "eased_s"),
    [
        (ApiVersionError("no version"), 15),
        (PermanentError("404"), 15),
        (MisconfiguredError("401"), 60),
        (RateLimitedError("429", retry_after_s=100), 100),
    ],
)
def test_rest_is_shortened(error: MintError, eased_s: float, breaker: CircuitBreaker) -> None:
    fail(breaker, error)
    breaker.rest_at_most(15)
    assert breaker.retry_in_s == eased_s


@pytest.mark.parametrize(("first_s", "second_s", "rest_s"), [(5, 60, 60), (60, 5, 60), (60, 60, 60), (5, None, 5)])
def test_latest_end_of_all_waits_counts(
    first_s: float, second_s: float | None, rest_s: float, breaker: CircuitBreaker
) -> None:
    late = admitted(breaker)
    fail(breaker, RateLimitedError("429", retry_after_s=first_s))
    breaker.failed(late, RateLimitedError("429", retry_after_s=second_s), 1.0)
    assert breaker.retry_in_s == rest_s


def test_lost_probe_loses_its_lease(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, PermanentError("no route"))
    clock.now_s += 16
    lost = admitted(breaker)
    clock.now_s += 59
    assert breaker.admit() is None
    clock.now_s += 2
    probe = admitted(breaker)
    breaker.succeeded(lost, 1.0)
    assert state(breaker) == "half_open", "its answer is out of date"
    breaker.succeeded(probe, 1.0)
    assert state(breaker) == "closed"


def test_settle_counts_a_success_and_its_time(breaker: CircuitBreaker, clock: Clock) -> None:
    with breaker.settle(admitted(breaker)):
        clock.now_s += 0.25
    assert (breaker.attempts, breaker.successes) == (1, 1)
    assert breaker.snapshot().latency_ms.p50 == 250.0


def test_settle_counts_a_mint_error_and_raises_it(breaker: CircuitBreaker) -> None:
    error = PermanentError("no route", status=404)
    with pytest.raises(PermanentError) as raised, breaker.settle(admitted(breaker)):
        raise error
    assert raised.value is error
    shown = breaker.snapshot()
    assert (shown.breaker, shown.last_status, shown.attempts) == ("open", 404, 1)


@pytest.mark.parametrize("error", [asyncio.CancelledError(), RuntimeError("bug"), KeyboardInterrupt()])
def test_settle_gives_a_probe_back_on_other_errors(error: BaseException, breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, PermanentError("no route"))
    clock.now_s += 601
    with pytest.raises(type(error)), breaker.settle(admitted(breaker)):
        raise error
    assert breaker.attempts == 1
    assert admitted(breaker).probe


def test_snapshot_is_what_status_shows(breaker: CircuitBreaker, clock: Clock) -> None:
    for latency_ms in range(1, 101):
        breaker.succeeded(admitted(breaker), float(latency_ms))
    clock.now_s += 2
    breaker.failed(admitted(breaker), MisconfiguredError("wrong key", status=401), 500.0)
    clock.now_s += 10
    assert asdict(breaker.snapshot()) == {
        "name": "ga",
        "breaker": "open",
        "capability": "misconfigured",
        "last_outcome": "misconfigured",
        "last_status": 401,
        "last_ago_s": 10.0,
        "retry_in_s": 50.0,  # 60 - 10
        "why": "wrong key; asked again in 50 s",
        "attempts": 101,
        "successes": 100,
        # Of 101 samples, sorted: the 51st is 51, the 96th is 96, the 100th is 100.
        "latency_ms": {"p50": 51.0, "p95": 96.0, "p99": 100.0},
    }


class BreakerMachine(RuleBasedStateMachine):
    """However calls interleave: never two probes at once, no call while open, never open for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.breaker = CircuitBreaker("ga", POLICY, clock=self.clock)
        self.out: list[Permit] = []

    @rule()
    def admit(self) -> None:
        before = self.breaker.state
        permit = self.breaker.admit()
        if before is BreakerState.CLOSED:
            assert permit is not None
            assert not permit.probe
        if before is BreakerState.OPEN:
            assert permit is None
        if permit is not None:
            assert permit.probe == (before is BreakerState.HALF_OPEN)
            self.out.append(permit)

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        permit = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        outcome = data.draw(
            st.sampled_from([
                "succeeded", "abandoned", TransientError("503"), PermanentError("404"), MisconfiguredError("401"),
                RateLimitedError("429", retry_after_s=3), MalformedError("HTML"),
            ])
        )  # fmt: skip
        if outcome == "succeeded":
            before, is_current = state(self.breaker), self.breaker.is_current(permit)
            self.breaker.succeeded(permit, 1.0)
            assert state(self.breaker) == ("closed" if is_current else before)
        elif outcome == "abandoned":
            self.breaker.abandoned(permit)
        else:
            assert isinstance(outcome, MintError)
            self.breaker.failed(permit, outcome, 1.0)

    @rule(seconds=st.floats(0, 700))
    def time_passes(self, seconds: float) -> None:
        self.clock.now_s += seconds

    @invariant()
    def at_most_one_current_probe(self) -> None:
        current = [permit for permit in self.out if permit.probe and permit.generation == self.breaker._generation]
        assert len(current) <= 1
        assert current or not self.breaker.probing

    @invariant()
    def it_does_not_stay_open(self) -> None:
        retry_in_s = self.breaker.snapshot().retry_in_s
        assert retry_in_s is None or 0 <= retry_in_s <= POLICY.missing_s

    def teardown(self) -> None:
        """Once all calls have ended and the longest time has passed, it admits."""
        for permit in self.out:
            self.breaker.abandoned(permit)
        self.clock.now_s += POLICY.missing_s + 1
        assert self.breaker.would_admit


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None, derandomize=True)
