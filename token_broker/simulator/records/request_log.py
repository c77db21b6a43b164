"""The log of requests, for tests that count calls upstream. Of a credential it keeps the kind alone."""

import re
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic import SecretStr
from starlette.types import Message

from token_broker.simulator.session_bodies.check import InvalidRequest, parse_json

# A test that uploads megabytes, or talks for an hour, must not fill the memory of the whole run.
_LONGEST_BODY = 64 * 1024
_MOST_EVENTS = 200


@dataclass(slots=True)
class SeenRequest:
    """One HTTP request or WebSocket handshake, and what became of it."""

    protocol: str
    method: str
    path: str
    query: str
    header_names: list[str]
    auth: str
    body: Any
    at: float
    status: int | None = None
    """Of the answer; null while there is none, or where the connection was broken instead."""
    fault: str | None = None
    frames_sent: int = 0
    frames_received: int = 0
    events: list[Any] = field(default_factory=list)
    """On a WebSocket: the client's events but for audio, the first 200."""
    ended: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"at": datetime.fromtimestamp(self.at, UTC).isoformat().replace("+00:00", "Z")}

    def note_sent(self, message: Message) -> None:
        """An ASGI message on its way to the client."""
        if message["type"] == "websocket.send":
            self.frames_sent += 1
        elif message["type"] == "websocket.accept":
            self.status = 101
        elif message["type"].endswith("http.response.start"):
            self.status = message["status"]

    def note_event(self, event: object) -> None:
        if len(self.events) < _MOST_EVENTS:
            self.events.append(event)


class RequestLog:
    """The last `limit` requests, oldest first."""

    def __init__(self, secrets: Iterable[SecretStr], limit: int) -> None:
        self._entries: deque[SeenRequest] = deque(maxlen=limit)
        values = [re.escape(secret.get_secret_value()) for secret in secrets]
        # What looks like an ephemeral secret is removed too: one of another simulator may come here by mistake.
        self._secret = re.compile("|".join([*values, r"ek_[A-Za-z0-9_-]+"]))

    def add(self, entry: SeenRequest) -> None:
        self._entries.append(entry)

    def entries(self) -> list[SeenRequest]:
        # Copied in one step: another thread may add to the deque, which ends an iteration over it with an error.
        return list(self._entries.copy())

    def clear(self) -> None:
        self._entries.clear()

    def scrub(self, text: str) -> str:
        """The text without any secret that this simulator knows or could have minted."""
        return self._secret.sub("[redacted]", text)

    def readable(self, body: bytes) -> Any:
        """A body for the log: JSON if it is JSON, else text, cut where it is long."""
        text = self.scrub(body.decode(errors="replace"))
        if not text:
            return None
        try:
            return parse_json(text) if len(text) <= _LONGEST_BODY else text[:_LONGEST_BODY] + "…"
        except InvalidRequest:
            return text
