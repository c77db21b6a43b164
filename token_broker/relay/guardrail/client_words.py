"""The words in a client's events, and events with other words. Pure."""

from collections.abc import Mapping
from typing import Any

__all__ = ["has_words", "with_words", "words_of"]

Event = Mapping[str, Any]

_INPUTS = ("input", "input_items", "append_input_items")
_SPOKEN = "input_audio"


def has_words(event: Event) -> bool:
    """Whether the event brings words, or sound, into the conversation, or into an answer."""
    return any(_parts(item) for item in _items(event))


def words_of(event: Event) -> str | None:
    """All words that the event brings; None where it brings sound, of which nobody knows the words."""
    words: list[str] = []
    for item in _items(event):
        for part in _parts(item):
            if part.get("type") == _SPOKEN:
                return None
            words += [text for name in ("text", "transcript") if isinstance(text := part.get(name), str)]
    return "\n".join(filter(str.strip, words))


def with_words(event: Event, words: str) -> dict[str, Any]:
    """The event with these words, once, in place of all that it brings. Images stay."""
    left = [words]
    if isinstance(item := event.get("item"), Mapping):
        return {**event, "item": _with_words(item, left)}
    response = event.get("response")
    changed = dict(response) if isinstance(response, Mapping) else {}
    for name in _INPUTS:
        if isinstance(items := changed.get(name), list):
            changed[name] = [_with_words(each, left) if isinstance(each, Mapping) else each for each in items]
            changed[name] = [
                each for each in changed[name] if not isinstance(each, Mapping) or each.get("content", True)
            ]
    return {**event, "response": changed}


def _items(event: Event) -> list[Event]:
    if isinstance(item := event.get("item"), Mapping):
        return [item]
    response = event.get("response")
    if not isinstance(response, Mapping):
        return []
    found: list[Event] = []
    for name in _INPUTS:
        items = response.get(name)
        found += [each for each in items if isinstance(each, Mapping)] if isinstance(items, list) else []
    return found


def _parts(item: Event) -> list[Event]:
    """The parts of a message that are words or sound, whoever is said to have said them: the client wrote them all."""
    content = item.get("content")
    if not isinstance(content, list):
        return []
    return [part for part in content if isinstance(part, Mapping) and part.get("type") != "input_image"]


def _with_words(item: Event, left: list[str]) -> dict[str, Any]:
    content = item.get("content")
    if not isinstance(content, list):
        return dict(item)
    kept: list[Any] = []
    for part in content:
        if isinstance(part, Mapping) and part.get("type") == "input_image":
            kept.append(part)
        elif isinstance(part, Mapping) and left:
            kind = part.get("type")
            kind = {_SPOKEN: "input_text", "output_audio": "output_text", "audio": "text"}.get(str(kind), kind)
            kept.append({"type": kind, "text": left.pop()})
    return {**item, "content": kept}
