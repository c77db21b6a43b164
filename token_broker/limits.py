"""How often: a rate a principal, or an address of somebody anonymous. How much at once is `relay/slots.py`'s to say.

(The `limits` package would bring a timer thread for its in-memory expiry, and storage back ends behind strings; these
few lines are bounded, single-threaded, and take the clock they are given.)
"""

import math
import time
from collections.abc import Callable

from token_broker.problems import Problem

__all__ = ["RateLimit", "too_many_requests"]

MAX_KEYS = 100_000


class RateLimit:
    """At most `per_minute` in a burst, and then as many a minute, a key (GCRA); 0 is off.

    One float a key: the time at which its whole burst is free again. Keys whose time has come are forgotten; over
    `max_keys` the longest unused go first.
    """

    def __init__(
        self, per_minute: int, *, clock: Callable[[], float] = time.monotonic, max_keys: int = MAX_KEYS
    ) -> None:
        self._interval_s = 60 / per_minute if per_minute else 0.0
        self._burst_s = self._interval_s * (per_minute - 1)
        self._clock = clock
        self._max_keys = max_keys
        self._free_at_s: dict[str, float] = {}  # in the order of last use

    def take(self, key: str) -> float | None:
        """None where `key` may go on, and is counted; else the seconds until it may."""
        if not self._interval_s:
            return None
        now_s = self._clock()
        self._forget(now_s)
        free_at_s = max(self._free_at_s.get(key, now_s), now_s)
        # Rounding must not refuse the burst's last one.
        if (wait_s := free_at_s - self._burst_s - now_s) > 1e-6:  # noqa: PLR2004
            return wait_s
        self._free_at_s.pop(key, None)
        self._free_at_s[key] = free_at_s + self._interval_s
        return None

    def __len__(self) -> int:
        return len(self._free_at_s)

    def _forget(self, now_s: float) -> None:
        while self._free_at_s:
            oldest = next(iter(self._free_at_s))
            if self._free_at_s[oldest] > now_s and len(self._free_at_s) < self._max_keys:
                return
            del self._free_at_s[oldest]


def too_many_requests(retry_after_s: float) -> Problem:
    """429 for a rate: `Retry-After` in whole seconds, at least 1."""
    return Problem(
        429,
        "rate_limited",
        "Too many requests from you; wait for the time in Retry-After.",
        headers={"Retry-After": str(max(1, math.ceil(retry_after_s)))},
    )
