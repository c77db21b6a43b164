"""Tells a WebRTC call what the memory knows of its user: over the sideband, as the output of a tool.

The page reads each item of its call. It would show an item of the user's role as something that the user said. A call
and its output are nobody's words; they stand below the agent's instructions, and never become a turn.
"""

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from token_broker.memory.types import Recall, TurnIngest
from token_broker.relay.dialects.broker_events import OWN_EVENT_IDS
from token_broker.relay.recalled.talk_memory import TalkMemory
from token_broker.relay.resume.history import Item
from token_broker.security.tokens import Owner
from token_broker.sessions.agents import Agent

__all__ = ["RECALL_EVENTS", "CallMemory"]

RECALL_EVENTS = f"{OWN_EVENT_IDS}recall_"
"""The prefix of the `event_id` of what a call is told."""

_FIRST = "root"  # of the conversation: the user may have spoken before the sideband joined
_WAITING_AT_MOST = 8


class CallMemory:
    """One call's. `start` runs a coroutine as one of the call's tasks."""

    def __init__(
        self,
        recall: Recall,
        owner: Owner,
        agent: Agent,
        *,
        start: Callable[[Coroutine[Any, Any, None], str], None],
    ) -> None:
        self._memory = TalkMemory(recall, owner, agent=lambda: agent, tell=self._tell, start=start)
        self._send: Callable[[Mapping[str, Any]], None] | None = None
        self._waiting: list[Mapping[str, Any]] = []

    def listening(self, ingest: TurnIngest) -> TurnIngest:
        """The ingest, with an ear for what the user says: the agent may want a search at each turn."""
        return self._memory.listening(ingest)

    def begin(self) -> None:
        """The call is new: asks the memory now, so that the answer is there when the sideband is."""
        self._memory.begin()

    async def open(self) -> None:
        """Tells what the call begins with, as soon as it is known; it waits as long as the recall may take."""
        for note in await self._memory.opening():
            self._tell(note, after=_FIRST)

    def join(self, send: Callable[[Mapping[str, Any]], None]) -> None:
        """The sideband is there: `send` gives Azure an event."""
        self._send = send
        for event in self._waiting:
            send(event)
        self._waiting.clear()

    def leave(self) -> None:
        """The sideband is gone; what the call was told it knows."""
        self._send = None

    def aclose(self) -> None:
        """The call is over."""
        if self._memory.recalling is not None:
            self._memory.recalling.cancel()

    def _tell(self, note: Item, *, after: str | None = None) -> None:
        call_id, asked = note.item_id, f"{note.item_id}_q"
        call = {"id": asked, "type": "function_call", "call_id": call_id, "name": "recall", "arguments": "{}"}
        output = {"id": call_id, "type": "function_call_output", "call_id": call_id, "output": note.text}
        for item, previous in ((call, after), (output, after and asked)):
            place = {} if previous is None else {"previous_item_id": previous}
            event = {"type": "conversation.item.create", "event_id": f"{RECALL_EVENTS}{item['id']}", **place}
            if self._send is not None:
                self._send({**event, "item": item})
            elif len(self._waiting) < _WAITING_AT_MOST:
                self._waiting.append({**event, "item": item})
