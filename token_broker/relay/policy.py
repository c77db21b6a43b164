"""What may pass between a browser and Azure, and what is rewritten on the way. Pure.

From the browser nothing is judged by its head: JSON may repeat a key or escape it. So all but the byte-exact audio
append is parsed, checked and written anew, and what Azure reads is what was checked. Azure's own events are trusted
to be well-formed, and are judged by their head alone.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Allowed",
    "Broken",
    "Command",
    "Passed",
    "Refused",
    "Verdict",
    "compact",
    "event_type",
    "event_type_by_head",
    "examine",
    "is_audio_delta",
    "is_plain_append",
    "is_plain_append_payload",
    "judge",
    "without_secrets",
]

Event = dict[str, Any]

_APPEND_HEAD = b'{"type":"input_audio_buffer.append","audio":"'
_APPEND_TAIL = b'"}'
_HEAD_BYTES = len(_APPEND_HEAD)

_TYPE_HEAD = re.compile(rb'\s*\{\s*(?:"event_id"\s*:\s*"[^"\\]*"\s*,\s*)?"type"\s*:\s*"([^"\\]*)"')
_TYPE_HEAD_BYTES = 256  # more than any head: what stands behind need not be encoded to find it
_AUDIO_DELTA_HEADS = (b'{"type":"response.audio.delta",', b'{"type":"response.output_audio.delta",')

# What the agent alone says, wherever a client's event carries a session or a response. Transcription is among them
# since turns are made from it; `prompt` names instructions stored elsewhere; the rest are Voice Live's other ways to
# say who speaks. Compared without regard to case: some JSON readers are as lenient.
_THE_AGENTS_OWN = frozenset(
    {
        "model", "instructions", "voice", "tools", "prompt", "agent", "avatar", "interim_response",
        "input_audio_transcription", "transcription", "tracing", "additional_instructions",
    }
)  # fmt: skip
_CONFIGURATIONS = frozenset({"session", "response"})
_NESTED = frozenset({"audio", "input", "output"})
_ITEM_HOLDERS = frozenset(
    {"item", "items", "input", "input_items", "append_input_items", "pre_generated_assistant_message"}
)
_BESIDE_A_RESPONSE = "additional_instructions"  # Voice Live's `response.create` has them next to `response`
_PRIVILEGED_ROLES = frozenset({"system", "developer"})
_SECRET_OF_SESSIONS = ("instructions", "prompt", "interim_response", "tracing")


@dataclass(frozen=True, slots=True)
class Passed:
    """Goes to Azure as `text`."""

    text: str


@dataclass(frozen=True, slots=True)
class Allowed:
    """May go to Azure: `event` is what was read, without what the client has no say in."""

    event: Event


@dataclass(frozen=True, slots=True)
class Command:
    """For the broker itself: an event whose type begins with `broker.`."""

    event: Event


@dataclass(frozen=True, slots=True)
class Refused:
    """Not passed on; the client is told, and the talk goes on."""

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
    return Passed(compact(finding.event)) if isinstance(finding, Allowed) else finding


def examine(text: str) -> Finding:
    """The same before it is written anew, for whoever has more to change."""
    if is_plain_append(text):
        return Passed(text)
    try:
        return _examine_event(json.loads(text, parse_constant=_no_constant))
    except (ValueError, RecursionError):
        return Broken("not JSON")


def compact(event: Event) -> str:
    """An event as it is sent."""
    return json.dumps(event, separators=(",", ":"))


def event_type(text: str) -> str | None:
    """The type of an event of Azure's: from its head, or by parsing where the head says nothing. None: no event."""
    if (kind := event_type_by_head(text[:_TYPE_HEAD_BYTES].encode(errors="replace"))) is not None:
        return kind
    try:
        event = json.loads(text)
    except (ValueError, RecursionError):
        return None
    kind = event.get("type") if isinstance(event, dict) else None
    return kind if isinstance(kind, str) else None


def event_type_by_head(payload: bytes) -> str | None:
    """The type of an event of Azure's, where its head says it: the type is the first key, or comes after the id."""
    head = _TYPE_HEAD.match(payload)
    return None if head is None else head[1].decode(errors="replace")


def without_secrets(event: Event) -> Event:
    """A session event of Azure's as the client may see it: without the instructions."""
    session = event.get("session")
    if not isinstance(session, dict):
        return event
    return {**event, "session": {key: value for key, value in session.items() if key not in _SECRET_OF_SESSIONS}}


def _examine_event(event: Any) -> Finding:
    if not isinstance(event, dict) or not isinstance(kind := event.get("type"), str):
        return Broken("not an event: an object with a type is wanted")
    if kind.startswith("broker."):
        return Command(event)
    if _has_privileged_item(event):
        return Refused("system_item_refused", "items with the role system or developer are not taken from a client")
    kept: Event = {}
    for key, value in event.items():
        name = key.strip().lower()
        if name != _BESIDE_A_RESPONSE:
            configures = name in _CONFIGURATIONS and isinstance(value, dict)
            kept[key] = _without_the_agents_own(value) if configures else value
    return Allowed(kept)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _without_the_agents_own(configuration: Event) -> Event:
    """A session or a response without what is the agent's to say. GA nests the voice: audio.output.voice."""
    kept: Event = {}
    for key, value in configuration.items():
        name = key.strip().lower()
        if name not in _THE_AGENTS_OWN:
            nested = name in _NESTED and isinstance(value, dict)
            kept[key] = _without_the_agents_own(value) if nested else value
    return kept


def _has_privileged_item(event: Event) -> bool:
    """Whether an item made or handed in by the client would speak with the operator's authority."""
    pending: list[Any] = [event]
    while pending:
        for key, value in pending.pop().items():
            name = key.strip().lower()
            if name in _ITEM_HOLDERS:
                items = value if isinstance(value, list) else [value]
                if any(_is_privileged(item) for item in items):
                    return True
            if name in _CONFIGURATIONS and isinstance(value, dict):
                pending.append(value)
    return False


def _is_privileged(item: Any) -> bool:
    if not isinstance(item, dict):
        return False
    roles = (value for key, value in item.items() if key.strip().lower() == "role")
    return any(isinstance(role, str) and role.strip().lower() in _PRIVILEGED_ROLES for role in roles)
