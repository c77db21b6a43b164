"""The health of one resource as a whole: what the answers of all its routes say together.

Connection failures and time-outs count wherever they occur. A 5xx counts once two agents or two models had one, since
a single agent's settings may be what Azure stumbles over. Every answer below 500 shows that the resource lives.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from strategies.errors import CredentialError, MintError, RateLimitedError, TransientError
from strategies.health import BreakerPolicy, BreakerState, CircuitBreaker, Condition, Permit

__all__ = ["Fault", "ResourceHealth", "fault_of"]

# A resource fails where this share of the last calls did, of at least `BreakerPolicy.failures` faults.
_FAILING_SHARE = 0.5
_COUNTED_S = 60.0
_COUNTED = 64
_SLOW_IN_A_ROW = 3
# How long a resource that has recovered takes to get all of its new talks again.
_RECOVERY_S = 60.0
_SERVER_ERROR = 500


class Fault(StrEnum):
    """What a failed call blames."""

    RESOURCE = "resource"  # it could not be reached, or did not answer in time
    SERVER = "server"  # it answered with 5xx: the resource, or what this agent wants of it
    NOBODY = "nobody"  # Entra, or ourselves
    NONE = "none"  # the resource lives: it answered below 500


class CountedCall(NamedTuple):
    """One counted call. `agent` and `model` are said where it was answered with 5xx."""

    at_s: float
    is_fault: bool
    agent: str = ""
    model: str = ""
    is_server: bool = False


@dataclass(frozen=True, slots=True)
class Counted:
    """What the counted calls say: how many failed, of how many, and whether one agent and model alone had 5xx."""

    faults: int
    calls: int
    is_of_one: bool


def fault_of(error: MintError) -> Fault:
    """What `error` blames."""
    match error:
        case CredentialError():
            return Fault.NOBODY
        case RateLimitedError():
            return Fault.NONE
        case TransientError(status=None):
            return Fault.RESOURCE
        case TransientError(status=int() as status) if status >= _SERVER_ERROR:
            return Fault.SERVER
        case _:
            return Fault.NOBODY if type(error) is MintError else Fault.NONE


def count(outcomes: deque[CountedCall], since_s: float) -> Counted:
    """The counted calls since then. Those with 5xx are left out while one agent and one model alone had them."""
    recent = [outcome for outcome in outcomes if outcome.at_s >= since_s]
    server = [outcome for outcome in recent if outcome.is_server]
    is_of_one = len({outcome.agent for outcome in server}) <= 1 and len({outcome.model for outcome in server}) <= 1
    counted = [outcome for outcome in recent if not (is_of_one and outcome.is_server)]
    return Counted(sum(outcome.is_fault for outcome in counted), len(counted), is_of_one)


class ResourceHealth:
    """The health of one resource: whether it fails, and whether it is slow."""

    def __init__(self, name: str, policy: BreakerPolicy, *, clock: Callable[[], float]) -> None:
        self._policy = policy
        self._clock = clock
        self._outcomes: deque[CountedCall] = deque(maxlen=_COUNTED)
        self._recovered_at_s: float | None = None
        # Both are opened by what this class counts, so that they need one failure more, or three.
        self.failing = CircuitBreaker(name, BreakerPolicy(failures=1, open_s=policy.open_s), clock=clock)
        self.slow = CircuitBreaker(name, BreakerPolicy(failures=_SLOW_IN_A_ROW, open_s=policy.open_s), clock=clock)

    @property
    def condition(self) -> Condition:
        """The present condition."""
        if self.failing.state is not BreakerState.CLOSED:
            return Condition.FAILING
        if self.slow.state is not BreakerState.CLOSED:
            return Condition.SLOW
        return Condition.GOOD if self.recovered_share >= 1 else Condition.RECOVERING

    @property
    def recovered_share(self) -> float:
        """The share of its new talks that the resource gets: 1, or less after it has failed."""
        if self._recovered_at_s is None:
            return 1.0
        share = (self._clock() - self._recovered_at_s) / _RECOVERY_S
        if share >= 1:
            self._recovered_at_s = None
        return min(1.0, share)

    def lives(self, permit: Permit | None) -> None:
        """A call was answered, well or with an error below 500. `permit` is `failing`'s; None where it gave none."""
        if permit is not None and not self.failing.is_current(permit):
            return  # it began before the resource failed or recovered, and says nothing of the time since
        self._outcomes.append(CountedCall(self._clock(), is_fault=False))
        if permit is not None and not self.failing.is_closed:  # the probe, or one that was asked beside it
            self.failing.proved(permit)
            self._outcomes.clear()
            self._recovered_at_s = self._clock()

    def has_failed(self, fault: Fault, error: MintError, permit: Permit | None, agent: str, model: str) -> bool:
        """A call failed for `fault`, RESOURCE or SERVER. Returns whether `agent` alone is to be blamed for it."""
        is_server = fault is Fault.SERVER
        if permit is not None and not self.failing.is_current(permit):
            return is_server and agent != ""
        now_s = self._clock()
        self._outcomes.append(CountedCall(now_s, is_fault=True, agent=agent, model=model, is_server=is_server))
        counted = count(self._outcomes, now_s - _COUNTED_S)
        if is_server and counted.is_of_one and agent:
            return True
        is_failing = counted.faults >= self._policy.failures and counted.faults >= counted.calls * _FAILING_SHARE
        if permit is not None and (permit.probe or (is_failing and self.failing.state is BreakerState.CLOSED)):
            self.failing.failed(permit, error, None)
        return False
