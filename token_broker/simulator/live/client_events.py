"""What a client of GPT-Live may send, as `openai.types.live` has it."""

from typing import Any, Literal

from pydantic import Field

from token_broker.simulator.session_bodies.check import INVALID_VALUE, MISSING_PARAMETER, InvalidRequest, Strict, check


class LiveEvent(Strict):
    """What every event has."""

    type: str
    event_id: str | None = Field(default=None, max_length=512)


class SessionStart(LiveEvent):
    """Starts a session on its own WebSocket; the fields are checked as a `SocketSession`."""

    session: dict[str, Any]


class LiveUpdate(LiveEvent):
    """Changes the delegation."""

    session: dict[str, Any]


class LiveAudio(LiveEvent):
    """Sound of the user's, in the session's format."""

    audio: str


class ContextAppend(LiveEvent):
    """Words for the model: to be said, to be thought of, or to be followed. `delegation_id` must be there."""

    content: str
    delegation_id: str | None


class BackendItem(LiveEvent):
    """An item for the backend, such as what a function gave."""

    item: dict[str, Any]


class FunctionGiven(Strict):
    """What a function gave."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[dict[str, Any]]
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


CLIENT_EVENTS: dict[str, type[LiveEvent]] = {
    "session.start": SessionStart,
    "session.update": LiveUpdate,
    "session.input_audio.append": LiveAudio,
    "session.input_audio.mute": LiveEvent,
    "session.input_audio.unmute": LiveEvent,
    "session.instructions.append": ContextAppend,
    "session.thinking.append": ContextAppend,
    "session.commentary.append": ContextAppend,
    "response.item.create": BackendItem,
    "response.create": LiveEvent,
    "session.close": LiveEvent,
}


def read_live_event(value: object) -> LiveEvent:
    """Reads a parsed message as an event.

    Raises:
        InvalidRequest: it is none, or one with something wrong in it.

    """
    if not isinstance(value, dict):
        raise InvalidRequest("invalid_event", "An event is a JSON object.")
    name = value.get("type")
    if name is None:
        raise InvalidRequest(MISSING_PARAMETER, "Missing required parameter: 'type'.", "type")
    model = CLIENT_EVENTS.get(name) if isinstance(name, str) else None
    if model is None:
        raise InvalidRequest(INVALID_VALUE, f"Invalid value: {name!r} is no event of a Live client.", "type")
    return check(model, value)
