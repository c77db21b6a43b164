"""What may pass between a browser and Azure, and what is rewritten on the way. Pure.

From the browser nothing is judged by its head: JSON may repeat a key or escape it. So all but the byte-exact audio
append is parsed, held against the allowlist of `client_events` and written anew: what Azure reads is what was checked,
and nothing else. Azure's own events are trusted to be well-formed, and are judged by their head alone; of the session
and of responses a client sees what `dialect_settings` marks as shown.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from token_broker.relay.dialects.broker_events import SESSION_EVENTS
from token_broker.relay.dialects.client_values import OPERATORS_ROLES
from token_broker.relay.dialects.conversation_items import TOOL_LIST, shown_item
from token_broker.relay.dialects.session_settings import shown_response, shown_session
from token_broker.relay.dialects.shapes import NotPermittedError, permitted, shown_name
from token_broker.relay.event_text import compact, parsed
from token_broker.relay.policy.allowlist import CLIENT_EVENTS

__all__ = [
    "Allowed",
    "Broken",
    "Command",
    "Passed",
    "Refused",
    "Verdict",
    "event_type",
    "event_type_by_head",
    "examine",
    "is_audio_delta",
    "is_plain_append",
    "is_plain_append_payload",
    "judge",
    "may_show_tools",
    "without_secrets",
]

Event = dict[str, Any]

_APPEND_HEAD = b'{"type":"input_audio_buffer.append","audio":"'
_APPEND_TAIL = b'"}'
_HEAD_BYTES = len(_APPEND_HEAD)

_TYPE_HEAD = re.compile(rb'\s*\{\s*(?:"event_id"\s*:\s*"[^"\\]*"\s*,\s*)?"type"\s*:\s*"([^"\\]*)"')
_TYPE_HEAD_BYTES = 256  # more than any head: what stands behind need not be encoded to find it
_AUDIO_DELTA_HEADS = (b'{"type":"response.audio.delta",', b'{"type":"response.output_audio.delta",')

_TOOL_LIST_BYTES = TOOL_LIST.encode()
_RESPONSE_EVENTS = frozenset({"response.created", "response.done"})
_REFUSED_ITEM = "items with the role system or developer are not taken from a client"
_TAKEN = "see docs/client-events.md"
_LOOKED_AT_MOST = 64


@dataclass(frozen=True, slots=True)
class Passed:
    """Goes to Azure as `text`, without `left_out` fields that it came with."""

    text: str
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Allowed:
    """May go to Azure: `event` is what was read, without the `left_out` fields that a client has no say in."""

    event: Event
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Command:
    """For the broker itself: an event whose type begins with `broker.`."""

    event: Event


@dataclass(frozen=True, slots=True)
class Refused:
    """Not passed on; the client is told, and the talk goes on. `message` has at most 200 characters."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Broken:
    """No event at all: the talk ends (4400)."""

    reason: str


Verdict = Passed | Command | Refused | Broken
Finding = Passed | Allowed | Command | Refused | Broken


def is_plain_append(text: str) -> bool:
    """Whether `text` is byte for byte an audio append, as nearly all are.

    Between the head and the tail stands neither a quote nor a backslash, so that every reader sees these two keys and
    no other.
    """
    return text.isascii() and is_plain_append_payload(text.encode())


def is_plain_append_payload(payload: bytes) -> bool:
    """The same of a message as it is on the wire; what is one needs no check of its UTF-8 either."""
    return (
        payload.startswith(_APPEND_HEAD)
        and payload.find(b'"', _HEAD_BYTES) == len(payload) - len(_APPEND_TAIL)
        and payload.endswith(_APPEND_TAIL)
        and b"\\" not in payload
        and payload.isascii()
    )


def is_audio_delta(payload: bytes) -> bool:
    """Whether an event of Azure's is a piece of audio, as nearly all are: told by the head that it usually has."""
    return payload.startswith(_AUDIO_DELTA_HEADS)


