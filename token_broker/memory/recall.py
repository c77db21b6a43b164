"""What the memory knows, for the agent's instructions: within its budget, or not at all."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import structlog

from token_broker.memory.context import (
    TOLD_CHARS,
    EnterpriseContext,
    EpisodicLayer,
    SecurityLayer,
    SemanticLayer,
    Utterance,
)
from token_broker.memory.delivery.sink import FactSource, SinkError
from token_broker.memory.drivers.database import Database
from token_broker.memory.errors import StoreBusyError, StoreError
from token_broker.memory.recall_cache import RecallCache
from token_broker.memory.types import LAST_TURNS
from token_broker.security.owner import ANONYMOUS, Owner

__all__ = ["BoundedRecall", "RecallCounts"]

log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(slots=True)
class RecallCounts:
    """Since the process began; `repeated` were answered with what was found a moment before."""

    asked: int = 0
    late: int = 0
    failed: int = 0
    repeated: int = 0


_Found = tuple[tuple[Utterance, ...], tuple[str, ...]]  # a session's last turns, and facts


class BoundedRecall:
    """See `Recall`. A session's last turns and the user's facts are asked for side by side; what is late is left."""

    def __init__(self, database: Database, facts: Callable[[], FactSource | None], *, budget_s: float) -> None:
        self._database = database
        self._facts = facts
        self._budget_s = budget_s
        self.kept: RecallCache[_Found] = RecallCache()
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
        turns, facts = await self._found(owner)
        return EnterpriseContext(
            security=security,
            episodic=EpisodicLayer(session_id=owner.session_id, last_turns=turns),
            semantic=SemanticLayer(facts=facts),
        )

    async def _found(self, owner: Owner) -> _Found:
        if self._budget_s <= 0:
            return (), ()
        if (kept := self.kept.get(owner)) is not None:
            self.counts.repeated += 1
            return kept
        mark = self.kept.ask(owner)
        try:
            missed = self.counts.late + self.counts.failed
            found = await self._within_budget(owner)
            if missed == self.counts.late + self.counts.failed:  # of this one nothing, as far as can be told
                self.kept.keep(owner, mark, found)
            return found
        finally:
            self.kept.done(owner, mark)

    async def _within_budget(self, owner: Owner) -> _Found:
        turns = asyncio.create_task(self._last_turns(owner))
        facts = asyncio.create_task(self._known(owner, turns))
        try:
            _, late = await asyncio.wait({turns, facts}, timeout=self._budget_s)
            self.counts.late += bool(late)
        finally:
            for task in (turns, facts):
                task.cancel()  # a late one ends by itself; nobody waits for it
        return _result(turns) or (), _result(facts) or ()

    async def _last_turns(self, owner: Owner) -> tuple[Utterance, ...] | None:
        """The session's newest turns; None where it is not known to be `owner`'s."""
        from token_broker.memory.store.reading import last_turns_of

        work = partial(last_turns_of, owner=owner, limit=LAST_TURNS, chars=TOLD_CHARS)
        try:
            turns = await self._database.read(work, lane="recall")
        except StoreError as error:
            self._count(error)
            return None
        return None if turns is None else tuple(Utterance(role=turn.role, content=turn.content) for turn in turns)

    async def _known(self, owner: Owner, turns: "asyncio.Task[tuple[Utterance, ...] | None]") -> tuple[str, ...]:
        """What is known of the user; of the session too, once the store has said that it is theirs."""
        source = self._facts()
        if source is None:
            return ()
        await asyncio.wait({turns})
        try:
            return tuple(await source.facts(owner, of_session=_result(turns) is not None))
        except (StoreError, SinkError) as error:
            self._count(error)
            return ()
        except Exception as error:  # noqa: BLE001  # whatever it is, a mint does not fail for it
            self.counts.failed += 1
            log.error("recall_broke", error=type(error).__name__)
            return ()

    def _count(self, error: Exception) -> None:
        """Who finds the lane full is late: it was not looked for, and did not fail."""
        if isinstance(error, StoreBusyError):
            self.counts.late += 1
        else:
            self.counts.failed += 1


def _result(task: "asyncio.Task[T]") -> T | None:
    return task.result() if task.done() and not task.cancelled() else None
