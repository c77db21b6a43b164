"""Collects a talk's server events until they are sent, each with its id, under its dialect's name."""

import itertools
import secrets
from typing import Any

from token_broker.simulator.realtime.conversation import Item
from token_broker.simulator.realtime.dialects import Dialect
from token_broker.simulator.session_bodies.check import InvalidRequest

Event = dict[str, Any]

_OBFUSCATION = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_OBFUSCATED_CHARS = 16


class Ids:
    """Makes the ids of one talk: a prefix for the kind, random digits of the talk, and a number."""

    def __init__(self) -> None:
        # Random once a talk, then counted: a busy talk makes thousands of ids.
        self._random = secrets.token_hex(8)
        self._numbers = itertools.count(1)

    def new(self, prefix: str) -> str:
        return f"{prefix}_{self._random}{next(self._numbers):06x}"


class ServerEvents:
    """Events that wait to be sent, in order."""

    def __init__(self, dialect: Dialect, ids: Ids) -> None:
        self.dialect = dialect
        self._ids = ids
        self._events: list[Event] = []

    def emit(self, name: str, /, **fields: Any) -> None:
        """Adds an event by its GA name; none where the dialect has no such event."""
        wire_name = self.dialect.wire_name(name)
        if wire_name is None:
            return
        event: Event = {"type": wire_name, "event_id": self._ids.new("event")}
        if self.dialect.name == "voice_live":
            # Voice Live writes the id first. A reader that looks for the type at the frame's start misses it.
            event = {"event_id": event["event_id"], "type": wire_name}
        event |= fields
        if self.dialect.obfuscates and name.endswith(".delta") and name != "response.output_audio.delta":
            # It hides the length of the text from whoever counts encrypted bytes.
            missing = -len(fields["delta"]) % _OBFUSCATED_CHARS
            event["obfuscation"] = "".join(secrets.choice(_OBFUSCATION) for _ in range(missing))
        self._events.append(event)

    def emit_item(self, name: str, item: Item, previous_item_id: str | None) -> None:
        """Adds `conversation.item.added` or `.done`, where the dialect tells it of such an item."""
        if name == "conversation.item.added" or self.dialect.states_done(item):
            self.emit(name, previous_item_id=previous_item_id, item=self.dialect.item_object(item))

    def emit_error(self, invalid: InvalidRequest, client_event_id: str | None) -> None:
        """Adds an `error` about something that the client sent."""
        error = {
            "type": invalid.type,
            "code": invalid.code,
            "message": invalid.message,
            "param": invalid.param,
            "event_id": client_event_id,
        }
        self.emit("error", error=error)

    def drain(self) -> list[Event]:
        events, self._events = self._events, []
        return events
