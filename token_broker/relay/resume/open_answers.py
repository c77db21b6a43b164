"""What is open in a talk: answers that are due or under way, and clients' events that Azure has not confirmed."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from token_broker.relay.resume.history import Item, text_of

__all__ = ["AwaitedEvent", "OpenAnswer"]

Event = dict[str, Any]


@dataclass(slots=True)
class OpenAnswer:
    """An answer that is due or under way. `response` is Azure's, from its `response.created` on.

    `heard`: content of it was handed to the client. `stopped`: by the client, or since the user spoke.
    """

    request: Event | None = None
    go_on: bool = False
    outside: bool = False
    stopped: bool = False
    heard: bool = False
    began: bool = False
    sounded: bool = False
    response: dict[str, Any] | None = None
    sound_chars: int = 0
    items: list[Item] = field(default_factory=list)

    @property
    def response_id(self) -> str | None:
        return None if self.response is None else text_of(self.response.get("id"))

    def ended(self) -> dict[str, Any]:
        """The `response.done` by which an answer that was cut ends for the client."""
        output: list[dict[str, Any]] = [
            {
                "id": item.item_id,
                "type": "message",
                "role": "assistant",
                "status": "completed" if item.finished else "incomplete",
                "content": [],
            }
            for item in self.items
            if item.kind == "assistant"
        ]
        details = {"type": "cancelled", "reason": "client_cancelled"}
        stated = {"status": "cancelled", "status_details": details, "output": output, "usage": None}
        return {"type": "response.done", "response": {**(self.response or {}), **stated}}

    def owes_sound(self, modalities: Collection[str]) -> bool:
        """Whether sound is due, in a session with these modalities: what was asked for by name comes before them."""
        asked = self.request.get("response") if self.request else None
        named = (asked.get("output_modalities") or asked.get("modalities")) if isinstance(asked, dict) else None
        return "audio" in (named if isinstance(named, list) else modalities)

    @property
    def says_something(self) -> bool:
        """Whether the client has got sound or words of it."""
        return self.heard or any(item.kind == "assistant" and item.text for item in self.items)

    @property
    def is_whole(self) -> bool:
        return bool(self.items) and all(item.finished for item in self.items)


@dataclass(slots=True)
class AwaitedEvent:
    """An item or a commit of the client's that Azure has not told of."""

    text: str
    item_id: str | None = None
    speech: tuple[int, int] | None = None
