"""What GPT-Live's events mean to a talk, and what of them its client may see.

The socket through the proxy and the sideband of a session over WebRTC share it: turns, waits, usage, delegated work.
"""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from token_broker.relay.answers.turn_clock import TurnLatency
from token_broker.relay.counters import TalkCounters
from token_broker.relay.dialects.broker_events import OWN_EVENT_IDS
from token_broker.relay.event_text import compact, event_of, event_type
from token_broker.relay.live.delegations import Delegations
from token_broker.relay.live.shown import CLOSED, DIALECT, shown_session
from token_broker.relay.live.spoken_turns import TRANSCRIPT_EVENTS, TYPED_EVENT, LiveTurns
from token_broker.relay.policy.visibility import without_quoted_secrets
from token_broker.relay.talk_parts import TalkParts
from token_broker.relay.transcripts.recorder import TurnRecorder
from token_broker.security.tokens import Owner
from token_broker.usage.talk_usage import TalkUsage

__all__ = ["AUDIO_DELTA", "LiveEvents"]

Event = dict[str, Any]

AUDIO_DELTA = "session.output_audio.delta"
_REFLECTED = "session.input_audio.append"  # what the user says, on a sideband: nobody here needs it
# Of the backend's lifecycle events: the rest may quote the agent's prompt and tools.
_SHOWN_OF_RESPONSE = frozenset({"id", "object", "status", "created_at", "usage", "error", "incomplete_details"})


@dataclass(slots=True)
class LiveEvents:
    """One talk's. `answered` is told each wait of the user's. `handle` returns what the client is sent."""

    parts: TalkParts
    owner: Owner
    agent_id: str
    turns: TurnRecorder
    source: LiveTurns
    delegations: Delegations
    counters: TalkCounters
    answered: Callable[[TurnLatency], str | None]
    now_s: Callable[[], float]
    usage: TalkUsage | None = None
    resource: str = ""
    session_id: str = ""  # Azure's
    closed: Mapping[str, Any] | None = None  # Azure's last event, where it has come

    def begin(self, resource: str, session_id: str) -> None:
        """From now on the events are this session's."""
        self.resource, self.session_id, self.closed = resource, session_id, None
        self.source.begin(session_id)
        self.delegations.begin(session_id)

    def handle(self, text: str) -> list[str] | None:
        """Notes an event. None: it is no event."""
        kind = event_type(text)
        if kind == AUDIO_DELTA:
            return [text]
        if kind == _REFLECTED:
            return []
        event = event_of(text)
        if kind is None or event is None:
            return None
        told: list[str] = []
        visible, about = True, event.get("client_event_id")
        if kind in TRANSCRIPT_EVENTS:
            self.turns.feed(event, self.now_s())
            if TRANSCRIPT_EVENTS[kind] == "user":
                self.delegations.user_spoke()
            told = self.tell_waits()
        elif kind == "session.delegation.created":
            visible = self.delegations.created(event)
        elif kind == "response.event":
            visible = self.delegations.backend_sent(event)
            self._count_backend(event.get("event"))
        elif kind in {"session.usage.updated", CLOSED}:
            used = event.get("usage")
            if self.usage is not None:
                seconds = used.get("seconds") if isinstance(used, dict) else None
                self.usage.azure_billed(self.session_id, seconds, resource=self.resource, dialect=DIALECT)
            if kind == CLOSED:
                self.closed = event
        elif kind == "error":
            about = event["error"].get("client_event_id") if isinstance(event.get("error"), dict) else None
        # About an event of the broker's own a client hears nothing, since it knows nothing of that.
        visible = visible and not (isinstance(about, str) and about.startswith(OWN_EVENT_IDS))
        return [*told, *([self._shown(kind, event, text)] if visible else [])]

    def typed(self, text: str, item_id: str | None) -> None:
        """Keeps what the user has typed."""
        if text.strip():
            item_id = item_id or f"item_{secrets.token_hex(12)}"
            self.turns.feed({"type": TYPED_EVENT, "text": text, "item_id": item_id}, self.now_s())

    def tick(self) -> list[str]:
        """What is due by now."""
        self.turns.tell_due(self.now_s())
        return self.tell_waits()

    def tell_waits(self) -> list[str]:
        """Counts the waits that are known, and says them for the client."""
        found, self.source.latencies = self.source.latencies, []
        return [told for turn in found if (told := self.answered(turn)) is not None]

    def _shown(self, kind: str, event: Event, text: str) -> str:
        shown = without_quoted_secrets(event, self.parts.redact)
        if "session" in event:
            shown = {**shown, "session": shown_session(event["session"])}
        if kind == "response.event" and isinstance(nested := event.get("event"), dict):
            response, inner = nested.get("response"), nested
            if isinstance(response, dict):
                kept = {name: value for name, value in response.items() if name in _SHOWN_OF_RESPONSE}
                inner = {**nested, "response": kept}
            if (inner := without_quoted_secrets(inner, self.parts.redact)) is not nested:
                shown = {**shown, "event": inner}
        return text if shown is event else compact(shown)

    def _count_backend(self, nested: Any) -> None:
        """Counts what the Responses backend used, as an answer of the talk's."""
        if not isinstance(nested, dict) or nested.get("type") not in {"response.completed", "response.incomplete"}:
            return
        done = {"type": "response.done", "response": nested.get("response")}
        self.parts.counters.count_usage_of(
            done, principal=self.owner.principal, agent_id=self.agent_id, talk=self.counters, resource=self.resource
        )
        if self.usage is not None:
            self.usage.azure_sent(done, resource=self.resource, dialect=DIALECT)
