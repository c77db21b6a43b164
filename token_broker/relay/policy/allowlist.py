"""What a client may send to Azure: the events that it may send, one row each with their fields. Pure.

The proxy and the compatible endpoints share this allowlist. An event without a row is refused; a field without a row is
left out. The rows hold the names of both dialects: Azure itself refuses an event that only the other dialect has.
docs/client-events.md lists them for authors of clients.

Nothing is concluded from the head of a client's message, since JSON may repeat a key or escape it. All but the
byte-exact audio append is parsed, checked and serialised anew, so Azure reads exactly what was checked.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

from strategies.session_model.agent_settings import CLIENT_MAY_SET
from token_broker.relay.dialects.client_values import ITEM, OPERATORS_ROLES
from token_broker.relay.dialects.session_settings import MaySet, client_response, client_session
from token_broker.relay.dialects.shapes import (
    Fields,
    NotPermittedError,
    Number,
    Shape,
    Text,
    permitted,
    shown_name,
    unlisted,
)
from token_broker.relay.event_text import parsed
from token_broker.server.client_wire import OVERSIZED_IMAGE

__all__ = [
    "CLIENT_EVENTS",
    "Allowed",
    "Broken",
    "Command",
    "Finding",
    "Passed",
    "Refused",
    "client_events",
    "event_id_of",
    "examine",
    "is_plain_append",
    "is_plain_append_payload",
]

Event = dict[str, Any]


def _event(**fields: Shape) -> Fields:
    return Fields({"type": Text(), "event_id": Text(), **fields})


_EVENTS: Mapping[str, Fields] = {
    "input_audio_buffer.append": _event(audio=Text()),
    "input_audio_buffer.commit": _event(),
    "input_audio_buffer.clear": _event(),
    "conversation.item.create": _event(previous_item_id=Text(), item=ITEM),
    "conversation.item.retrieve": _event(item_id=Text()),
    "conversation.item.delete": _event(item_id=Text()),
    "conversation.item.truncate": _event(item_id=Text(), content_index=Number(), audio_end_ms=Number()),
    "response.cancel": _event(response_id=Text()),
    "output_audio_buffer.clear": _event(),
    # Voice Live only:
    "input_audio.clear": _event(),
    "input_audio.turn.start": _event(turn_id=Text()),
    "input_audio.turn.append": _event(turn_id=Text(), audio=Text()),
    "input_audio.turn.end": _event(turn_id=Text()),
    "input_audio.turn.cancel": _event(turn_id=Text()),
    "input_text.delta": _event(id=Text(), content_index=Number(), delta=Text()),
    "input_text.done": _event(id=Text(), content_index=Number()),
    "session.avatar.connect": _event(client_sdp=Text()),
}


@cache
def client_events(may_set: MaySet = CLIENT_MAY_SET) -> Mapping[str, Fields]:
    """The events that a client may send, where its agent's `client_may_set` is `may_set`."""
    return {
        "session.update": _event(session=client_session(may_set)),
        "response.create": _event(response=client_response(may_set)),
        **_EVENTS,
    }


CLIENT_EVENTS = client_events()
"""Those of an agent that says nothing of it."""

_APPEND_HEAD = b'{"type":"input_audio_buffer.append","audio":"'
_APPEND_TAIL = b'"}'
_HEAD_BYTES = len(_APPEND_HEAD)
_KEYS_CHECKED = 64
_UNLISTED_AT_MOST = 16
_EVENT_ID_CHARS = 512  # OpenAI's documented limit
_REFERENCE = "see docs/client-events.md"


@dataclass(frozen=True, slots=True)
class Passed:
    """Goes to Azure as it is."""

    text: str


@dataclass(frozen=True, slots=True)
class Allowed:
    """May go to Azure: `event` is what was parsed, without the `left_out` fields that a client may not set.

    `unlisted` are the paths of the first of these fields, as far as they say something.
    """

    event: Event
    left_out: int = 0
    unlisted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Command:
    """For the broker itself: an event whose type begins with `broker.`."""

    event: Event


@dataclass(frozen=True, slots=True)
class Refused:
    """Not forwarded; the client gets an error, and the talk goes on. `message` has at most 200 characters.

    `param` is the path of what is wrong, and `event_id` the client's own id of its event.
    """

    code: str
    message: str
    param: str | None = None
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class Broken:
    """Not an event: the talk ends (4400)."""

    reason: str


Finding = Passed | Allowed | Command | Refused | Broken


def is_plain_append(text: str) -> bool:
    """Whether `text` is byte for byte an audio append, as nearly all of a client's messages are.

    There is no quote or backslash between head and tail, so every JSON reader sees these two keys and no other.
    """
    return text.isascii() and is_plain_append_payload(text.encode())


def is_plain_append_payload(payload: bytes) -> bool:
    """The same for a message as it is on the wire. A plain append is ASCII, so its UTF-8 needs no check."""
    return (
        payload.startswith(_APPEND_HEAD)
        and payload.find(b'"', _HEAD_BYTES) == len(payload) - len(_APPEND_TAIL)
        and payload.endswith(_APPEND_TAIL)
        and b"\\" not in payload
        and payload.isascii()
    )


def event_id_of(event: Mapping[str, Any]) -> str | None:
    """The client's own id of its event, as an error about it states it."""
    event_id = event.get("event_id")
    return event_id if isinstance(event_id, str) and len(event_id) <= _EVENT_ID_CHARS else None


def examine(text: str, may_set: MaySet = CLIENT_MAY_SET) -> Finding:
    """What becomes of a message from the client. Of a repeated key only the last value is forwarded.

    `may_set` is the agent's `client_may_set`.
    """
    if is_plain_append(text):
        return Passed(text)
    try:
        event = parsed(text)
    except (ValueError, RecursionError):
        return Broken("not JSON")
    if not isinstance(event, dict) or not isinstance(kind := event.get("type"), str):
        return Broken("not an event: an object with a type is wanted")
    if kind.startswith("broker."):  # never for Azure, whatever else is in it
        return Command(event)
    shape = client_events(may_set).get(kind)
    event_id = event_id_of(event)
    if kind == OVERSIZED_IMAGE:
        return Refused("image_too_large", "the image is larger than this broker takes: send a smaller one", "item")
    if shape is None:
        message = f"{shown_name(kind)} is no event that a client may send; {_REFERENCE}"
        return Refused("unknown_event", message, "type", event_id)
    try:
        found = permitted(event, shape)
    except NotPermittedError as fault:
        if _claims_operators_role(fault.holder):
            message = "items with the role system or developer are not taken from a client"
            return Refused("system_item_refused", message, fault.where, event_id)
        message = f"{kind}: {fault.where} may not be {shown_name(fault.value)}; {_REFERENCE}"
        return Refused("event_refused", message, fault.where, event_id)
    if not found.left_out:
        return Allowed(found.value)
    return Allowed(found.value, found.left_out, tuple(islice(unlisted(event, shape), _UNLISTED_AT_MOST)))


def _claims_operators_role(item: Mapping[str, Any]) -> bool:
    """Whether a refused item claims the operator's authority, also in other case or with spaces.

    Only the error code depends on it. So 64 keys are enough, and an item of 80,000 keys costs no more.
    """
    roles = (value for key, value in islice(item.items(), _KEYS_CHECKED) if key[:64].strip().lower() == "role")
    return any(isinstance(role, str) and role.strip().lower() in OPERATORS_ROLES for role in roles)
