"""Quotas over short windows: connections, requests or tokens, each refused with 429 beyond its limit."""

import math
import time
from collections import deque
from collections.abc import Callable
from typing import ClassVar, Literal

from pydantic import Field

from token_broker.simulator import azure_errors
from token_broker.simulator.faults.fault_base import Armed, BaseFault, Protocol


class QuotaFault(BaseFault):
    """At most `limit` within any `window_s` seconds. Several may be set: each counts, and the longest wait is told."""

    protocols: ClassVar[frozenset[Protocol]] = frozenset({"http", "websocket"})

    fault: Literal["quota"]
    limit: int = Field(ge=0)
    window_s: float = Field(default=60.0, gt=0, le=3600)
    counts: Literal["connections", "requests", "tokens"] = "connections"
    """WebSocket handshakes; HTTP requests; or the tokens of answers, beyond which both are refused and answers fail."""
    retry_after: Literal["seconds", "ms", "none"] = "seconds"
    """How the wait is told: `Retry-After`, `retry-after-ms`, or not at all."""
    counts_refused: bool = False
    """Whether a refused attempt counts too."""


class Quota(Armed):
    """A quota that is set, with what was used of it."""

    fault: QuotaFault

    def __init__(self, fault: QuotaFault, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(fault)
        self._clock = clock
        self._used: deque[tuple[float, int]] = deque()

    def admits(self, protocol: Protocol) -> bool:
        """Counts an attempt of that protocol, and tells whether there was room for it."""
        counts = self.fault.counts
        if counts != "tokens" and protocol != ("websocket" if counts == "connections" else "http"):
            return True
        admitted = self.wait_s == 0
        if counts != "tokens" and (admitted or self.fault.counts_refused):
            self.spend(1)
        return admitted

    def spend(self, amount: int) -> None:
        """Uses so much, beyond the limit if need be: a response's tokens are known at its end."""
        self._used.append((self._clock(), amount))

    @property
    def wait_s(self) -> float:
        """Until there is room again; 0 if there is."""
        now_s, window_s = self._clock(), self.fault.window_s
        while self._used and self._used[0][0] <= now_s - window_s:
            self._used.popleft()
        if self.fault.limit == 0:
            return window_s
        over = sum(amount for _, amount in self._used) - self.fault.limit + 1
        for at_s, amount in self._used:
            if over <= 0:
                break
            over -= amount
            if over <= 0:
                return at_s + window_s - now_s
        return 0.0

    def refusal(self) -> azure_errors.AzureError:
        """The 429 that tells how long to wait, as far as the fault says so."""
        message = "Requests have exceeded the call rate limit. Retry later."
        headers: dict[str, str] = {}
        if self.fault.retry_after == "seconds":
            headers["retry-after"] = str(max(1, math.ceil(self.wait_s)))
        elif self.fault.retry_after == "ms":
            headers["retry-after-ms"] = str(max(1, math.ceil(self.wait_s * 1000)))
        return azure_errors.structured(429, "RateLimitReached", message, headers=headers)
