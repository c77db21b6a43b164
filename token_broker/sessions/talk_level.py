"""The talks that this process knows: which of them go on, and how many that were asked for came about.

A talk counts once, however often it moved or began anew: it goes on while one of its connections is open, and for 60 s
after the last one was lost. What follows a hang-up, a limit or a block is another talk.
"""

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from token_broker.security.limits import BoundedDict
from token_broker.security.tokens import Owner
from token_broker.web.requests import Problem, uuid7

__all__ = ["LOST_KEPT_S", "TalkLevelCounters"]

NoteTalk = Callable[[Owner, float, bool], None]
"""Gets an owner, in how many seconds their talk is over unless it goes on, and whether it begins."""

LOST_KEPT_S = 60.0
_TALKS_KEPT = 20_000
_TIMES_KEPT = 512


@dataclass(slots=True)
class _Talk:
    began_s: float
    connections: int = 1
    is_live: bool = False
    is_over: bool = False  # it was hung up, or ended by us
    is_counted: bool = False  # among those that were asked for
    has_left: bool = False  # its client left before it was live
    is_greeted: bool = False
    lost_s: float = 0.0


class TalkLevelCounters:
    """Counts talks by their ids, and those that are live by resource, too.

    `on_live` gets each talk's resource, and its time to live in seconds. `note` is told when a talk begins, which is
    at most `longest_s` long, and after how many seconds it is over.

    `asked` counts a talk when it is live, or failed for the first time: of one whose client left before, nobody knows
    whether it would have come about.
    """

    def __init__(
        self,
        resources: Iterable[str] = (),
        on_live: Callable[[str, float], None] = lambda _resource, _time_s: None,
        *,
        note: NoteTalk = lambda _owner, _over_in_s, _begins: None,
        longest_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.asked = 0
        self.live_at = Counter(dict.fromkeys(resources, 0))
        self._left = 0
        self._on_live = on_live
        self._note = note
        self._longest_s = longest_s
        self._clock = clock
        self._talks = BoundedDict[str, _Talk](_TALKS_KEPT)
        self._leaving: deque[_Talk] = deque()  # those whose client may still come back, in the order in which they left
        self._times_ms: deque[float] = deque(maxlen=_TIMES_KEPT)

    @property
    def live(self) -> int:
        """Talks that came about, of all resources."""
        return self.live_at.total()

    @property
    def left(self) -> int:
        """Talks whose client left before they were live, and did not come back: no failures of ours."""
        now_s = self._clock()
        while self._leaving and now_s - self._leaving[0].lost_s >= LOST_KEPT_S:
            self._left += self._leaving.popleft().has_left
        return self._left

    def time_to_live_ms(self, percent: int) -> float | None:
        """That percentile of the last 512 talks that came about; None while there was none."""
        ordered = sorted(self._times_ms)
        return round(ordered[math.ceil(len(ordered) * percent / 100) - 1], 1) if ordered else None

    def goes_on(self, talk: str) -> bool | None:
        """Whether a further connection would belong to the talk; None for one that this process never saw."""
        if (known := self._talks.get(talk)) is None:
            return None
        return not known.is_over and (known.connections > 0 or self._clock() - known.lost_s < LOST_KEPT_S)

    def age_s(self, talk: str) -> float:
        """For how long this process has known the talk."""
        known = self._talks.get(talk)
        return 0.0 if known is None else self._clock() - known.began_s

    def left_s(self, owner: Owner, longest_s: float) -> float:
        """How long a connection made now may last: `longest_s`, or what is left of the talk's own `max_session_s`."""
        return min(longest_s, (owner.narrowed.max_session_s or math.inf) - self.age_s(owner.talk_id))

    def greets(self, talk: str) -> bool:
        """Whether the agent speaks first now: True once a talk, however often its client connects."""
        known = self._talks.get(talk)
        if known is None or known.is_greeted:
            return False
        known.is_greeted = True
        return True

    def is_settled(self, talk: str) -> bool:
        """Whether this process knows for sure: the talk is live here, or was ended here."""
        known = self._talks.get(talk)
        return known is not None and (known.is_over or known.connections > 0)

    def seen(self, talk: str, *, elsewhere: bool = False) -> None:
        """A sign that the talk goes on although no connection of it is open here: a plan asked for with its token.

        `elsewhere`: another replica saw it begin, has counted it, and greeted its user.
        """
        if (known := self._talks.get(talk)) is not None:
            known.lost_s = self._clock()
        elif elsewhere:
            now_s = self._clock()
            self._talks[talk] = _Talk(
                now_s, connections=0, is_live=True, is_counted=True, is_greeted=True, lost_s=now_s
            )

    def of(self, owner: Owner) -> Owner:
        """The owner with the talk that a connection made now belongs to: a new one where the credential's is over."""
        return replace(owner, talk_id=uuid7()) if self.goes_on(owner.talk_id) is False else owner

    def begin(self, owner: Owner) -> None:
        """A connection of the owner's talk is asked for; call `end` when it is over."""
        talk = owner.talk_id
        known = self._talks.get(talk)
        if known is not None and self.goes_on(talk):
            known.connections += 1
            known.has_left = False
        else:
            known = self._talks[talk] = _Talk(self._clock())
        if known.connections == 1:
            self._note(owner, self._longest_s + LOST_KEPT_S, True)

    @contextmanager
    def connection(self, owner: Owner) -> Iterator[None]:
        """A connection of the talk, for as long as the block runs; cancelled, or Problem 400: its client has left."""
        self.begin(owner)
        has_left = False
        try:
            yield
        except (asyncio.CancelledError, Problem) as error:
            has_left = not isinstance(error, Problem) or error.code == "client_left"
            raise
        finally:
            self.end(owner, has_left=has_left)

    def went_live(self, talk: str, resource: str = "") -> None:
        """The talk can be heard: Azure has the agent's session, at that resource."""
        known = self._talks.get(talk)
        if known is not None and not known.is_live:
            known.is_live = True
            self._count(known)
            self.live_at[resource] += 1
            time_s = self._clock() - known.began_s
            self._times_ms.append(time_s * 1000)
            self._on_live(resource, time_s)

    def end(self, owner: Owner, *, ends_talk: bool = False, has_left: bool = False) -> None:
        """The connection is over.

        `ends_talk`: a hang-up, a limit or a block, after which the talk is over too, unless another connection of it is
        open. `has_left`: the client closed it, or was lost. A talk that was not live yet is not over then: its client
        may try another way.
        """
        known = self._talks.get(owner.talk_id)
        if known is None:
            return
        known.connections = max(0, known.connections - 1)
        known.lost_s = self._clock()
        if not has_left:
            self._count(known)
        if known.connections:
            return
        known.is_over = known.is_over or (ends_talk and (known.is_live or not has_left))
        self._note(owner, 0.0 if known.is_over else LOST_KEPT_S, False)
        if not known.is_counted:
            known.has_left = True
            self._leaving.append(known)

    def _count(self, talk: _Talk) -> None:
        self.asked += not talk.is_counted
        talk.is_counted = True
