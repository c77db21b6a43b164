"""Rate limits per key, and the number of open talks per key and process.

The `limits` package is not used: its in-memory storage needs a timer thread, and its API names back ends by strings.
These classes are bounded, single-threaded, and take the clock as an argument.
"""

import asyncio
import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn, Self

from token_broker.bounded_dict import BoundedDict
from token_broker.web.requests import Problem

__all__ = [
    "RateLimit",
    "RateLimiter",
    "RefusalDelay",
    "SessionLease",
    "SessionLimits",
    "too_many_requests",
    "too_many_sessions",
]

MAX_KEYS = 100_000  # a caller with many addresses must not fill the memory
SESSIONS_RETRY_AFTER_S = 10
PROMPT_REFUSALS_PER_MINUTE = 120
REFUSAL_PAUSE_S = 1.0


class RateLimit:
    """At most `burst` at once, and then `per_minute` a minute, per key (GCRA). 0 a minute is no limit.

    `burst` is `per_minute` by default.

    Each key costs one float: the time at which its whole burst is available again. A key is dropped after that time;
    beyond `max_keys` the least recently used one goes first.
    """

    def __init__(
        self,
        per_minute: int,
        *,
        burst: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        max_keys: int = MAX_KEYS,
    ) -> None:
        self.per_minute = per_minute
        self._burst = per_minute if burst is None else burst
        self._interval_s = 60 / per_minute if per_minute else 0.0
        self._burst_s = self._interval_s * self._burst
        self._clock = clock
        self._free_at_s = BoundedDict[str, float](max_keys)  # in the order of last use

    def take(self, key: str, cost: int = 1) -> float | None:
        """None where `key` is within its rate, and counts `cost`; else the seconds to wait, and counts nothing.

        A cost above the burst never passes: ask `fits` first.
        """
        if (wait_s := self.wait_s(key, cost)) is None:
            self.count(key, cost)
        return wait_s

    def wait_s(self, key: str, cost: int = 1) -> float | None:
        """What `take` would return, without counting."""
        if not self._interval_s:
            return None
        wait_s = cost * self._interval_s - self._burst_s
        if (free_at_s := self._free_at_s.get(key)) is not None:
            wait_s += max(0.0, free_at_s - self._clock())
        return wait_s if wait_s > 1e-6 else None  # a rounding error must not refuse the last of the burst  # noqa: PLR2004

    def count(self, key: str, cost: int = 1) -> None:
        """Counts `cost` in any case. The wait that results is at most the time that refills the burst."""
        if not self._interval_s:
            return
        now_s = self._clock()
        while self._free_at_s and self._free_at_s[next(iter(self._free_at_s))] <= now_s:
            self._free_at_s.popitem(last=False)
        free_at_s = max(self._free_at_s.get(key, now_s), now_s) + cost * self._interval_s
        self._free_at_s[key] = min(free_at_s, now_s + self._burst_s)

    def fits(self, cost: int) -> bool:
        """Whether `cost` is at most the burst."""
        return not self.per_minute or cost <= self._burst

    def __len__(self) -> int:
        return len(self._free_at_s)


