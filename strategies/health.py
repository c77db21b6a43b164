"""Circuit breaker per route, which also remembers what Azure has shown of the route.

A breaker is closed while calls succeed. Several transient failures in a row open it. An answer that makes a repetition
pointless opens it at once: no such route, a wrong credential, a `Retry-After`. When its time has passed, the breaker is
half-open: it admits one probe and refuses everybody else until the probe has ended, or its lease has.

A 404 is not final: a deployment may have been made a moment ago. A missing route is asked again after 15 s, then after
twice as long each time.

The strategies have breakers, and so have the upstreams of the WebSocket proxy.
"""

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum

from strategies.errors import (
    ApiVersionError,
    MintError,
    MisconfiguredError,
    PermanentError,
    RateLimitedError,
    TransientError,
)

__all__ = [
    "BreakerPolicy",
    "BreakerState",
    "BreakerStatus",
    "Capability",
    "CircuitBreaker",
    "Condition",
    "Latencies",
    "Permit",
    "percentiles",
]

_LATENCIES_KEPT = 512
# A `Retry-After` of hours, sent by mistake, would take the route out of use until the next restart.
_MAX_RATE_LIMIT_OPEN_S = 600
_FIRST_MISSING_S = 15
# Longer than any call may take. A probe that has not ended by then is lost, and another call may be the probe.
_PROBE_LEASE_S = 60
# So many more calls within so long are let through early while a probe runs: where no other way is left, each request
# is worth a try, but not all of a crowd at once.
_BESIDE_PROBE = 20
_BESIDE_PROBE_S = 5


class BreakerState(StrEnum):
    """Whether a breaker admits every call, none, or one probe."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Condition(StrEnum):
    """A resource's condition, as `/status` shows it."""

    GOOD = "good"
    FAILING = "failing"
    SLOW = "slow"
    RECOVERING = "recovering"


class Capability(StrEnum):
    """What Azure last showed of a route. It stays while the breaker opens and closes."""

    UNKNOWN = "unknown"
    AVAILABLE = "available"
    MISSING = "missing"
    MISCONFIGURED = "misconfigured"


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """How many transient failures in a row open a breaker, and how many seconds it stays open.

    `missing_s` is the longest rest of a route that answers 404.
    """

    failures: int = 5
    open_s: float = 15
    misconfigured_s: float = 60
    missing_s: float = 600


@dataclass(frozen=True, slots=True)
class Permit:
    """Permission for one call. `CircuitBreaker.settle` hands it back, whatever the call does."""

    generation: int
    probe: bool


