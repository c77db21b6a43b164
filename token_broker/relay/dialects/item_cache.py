"""Cache of a talk's conversation items, to answer the client's `conversation.item.retrieve` without Azure. No I/O.

Some official clients retrieve each item again once it is transcribed. Azure's answer contains the item's audio: after
some 16 s of speech that exceeds the limit of a message and would end the talk. No client uses that audio. The same
goes for an image, which the client has itself.
"""

from typing import Any

from token_broker.security.limits import BoundedDict

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
# Of an item without its audio. A longer one is not kept, and Azure answers for it: 256 items as long as a client's
# longest message would be 64 MiB a talk.
_LONGEST_CHARS = 16_384
# Ids alone: more than the spoken turns of the longest talk.
_HEAVY_KEPT = 4_096
_HEAVY_FIELDS = frozenset({"audio", "image_url"})
_HEAVY_PARTS = frozenset({"input_audio", "input_image", "output_audio", "audio"})


class ItemCache:
    """The latest items, in the client's dialect. Feed it the events of `CACHED_EVENTS`; it ignores others."""

    def __init__(self) -> None:
        self._items = BoundedDict[str, Event](_ITEMS_KEPT)
        self._heavy = BoundedDict[str, None](_HEAVY_KEPT)

    def get(self, item_id: str) -> Event | None:
        """The item as it is now, without audio and image; None where it is not here."""
        return self._items.get(item_id)

    def is_lost(self, item_id: str) -> bool:
        """Whether the item is not here and has audio or an image: Azure's answer may be too long for a message."""
        return item_id not in self._items and item_id in self._heavy

    def note(self, event: Event) -> None:
        """Updates the cache from an event of Azure's, in the client's dialect."""
        kind = event.get("type")
        if kind in _WITH_ITEM and isinstance(item := event.get("item"), dict) and isinstance(item.get("id"), str):
            content = item.get("content")
            if isinstance(content, list):
                parts = [part for part in content if isinstance(part, dict)]
                if any(part.get("type") in _HEAVY_PARTS for part in parts if isinstance(part.get("type"), str)):
                    self._heavy[item["id"]] = None
                light = [
                    {name: value for name, value in part.items() if name not in _HEAVY_FIELDS}
                    if isinstance(part, dict)
                    else part
                    for part in content
                ]
                item = {**item, "content": light}
            self._keep(item)
            return
        item_id = event.get("item_id")
        if not isinstance(item_id, str):
            return
        if kind == _DELETED:
            self._items.pop(item_id, None)
            self._heavy.pop(item_id, None)
        elif kind == _TRANSCRIBED:
            self._set_transcript(item_id, event.get("content_index"), event.get("transcript"))
        elif kind == _TRUNCATED:  # Azure drops the whole transcript, not only the part that was not heard
            self._set_transcript(item_id, event.get("content_index"), None)

    def _keep(self, item: Event) -> None:
        if len(str(item)) > _LONGEST_CHARS:
            self._items.pop(item["id"], None)
            return
        self._items[item["id"]] = item

    def _set_transcript(self, item_id: str, index: Any, transcript: Any) -> None:
        item = self._items.get(item_id)
        content = item.get("content") if item is not None else None
        if item is None or not isinstance(content, list) or not isinstance(index, int) or not 0 <= index < len(content):
            return
        parts = list(content)
        if isinstance(parts[index], dict):
            parts[index] = {**parts[index], "transcript": transcript}
        self._keep({**item, "content": parts})
