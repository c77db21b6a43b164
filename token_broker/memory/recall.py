"""What the memory knows, for the agent's instructions: within its budget, or not at all."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import structlog

from token_broker.memory.context import (
    TOLD_CHARS,
    EnterpriseContext,
    EpisodicLayer,
    SecurityLayer,
    SemanticLayer,
    Utterance,
)
from token_broker.memory.drivers.database import Database
from token_broker.memory.store_errors import StoreBusyError, StoreError
from token_broker.memory.turn_search import TurnSearch
from token_broker.memory.types import LAST_TURNS, FactSource, Remembered, SinkError
from token_broker.security.limits import RecallCache
from token_broker.security.tokens import ANONYMOUS, Owner

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["BoundedRecall", "RecallCounts"]

log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(slots=True)
class RecallCounts:
    """Since the process began; `repeated` were answered from the cache."""

    asked: int = 0
    late: int = 0
    failed: int = 0
    repeated: int = 0


_Said = tuple[tuple[Utterance, ...] | None, str]
_Found = tuple[tuple[Utterance, ...], tuple[str, ...], str]  # a session's last turns, facts, the last talk's summary


class BoundedRecall:
    """See `Recall`. Reads a session's last turns and the user's facts side by side; leaves out what is late."""

    def __init__(self, database: Database, facts: Callable[[], FactSource | None], *, budget_s: float) -> None:
        self._database = database
        self._search = TurnSearch(database)
        self._facts = facts
        self._budget_s = budget_s
        self.cache: RecallCache[_Found] = RecallCache()
        self.counts = RecallCounts()

    async def block(self, owner: Owner) -> str:
        context = await self.context(owner)
        return context.render()

    async def context(self, owner: Owner) -> EnterpriseContext:
        """The session's context, as far as it is known within the budget."""
        self.counts.asked += 1
        security = SecurityLayer(
            principal=owner.principal, user_id=owner.user_id, authenticated=owner.principal != ANONYMOUS
        )
        turns, facts, summary = await self._find(owner) if self._budget_s > 0 else ((), (), "")
        return EnterpriseContext(
            security=security,
            episodic=EpisodicLayer(session_id=owner.session_id, last_turns=turns),
            semantic=SemanticLayer(facts=facts, summary=summary),
        )

    async def search(self, owner: Owner, query: str, *, limit: int = 5) -> Sequence[Remembered]:
        self.counts.asked += 1
        if self._budget_s <= 0:
            return ()
        try:
            async with asyncio.timeout(self._budget_s):
                found = await self._search.find(owner, query, limit=limit)
                return [Remembered(turn.content, turn.role, turn.created_at) for turn in found]
        except TimeoutError:
            self.counts.late += 1
        except StoreError as error:
            self._count(error)
        return ()

    async def _find(self, owner: Owner) -> _Found:
        if (cached := self.cache.get(owner)) is not None:
            self.counts.repeated += 1
            return cached
        ticket = self.cache.ask(owner)
        missed = self.counts.late + self.counts.failed
        turns = asyncio.create_task(self._last_turns(owner))
        facts = asyncio.create_task(self._known_facts(owner, turns))
        try:
            _, late = await asyncio.wait({turns, facts}, timeout=self._budget_s)
            self.counts.late += bool(late)
            said, summary = _result(turns) or (None, "")
            found = (said or (), _result(facts) or (), summary)
            # Only a complete find is cached. The counts are those of all questions: at worst one is not cached.
            if missed == self.counts.late + self.counts.failed:
                self.cache.keep(owner, ticket, found)
            return found
        finally:
            for task in (turns, facts):
                task.cancel()  # nobody waits for a late one: SQLite cannot break off a statement
            self.cache.done(owner, ticket)

    async def _last_turns(self, owner: Owner) -> _Said:
        """The session's newest turns, None where it is not known to be `owner`'s, and their last talk's summary."""

        def read(connection: "Connection") -> _Said:
            from token_broker.memory.store.summaries import newest_summary
            from token_broker.memory.store.turn_reads import last_turns_of

            turns = last_turns_of(connection, owner, LAST_TURNS, chars=TOLD_CHARS)
            said = None if turns is None else tuple(Utterance(role=turn.role, content=turn.content) for turn in turns)
            return said, newest_summary(connection, owner)

        try:
            return await self._database.read(read, pool="recall")
        except StoreError as error:
            self._count(error)
            return None, ""

    async def _known_facts(self, owner: Owner, turns: "asyncio.Task[_Said]") -> tuple[str, ...]:
        """Facts about the user; about the session too, once the store has said that it is theirs."""
        source = self._facts()
        if source is None:
            return ()
        await asyncio.wait({turns})
        try:
            return tuple(await source.facts(owner, of_session=(_result(turns) or (None,))[0] is not None))
        except (StoreError, SinkError) as error:
            self._count(error)
        except Exception as error:  # noqa: BLE001  # a mint never fails for its recall
            self.counts.failed += 1
            log.error("recall_broke", error=type(error).__name__)
        return ()

    def _count(self, error: Exception) -> None:
        # A full pool is late, not failed: the question was not asked.
        if isinstance(error, StoreBusyError):
            self.counts.late += 1
        else:
            self.counts.failed += 1


def _result(task: "asyncio.Task[T]") -> T | None:
    return task.result() if task.done() and not task.cancelled() else None
