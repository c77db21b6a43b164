"""Realtime events as text: parsing, serialising, and what the head of an event shows without parsing. Pure.

Python's `json` reads and writes `NaN` and `Infinity`, which are not JSON, and reads `1e999` as the latter. Here
neither gets in or out: one reader between client and Azure might take such a value differently from another.

Heads are read of Azure's events only. A client may repeat or escape a key, so nothing is concluded from its heads.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["SESSION_EVENTS", "compact", "event_of", "event_type", "event_type_by_head", "is_audio_delta", "parsed"]

SESSION_EVENTS = frozenset({"session.created", "session.updated"})
"""Azure's events that show the whole session, the agent's instructions included; the same in both dialects."""

_TYPE_HEAD = re.compile(rb'\s*\{\s*(?:"event_id"\s*:\s*"[^"\\]*"\s*,\s*)?"type"\s*:\s*"([^"\\]*)"')
# Longer than any head. Only this much is encoded: an audio frame of 100 KiB would otherwise be copied for its type.
_TYPE_HEAD_CHARS = 256
_AUDIO_DELTA_HEADS = (b'{"type":"response.audio.delta",', b'{"type":"response.output_audio.delta",')
# Voice Live writes the id before the type, GA after it (docs/azure.md §4.5).
_AUDIO_DELTA_ID_FIRST = re.compile(rb'\{"event_id":"[^"\\]*","type":"response\.(?:output_)?audio\.delta",')


def parsed(text: str) -> Any:
    """The JSON value of `text`.

    Raises ValueError, also for a number that is not finite; RecursionError where the nesting is too deep.
    """
    return json.loads(text, parse_constant=_finite, parse_float=_finite)


def event_of(text: str) -> dict[str, Any] | None:
    """The event that a text is; None: it is none."""
    try:
        event = parsed(text)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


def compact(event: Mapping[str, Any]) -> str:
    """An event serialised as it is sent. Raises ValueError for a number that is not finite."""
    return json.dumps(event, separators=(",", ":"), allow_nan=False)


def event_type(text: str) -> str | None:
    """The type of an event from Azure: from its head, or by parsing where the head does not show it. None: no event."""
    if (kind := event_type_by_head(text[:_TYPE_HEAD_CHARS].encode(errors="replace"))) is not None:
        return kind
    try:
        event = parsed(text)
    except (ValueError, RecursionError):
        return None
    kind = event.get("type") if isinstance(event, dict) else None
    return kind if isinstance(kind, str) else None


def event_type_by_head(payload: bytes) -> str | None:
    """The type of an event from Azure where its head shows it: as the first key, or right after `event_id`."""
    head = _TYPE_HEAD.match(payload)
    return None if head is None else head[1].decode(errors="replace")


def is_audio_delta(payload: bytes) -> bool:
    """Whether an event from Azure is an audio delta, judged by the two heads that Azure usually writes."""
    return payload.startswith(_AUDIO_DELTA_HEADS) or _AUDIO_DELTA_ID_FIRST.match(payload) is not None


def _finite(digits: str) -> float:
    number = float(digits)  # also of `NaN` and `Infinity`, which Python's reader accepts
    if not math.isfinite(number):
        raise ValueError("a number is not finite")
    return number
