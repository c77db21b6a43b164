"""The gate: when it rests, whom it admits, and what it remembers."""

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
from strategies.health import Admission, Breaker, Capability, Gate, GatePolicy

POLICY = GatePolicy(failures=3, open_s=10, misconfigured_s=60, missing_s=600)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def gate(clock: Clock) -> Gate:
    return Gate("ga", POLICY, clock=clock)


def admitted(gate: Gate) -> Admission:
    admission = gate.admit()
    assert admission is not None
    return admission


def state(gate: Gate) -> str:
    return gate.breaker.value


def fail(gate: Gate, error: MintError) -> None:
    gate.failed(admitted(gate), error, 1.0)


@pytest.mark.parametrize(
    ("error", "rest_s", "capability"),
    [
        (PermanentError("no route"), 600, Capability.MISSING),
        (ApiVersionError("no version"), 600, Capability.MISSING),
        (MisconfiguredError("wrong key"), 60, Capability.MISCONFIGURED),
        (KeysDisabledError("keys off"), 60, Capability.MISCONFIGURED),
        (RateLimitedError("slow down", retry_after_s=7), 7, Capability.UNKNOWN),
        (RateLimitedError("slow down", retry_after_s=9999), 300, Capability.UNKNOWN),  # no longer than 5 min at once
        (RateLimitedError("slow down"), None, Capability.UNKNOWN),  # counts as a failure in passing
        (TransientError("503"), None, Capability.UNKNOWN),
        (TimedOutError("silence"), None, Capability.UNKNOWN),
        (CredentialError("no Entra"), None, Capability.UNKNOWN),
        (RejectedError("400"), None, Capability.UNKNOWN),
        (MalformedError("HTML"), None, Capability.UNKNOWN),
    ],
)
def test_one_failure_rests_as_long_as_its_kind_says(
    error: MintError, rest_s: float | None, capability: Capability, gate: Gate, clock: Clock
) -> None:
    fail(gate, error)
    assert gate.capability is capability
    if rest_s is None:
        assert state(gate) == "closed"
        return
    assert state(gate) == "open"
    clock.now_s += rest_s - 0.001
    assert gate.admit() is None
    clock.now_s += 0.002
    assert state(gate) == "half_open"
    assert admitted(gate).probe


def test_transient_failures_in_a_row_open_it_and_a_success_between_starts_the_count_anew(gate: Gate) -> None:
    for _ in range(2):
        fail(gate, TransientError("503"))
    gate.succeeded(admitted(gate), 1.0)
    for _ in range(2):
        fail(gate, TransientError("503"))
    assert state(gate) == "closed"
    fail(gate, TransientError("503"))
    assert state(gate) == "open"
    assert "3 failures in a row, the last: 503" in gate.why_resting


@pytest.mark.parametrize("answered", [RejectedError("400"), MalformedError("HTML")])
def test_an_answer_of_whatever_kind_starts_the_count_anew(gate: Gate, answered: MintError) -> None:
    for error in (TransientError("503"), TransientError("503"), answered, TransientError("503"), TransientError("503")):
        fail(gate, error)
    assert state(gate) == "closed"


def test_half_open_admits_one_and_its_success_opens_the_gate_to_all(gate: Gate, clock: Clock) -> None:
    fail(gate, PermanentError("no route"))
    clock.now_s += 601
    probe = admitted(gate)
    assert probe.probe
    assert gate.admit() is None
    assert "a probe is under way" in gate.why_resting
    gate.succeeded(probe, 5.0)
    assert (gate.breaker, gate.capability) == (Breaker.CLOSED, Capability.AVAILABLE)
    assert admitted(gate) == admitted(gate)


def test_a_failed_probe_opens_it_again_after_one_failure(gate: Gate, clock: Clock) -> None:
    for _ in range(3):
        fail(gate, TransientError("503"))
    clock.now_s += 11
    fail(gate, TimedOutError("silence"))
    assert state(gate) == "open"
    clock.now_s += 9
    assert gate.admit() is None


def test_an_abandoned_probe_frees_its_place(gate: Gate, clock: Clock) -> None:
    fail(gate, PermanentError("no route"))
    clock.now_s += 601
    gate.abandoned(admitted(gate))
    assert admitted(gate).probe


def test_late_news_from_before_the_rest_does_not_lengthen_it(gate: Gate, clock: Clock) -> None:
    late = admitted(gate)
    fail(gate, RateLimitedError("slow down", retry_after_s=5))
    gate.failed(late, PermanentError("no route"), 1.0)
    clock.now_s += 5.1
    assert state(gate) == "half_open"
    probe = admitted(gate)
    gate.abandoned(late)
    assert gate.admit() is None, "somebody else's admission does not free the probe's place"
    gate.succeeded(probe, 1.0)


def test_late_good_news_ends_the_rest(gate: Gate) -> None:
    late = admitted(gate)
    fail(gate, MisconfiguredError("wrong key"))
    gate.succeeded(late, 1.0)
    assert (gate.breaker, gate.capability) == (Breaker.CLOSED, Capability.AVAILABLE)


def test_the_snapshot_is_what_status_shows(gate: Gate, clock: Clock) -> None:
    for latency_ms in range(1, 101):
        gate.succeeded(admitted(gate), float(latency_ms))
    clock.now_s += 2
    gate.failed(admitted(gate), MisconfiguredError("wrong key", status=401), 500.0)
    clock.now_s += 10
    assert gate.snapshot() == {
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


class GateMachine(RuleBasedStateMachine):
    """However calls interleave: never two probes at once, never admitted during a rest, never resting for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.gate = Gate("ga", POLICY, clock=self.clock)
        self.out: list[Admission] = []

    @rule()
    def admit(self) -> None:
        resting = self.gate.breaker
        admission = self.gate.admit()
        if resting is Breaker.CLOSED:
            assert admission is not None
            assert not admission.probe
        if resting is Breaker.OPEN:
            assert admission is None
        if admission is not None:
            assert admission.probe == (resting is Breaker.HALF_OPEN)
            self.out.append(admission)

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        admission = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        outcome = data.draw(
            st.sampled_from([
                "succeeded", "abandoned", TransientError("503"), PermanentError("404"), MisconfiguredError("401"),
                RateLimitedError("429", retry_after_s=3), MalformedError("HTML"),
            ])
        )  # fmt: skip
        if outcome == "succeeded":
            self.gate.succeeded(admission, 1.0)
            assert state(self.gate) == "closed"
        elif outcome == "abandoned":
            self.gate.abandoned(admission)
        else:
            assert isinstance(outcome, MintError)
            self.gate.failed(admission, outcome, 1.0)

    @rule(seconds=st.floats(0, 700))
    def time_passes(self, seconds: float) -> None:
        self.clock.now_s += seconds

    @invariant()
    def at_most_one_current_probe(self) -> None:
        current = [
            admission for admission in self.out if admission.probe and admission.generation == self.gate._generation
        ]
        assert len(current) <= 1
        assert self.gate.probing == bool(current)

    @invariant()
    def a_rest_ends(self) -> None:
        retry_in_s = self.gate.snapshot()["retry_in_s"]
        assert retry_in_s is None or 0 <= retry_in_s <= POLICY.missing_s

    def teardown(self) -> None:
        """Once all have settled and the longest rest is over, it admits."""
        for admission in self.out:
            self.gate.abandoned(admission)
        self.clock.now_s += POLICY.missing_s + 1
        assert self.gate.would_admit


TestGateMachine = GateMachine.TestCase
TestGateMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None, derandomize=True)
