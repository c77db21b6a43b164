"""Records one talk's turns to the memory."""

import re
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from typing import Any, Protocol

from token_broker.memory.types import Interruption, Turn, TurnIngest
from token_broker.relay.counters import TalkCounters
from token_broker.relay.transcripts.assembler import FinishedTurn, TurnAssembler
from token_broker.security.tokens import Owner

__all__ = ["TurnRecorder", "TurnSource"]

# Azure's ids are unique everywhere. A client may name its items itself, uniquely within one connection.
_AZURES_ID = re.compile(r"(?:item|msg)_[A-Za-z0-9]{16,}")


class TurnSource(Protocol):
    """Makes turns of Azure's events: `TurnAssembler`, or another dialect's."""

    @property
    def due_s(self) -> float | None: ...
    def feed(self, event: Mapping[str, Any], now_s: float) -> list[FinishedTurn]: ...
    def due(self, now_s: float) -> list[FinishedTurn]: ...
    def cut(self, unsaid: AbstractSet[str], now_s: float) -> list[FinishedTurn]: ...
    def drop(self, item_id: str) -> None: ...
    def flush(self) -> list[FinishedTurn]: ...


class TurnRecorder:
    """Offers each turn to the memory as soon as it is finished; calls `on_lost` for a turn that was not accepted.

    `agent_id` is the current agent; a handoff sets it. `scope` is added to the ids that a client chose; it is empty
    where the client reports its turns as well, by the same ids. `source` is for a dialect that has turns of its own.
    """

    def __init__(
        self,
        owner: Owner,
        agent_id: str,
        *,
        ingest: TurnIngest,
        counters: TalkCounters,
        on_lost: Callable[[], None],
        scope: str = "",
        source: TurnSource | None = None,
    ) -> None:
        self.agent_id = agent_id
        self.assembler = TurnAssembler(expects_history=True)
        self._source: TurnSource = source or self.assembler
        self._owner = owner
        self._ingest = ingest
        self._counters = counters
        self._on_lost = on_lost
        self._scope = scope
        self._began_at = datetime.now(UTC)
        self._lost_id: str | None = None  # of the latest turn that was not accepted

    def feed(self, event: Mapping[str, Any], now_s: float) -> None:
        """Takes one of Azure's `TURN_EVENTS`."""
        self._keep(self._source.feed(event, now_s))

    def tell_due(self, now_s: float) -> None:
        """Offers the held turns whose time has come."""
        if (due_s := self._source.due_s) is not None and due_s <= now_s:
            self._keep(self._source.due(now_s))

    def cut(self, unsaid: AbstractSet[str], now_s: float) -> None:
        """Offers the answers that a lost session leaves, except those of which nothing was heard."""
        self._keep(self._source.cut(unsaid, now_s))

    def drop(self, item_id: str) -> None:
        """Keeps no turn of what the user said in this item."""
        self._source.drop(item_id)

    def flush(self) -> None:
        """Offers everything that is left: the talk, or its upstream, is over."""
        self._keep(self._source.flush())

    def _keep(self, turns: list[FinishedTurn]) -> None:
        for turn in turns:
            is_unique = not self._scope or _AZURES_ID.fullmatch(turn.item_id)
            turn_id = turn.item_id if is_unique else f"{turn.item_id}.{self._scope}"
            if turn.again and turn.interrupted:
                self._ingest.mark_interrupted(Interruption(self._owner, turn_id))
                continue
            kept = self._ingest.offer(
                Turn(
                    owner=self._owner,
                    turn_id=turn_id,
                    agent_id=self.agent_id,
                    role=turn.role,
                    content=turn.content,
                    created_at=datetime.now(UTC),  # Azure's events carry no time
                    source="proxy",
                    sequence=turn.sequence,
                    interrupted=turn.interrupted,
                    put_back_at=self._began_at if turn.put_back else None,
                )
            )
            if turn.again:
                # It was counted, and is stored once. The store may have taken the first offer for history, though, and
                # kept nothing: then this offer is the one that counts.
                if kept or turn_id == self._lost_id:
                    continue
                self._counters.turns -= 1
            else:
                self._counters.failed_transcriptions += not turn.transcribed
            if kept:
                self._counters.turns += 1
            else:
                self._lost_id = turn_id
                self._counters.turns_lost += 1
                self._on_lost()