def judge(text: str) -> Verdict:
    """What becomes of a message from the client. A repeated key counts once, as its last value, made explicit."""
    finding = examine(text)
    return Passed(compact(finding.event), finding.left_out) if isinstance(finding, Allowed) else finding


def examine(text: str) -> Finding:
    """The same before it is written anew, for whoever has more to change."""
    if is_plain_append(text):
        return Passed(text)
    try:
        return _examine_event(parsed(text))
    except (ValueError, RecursionError):
        return Broken("not JSON")


def event_type(text: str) -> str | None:
    """The type of an event of Azure's: from its head, or by parsing where the head says nothing. None: no event."""
    if (kind := event_type_by_head(text[:_TYPE_HEAD_BYTES].encode(errors="replace"))) is not None:
        return kind
    try:
        event = parsed(text)
    except (ValueError, RecursionError):
        return None
    kind = event.get("type") if isinstance(event, dict) else None
    return kind if isinstance(kind, str) else None


def event_type_by_head(payload: bytes) -> str | None:
    """The type of an event of Azure's, where its head says it: the type is the first key, or comes after the id."""
    head = _TYPE_HEAD.match(payload)
    return None if head is None else head[1].decode(errors="replace")


def without_secrets(event: Event) -> Event:
    """An event of Azure's about a session, a response or an item as the client may see it: without instructions, tools
    and the like. The same object where nothing is hidden, and for every other event.
    """
    kind = event.get("type")
    if kind in SESSION_EVENTS:
        return _with_shown(event, "session", shown_session)
    if kind in _RESPONSE_EVENTS:
        return _with_shown(event, "response", _shown_response)
    if isinstance(kind, str) and kind.startswith(TOOL_LIST) and "error" in event:
        event = {name: value for name, value in event.items() if name != "error"}
    return _with_shown(event, "item", shown_item)


def may_show_tools(payload: bytes) -> bool:
    """Whether an event of Azure's may be about the tools of an MCP server: if so, it has to be read."""
    return _TOOL_LIST_BYTES in payload


def _shown_response(response: Mapping[str, Any]) -> Mapping[str, Any]:
    shown = shown_response(response)
    output = shown.get("output")
    if not isinstance(output, list):
        return shown
    items = [shown_item(item) for item in output]
    same = all(item is stated for item, stated in zip(items, output, strict=True))
    return shown if same else {**shown, "output": items}


def _with_shown(event: Event, name: str, shown: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Event:
    stated = event.get(name)
    if not isinstance(stated, dict) or (kept := shown(stated)) is stated:
        return event
    return {**event, name: kept}


def _examine_event(event: Any) -> Finding:
    if not isinstance(event, dict) or not isinstance(kind := event.get("type"), str):
        return Broken("not an event: an object with a type is wanted")
    if kind.startswith("broker."):
        return Command(event)
    shape = CLIENT_EVENTS.get(kind)
    if shape is None:
        return Refused("unknown_event", f"{shown_name(kind)} is no event that a client may send; {_TAKEN}")
    try:
        found = permitted(event, shape)
    except NotPermittedError as fault:
        if _is_the_operators(fault.holder):
            return Refused("system_item_refused", _REFUSED_ITEM)
        return Refused("event_refused", f"{kind}: {fault.where} may not be {shown_name(fault.value)}; {_TAKEN}")
    return Allowed(found.value, found.left_out)


def _is_the_operators(item: Mapping[str, Any]) -> bool:
    """Whether an item claims the operator's authority, in whatever way its author hoped to write that unseen."""
    looked_at = islice(item.items(), _LOOKED_AT_MOST)  # what it is called is all that hangs on it: refused it is anyway
    roles = (value for key, value in looked_at if key[:_LOOKED_AT_MOST].strip().lower() == "role")
    return any(isinstance(role, str) and role.strip().lower() in OPERATORS_ROLES for role in roles)
