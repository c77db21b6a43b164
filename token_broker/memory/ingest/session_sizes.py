"""How much each session has stored, so that none grows without bound: in a column, and ahead of it in each process.

A turn that wrote the column too would write another page of the database, and hold its session's row against other
replicas. So a process adds up what it stores of a session, and writes the column after every `_LAG_BYTES` of it. A
process's own sum is exact. What another replica stores it learns that much later: for each other replica, a session may
exceed its limit by that much.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

__all__ = ["SessionSizes", "SizeLimit"]

_LAG_BYTES = 65_536
_LAGS_A_SESSION = 16  # a small limit is kept more exactly
_SESSIONS_KNOWN = 20_000


@dataclass(frozen=True, slots=True)
class SizeLimit:
    """What a transaction needs to check a limit: the sessions whose column it reads, and what to add to it."""

    limit_bytes: int
    unsure: frozenset[str] = frozenset()
    pending: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _SessionSize:
    written: int  # the column, when it was last read or written
    pending: int = 0  # stored since, and not yet added to the column


class SessionSizes:
    """The sizes that this process knows. With `limit_bytes` of 0 sizes are written, and no session is full."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._lag_bytes = min(_LAG_BYTES, limit_bytes // _LAGS_A_SESSION) if limit_bytes else _LAG_BYTES
        self._sizes: OrderedDict[str, _SessionSize] = OrderedDict()
        self._due: dict[str, int] = {}

    def limit(self, wanted: Mapping[str, int]) -> SizeLimit | None:
        """The check for a transaction that stores so many bytes of sessions; None where all surely have room."""
        if not self._limit_bytes:
            return None
        unsure = set()
        for key, size_bytes in wanted.items():
            size = self._sizes.get(key)
            if size is None or size.written + size.pending + size_bytes > self._limit_bytes:
                unsure.add(key)
        if not unsure:
            return None
        pending = {key: size.pending for key in unsure if (size := self._sizes.get(key))}
        return SizeLimit(self._limit_bytes, frozenset(unsure), pending)

    def learn(self, found: Mapping[str, int]) -> None:
        """Takes over columns of sessions that were just read or written."""
        for key, written in found.items():
            size = self._sizes.setdefault(key, _SessionSize(written))
            size.written = written
            self._sizes.move_to_end(key)
        self._trim()

    def add(self, stored: Mapping[str, int]) -> None:
        """Counts bytes that were stored in these sessions."""
        for key, size_bytes in stored.items():
            size = self._sizes.setdefault(key, _SessionSize(0))
            size.pending += size_bytes
            if size.pending >= self._lag_bytes:
                self._due.setdefault(key, 0)
        self._trim()

    @property
    def is_due(self) -> bool:
        """Whether a column lags behind by much."""
        return bool(self._due)

    def due(self, *, everything: bool = False) -> dict[str, int]:
        """What to add to the columns that lag behind by much, or to all; `written` or `lost` has to follow."""
        if everything:
            self._due |= {key: self._due.get(key, 0) for key, size in self._sizes.items() if size.pending}
        sizes = self._sizes
        return {key: left + (sizes[key].pending if key in sizes else 0) for key, left in self._due.items()}

    def written(self, added: Mapping[str, int], found: Mapping[str, int]) -> None:
        """`added` was added to the columns, which are `found` now; a session that is gone has none."""
        for key in added:
            self._due.pop(key, None)
            if size := self._sizes.get(key):
                size.pending = 0
        self.learn({key: written for key, written in found.items() if key in self._sizes})

    def lost(self, added: Iterable[str]) -> None:
        """Nobody knows whether it was written: the columns are read again, and may lack what was to be added."""
        for key in added:
            self.evict(key)

    def evict(self, session_id: str) -> None:
        """Drops what is known of a session."""
        self._sizes.pop(session_id, None)
        self._due.pop(session_id, None)

    def _trim(self) -> None:
        """Drops the sessions that were unused for longest; their pending bytes are due next."""
        while len(self._sizes) > _SESSIONS_KNOWN:
            key, size = self._sizes.popitem(last=False)
            if size.pending:
                self._due[key] = self._due.get(key, 0) + size.pending
