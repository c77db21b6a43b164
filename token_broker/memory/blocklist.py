"""Whom the operator has blocked, as this process knows it: read again every second and a half.

Tokens are enough by themselves, so a compatible endpoint asks nobody: it looks at the last list that was read. While
the store is away that list holds. A process that begins while it is away has no list (`was_read`): it serves new
sessions alone, by transports that it can end, or nobody where the list is `required`. Once it has one it ends the talks
of the blocked.
"""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import structlog

from token_broker.memory.drivers.database import Database
from token_broker.memory.errors import StoreError
from token_broker.observability.logging import audit_blocks

if TYPE_CHECKING:
    from token_broker.memory.store.blocklist import Key

__all__ = ["Refused", "StoredBlocklist"]

log = structlog.get_logger(__name__)

Refused = Callable[[str, str | None], bool]
"""`Blocklist.refused`: of a principal and a session."""

_EVERY_S = 1.5  # who is blocked is known everywhere within 2 s, the reading included
_PAGE = 500  # rows at once: decoding more would hold up talks


class StoredBlocklist:
    """See `Blocklist`. `refresh` once, and `run` from then on."""

    def __init__(
        self,
        database: Database,
        *,
        required: bool = False,
        every_s: float = _EVERY_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._required = required
        self._every_s = every_s
        self._clock = clock
        self._keys: frozenset[Key] = frozenset()
        self._principals: frozenset[str] = frozenset()
        self._sessions: frozenset[str] = frozenset()
        self._watchers: list[Callable[[Refused], None]] = []
        self._read_at_s: float | None = None
        self._stale = False
        self.unread = 0  # times the store did not say who is blocked

    @property
    def was_read(self) -> bool:
        return self._read_at_s is not None

    @property
    def is_missed(self) -> bool:
        return self._required and not self.was_read

    def refused(self, principal: str, session_id: str | None) -> bool:
        return principal in self._principals or session_id in self._sessions

    def watch(self, end_where: Callable[[Refused], None]) -> None:
        """`end_where(refused)` is called after each reading that finds anybody blocked: it ends what they have open.

        Each time, not only for newcomers to the list: what slipped in beside one reading is ended after the next.
        """
        self._watchers.append(end_where)

    async def run(self) -> None:
        """Reads again and again; a store that is away is told of once."""
        self._end_open()
        while True:
            await asyncio.sleep(self._every_s)
            try:
                await self.refresh()
            except StoreError as error:
                self.unread += 1
                if not self._stale:
                    log.warning("blocklist_unread", reason=str(error), blocked=len(self._keys))
                self._stale = True
                continue
            self._end_open()

    def _end_open(self) -> None:
        """A watcher that breaks keeps neither the others nor the next reading from being told."""
        for end_where in self._watchers if self._keys else ():
            try:
                end_where(self.refused)
            except Exception as error:  # noqa: BLE001  # told; it is called again after the next reading
                log.error("blocked_talk_not_ended", error=type(error).__name__)

    async def refresh(self) -> None:
        """Reads who is blocked now. Raises StoreError: then it stays as it was."""
        found = frozenset(await self._read())
        self._read_at_s = self._clock()
        if self._stale:
            self._stale = False
            log.info("blocklist_read_again")
        if found != self._keys:
            before, self._keys = self._keys, found
            self._principals = frozenset(name for kind, name in found if kind == "principal")
            self._sessions = frozenset(name for kind, name in found if kind == "session")
            audit_blocks(found - before, unblocked=before - found)

    @property
    def count(self) -> int:
        """Principals and sessions that are blocked."""
        return len(self._keys)

    @property
    def age_s(self) -> float | None:
        """How long ago they were read; None where they never were."""
        return None if self._read_at_s is None else round(max(0.0, self._clock() - self._read_at_s), 3)

    async def _read(self) -> "list[Key]":
        from token_broker.memory.store.blocklist import blocked_keys

        found = page = await self._database.read(partial(blocked_keys, limit=_PAGE))
        while len(page) == _PAGE:
            page = await self._database.read(partial(blocked_keys, limit=_PAGE, after=page[-1]))
            found = found + page
        return found
