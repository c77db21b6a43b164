"""The words in a client's events, and events with other words. Pure.

A client writes messages, the outputs of tools that it runs, and the reasons of its approvals. The model reads all of
them. Nobody knows the words of sound and of images.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["ClientWords", "has_words", "is_owed", "with_words", "words_of"]

Event = Mapping[str, Any]

_INPUTS = ("input", "input_items", "append_input_items")
_SPOKEN = "input_audio"
_UNREAD = frozenset({_SPOKEN, "input_image"})
_TEXT_OF = {"function_call_output": "output", "mcp_approval_response": "reason"}
"""Items that are no messages, and their field that the model reads."""


class ClientWords(NamedTuple):
    """What an event says. `is_complete` is False where it brings sound or an image besides."""

    text: str
    is_complete: bool = True


def has_words(event: Event) -> bool:
    """Whether the event brings words, sound or images into the conversation, or into an answer."""
    said = words_of(event)
    return bool(said.text) or not said.is_complete


def words_of(event: Event) -> ClientWords:
    """All words that the event brings, a line each."""
    words: list[str] = []
    is_complete = True
    for item in _items(event):
        if isinstance(text := item.get(_TEXT_OF.get(str(item.get("type")), "")), str):
            words.append(text)
        content = item.get("content")  # whoever is said to have said it: the client wrote it all
        for part in content if isinstance(content, list) else ():
            if not isinstance(part, Mapping):
                continue
            is_complete = is_complete and part.get("type") not in _UNREAD
            if part.get("type") not in _UNREAD:  # a transcript beside sound need not be what is heard
                words += [text for name in ("text", "transcript") if isinstance(text := part.get(name), str)]
    return ClientWords("\n".join(filter(str.strip, words)), is_complete)


def is_owed(event: Event) -> bool:
    """Whether somebody waits for the event, whatever its words: an output or an approval."""
    item = event.get("item")
    return isinstance(item, Mapping) and item.get("type") in _TEXT_OF


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


def _with_words(item: Event, left: list[str]) -> dict[str, Any]:
    if (name := _TEXT_OF.get(str(item.get("type")))) in item:
        return {**item, str(name): left.pop() if left else ""}
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
