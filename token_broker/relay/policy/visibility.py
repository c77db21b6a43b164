"""What a client may see of Azure's events. Pure.

Hidden are the agent's instructions and tools, and secrets that an error text may quote: the key, a token, a tool's
credential. Which fields of a session or response are shown is decided by the rows of `session_settings`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from token_broker.relay.dialects.conversation_items import TOOL_LIST, shown_item
from token_broker.relay.dialects.session_settings import shown_response, shown_session
from token_broker.relay.event_text import SESSION_EVENTS

__all__ = ["ERROR_EVENTS", "may_show_tools", "without_agents_settings", "without_quoted_secrets"]

Event = dict[str, Any]
Redact = Callable[[str], str]

ERROR_EVENTS = frozenset({"error", "warning", "response.mcp_call.failed", "response.output_item.done"})
"""Azure's events that may contain an error, beside those about responses, items and transcriptions."""

_RESPONSE_EVENTS = frozenset({"response.created", "response.done"})
_REDACTED_WHOLE = frozenset({"error", "warning", "info"})
_NEVER_QUOTED = frozenset({"type", "event_id"})
_DEEPEST = 16  # an error of Azure's nests 3 deep; beyond this the value is masked instead of walked
_MASK = "[redacted]"
_TOOL_LIST_BYTES = TOOL_LIST.encode()


def without_agents_settings(event: Event) -> Event:
    """Azure's event without what belongs to the agent: instructions, tools, the answer of an MCP server.

    Returns the same object where nothing is hidden, so that a caller may forward the original text.
    """
    kind = event.get("type")
    if kind in SESSION_EVENTS or "session" in event:  # a call's events may state it as well
        return _with_shown(event, "session", shown_session)
    if kind in _RESPONSE_EVENTS:
        return _with_shown(event, "response", shown_response)
    # The error of listing an MCP server's tools may quote its address or credential.
    if isinstance(kind, str) and kind.startswith(TOOL_LIST) and "error" in event:
        event = {name: value for name, value in event.items() if name != "error"}
    return _with_shown(event, "item", shown_item)


def may_show_tools(payload: bytes) -> bool:
    """Whether Azure's event may name an MCP server's tools, and so has to be parsed before the client sees it."""
    return _TOOL_LIST_BYTES in payload


def without_quoted_secrets(event: Event, redact: Redact) -> Event:
    """Azure's event with every text of its errors passed through `redact`; the same object where that changes nothing.

    Redacted are the whole of an `error`, `warning` or `info`, and elsewhere `error` and `response.status_details`.
    """
    if event.get("type") in _REDACTED_WHOLE:
        return _with_redacted(event, [name for name in event if name not in _NEVER_QUOTED], redact)
    event = _with_redacted(event, ["error"], redact)
    for name in ("item", "response"):
        if isinstance(stated := event.get(name), dict):
            shown = _with_redacted(stated, ["error", "status_details"], redact)
            if shown is not stated:
                event = {**event, name: shown}
    return event


def _with_redacted(stated: Event, names: list[str], redact: Redact) -> Event:
    found = {name: stated[name] for name in names if name in stated}
    shown = {name: _redacted(value, redact, _DEEPEST) for name, value in found.items()}
    return stated if shown == found else {**stated, **shown}


def _redacted(value: Any, redact: Redact, levels: int) -> Any:
    if isinstance(value, str):
        return redact(value)
    if not isinstance(value, (dict, list)):
        return value
    if not levels:
        return _MASK
    if isinstance(value, dict):
        return {redact(name): _redacted(inner, redact, levels - 1) for name, inner in value.items()}
    return [_redacted(inner, redact, levels - 1) for inner in value]


def _with_shown(event: Event, name: str, shown: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Event:
    stated = event.get(name)
    if not isinstance(stated, dict) or (kept := shown(stated)) is stated:
        return event
    return {**event, name: kept}
