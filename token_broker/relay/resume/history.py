"""What was said in a talk, as a new session is told it: the latest turns, and tool calls with their outputs. Pure.

It holds items in the order of the conversation, which is the order in which Azure announces them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from token_broker.security.limits import BoundedDict

__all__ = ["Item", "TalkHistory", "text_of"]

Event = Mapping[str, Any]
Kind = Literal["user", "assistant", "call", "output"]

_TURNS_KEPT = 20
# Between the turns there are calls, their outputs and items whose text has not come yet.
_ITEMS_KEPT = 256
_LONGEST_TEXT_CHARS = 4_000  # of one turn: 20 of them are some 20,000 tokens of the model's context
_LONGEST_CALL_CHARS = 65_536
_KINDS: Mapping[str, Kind] = {
    "function_call": "call",
    "function_call_output": "output",
    "user": "user",
    "assistant": "assistant",
}


@dataclass(slots=True)
class Item:
    """A message of the user's or the agent's, or a tool call or its output.

    `texts` are by content index. `speech` is where the user's audio is held, while it may still be needed. `sound_ms`
    is how much audio of an answer has come; `finished`: all of it has.
    """

    item_id: str
    kind: Kind
    texts: dict[int, str] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    speech: tuple[int, int] | None = None
    transcribed: bool = False
    response_id: str | None = None
    sound_ms: float = 0.0
    finished: bool = False

    @property
    def text(self) -> str:
        """What was said or typed, as far as it is known."""
        return " ".join(text for _, text in sorted(self.texts.items()) if text.strip()).strip()[:_LONGEST_TEXT_CHARS]


class TalkHistory:
    """The items of one talk, whichever sessions they were said in."""

    def __init__(self) -> None:
        self._items = BoundedDict[str, Item](_ITEMS_KEPT)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items.values())

    def get(self, item_id: object) -> Item | None:
        """The item of this id."""
        return self._items.get(item_id) if isinstance(item_id, str) else None

    def remove(self, item_id: object) -> None:
        """Forgets an item: it was deleted, or is asked for again."""
        if isinstance(item_id, str):
            self._items.pop(item_id, None)

    def put(self, item_id: str, kind: Kind) -> Item:
        """The item of this id, new where it is not known."""
        if (item := self._items.get(item_id)) is None:
            item = self._items[item_id] = Item(item_id, kind)
        return item

    def note_item(self, stated: object, response_id: str | None = None) -> Item | None:
        """Takes an item as an event states it. None: it is of no kind that a new session is told."""
        if not isinstance(stated, dict) or not (item_id := text_of(stated.get("id"))):
            return None
        kind = _KINDS.get(text_of(stated.get("type")) if "role" not in stated else text_of(stated["role"]))
        if kind is None:
            return None
        item = self.put(item_id, kind)
        item.response_id = response_id or item.response_id
        if kind in ("call", "output"):
            known = {name: stated[name] for name in ("call_id", "name", "arguments", "output") if name in stated}
            if len(str(known)) <= _LONGEST_CALL_CHARS:
                item.fields = known
            item.finished = item.finished or kind == "output"
        elif kind == "user" or not item.texts:  # an answer's text comes in events of its own
            for index, part in enumerate(parts if isinstance(parts := stated.get("content"), list) else []):
                said = part.get("text") or part.get("transcript") if isinstance(part, dict) else None
                if isinstance(said, str) and said:
                    item.texts[index] = said
        return item

    def add_text(self, item_id: object, index: object, text: str, *, whole: bool) -> None:
        """Adds a delta to a part of an item, or sets the part to the `whole` text."""
        if (item := self.get(item_id)) is not None:
            at = index if isinstance(index, int) else 0
            item.texts[at] = text if whole else item.texts.get(at, "") + text

    def shorten(self, item_id: object, heard_ms: object) -> Item | None:
        """Cuts an answer to what was heard of it, in proportion to its sound. None: there is no such answer."""
        item = self.get(item_id)
        if item is None or item.kind != "assistant" or isinstance(heard_ms, bool):
            return None
        if isinstance(heard_ms, int | float) and 0 <= heard_ms < item.sound_ms:
            text = item.text
            cut = text[: round(len(text) * heard_ms / item.sound_ms)]
            item.texts = {0: cut.rpartition(" ")[0] or cut}
            item.sound_ms = float(heard_ms)
        return item

    def latest(self) -> list[Item]:
        """The items of the last 20 turns, and every call that has no output yet. Never an output without its call."""
        items = list(self._items.values())
        turns = [number for number, item in enumerate(items) if item.kind in ("user", "assistant")]
        first = turns[-_TURNS_KEPT] if len(turns) > _TURNS_KEPT else 0
        open_calls = self.open_calls()
        calls = {item.fields.get("call_id") for item in items[first:] if item.kind == "call" and item.finished}
        return [
            item
            for number, item in enumerate(items)
            if (
                number >= first and (item.kind in ("user", "assistant") or item.fields.get("call_id") in calls - {None})
            )
            or item in open_calls
        ]

    def open_calls(self) -> list[Item]:
        """The finished calls without an output: the client, or a tool, still owes it."""
        outputs = {item.fields.get("call_id") for item in self if item.kind == "output"}
        return [
            item
            for item in self
            if item.kind == "call" and item.finished and item.fields.get("call_id") not in {None, *outputs}
        ]


def text_of(value: object) -> str:
    """A string that an event states; empty where it states something else."""
    return value if isinstance(value, str) else ""
