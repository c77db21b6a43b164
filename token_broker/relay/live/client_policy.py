"""What a client may send in a talk with GPT-Live. Pure.

As on the other sockets, an event without a row is refused, and what goes to Azure is made anew of what was checked.
The session is the agent's: nothing of it can be changed once it has begun, and no client says what the agent says.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from token_broker.relay.dialects.shapes import shown_name
from token_broker.relay.event_text import compact, parsed
from token_broker.relay.policy.allowlist import Broken, Command, Refused, event_id_of

__all__ = ["AUDIO_APPEND", "PRIMARY_ONLY", "ClientFinding", "OpenWork", "examine_live", "wanted_format"]

Event = dict[str, Any]
ClientFinding = str | Refused | Broken | Command
"""What becomes of a message: a text for Azure, or one of the allowlist's verdicts. Empty: the broker sees to it."""

AUDIO_APPEND = "session.input_audio.append"
PRIMARY_ONLY = frozenset({AUDIO_APPEND, "session.start"})
"""What a sideband may not send."""

_REFERENCE = "see docs/client-events.md"
_CONTEXT_CHARS = 8_000
_OUTPUT_CHARS = 65_536
_ITEM_ID = re.compile(r"(?:item|msg)_[A-Za-z0-9]{16,64}")  # unique everywhere, like Azure's
_FORMATS: tuple[dict[str, Any], ...] = (
    {"type": "audio/pcm", "rate": 24_000},
    {"type": "audio/pcm", "rate": 16_000},
    {"type": "audio/pcmu", "rate": 8_000},
    {"type": "audio/pcma", "rate": 8_000},
)
_OF_AGENT = {
    "session.update": "the session is the agent's",
    "session.instructions.append": "the instructions are the agent's",
    "session.output_audio.fixture.play": "nobody else speaks in the agent's place",
    "decision.create": "decisions are the agent's",
    "decision.item.create": "decisions are the agent's",
    "decision.item.delete": "decisions are the agent's",
    "transport.dtmf.send": "there is no telephone line",
}


class OpenWork(Protocol):
    """What the talk has left to its client: `Delegations`, as far as it is needed here."""

    def takes_output(self, call_id: object) -> bool:
        """The client's output of a call; False where no such call is open for it."""
        ...

    def takes_context(self, delegation_id: object) -> bool:
        """Whether the client may tell something about this task."""
        ...

    def typed(self, text: str, item_id: str | None) -> None:
        """The user typed something, which the backend is not asked about yet.

        A client that says it again, over another connection, does so by the same id.
        """
        ...

    def takes_create(self) -> bool:
        """Whether the client's wish for an answer of the backend goes to Azure; else the broker asks by itself."""
        ...


def examine_live(text: str, work: OpenWork, *, backend: bool) -> ClientFinding:
    """What becomes of a client's message. `backend`: a Responses model takes what the user types."""
    try:
        event = parsed(text)
    except (ValueError, RecursionError):
        return Broken("not JSON")
    if not isinstance(event, dict) or not isinstance(kind := event.get("type"), str):
        return Broken("not an event: an object with a type is wanted")
    if kind.startswith("broker."):
        return Command(event)
    event_id = event_id_of(event)
    if (why := _OF_AGENT.get(kind)) is not None:
        return Refused("not_permitted", f"{kind} is not taken from a client: {why}", "type", event_id)
    if (row := _ROWS.get(kind)) is None:
        message = f"{shown_name(kind)} is no event that a client may send; {_REFERENCE}"
        return Refused("unknown_event", message, "type", event_id)
    found = row(event, work, backend)
    if found is None:
        return ""
    if isinstance(found, Refused):
        return Refused(found.code, found.message, found.param, event_id)
    return compact({"type": kind, **({} if event_id is None else {"event_id": event_id}), **found})


def wanted_format(event: Mapping[str, Any]) -> dict[str, Any] | None:
    """The audio format of a client's `session.start`; None: Azure's own, PCM16 at 24 kHz."""
    session = event.get("session")
    audio = session.get("audio") if isinstance(session, Mapping) else None
    stated = audio.get("format") if isinstance(audio, Mapping) else None
    return stated if stated in _FORMATS and stated != _FORMATS[0] else None


def _refused(code: str, message: str, param: str) -> Refused:
    return Refused(code, message, param)


def audio_fields(event: Event, _work: OpenWork, _backend: bool) -> Event | Refused:
    audio = event.get("audio")
    if not isinstance(audio, str):
        return _refused("event_refused", "audio has to be a text in base64", "audio")
    return {"audio": audio}


def context_fields(event: Event, work: OpenWork, _backend: bool) -> Event | Refused:
    content, delegation_id = event.get("content"), event.get("delegation_id")
    if not work.takes_context(delegation_id):
        return _refused("not_permitted", "only of a task that is left to the client", "delegation_id")
    if not isinstance(content, str) or len(content) > _CONTEXT_CHARS:
        return _refused("event_refused", "content has to be a text that is not too long", "content")
    return {"delegation_id": delegation_id, "content": content}


def item_fields(event: Event, work: OpenWork, backend: bool) -> Event | Refused:
    """An output of the client's own call, or what the user typed, which the backend reads."""
    item = event.get("item")
    if not isinstance(item, dict):
        return _refused("event_refused", "item has to be an object", "item")
    if item.get("type") == "function_call_output":
        output = item.get("output")
        if not isinstance(output, str) or len(output) > _OUTPUT_CHARS:
            return _refused("event_refused", "output has to be a text that is not too long", "item.output")
        if not work.takes_output(item.get("call_id")):
            return _refused("not_permitted", "there is no such call that the client answers", "item.call_id")
        return {"item": {"type": "function_call_output", "call_id": item["call_id"], "output": output}}
    if item.get("type", "message") != "message" or item.get("role") != "user":
        return _refused("system_item_refused", "only what the user types is taken from a client", "item.role")
    if not backend:
        return _refused("text_not_taken", "this agent takes no typed text: it has no Responses backend", "item")
    typed = _typed(item.get("content"))
    if typed is None:
        return _refused("event_refused", "content has to be one input_text", "item.content")
    item_id = item.get("id")
    work.typed(typed, item_id if isinstance(item_id, str) and _ITEM_ID.fullmatch(item_id) else None)
    return {"item": {"type": "message", "role": "user", "content": [{"type": "input_text", "text": typed}]}}


def _typed(content: object) -> str | None:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or len(content) != 1 or not isinstance(content[0], dict):
        return None
    part = content[0]
    return part["text"] if part.get("type") == "input_text" and isinstance(part.get("text"), str) else None


def answer_fields(_event: Event, work: OpenWork, backend: bool) -> Event | Refused | None:
    """Once for what was typed. After outputs the broker asks, when all of them are there."""
    if not backend:
        return _refused("not_permitted", "this agent has no Responses backend", "type")
    return {} if work.takes_create() else None


def no_fields(_event: Event, _work: OpenWork, _backend: bool) -> Event | Refused:
    return {}


_ROWS: Mapping[str, Callable[[Event, OpenWork, bool], Event | Refused | None]] = {
    AUDIO_APPEND: audio_fields,
    "session.input_audio.mute": no_fields,
    "session.input_audio.unmute": no_fields,
    "session.close": no_fields,
    "session.commentary.append": context_fields,
    "session.thinking.append": context_fields,
    "response.item.create": item_fields,
    "response.create": answer_fields,
}
