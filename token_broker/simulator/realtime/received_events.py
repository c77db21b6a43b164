"""What a client may send, as strict models. They are the same in every dialect, but for the contents of an item."""

from typing import Annotated, Any, Literal

from pydantic import Field

from token_broker.simulator.session_bodies.check import INVALID_VALUE, MISSING_PARAMETER, InvalidRequest, Strict, check


class ContentParam(Strict):
    """A piece of a message. Which types there are depends on role and dialect: see `Dialect.content_types`."""

    type: str
    text: str | None = None
    audio: str | None = None
    transcript: str | None = None
    image_url: str | None = None
    detail: Literal["auto", "low", "high"] | None = None


class _ItemParam(Strict):
    id: str | None = Field(default=None, min_length=1, max_length=64)
    object: Literal["realtime.item"] | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None


class MessageParam(_ItemParam):
    """A message for the conversation."""

    type: Literal["message"]
    role: Literal["user", "assistant", "system"]
    content: list[ContentParam]


class FunctionCallParam(_ItemParam):
    """A function call of an earlier conversation."""

    type: Literal["function_call"]
    name: str
    arguments: str
    call_id: str | None = None


class FunctionOutputParam(_ItemParam):
    """The output of a function."""

    type: Literal["function_call_output"]
    call_id: str
    output: str


class McpApprovalParam(_ItemParam):
    """Allows or refuses a call to an MCP server."""

    type: Literal["mcp_approval_response"]
    approval_request_id: str
    approve: bool
    reason: str | None = None


ItemParam = Annotated[
    MessageParam | FunctionCallParam | FunctionOutputParam | McpApprovalParam, Field(discriminator="type")
]


class ClientEvent(Strict):
    """What every client event has."""

    type: str
    # OpenAI's documented limit.
    event_id: str | None = Field(default=None, max_length=512)


class SessionUpdate(ClientEvent):
    """Changes the session; the fields are its dialect's."""

    session: dict[str, Any]


class AudioAppend(ClientEvent):
    """Base64 of PCM, of any length."""

    audio: str


class ItemCreate(ClientEvent):
    """Puts an item into the conversation."""

    item: ItemParam
    previous_item_id: str | None = None


class ItemReference(ClientEvent):
    """`conversation.item.delete` and `.retrieve`."""

    item_id: str


class ItemTruncate(ClientEvent):
    """Removes what was not heard of the assistant's audio."""

    item_id: str
    content_index: int = Field(ge=0)
    audio_end_ms: int = Field(ge=0)


class ResponseCreate(ClientEvent):
    """Asks for a response; the fields of `response` are its dialect's."""

    response: dict[str, Any] | None = None
    additional_instructions: str | None = None


class ResponseCancel(ClientEvent):
    """Stops the active response."""

    response_id: str | None = None


_MODELS: dict[str, type[ClientEvent]] = {
    "session.update": SessionUpdate,
    "input_audio_buffer.append": AudioAppend,
    "input_audio_buffer.commit": ClientEvent,
    "input_audio_buffer.clear": ClientEvent,
    "conversation.item.create": ItemCreate,
    "conversation.item.delete": ItemReference,
    "conversation.item.retrieve": ItemReference,
    "conversation.item.truncate": ItemTruncate,
    "response.create": ResponseCreate,
    "response.cancel": ResponseCancel,
    "output_audio_buffer.clear": ClientEvent,
}


class _Items(Strict):
    items: list[ItemParam]


def read_items(value: list[Any], param: str) -> list[ItemParam]:
    """The items that stand in a response's input.

    Raises:
        InvalidRequest: one of them is none.

    """
    try:
        return check(_Items, {"items": value}).items
    except InvalidRequest as invalid:
        place = (invalid.param or "").removeprefix("items")
        raise InvalidRequest(invalid.code, invalid.message, f"{param}{place}") from None


def read_event(value: object) -> ClientEvent:
    """Reads a parsed message as an event.

    Raises:
        InvalidRequest: it is none, or one with something wrong in it.

    """
    if not isinstance(value, dict):
        raise InvalidRequest("invalid_event", "An event is a JSON object.")
    name = value.get("type")
    if name is None:
        raise InvalidRequest(MISSING_PARAMETER, "Missing required parameter: 'type'.", "type")
    model = _MODELS.get(name) if isinstance(name, str) else None
    if model is None:
        known = ", ".join(f"'{known}'" for known in _MODELS)
        raise InvalidRequest(INVALID_VALUE, f"Invalid value: {name!r}. Supported values are: {known}.", "type")
    return check(model, value)
