"""Collects a talk's server events until they are sent, each with its id, under its dialect's name."""

import itertools
import secrets
from typing import Any

from token_broker.simulator.realtime.dialects import Dialect
from token_broker.simulator.session_bodies.check import InvalidRequest

Event = dict[str, Any]


class Ids:
    """Makes the ids of one talk: a prefix that says of what, chance once, and a number."""

    def __init__(self) -> None:
        self._chance = secrets.token_hex(8)
        self._numbers = itertools.count(1)

    def new(self, prefix: str) -> str:
        return f"{prefix}_{self._chance}{next(self._numbers):06x}"


class ServerEvents:
    """Events that wait to be sent, in order. `type` and `event_id` stand first, as Azure has them."""

    def __init__(self, dialect: Dialect, ids: Ids) -> None:
        self._dialect = dialect
        self._ids = ids
        self._events: list[Event] = []

    def emit(self, name: str, **fields: Any) -> None:
        """Puts an event by its GA name; nothing where the dialect has no such event."""
        wire_name = self._dialect.wire_name(name)
        if wire_name is not None:
            self._events.append({"type": wire_name, "event_id": self._ids.new("event"), **fields})

    def emit_error(self, invalid: InvalidRequest, client_event_id: str | None) -> None:
        """Puts an `error` about something that the client sent."""
        error = {
            "type": "invalid_request_error",
            "code": invalid.code,
            "message": invalid.message,
            "param": invalid.param,
            "event_id": client_event_id,
        }
        self.emit("error", error=error)

    def drain(self) -> list[Event]:
        events, self._events = self._events, []
        return events