@dataclass(frozen=True, slots=True)
class Latencies:
    """Percentiles of the last 512 calls, in milliseconds; None while there was none."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


@dataclass(frozen=True, slots=True)
class BreakerStatus:
    """A breaker as `/status` shows it; `retry_in_s` are the seconds until its next probe, None while it is closed."""

    name: str
    breaker: BreakerState
    capability: Capability
    last_outcome: str | None
    last_status: int | None
    last_ago_s: float | None
    retry_in_s: float | None
    why: str | None
    attempts: int
    successes: int
    latency_ms: Latencies


class CircuitBreaker:
    """Breaker and capability of one route. Single-threaded; `clock` is monotonic, in seconds."""

    def __init__(self, name: str, policy: BreakerPolicy, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self._policy = policy
        self._clock = clock
        # Counts how often the breaker has opened or closed: a permit of an older generation is out of date.
        self._generation = 0
        self._failures = 0
        self._open_until_s: float | None = None
        self._opened_at_s = 0.0
        self._rest_s = 0.0  # as it was, before anybody shortened it
        self._is_binding = False  # Azure named the wait, or refused the credential: nobody may ask earlier
        self._is_of_faults = False  # calls failed: what opened the breaker may be over at any time
        self._missing = 0  # 404s in a row
        self._lease_until_s: float | None = None
        self._beside_s: deque[float] = deque(maxlen=_BESIDE_PROBE)  # when calls were let through beside a probe
        self._why = ""
        self.capability = Capability.UNKNOWN
        self.attempts = 0
        self.successes = 0
        self._last: tuple[str, int | None, float] | None = None
        self._latencies_ms: deque[float] = deque(maxlen=_LATENCIES_KEPT)

    @property
    def state(self) -> BreakerState:
        """The present state; time alone turns open into half-open."""
        if self._open_until_s is None:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if self.probing or self._clock() >= self._open_until_s else BreakerState.OPEN

    @property
    def is_closed(self) -> bool:
        """Whether every call is admitted."""
        return self._open_until_s is None

    @property
    def probing(self) -> bool:
        """Whether a probe is running."""
        return self._lease_until_s is not None and self._clock() < self._lease_until_s

    @property
    def would_admit(self) -> bool:
        """Whether `admit` would give a permit now."""
        return self._open_until_s is None or (self._clock() >= self._open_until_s and not self.probing)

    @property
    def would_admit_early(self) -> bool:
        """Whether `admit` would give a permit now, or earlier than its time because only faults opened the breaker."""
        return self.would_admit or (self._is_of_faults and (not self.probing or self._has_room_beside))

    @property
    def last_status(self) -> int | None:
        """The HTTP status of the last failure; None after a success, or where there was no answer."""
        return self._last[1] if self._last else None

    @property
    def retry_in_s(self) -> float:
        """Seconds until a call may be admitted; 0 while the breaker is closed or waits for a probe."""
        return 0.0 if self._open_until_s is None else max(0.0, self._open_until_s - self._clock())

    def admit(self, *, early: bool = False) -> Permit | None:
        """A permit for one call, or None; then `why_open` tells the reason.

        `early` probes before its time has come, and asks beside a probe that runs.
        """
        if self._open_until_s is None:
            return Permit(self._generation, probe=False)
        if early and self.probing and self._has_room_beside:
            self._beside_s.append(self._clock())
            return Permit(self._generation, probe=False)
        if self.probing or not (early or self._clock() >= self._open_until_s):
            return None
        if self._lease_until_s is not None:
            self._generation += 1  # whatever the lost probe still comes to is out of date
        self._lease_until_s = self._clock() + _PROBE_LEASE_S
        return Permit(self._generation, probe=True)

    @property
    def _has_room_beside(self) -> bool:
        return len(self._beside_s) < _BESIDE_PROBE or self._clock() - self._beside_s[0] >= _BESIDE_PROBE_S

    def is_current(self, permit: Permit) -> bool:
        """Whether the breaker has neither opened nor closed since it gave `permit`."""
        return permit.generation == self._generation

    def permit_for_news(self) -> Permit:
        """The permit of what is learnt just now without having asked, as when a running talk breaks."""
        return Permit(self._generation, probe=False)

    def seems_down_s(self, at_most_s: float) -> float:
        """Seconds for which nobody should count on the route, although a shortened rest may let calls try it.

        That is its rest before it was shortened, but no more than `at_most_s` since it began.
        """
        if self._open_until_s is None:
            return 0.0
        return max(self.retry_in_s, self._opened_at_s + min(self._rest_s, at_most_s) - self._clock())

    def rest_at_most(self, for_s: float) -> None:
        """Ends the open time `for_s` after it began, unless Azure named a wait or refused the credential."""
        if self._open_until_s is not None and not self._is_binding:
            self._open_until_s = min(self._open_until_s, self._opened_at_s + for_s)

    @property
    def why_open(self) -> str:
        """One sentence for an attempt's record and for `/status`; empty while the breaker is closed."""
        if self._open_until_s is None:
            return ""
        if self.probing:
            return f"{self._why}; a probe is under way"
        return f"{self._why}; asked again in {self.retry_in_s:.0f} s"

    @contextlib.contextmanager
    def settle(self, permit: Permit) -> Iterator[None]:
        """Runs one admitted call in its block and records the result: success, or the MintError that the block raises.

        Any other exception says nothing about Azure. It is most often cancellation, because the client has left. Then
        the permit is given back: a probe that was neither counted nor freed would keep the breaker half-open for ever.
        """
        began_s = self._clock()
        try:
            yield
        except MintError as error:
            self.failed(permit, error, (self._clock() - began_s) * 1000)
            raise
        except BaseException:
            self.abandoned(permit)
            raise
        self.succeeded(permit, (self._clock() - began_s) * 1000)

    def succeeded(self, permit: Permit, duration_ms: float) -> None:
        """The call succeeded: closes the breaker."""
        self.answered("minted", duration_ms)
        self.proved(permit)

    def answered(self, outcome: str, duration_ms: float) -> None:
        """Counts a call that went well. Whether it closes the breaker, `proved` tells."""
        self.noted(outcome, None, duration_ms)
        self.successes += 1
        self.capability = Capability.AVAILABLE

    def proved(self, permit: Permit) -> None:
        """The route works: closes the breaker."""
        # A call that began before the breaker opened says nothing of what has happened since.
        if self.is_current(permit):
            self._close()

    def failed(self, permit: Permit, error: MintError, duration_ms: float | None) -> None:
        """The call failed: opens the breaker where `error` demands it. No duration is for one that failed later."""
        self.noted(error.outcome, error.status, duration_ms)
        if isinstance(error, RateLimitedError) and error.retry_after_s is not None:
            self.abandoned(permit)
            wait_s = min(error.retry_after_s, _MAX_RATE_LIMIT_OPEN_S)
            # The latest end of all waits counts, whoever was told of it.
            if self._open_until_s is None or self._clock() + wait_s > self._open_until_s:
                self._open(wait_s, str(error), is_binding=True)
            return
        # A burst of calls that began while the breaker was closed fails one by one. Only the first may set its time.
        if not self.is_current(permit):
            return
        match error:
            case PermanentError():
                self.capability = Capability.MISSING
                self._missing += 1
                rest_s = _FIRST_MISSING_S * 2.0 ** min(self._missing - 1, 30)
                if isinstance(error, ApiVersionError):  # the route is there: only an operator changes the version
                    rest_s = self._policy.missing_s
                self._open(min(rest_s, self._policy.missing_s), str(error))
            case MisconfiguredError():
                self.capability = Capability.MISCONFIGURED
                self._open(self._policy.misconfigured_s, str(error), is_binding=True)
            case TransientError():
                self._failures += 1
                if permit.probe or self._failures >= self._policy.failures:
                    self._open(self._policy.open_s, f"{self._failures} failures in a row, the last: {error}")
                    self._is_of_faults = True
            case _:  # rejected or malformed: the route answers, so it is not down
                self._close()

    def abandoned(self, permit: Permit) -> None:
        """Nobody waited for the result: another call may be the probe."""
        if permit.probe and self.is_current(permit):
            self._lease_until_s = None

    def noted(self, outcome: str, status: int | None, duration_ms: float | None) -> None:
        """Counts a call for `/status`, without a consequence."""
        self._last = (outcome, status, self._clock())
        if duration_ms is not None:
            self.attempts += 1
            self._latencies_ms.append(duration_ms)

    def snapshot(self) -> BreakerStatus:
        """The breaker's status now."""
        last_outcome, last_status, last_at_s = self._last or (None, None, None)
        now_s = self._clock()
        return BreakerStatus(
            name=self.name,
            breaker=self.state,
            capability=self.capability,
            last_outcome=last_outcome,
            last_status=last_status,
            last_ago_s=None if last_at_s is None else round(now_s - last_at_s, 1),
            retry_in_s=None if self._open_until_s is None else round(self.retry_in_s, 1),
            why=self.why_open or None,
            attempts=self.attempts,
            successes=self.successes,
            latency_ms=percentiles(self._latencies_ms),
        )

    def _open(self, for_s: float, why: str, *, is_binding: bool = False) -> None:
        self._generation += 1
        self._lease_until_s = None
        self._opened_at_s = self._clock()
        self._rest_s = for_s
        self._open_until_s = self._opened_at_s + for_s
        self._is_binding = is_binding
        self._is_of_faults = False
        self._why = why

    def _close(self) -> None:
        self._failures = self._missing = 0
        if self._open_until_s is not None:
            self._generation += 1
            self._lease_until_s = None
            self._open_until_s = None
            self._why = ""


def percentiles(samples: Collection[float]) -> Latencies:
    """The percentiles of these times, in milliseconds."""
    ordered = sorted(samples)
    if not ordered:
        return Latencies()
    return Latencies(*(round(ordered[math.ceil(len(ordered) * percent / 100) - 1], 1) for percent in (50, 95, 99)))
