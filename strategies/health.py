"""What a strategy's past says about asking it now: a circuit breaker with a memory of what the route can do.

A breaker is closed while things go well. Transient failures in a row open it, and so does an answer that says that
asking again is useless (no such route, a wrong credential, `Retry-After`). When its time is over it is half open: one
probe is admitted, and all others are refused until that probe has settled. The proxy's upstreams have breakers too.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from strategies.errors import MintError, MisconfiguredError, PermanentError, RateLimitedError, TransientError

__all__ = ["BreakerPolicy", "BreakerState", "BreakerStatus", "Capability", "CircuitBreaker", "Latencies", "Permit"]

_LATENCIES_KEPT = 512
_MAX_RATE_LIMIT_OPEN_S = 300


class BreakerState(StrEnum):
    """Whether a breaker lets all through, none, or one probe."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Capability(StrEnum):
    """What Azure has shown of a route; it stays as it was last shown, however long the rest."""

    UNKNOWN = "unknown"
    AVAILABLE = "available"
    MISSING = "missing"
    MISCONFIGURED = "misconfigured"


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When a breaker rests, and how long (seconds)."""

    failures: int = 5
    open_s: float = 15
    misconfigured_s: float = 60
    missing_s: float = 600


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to ask once. Hand it back to `succeeded`, `failed` or `abandoned`, whatever happens."""

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
    """One route's breaker and capability memory; single-threaded, on a monotonic clock in seconds."""

    def __init__(self, name: str, policy: BreakerPolicy, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self._policy = policy
        self._clock = clock
        self._generation = 0
        self._failures = 0
        self._open_until_s: float | None = None
        self._probing = False
        self._why = ""
        self.capability = Capability.UNKNOWN
        self.attempts = 0
        self.successes = 0
        self._last: tuple[str, int | None, float] | None = None
        self._latencies_ms: deque[float] = deque(maxlen=_LATENCIES_KEPT)

    @property
    def state(self) -> BreakerState:
        if self._open_until_s is None:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if self._probing or self._clock() >= self._open_until_s else BreakerState.OPEN

    @property
    def probing(self) -> bool:
        """Whether a probe is under way."""
        return self._probing

    @property
    def would_admit(self) -> bool:
        return self._open_until_s is None or (not self._probing and self._clock() >= self._open_until_s)

    def admit(self) -> Permit | None:
        """Leave to ask now, or None: `why_resting` tells the reason."""
        if not self.would_admit:
            return None
        self._probing = self._open_until_s is not None
        return Permit(self._generation, probe=self._probing)

    @property
    def why_open(self) -> str:
        """One sentence about the rest, for an attempt's record and for `/status`; empty when there is none."""
        if self._open_until_s is None:
            return ""
        if self._probing:
            return f"{self._why}; a probe is under way"
        return f"{self._why}; asked again in {max(0.0, self._open_until_s - self._clock()):.0f} s"

    def succeeded(self, permit: Permit, duration_ms: float) -> None:
        """It worked: whatever rest there was is over."""
        del permit  # even an old attempt's success is good news
        self._count("minted", None, duration_ms)
        self.successes += 1
        self.capability = Capability.AVAILABLE
        self._close()

    def failed(self, permit: Permit, error: MintError, duration_ms: float) -> None:
        """It failed. News older than the present rest (a generation ago) does not lengthen it."""
        self._count(error.outcome, error.status, duration_ms)
        if permit.generation != self._generation:
            return
        match error:
            case PermanentError():
                self.capability = Capability.MISSING
                self._open(self._policy.missing_s, str(error))
            case MisconfiguredError():
                self.capability = Capability.MISCONFIGURED
                self._open(self._policy.misconfigured_s, str(error))
            case RateLimitedError(retry_after_s=float() | int() as wait_s):
                self._open(min(wait_s, _MAX_RATE_LIMIT_OPEN_S), str(error))
            case TransientError():
                self._failures += 1
                if permit.probe or self._failures >= self._policy.failures:
                    self._open(self._policy.open_s, f"{self._failures} failures in a row, the last: {error}")
            case _:  # rejected or malformed: somebody is there and answers
                self._close()

    def abandoned(self, permit: Permit) -> None:
        """Nobody waited for the answer (cancelled): a probe's place is free again."""
        if permit.probe and permit.generation == self._generation:
            self._probing = False

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
            retry_in_s=None if self._open_until_s is None else round(max(0.0, self._open_until_s - now_s), 1),
            why=self.why_open or None,
            attempts=self.attempts,
            successes=self.successes,
            latency_ms=_percentiles(self._latencies_ms),
        )

    def _count(self, outcome: str, status: int | None, duration_ms: float) -> None:
        self.attempts += 1
        self._last = (outcome, status, self._clock())
        self._latencies_ms.append(duration_ms)

    def _open(self, for_s: float, why: str) -> None:
        self._generation += 1
        self._probing = False
        self._open_until_s = self._clock() + for_s
        self._why = why

    def _close(self) -> None:
        self._failures = 0
        if self._open_until_s is not None:
            self._generation += 1
            self._probing = False
            self._open_until_s = None
            self._why = ""


def _percentiles(samples: deque[float]) -> Latencies:
    ordered = sorted(samples)
    if not ordered:
        return Latencies()
    return Latencies(*(round(ordered[math.ceil(len(ordered) * percent / 100) - 1], 1) for percent in (50, 95, 99)))
