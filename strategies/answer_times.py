"""How long a route takes to answer, and when to ask the next resource beside it."""

import math
from collections import deque

__all__ = ["AnswerTimes"]

_KEPT = 128
_NEEDED = 20
# The percentile is calculated anew after that many answers: sorting them at each would cost more than the decision.
_BETWEEN = 16
_FACTOR = 1.5
_SHORTEST_MS = 300.0
_LONGEST_MS = 1500.0
_UNKNOWN_MS = 800.0


class AnswerTimes:
    """The last answers' times. Those of abandoned calls count with their age, since they would have taken longer."""

    def __init__(self) -> None:
        self._kept_ms: deque[float] = deque(maxlen=_KEPT)
        self._until_next = _NEEDED
        self.p95_ms: float | None = None

    def add(self, duration_ms: float) -> None:
        """Counts an answer, or the age of one that was not waited for."""
        self._kept_ms.append(duration_ms)
        self._until_next -= 1
        if self._until_next == 0:
            self._until_next = _BETWEEN
            self.p95_ms = sorted(self._kept_ms)[math.ceil(len(self._kept_ms) * 0.95) - 1]

    @property
    def hedge_after_ms(self) -> float:
        """How long to wait for an answer before another resource is asked too."""
        if self.p95_ms is None:
            return _UNKNOWN_MS
        return min(max(_FACTOR * self.p95_ms, _SHORTEST_MS), _LONGEST_MS)
