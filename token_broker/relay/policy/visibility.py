"""What Azure says of errors, without the secrets that it may quote: the key, a token, a tool's credential. Pure."""

from collections.abc import Callable
from typing import Any

__all__ = ["ERROR_EVENTS", "without_quoted_secrets"]

Event = dict[str, Any]
Redact = Callable[[str], str]

ERROR_EVENTS = frozenset({"error", "warning", "response.mcp_call.failed", "response.output_item.done"})
"""Azure's events that may bring an error along, beside those about responses, items and transcriptions."""

_WHOLE = frozenset({"error", "warning"})
_NEVER_QUOTED = frozenset({"type", "event_id"})
_DEEPEST = 16
_MASK = "[redacted]"


def without_quoted_secrets(event: Event, redact: Redact) -> Event:
    """An event of Azure's whose errors went through `redact`, text by text; the same object where that changes none.

    Errors are all of an `error` or `warning`, and elsewhere `error`, `response.status_details` and an item's `error`.
    """
    if event.get("type") in _WHOLE:
        return _changed(event, {name: value for name, value in event.items() if name not in _NEVER_QUOTED}, redact)
    said = {"error": event["error"]} if "error" in event else {}
    event = _changed(event, said, redact)
    for name in ("item", "response"):
        if isinstance(stated := event.get(name), dict):
            found = {key: stated[key] for key in ("error", "status_details") if key in stated}
            if (shown := _changed(stated, found, redact)) is not stated:
                event = {**event, name: shown}
    return event


def _changed(stated: Event, found: Event, redact: Redact) -> Event:
    """`stated` with what was `found` in it redacted."""
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
