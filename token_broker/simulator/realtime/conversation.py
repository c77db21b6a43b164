"""A conversation: its items in order, in no dialect."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["user", "assistant", "system"]
ItemStatus = Literal["completed", "incomplete", "in_progress"]

ROOT = "root"


@dataclass(slots=True)
class Part:
    """A piece of a message. Audio has its transcript as `text`; a user's has none until it is transcribed."""

    kind: Literal["text", "audio"]
    text: str | None = None
    pcm: bytes = b""
    audio_ms: int = 0
    """How much audio it is, or for an assistant's: has been sent of it."""


@dataclass(slots=True)
class Message:
    """Something that was said or written."""

    id: str
    role: Role
    parts: list[Part]
    status: ItemStatus = "completed"
    given: bool = False
    """Whether the client put it there, as it does with history."""

    @property
    def pcm(self) -> bytes:
        return b"".join(part.pcm for part in self.parts)

    @property
    def typed(self) -> str:
        """What was written of it."""
        return " ".join(part.text for part in self.parts if part.kind == "text" and part.text)


@dataclass(slots=True)
class FunctionCall:
    """A function that the model wants to be called."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: ItemStatus = "completed"


@dataclass(slots=True)
class FunctionOutput:
    """What the client's function gave."""

    id: str
    call_id: str
    output: str


@dataclass(slots=True)
class McpToolList:
    """The tools of an MCP server, as the service listed them."""

    id: str
    server_label: str
    tools: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class ListedTool:
    """One tool of an MCP server, and whether the client has to allow each call."""

    server_label: str
    name: str
    needs_approval: bool


@dataclass(slots=True)
class McpCall:
    """A tool of an MCP server that the service calls itself, and what it gave."""

    id: str
    server_label: str
    name: str
    arguments: str
    approval_request_id: str | None = None
    output: str | None = None


@dataclass(slots=True)
class McpApprovalRequest:
    """A call that waits until the client allows it."""

    id: str
    server_label: str
    name: str
    arguments: str


@dataclass(slots=True)
class McpApproval:
    """What the client decided about such a call."""

    id: str
    approval_request_id: str
    approve: bool
    reason: str | None


Item = Message | FunctionCall | FunctionOutput | McpToolList | McpCall | McpApprovalRequest | McpApproval


@dataclass(slots=True)
class Conversation:
    """The items, oldest first. Beyond `limit` the oldest are forgotten, as beyond a model's context."""

    limit: int = 200
    _items: list[Item] = field(default_factory=list)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def is_second(self, item: Item) -> bool:
        """Whether just one item stands before it."""
        return len(self._items) > 1 and self._items[1] is item

    @property
    def last_id(self) -> str | None:
        return self._items[-1].id if self._items else None

    def find(self, item_id: str) -> Item | None:
        return next((item for item in self._items if item.id == item_id), None)

    def add(self, item: Item, after: str | None = None) -> str | None:
        """Puts an item after another, first for `root`, last for None. Gives the id before it, if any.

        Raises:
            KeyError: there is no item of the id `after`.

        """
        # `root` is OpenAI's word for the place before the first item.
        place = len(self._items)
        if after == ROOT:
            place = 0
        elif after is not None:
            place = next((number for number, other in enumerate(self._items, 1) if other.id == after), -1)
            if place < 0:
                raise KeyError(after)
        previous = self._items[place - 1].id if place else None
        self._items.insert(place, item)
        while len(self._items) > self.limit:
            del self._items[0]
        # Only the latest audio is ever spoken back or truncated; the rest would be most of a talk's memory.
        spoken = [part for item in self._items if isinstance(item, Message) for part in item.parts if part.pcm]
        for part in spoken[:-4]:
            part.pcm = b""
        return previous

    def remove(self, item: Item) -> None:
        self._items.remove(item)
