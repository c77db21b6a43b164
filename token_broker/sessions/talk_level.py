"""The service level of talks: how many that were asked for came about, and how long that took.

A talk counts once, however often it moved or began anew: it goes on while one of its connections is open, and for 60 s
after the last one was lost. What follows a hang-up is another talk.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from token_broker.security.limits import BoundedDict

__all__ = ["TalkLevelCounters"]

_KEPT_S = 60.0
_TALKS_KEPT = 20_000
_TIMES_KEPT = 512


@dataclass(slots=True)
class _Talk:
    began_s: float
    connections: int = 1
    is_live: bool = False
    lost_s: float = 0.0


class TalkLevelCounters:
    """Counts talks by a name that all connections of a talk share. `on_live` gets each talk's time to live, in s."""

    def __init__(
        self, on_live: Callable[[float], None] = lambda _time_s: None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.asked = 0
        self.live = 0
        self._on_live = on_live
        self._clock = clock
        self._talks = BoundedDict[str, _Talk](_TALKS_KEPT)
        self._times_ms: deque[float] = deque(maxlen=_TIMES_KEPT)

    def time_to_live_ms(self, percent: int) -> float | None:
        """That percentile of the last 512 talks that came about; None while there was none."""
        ordered = sorted(self._times_ms)
        return round(ordered[math.ceil(len(ordered) * percent / 100) - 1], 1) if ordered else None

    def begin(self, talk: str) -> None:
        """A connection of the talk is asked for; call `end` when it is over."""
        now_s = self._clock()
        known = self._talks.get(talk)
        if known is not None and (known.connections or now_s - known.lost_s < _KEPT_S):
            known.connections += 1
            return
        self.asked += 1
        self._talks[talk] = _Talk(now_s)

    @contextmanager
    def connection(self, talk: str) -> Iterator[None]:
        """A connection of the talk, for as long as the block runs."""
        self.begin(talk)
        try:
            yield
        finally:
            self.end(talk)

    def went_live(self, talk: str) -> None:
        """The talk can be heard: Azure has the agent's session."""
        known = self._talks.get(talk)
        if known is not None and not known.is_live:
            known.is_live = True
            self.live += 1
            time_s = self._clock() - known.began_s
            self._times_ms.append(time_s * 1000)
            self._on_live(time_s)

    def end(self, talk: str, *, hung_up: bool = False) -> None:
        """The connection is over; after a hang-up the talk is, too."""
        known = self._talks.get(talk)
        if known is None:
            return
        known.connections = max(0, known.connections - 1)
        known.lost_s = self._clock()
        if hung_up and known.is_live and not known.connections:
            del self._talks[talk]
