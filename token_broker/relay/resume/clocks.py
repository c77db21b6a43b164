"""When a session counts as silent, when it is left before its end, and how often a talk may be resumed. Pure."""

import random
from collections import deque
from collections.abc import Callable
from typing import Literal

from token_broker.relay.resume.ledger import Due

__all__ = ["ExpiryClock", "Resumes", "SilenceClock"]

_SILENT_S = 10.0
_REASONING_S = 30.0  # before the first content of a model that thinks
_STALL_S = 3.0  # between two looks: one is due every second
_PROBE_S = 5.0  # for the answer to a sign of life
_END_S = 30.0  # `response.done` may follow the last content late
_FAILURES_AT_MOST = 3
_WINDOW_S = 60.0
_LIFE_S = 3_600.0  # of a session whose end Azure has not told
_LATEST_S = 60.0  # before the end the talk moves, whatever is open
_SPREAD_S = 60.0  # beyond that, each talk with a margin of its own: they do not all move at once
_PAUSE_WINDOW_S = 240.0  # before the latest moment, a pause is used
_MOVE_AGAIN_S = 20.0  # after a move that failed
_BETWEEN_MOVES_S = 60.0


Look = Literal["wait", "probe", "silent"]


class SilenceClock:
    """How long Azure has owed something and sent nothing. Every event moves it.

    Where it owes nothing that is known, it may owe notice of speech. Noise may be taken for speech here, so Azure is
    asked for a sign of life first (`probe`).
    """

    def __init__(self) -> None:
        self._seen: tuple[int, Due] | None = None
        self._since_s = 0.0
        self._asked_s = 0.0
        self._probed = False

    def look(
        self, now_s: float, *, due: Due, events: int, reasons: bool, held_up: bool, spoken: Callable[[], bool]
    ) -> Look:
        """What to make of it. `events` counts what Azure sent; `held_up`: we are not reading it now; `spoken`: whether
        the client's audio since the last event may have speech that is over.
        """
        seen = (events, due)
        # Where our own loop stood still, what has come meanwhile is not read yet.
        held_up = held_up or now_s - self._asked_s > _STALL_S
        self._asked_s = now_s
        if held_up or seen != self._seen:
            self._seen, self._since_s, self._probed = seen, now_s, False
            return "wait"
        if due == "nothing":
            if self._probed:
                return "silent" if now_s - self._since_s >= _SILENT_S else "wait"
            self._probed = now_s - self._since_s >= _SILENT_S - _PROBE_S and spoken()
            return "probe" if self._probed else "wait"
        patience_s = _END_S if due == "end" else _REASONING_S if due == "answer" and reasons else _SILENT_S
        return "silent" if now_s - self._since_s >= patience_s else "wait"


class ExpiryClock:
    """When a talk leaves its session before Azure ends it: at a pause, and at the latest 60 s before."""

    def __init__(self, *, rng: random.Random | None = None) -> None:
        self._margin_s = _LATEST_S + (rng or random.Random()).uniform(0, _SPREAD_S)  # noqa: S311  # no secret
        self._not_before_s = 0.0
        self._end_s = 0.0
        self._announced = False

    def begin(self, now_s: float, expires_s: float | None) -> None:
        """A session begins, which Azure ends at `expires_s`; None where it has not told."""
        self._end_s = now_s + _LIFE_S if expires_s is None else expires_s
        self._announced = False

    def moved(self, now_s: float) -> None:
        """The talk has moved: a session that is short again is no reason to move all the time."""
        self._not_before_s = now_s + _BETWEEN_MOVES_S

    def failed(self, now_s: float) -> float | None:
        """No other session could be had: the old one is used on.

        The seconds that it still lives, once, in its last minute: then the client has to know.
        """
        self._not_before_s = now_s + _MOVE_AGAIN_S
        if self._announced or now_s < self._end_s - _LATEST_S:
            return None
        self._announced = True
        return max(0.0, self._end_s - now_s)

    def is_near(self, now_s: float) -> bool:
        """Whether another session is to be opened, for the next pause."""
        return now_s >= max(self._end_s - self._margin_s - _PAUSE_WINDOW_S, self._not_before_s)

    def is_latest(self, now_s: float) -> bool:
        """Whether the talk leaves the session now, pause or not."""
        return now_s >= self._end_s - self._margin_s


class Resumes:
    """The resumes of one talk. A completed answer shows that one has succeeded.

    More than three within a minute without any are a fault that resuming does not mend.
    """

    def __init__(self) -> None:
        self._began_s: deque[float] = deque(maxlen=_FAILURES_AT_MOST)
        self._completed = 0

    def begin(self, now_s: float, *, completed: int) -> bool:
        """Counts one; False where it is the fourth within 60 s. `completed` counts the talk's completed answers."""
        if completed != self._completed:
            self._completed = completed
            self._began_s.clear()
        if len(self._began_s) == _FAILURES_AT_MOST and now_s - self._began_s[0] < _WINDOW_S:
            return False
        self._began_s.append(now_s)
        return True
