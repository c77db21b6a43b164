"""Conversation items and their parts in either dialect, and what strict clients need of them. Pure.

GA calls an assistant's parts `output_text` and `output_audio`; in preview and in Voice Live they are `text` and
`audio` (docs/azure.md §4.1). Parts in `response.content_part.*` are `text` and `audio` in both.
"""

from collections.abc import Callable
from typing import Any

from strategies.base import Dialect

__all__ = ["TOOL_LIST", "bare_part", "completed_item", "is_complete", "item_for", "shown_item"]

TOOL_LIST = "mcp_list_tools"
"""The type of the item that says which tools an MCP server has; events about it have types that begin with this."""

_PREVIEW_PARTS = {"output_text": "text", "output_audio": "audio"}
_GA_PARTS = {"text": "output_text", "audio": "output_audio"}
_TEXT_PARTS = frozenset({"input_text", "output_text", "text"})


def item_for(item: Any, dialect: Dialect, *, by_client: bool = False) -> Any:
    """An item with its parts called as `dialect` calls them.

    A client's own item (`by_client`) for Voice Live has an assistant's audio told by its transcript: the assistant's
    items are taken there as text alone.
    """
    if not isinstance(item, dict):
        return item
    if item.get("object") == "conversation.item":  # Voice Live's reference calls it so, GA knows one name
        item = {**item, "object": "realtime.item"}
    content = item.get("content")
    if not isinstance(content, list) or item.get("role") in ("user", "system"):
        return item
    as_text = by_client and dialect == "preview"
    return {**item, "content": [_part_for(part, dialect, as_text=as_text) for part in content]}


def shown_item(item: Any) -> Any:
    """An item of Azure's as a client may see it; the same object where nothing is hidden.

    A list of an MCP server's tools is shown as an empty one, and without its error, which may quote the server.
    """
    if not isinstance(item, dict) or item.get("type") != TOOL_LIST or ("error" not in item and not item.get("tools")):
        return item
    return {name: value for name, value in item.items() if name != "error"} | {"tools": []}


def bare_part(part: Any) -> Any:
    """A part as `response.content_part.*` has it in both dialects; null texts, which clients refuse, are left out."""
    if not isinstance(part, dict):
        return part
    told = {name: value for name, value in part.items() if value is not None}
    kind = told.get("type")
    return {**told, "type": _PREVIEW_PARTS[kind]} if isinstance(kind, str) and kind in _PREVIEW_PARTS else told


def is_complete(item: Any) -> bool:
    """Whether nothing more will be told of an item that was just made: it is not the model's own, on its way."""
    if not isinstance(item, dict):
        return False
    status = item.get("status")
    if isinstance(status, str):
        return status != "in_progress"
    return item.get("role") != "assistant" and item.get("type") not in ("function_call", "mcp_call", "mcp_list_tools")


def completed_item(item: Any, *, new_id: Callable[[], str], role: str | None = None, status: str | None = None) -> Any:
    """An item with all that official clients throw without; `role` and `status` are what it has if it says none.

    `@openai/agents-realtime` throws on a message without id, role or content, and on a user's audio without a
    transcript, of which null will do; a null `status` makes it drop the event (docs/azure.md §4.4).
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
    content = item.get("content")
    content = [_completed_part(part) for part in content] if isinstance(content, list) else []
    if not isinstance(item.get("id"), str):
        item["id"] = f"item_{new_id()}"
    if not isinstance(item.get("role"), str):
        item["role"] = role or _likely_role(content)
    return {**item, "content": content}


def _part_for(part: Any, dialect: Dialect, *, as_text: bool) -> Any:
    if not isinstance(part, dict) or not isinstance(kind := part.get("type"), str):
        return part
    if as_text and kind in {"audio", "output_audio"}:
        return {"type": "text", "text": part.get("transcript") or ""}
    names = _GA_PARTS if dialect == "ga" else _PREVIEW_PARTS
    return {**part, "type": names.get(kind, kind)}


def _completed_part(part: Any) -> Any:
    if not isinstance(part, dict):
        return part
    kind = part.get("type")
    if kind == "input_audio":
        return {"transcript": None, **part}
    if isinstance(kind, str) and kind in _TEXT_PARTS and not isinstance(part.get("text"), str):
        return {**part, "text": ""}
    return part


def _likely_role(content: list[Any]) -> str:
    kinds = [part.get("type") for part in content if isinstance(part, dict)]
    return "user" if any(isinstance(kind, str) and kind.startswith("input_") for kind in kinds) else "assistant"