class RefusalDelay:
    """Delays refusals to a key that keeps asking.

    A client that asks again right after each refusal would keep the event loop busy with refusals, and all other
    callers would wait. So each key gets a burst of immediate refusals; each further one follows after a pause.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, pause_s: float = REFUSAL_PAUSE_S) -> None:
        self._prompt = RateLimit(PROMPT_REFUSALS_PER_MINUTE, clock=clock)
        self._pause_s = pause_s

    async def refuse(self, key: str, problem: Problem) -> NoReturn:
        """Raises `problem`, after a pause where `key` was refused too often."""
        if self._prompt.take(key) is not None:
            await asyncio.sleep(self._pause_s)
        raise problem


class RateLimiter:
    """Rate limiter per key. Refusals beyond a burst are delayed: see `RefusalDelay`."""

    def __init__(
        self, per_minute: int, *, clock: Callable[[], float] = time.monotonic, pause_s: float = REFUSAL_PAUSE_S
    ) -> None:
        self._rate = RateLimit(per_minute, clock=clock)
        self._refusal_delay = RefusalDelay(clock=clock, pause_s=pause_s)

    async def admit(self, key: str) -> None:
        """Counts one request of `key`. Raises Problem 429 where it exceeds the rate."""
        if (wait_s := self._rate.take(key)) is not None:
            await self._refusal_delay.refuse(key, too_many_requests(wait_s))


class SessionLease:
    """One open talk's place. Leaving the context releases it, unless `keep` was called."""

    def __init__(self, limits: "SessionLimits", key: str) -> None:
        self._limits = limits
        self._held = True
        self._kept = False
        self.key = key

    def release(self) -> None:
        """Gives the place back. A second call does nothing."""
        if self._held:
            self._held = False
            self._limits._give_back(self.key)  # noqa: SLF001  # the two classes belong together

    def keep(self, name: str, *, for_s: float) -> None:
        """Holds the place beyond the context: until `SessionLimits.end(name)`, or for `for_s` seconds.

        Used for a relayed call. Its media does not pass the broker, which learns of its end only when it hangs up.
        """
        self._kept = True
        self._limits._keep(self, name, for_s)  # noqa: SLF001

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not self._kept:
            self.release()


class SessionLimits:
    """The open talks of this process: at most `per_key` for each `limit_key`, and `total`. 0 is no limit."""

    def __init__(self, *, per_key: int, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_key = per_key or math.inf
        self._total = total or math.inf
        self._clock = clock
        self._active = 0
        self._open: dict[str, int] = {}
        self._kept: dict[str, tuple[float, SessionLease]] = {}  # by name: when it ends, and the lease
        self._next_end_s = math.inf  # saves most calls from looking through the kept places

    def acquire(self, key: str) -> SessionLease | None:
        """A place for one talk, or None where `key` or the process has no free one."""
        self._end_overdue()
        if self._active >= self._total or self._open.get(key, 0) >= self._per_key:
            return None
        self._active += 1
        self._open[key] = self._open.get(key, 0) + 1
        return SessionLease(self, key)

    def end(self, name: str) -> bool:
        """Releases a kept place. False where there is none of that name."""
        if (kept := self._kept.pop(name, None)) is None:
            return False
        kept[1].release()
        return True

    def keeps(self, name: str) -> bool:
        """Whether a place of that name is kept."""
        self._end_overdue()
        return name in self._kept

    @property
    def active(self) -> int:
        """The number of open talks in this process."""
        self._end_overdue()
        return self._active

    def _give_back(self, key: str) -> None:
        self._active -= 1
        self._open[key] -= 1
        if not self._open[key]:
            del self._open[key]

    def _keep(self, lease: SessionLease, name: str, for_s: float) -> None:
        self.end(name)
        end_s = self._clock() + for_s
        self._kept[name] = (end_s, lease)
        self._next_end_s = min(self._next_end_s, end_s)

    def _end_overdue(self) -> None:
        now_s = self._clock()
        if now_s < self._next_end_s:
            return
        for name in [name for name, (end_s, _) in self._kept.items() if end_s <= now_s]:
            self.end(name)
        self._next_end_s = min((end_s for end_s, _ in self._kept.values()), default=math.inf)


def too_many_requests(retry_after_s: float) -> Problem:
    """429 for a rate: `Retry-After` in whole seconds, at least 1."""
    return Problem(
        429,
        "rate_limited",
        "Too many requests from you; wait for the time in Retry-After.",
        headers={"Retry-After": str(max(1, math.ceil(retry_after_s)))},
    )


def too_many_sessions() -> Problem:
    """429 for open talks. `Retry-After` is a guess, because talks end at any time."""
    return Problem(
        429,
        "too_many_sessions",
        "Too many talks are open; end one, or try again later.",
        headers={"Retry-After": str(SESSIONS_RETRY_AFTER_S)},
    )
