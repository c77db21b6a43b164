"""What Azure's events mean to a talk: turns, usage, the change of an agent; and what of them the client is told."""

import asyncio
from collections.abc import Callable
from typing import Any

from token_broker.memory.types import Owner
from token_broker.relay.adapters import ProtocolAdapter
from token_broker.relay.azure.connector import Upstream
from token_broker.relay.counters import RelayCounters, TalkCounters
from token_broker.relay.dialects.conversation_items import TOOL_LIST
from token_broker.relay.event_text import SESSION_EVENTS, event_type, event_type_by_head, is_audio_delta, parsed
from token_broker.relay.handoff import AgentHandoff
from token_broker.relay.policy.visibility import (
    ERROR_EVENTS,
    may_show_tools,
    without_agents_settings,
    without_quoted_secrets,
)
from token_broker.relay.transcripts.assembler import TURN_EVENTS
from token_broker.relay.transcripts.recorder import TurnRecorder
from token_broker.server.close_codes import UPSTREAM_FAILED, Ending

__all__ = ["EventReader"]

_LAST_WORDS_S = 2.0
_AUDIO_DELTAS = frozenset({"response.audio.delta", "response.output_audio.delta"})
_READ_EVENTS = TURN_EVENTS | SESSION_EVENTS | ERROR_EVENTS | {"response.created"}


class EventReader:
    """One talk's. `end` is told where Azure sends what is no event; `redact` takes known secrets out of a text."""

    def __init__(
        self,
        adapter: ProtocolAdapter,
        owner: Owner,
        *,
        turns: TurnRecorder,
        switch: AgentHandoff,
        counters: RelayCounters,
        talk: TalkCounters,
        end: Callable[[Ending], None],
        time_s: Callable[[], float],
        redact: Callable[[str], str],
    ) -> None:
        self._adapter = adapter
        self._owner = owner
        self._turns = turns
        self._switch = switch
        self._counters = counters
        self._talk = talk
        self._end = end
        self._time_s = time_s
        self._redact = redact

    def told(self, text: str, upstream: Upstream) -> list[str]:
        """What the client is told of an event: none, one or several. What matters of it is noted."""
        kind = event_type(text)
        if kind in _AUDIO_DELTAS:
            self._heard(len(text) - text.find('"delta"'))
        elif (
            kind is None
            or kind in _READ_EVENTS
            or TOOL_LIST in text
            or self._adapter.reads(kind, upstream.route.dialect)
        ):
            return self._read(kind, text, upstream)
        return [self._adapter.passed(text, upstream.route.dialect)]

    def passes(self, payload: bytes) -> bool:
        """Whether an event goes to the client byte for byte, as is seen by its head alone; if so, that is all to it.

        Else it has to be `told`: that one is not plain ASCII is enough.
        """
        if self._adapter.dialect is not None or not payload.isascii():
            return False
        if not is_audio_delta(payload):
            kind = event_type_by_head(payload)
            if kind not in _AUDIO_DELTAS:
                return kind is not None and kind not in _READ_EVENTS and not may_show_tools(payload)
        self._heard(len(payload) - payload.find(b'"delta"'))
        return True

    async def hear_last_words(self, upstream: Upstream) -> None:
        """Reads on for a moment, where Azure has not yet told what the user said last; nobody is there to be told."""
        socket, assembler = upstream.socket, self._turns.assembler
        try:
            async with asyncio.timeout(_LAST_WORDS_S):
                while assembler.awaits_user:
                    await socket.wait()
                    if not socket.frames:
                        return
                    text = socket.take()
                    if (kind := event_type(text)) in TURN_EVENTS:
                        self._read(kind, text, upstream)
        except TimeoutError:
            pass

    def _heard(self, audio_chars: int) -> None:
        self._turns.assembler.heard(audio_chars, self._time_s())

    def _read(self, kind: str | None, text: str, upstream: Upstream) -> list[str]:
        try:
            event = parsed(text)
        except (ValueError, RecursionError):
            kind = event = None
        if kind is None or not isinstance(event, dict):
            self._end(Ending(UPSTREAM_FAILED, "Azure sent something that is no event: ask for a new plan"))
            return []
        if kind in SESSION_EVENTS:
            if kind == "session.updated":
                self._switch.confirmed(upstream)
            return self._shown(kind, event, text, upstream)
        if kind == "error" and self._switch.owns_error(event, upstream):
            return []
        if self._switch.owns_item(event):
            return []
        if kind == "response.done":
            self._counters.count_usage_of(
                event, principal=self._owner.principal, agent_id=self._switch.agent.id, talk=self._talk
            )
        self._turns.feed(event, self._time_s())
        return self._shown(kind, event, text, upstream)

    def _shown(self, kind: str, event: dict[str, Any], text: str, upstream: Upstream) -> list[str]:
        """An event that was read here, as the client may see it: written anew only where it has to be."""
        seen = without_quoted_secrets(without_agents_settings(event), self._redact)
        if seen is not event or self._adapter.reads(kind, upstream.route.dialect):
            return self._adapter.to_client(seen, upstream.route.dialect)
        return [self._adapter.passed(text, upstream.route.dialect)]
