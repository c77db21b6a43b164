"""A talk's items as its client was told of them, to answer `conversation.item.retrieve` from. No I/O.

Some official clients ask for each item again once it was transcribed. Azure's answer brings the item's audio along:
after some 16 s of speech that is more than a message may hold, and would end the talk. Nobody asks for the audio.
"""

from typing import Any

from token_broker.bounded_dict import BoundedDict

__all__ = ["CACHED_EVENTS", "ItemCache"]

Event = dict[str, Any]

_TRANSCRIBED = "conversation.item.input_audio_transcription.completed"
_TRUNCATED = "conversation.item.truncated"
_DELETED = "conversation.item.deleted"
_WITH_ITEM = frozenset(
    {
        "conversation.item.created", "conversation.item.added", "conversation.item.done",
        "response.output_item.added", "response.output_item.done",
    }
)  # fmt: skip
CACHED_EVENTS = frozenset({_TRANSCRIBED, _TRUNCATED, _DELETED, *_WITH_ITEM})
_ITEMS_KEPT = 256
_LONGEST_CHARS = 16_384  # of an item without its audio: what is longer has text or images of the client's own


class ItemCache:
    """The latest items, in the dialect of the client. Feed it the events of `CACHED_EVENTS`; it ignores others."""

    def __init__(self) -> None:
        self._items = BoundedDict[str, Event](_ITEMS_KEPT)

    def get(self, item_id: str) -> Event | None:
        return self._items.get(item_id)

    def note(self, event: Event) -> None:
        kind = event.get("type")
        if kind in _WITH_ITEM and isinstance(item := event.get("item"), dict) and isinstance(item.get("id"), str):
            self._put(item)
            return
        item_id = event.get("item_id")
        if not isinstance(item_id, str):
            return
        if kind == _DELETED:
            self._items.pop(item_id, None)
        elif kind == _TRANSCRIBED:
            self._say(item_id, event.get("content_index"), event.get("transcript"))
        elif kind == _TRUNCATED:  # what was not heard is no longer part of the talk, and Azure forgets the whole text
            self._say(item_id, event.get("content_index"), None)

    def _put(self, item: Event) -> None:
        content = item.get("content")
        if isinstance(content, list):
            item = {**item, "content": [_without_audio(part) for part in content]}
        self._keep(item)

    def _keep(self, item: Event) -> None:
        """Azure answers for what is too long to be kept: 256 items of a client's longest message are 64 MiB a talk."""
        if len(str(item)) > _LONGEST_CHARS:
            self._items.pop(item["id"], None)
            return
        self._items[item["id"]] = item

    def _say(self, item_id: str, index: Any, transcript: Any) -> None:
        item = self._items.get(item_id)
        content = item.get("content") if item is not None else None
        if item is None or not isinstance(content, list) or not isinstance(index, int) or not 0 <= index < len(content):
            return
        parts = list(content)
        if isinstance(parts[index], dict):
            parts[index] = {**parts[index], "transcript": transcript}
        self._keep({**item, "content": parts})


def _without_audio(part: Any) -> Any:
    return {name: value for name, value in part.items() if name != "audio"} if isinstance(part, dict) else part
