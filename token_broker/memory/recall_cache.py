"""What was recalled of a session, told again for two seconds: whoever asks again and again costs one search.

It is out of date as soon as a turn of the session is stored here, or anything is forgotten here. What another replica
stores or forgets is heard of when the time is over.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from token_broker.bounded_dict import BoundedDict
from token_broker.security.owner import Owner

__all__ = ["RecallCache"]

V = TypeVar("V")

_KEEP_S = 2.0
_SESSIONS_KEPT = 1_000  # of a few kilobytes each


@dataclass(frozen=True, slots=True)
class _Kept(Generic[V]):
    principal: str
    user_id: str | None
    value: V
    until_s: float


class RecallCache(Generic[V]):
    """A value a session; `ask`, then `keep` what was found, unless the session was outdated in between."""

    def __init__(self, *, keep_s: float = _KEEP_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._keep_s = keep_s
        self._clock = clock
        self._kept = BoundedDict[str, _Kept[V]](_SESSIONS_KEPT)
        self._asking: dict[str, object] = {}

    def get(self, owner: Owner) -> V | None:
        """What is still told to this owner."""
        kept = self._kept.get(owner.session_id)
        if kept is None or kept.until_s <= self._clock():
            return None
        return kept.value if (kept.principal, kept.user_id) == (owner.principal, owner.user_id) else None

    def ask(self, owner: Owner) -> object:
        """A mark of this asking, for `keep` and `done`."""
        mark = self._asking[owner.session_id] = object()
        return mark

    def keep(self, owner: Owner, mark: object, value: V) -> None:
        """Keeps `value`, unless somebody asked later or something came in between."""
        if self._asking.get(owner.session_id) is not mark:
            return
        self._kept[owner.session_id] = _Kept(owner.principal, owner.user_id, value, self._clock() + self._keep_s)

    def done(self, owner: Owner, mark: object) -> None:
        """The asking is over, whatever came of it."""
        if self._asking.get(owner.session_id) is mark:
            del self._asking[owner.session_id]

    def forget(self, session_ids: Iterable[str]) -> None:
        """Something was said in these sessions."""
        for session_id in session_ids:
            self._kept.pop(session_id, None)
            self._asking.pop(session_id, None)

    def erase_all(self) -> None:
        """Something was forgotten, which may have been found for any session of its user."""
        self._kept.clear()
        self._asking.clear()
