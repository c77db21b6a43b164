"""How much each session has stored, so that none grows without bound: in a column, and ahead of it in each process.

A turn that wrote the column too would write another page of the database, and hold its session's row against other
replicas. So a process adds up what it stores of a session, and brings the column up to date after every `_LAG_BYTES` of
it. A process's own sum is exact; of what another replica stores it hears that much later, and by so much, for each
other replica, a session may outgrow its limit.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from token_broker.memory.types import Turn

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["Room", "SessionSizes", "note_sizes", "stored_bytes"]

_LAG_BYTES = 65_536
_LAGS_A_SESSION = 16  # a small limit is kept more exactly
_SESSIONS_KNOWN = 20_000


def stored_bytes(turn: Turn) -> int:
    """What a turn counts for: content, ids and channel, in UTF-8."""
    all_of_it = f"{turn.content}{turn.turn_id}{turn.owner.session_id}{turn.agent_id}{turn.channel or ''}"
    return len(all_of_it) if all_of_it.isascii() else len(all_of_it.encode())


@dataclass(frozen=True, slots=True)
class Room:
    """What a transaction has to know: `unsure` are sessions whose column it reads, and adds `unnoted` to."""

    limit_bytes: int
    unsure: frozenset[str] = frozenset()
    unnoted: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Size:
    noted: int  # what the column was when it was last read
    unnoted: int = 0


class SessionSizes:
    """What this process knows. `limit_bytes` of 0 is off: then sizes are noted, and nothing is full."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._lag_bytes = min(_LAG_BYTES, limit_bytes // _LAGS_A_SESSION) if limit_bytes else _LAG_BYTES
        self._sizes: OrderedDict[str, _Size] = OrderedDict()
        self._due: dict[str, int] = {}

    def room(self, wanted: Mapping[str, int]) -> Room | None:
        """For a transaction that stores so many bytes of sessions; None where there is room enough, without asking."""
        if not self._limit_bytes:
            return None
        unsure = frozenset(key for key, size_bytes in wanted.items() if not self._has_room(key, size_bytes))
        if not unsure:
            return None
        unnoted = {key: size.unnoted for key in unsure if (size := self._sizes.get(key))}
        return Room(self._limit_bytes, unsure, unnoted)

    def learn(self, found: Mapping[str, int]) -> None:
        """The columns of sessions, as they were just read or written."""
        for key, noted in found.items():
            size = self._sizes.setdefault(key, _Size(noted))
            size.noted = noted
            self._sizes.move_to_end(key)
        self._trim()

    def add(self, stored: Mapping[str, int]) -> None:
        """So many bytes of these sessions are stored, and not yet noted."""
        for key, size_bytes in stored.items():
            size = self._sizes.setdefault(key, _Size(0))
            size.unnoted += size_bytes
            if size.unnoted >= self._lag_bytes:
                self._due.setdefault(key, 0)
        self._trim()

    @property
    def is_due(self) -> bool:
        """Whether a column lags behind by much."""
        return bool(self._due)

    def due(self, *, everything: bool = False) -> dict[str, int]:
        """What the columns lag behind by, of sessions where it has become much, or of all; `noted` is to follow."""
        if everything:
            self._due |= {key: self._due.get(key, 0) for key, size in self._sizes.items() if size.unnoted}
        return {key: left + self._unnoted(key) for key, left in self._due.items()}

    def noted(self, written: Mapping[str, int], found: Mapping[str, int]) -> None:
        """`written` was added to the columns, which are `found` now; of sessions that are gone nothing was found."""
        for key in written:
            self._due.pop(key, None)
            if size := self._sizes.get(key):
                size.unnoted = 0
        self.learn({key: noted for key, noted in found.items() if key in self._sizes})

    def lose(self, written: Iterable[str]) -> None:
        """Whether it was written nobody knows: the columns are read again, and may lack what was to be added."""
        for key in written:
            self.forget(key)

    def forget(self, session_id: str) -> None:
        """The session is no more."""
        self._sizes.pop(session_id, None)
        self._due.pop(session_id, None)

    def _trim(self) -> None:
        """Forgets the longest unused; what they have unnoted is noted next."""
        while len(self._sizes) > _SESSIONS_KNOWN:
            key, size = self._sizes.popitem(last=False)
            if size.unnoted:
                self._due[key] = self._due.get(key, 0) + size.unnoted

    def _has_room(self, key: str, size_bytes: int) -> bool:
        size = self._sizes.get(key)
        return size is not None and size.noted + size.unnoted + size_bytes <= self._limit_bytes

    def _unnoted(self, key: str) -> int:
        size = self._sizes.get(key)
        return size.unnoted if size else 0


def note_sizes(connection: "Connection", added: Mapping[str, int]) -> dict[str, int]:
    """Adds to the columns of sessions, in the order in which rows are locked everywhere; what they are then."""
    from sqlalchemy import update

    from token_broker.memory.store.keys import bucket_of
    from token_broker.memory.store.tables import sessions
    from token_broker.memory.store.turns import is_session

    found: dict[str, int] = {}
    for key in sorted(added, key=lambda key: (bucket_of(key), key)):
        grown = update(sessions).where(is_session(sessions, key))
        grown = grown.values(stored_bytes=sessions.c.stored_bytes + added[key])
        noted = connection.scalar(grown.returning(sessions.c.stored_bytes))
        if noted is not None:
            found[key] = noted
    return found
