"""The memory's seams as this process alone can fill them, bounded: used while there is no store."""

import time
from collections import OrderedDict

from token_broker.memory.base import Owner, SessionRecord, Turn

__all__ = ["LocalIntake", "LocalSessions", "LocalTickets", "NoRecall"]

_SESSIONS_KEPT = 100_000
_TICKETS_KEPT = 100_000


class LocalSessions:
    """The last sessions this process made plans for."""

    def __init__(self) -> None:
        self._records: OrderedDict[str, SessionRecord] = OrderedDict()

    async def find(self, session_id: str) -> SessionRecord | None:
        return self._records.get(session_id)

    def record(self, owner: Owner, agent_id: str) -> None:
        del agent_id
        self._records[owner.session_id] = SessionRecord(owner.session_id, owner.principal, owner.epoch)
        self._records.move_to_end(owner.session_id)
        if len(self._records) > _SESSIONS_KEPT:
            self._records.popitem(last=False)


class LocalTickets:
    """Tickets used up in this process, until they expire."""

    def __init__(self) -> None:
        self._spent: OrderedDict[str, float] = OrderedDict()

    async def spend(self, ticket_id: str, expires_at_s: float) -> bool:
        now_s = time.time()
        while self._spent and next(iter(self._spent.values())) < now_s:
            self._spent.popitem(last=False)
        if ticket_id in self._spent or len(self._spent) >= _TICKETS_KEPT:
            return False
        self._spent[ticket_id] = expires_at_s
        return True


class NoRecall:
    """Remembers nothing."""

    async def block(self, owner: Owner) -> str:
        del owner
        return ""


class LocalIntake:
    """Counts turns, and lets them go."""

    def __init__(self) -> None:
        self.turns = 0

    def offer(self, turn: Turn) -> bool:
        del turn
        self.turns += 1
        return True
