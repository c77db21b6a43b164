"""Tells a talk what the memory knows of its user: as data, in items of the conversation that nobody but the model sees.

What was said earlier is no instruction. In the session's instructions it would stand beside the agent's own; as an item
of the user's it stands below them. Such an item is no turn: clients, the memory and a guardrail never hear of it.
"""

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from typing import Any

import structlog

from token_broker.memory.context import EnterpriseContext, EpisodicLayer, SecurityLayer, SemanticLayer
from token_broker.memory.types import Interruption, Recall, Turn, TurnIngest
from token_broker.relay.resume.history import Item
from token_broker.relay.resume.restored import NOTE_IDS
from token_broker.relay.transcripts.assembler import NOT_TRANSCRIBED
from token_broker.security.tokens import Owner
from token_broker.sessions.agents import Agent

__all__ = ["TalkMemory"]

log = structlog.get_logger("token_broker.relay")

_SEARCH_S = 0.15  # while the agent may be answering already: what is later is of no use
_FOUND_AT_MOST = 3
_FOUND_BYTES = 1_024
_NOTES_KEPT = 4  # besides the first: another session is told them again


class TalkMemory:
    """One talk's. `begin` asks the memory; `opening` gives the first note; `said` may look for more at each turn."""

    def __init__(
        self,
        recall: Recall,
        owner: Owner,
        *,
        agent: Callable[[], Agent],
        tell: Callable[[Item], None],
        start: Callable[[Coroutine[Any, Any, None], str], None],
    ) -> None:
        self._recall = recall
        self._owner = owner
        self._agent = agent
        self._tell = tell
        self._start = start
        self._began_at = datetime.now(UTC)
        self._first: Item | None = None
        self._later: list[Item] = []
        self._told: set[str] = set()
        self._searching = False
        self.recalling: asyncio.Task[str] | None = None

    def begin(self) -> None:
        """Asks the memory now, so that the answer is there when the session is."""
        if self._agent().recall != "off":
            self.recalling = asyncio.create_task(self._recall.block(self._owner), name="talk-recall")

    async def opening(self) -> Sequence[Item]:
        """The note that a talk begins with, where anything is known; it waits as long as the recall may take."""
        if self.recalling is not None and self._first is None:
            try:
                block = await asyncio.shield(self.recalling)
            except Exception as error:  # noqa: BLE001  # a talk never fails for its recall
                log.error("recall_broke", error=type(error).__name__)
                block = ""
            self._first = _note(block) if block else None
        return self.notes()

    def notes(self) -> tuple[Item, ...]:
        """What another session of this talk has to be told again, before anything that was said."""
        if self._agent().recall == "off":
            return ()
        first = () if self._first is None else (self._first,)
        return (*first, *self._later)

    def listening(self, ingest: TurnIngest) -> TurnIngest:
        """The ingest, with an ear for what the user says."""
        return _Listening(ingest, self.said)

    def said(self, turn: Turn) -> None:
        """The user has said this. Where the agent asks for it, the memory is searched beside the answer."""
        if self._agent().recall != "every_turn" or turn.content == NOT_TRANSCRIBED or self._searching:
            return
        self._searching = True
        self._start(self._search(turn.content), "talk-search")

    async def _search(self, text: str) -> None:
        try:
            async with asyncio.timeout(_SEARCH_S):
                found = await self._recall.search(self._owner, text, limit=2 * _FOUND_AT_MOST)
        except TimeoutError:
            return
        finally:
            self._searching = False
        new = [each for each in found if each.when < self._began_at and each.text not in self._told][:_FOUND_AT_MOST]
        if not new:
            return
        self._told |= {each.text for each in new}
        facts = tuple(f"{each.when:%Y-%m-%d} {each.role}: {each.text}" for each in new)
        context = EnterpriseContext(
            security=SecurityLayer(principal=self._owner.principal, user_id=self._owner.user_id),
            episodic=EpisodicLayer(session_id=self._owner.session_id),
            semantic=SemanticLayer(facts=facts),
        )
        note = _note(context.render(limit_bytes=_FOUND_BYTES))
        self._later = [*self._later, note][-_NOTES_KEPT:]
        self._tell(note)


class _Listening:
    """See `TurnIngest`."""

    def __init__(self, ingest: TurnIngest, said: Callable[[Turn], None]) -> None:
        self._ingest = ingest
        self._said = said

    def offer(self, turn: Turn) -> bool:
        if turn.role == "user":
            self._said(turn)
        return self._ingest.offer(turn)

    def mark_interrupted(self, interruption: Interruption) -> bool:
        return self._ingest.mark_interrupted(interruption)


def _note(block: str) -> Item:
    return Item(f"{NOTE_IDS}{secrets.token_hex(10)}", "user", {0: block})
