"""Conversation items and their parts: translation between dialects, and what strict clients need of them. Pure.

GA names an assistant's parts `output_text` and `output_audio`; preview and Voice Live name them `text` and `audio`
(docs/azure.md §4.1). In `response.content_part.*` they are `text` and `audio` in both dialects.
"""

from collections.abc import Callable
from typing import Any

from strategies.session_model.agent_settings import Dialect

__all__ = [
    "TOOL_LIST",
    "completed_item",
    "completed_part",
    "history_as_text",
    "is_complete",
    "item_for",
    "items_for",
    "shown_item",
]

Event = dict[str, Any]

TOOL_LIST = "mcp_list_tools"
"""The type of the item that lists an MCP server's tools. Events about such an item have types with this prefix."""

_PREVIEW_PARTS = {"output_text": "text", "output_audio": "audio"}
_GA_PARTS = {"text": "output_text", "audio": "output_audio"}
_TEXT_OF_AUDIO = {"output_audio": "output_text", "audio": "text", "input_audio": "input_text"}
_INPUTS = ("input", "input_items", "append_input_items")
# Some official clients take messages of 1 MiB at most, and the client has its image itself.
_LONGEST_URL_CHARS = 262_144
_TEXT_PARTS = frozenset({"input_text", "output_text", "text"})


def item_for(item: Any, dialect: Dialect, *, by_client: bool = False) -> Any:
    """An item with its parts named as in `dialect`.

    A client's own item (`by_client`) is an earlier turn put back, whose audio is gone: it has the transcript as text in
    place of such audio, and no field that is null.
    """
    if not isinstance(item, dict):
        return item
    if item.get("object") == "conversation.item":  # the name in Voice Live's reference; GA accepts only the other
        item = {**item, "object": "realtime.item"}
    if by_client:
        item = _put_back(item)
    content = item.get("content")
    if not isinstance(content, list) or item.get("role") in ("user", "system"):
        return item
    names = _GA_PARTS if dialect == "ga" else _PREVIEW_PARTS

    def part_for(part: Any) -> Any:
        if not isinstance(part, dict) or not isinstance(kind := part.get("type"), str):
            return part
        return {**part, "type": names.get(kind, kind)}

    return {**item, "content": [part_for(part) for part in content]}


def items_for(value: Any, dialect: Dialect) -> Any:
    """A client's list of items, as `item_for` has each."""
    return [item_for(item, dialect, by_client=True) for item in value] if isinstance(value, list) else value


def history_as_text(event: Event, dialect: Dialect) -> Event:
    """A client's event in the upstream's dialect, with its items as `item_for` has them."""
    if "item" in event:
        return {**event, "item": item_for(event["item"], dialect, by_client=True)}
    response = event.get("response")
    if not isinstance(response, dict):
        return event
    inputs = {name: items_for(response[name], dialect) for name in _INPUTS if name in response}
    return {**event, "response": {**response, **inputs}} if inputs else event


def _put_back(item: Event) -> Event:
    """A client's item without nulls; audio that is gone is text, and a part that says nothing is left out."""
    item = {name: value for name, value in item.items() if value is not None}
    content = item.get("content")
    if not isinstance(content, list):
        return item
    parts: list[Any] = []
    for part in content:
        if not isinstance(part, dict):
            parts.append(part)
            continue
        said = {name: value for name, value in part.items() if value is not None}
        text_kind = _TEXT_OF_AUDIO.get(said["type"]) if isinstance(said.get("type"), str) else None
        if text_kind is None or "audio" in said:
            parts.append(said)
        elif "transcript" in said:
            parts.append({"type": text_kind, "text": said["transcript"]})
    return {**item, "content": parts}


def shown_item(item: Any) -> Any:
    """An item of Azure's as a client may see it; the same object where nothing is hidden.

    A list of an MCP server's tools becomes an empty list, and loses its error, which may quote the server.
    """
    if not isinstance(item, dict) or item.get("type") != TOOL_LIST or ("error" not in item and not item.get("tools")):
        return item
    return {name: value for name, value in item.items() if name != "error"} | {"tools": []}


def completed_part(part: Any) -> Any:
    """A part as in `response.content_part.*` of both dialects, without null texts, which official clients reject."""
    if not isinstance(part, dict):
        return part
    completed = {name: value for name, value in part.items() if value is not None}
    kind = completed.get("type")
    if not isinstance(kind, str) or kind not in _PREVIEW_PARTS:
        return completed
    return {**completed, "type": _PREVIEW_PARTS[kind]}


def is_complete(item: Any) -> bool:
    """Whether a newly created item is final: the model is not still generating it."""
    if not isinstance(item, dict):
        return False
    status = item.get("status")
    if isinstance(status, str):
        return status != "in_progress"
    return item.get("role") != "assistant" and item.get("type") not in ("function_call", "mcp_call", "mcp_list_tools")


def completed_item(item: Any, *, new_id: Callable[[], str], role: str | None = None, status: str | None = None) -> Any:
    """An item with every field without which official clients throw; `role` and `status` are its defaults.

    `@openai/agents-realtime` throws on a message without id, role or content, and on user audio without a transcript,
    where null is enough; it drops an event whose item has a null `status` (docs/azure.md §4.4).
    """
    if not isinstance(item, dict):
        return item
    item = dict(item)
    if not isinstance(item.get("status"), str):
        item.pop("status", None)
        if status is not None:
            item["status"] = status
    if item.get("type") != "message":
        return item

    def with_text(part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        kind = part.get("type")
        if kind == "input_audio":
            return {"transcript": None, **part}
        if kind == "input_image" and isinstance(url := part.get("image_url"), str) and len(url) > _LONGEST_URL_CHARS:
            return {name: value for name, value in part.items() if name != "image_url"}
        if isinstance(kind, str) and kind in _TEXT_PARTS and not isinstance(part.get("text"), str):
            return {**part, "text": ""}
        return part

    content = item.get("content")
    content = [with_text(part) for part in content] if isinstance(content, list) else []
    if not isinstance(item.get("id"), str):
        item["id"] = f"item_{new_id()}"
    if not isinstance(item.get("role"), str):
        kinds = [part.get("type") for part in content if isinstance(part, dict)]
        by_user = any(isinstance(kind, str) and kind.startswith("input_") for kind in kinds)
        item["role"] = role or ("user" if by_user else "assistant")
    return {**item, "content": content}
