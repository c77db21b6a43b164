"""What a client may do to the conversation: create, delete, retrieve and truncate items."""

import binascii
from base64 import b64decode

from token_broker.simulator.audio import duration_ms
from token_broker.simulator.realtime.conversation import (
    Conversation,
    FunctionCall,
    FunctionOutput,
    Item,
    McpApproval,
    McpApprovalRequest,
    Message,
    Part,
)
from token_broker.simulator.realtime.dialects import Dialect
from token_broker.simulator.realtime.received_events import (
    ContentParam,
    FunctionCallParam,
    FunctionOutputParam,
    ItemCreate,
    ItemParam,
    ItemReference,
    ItemTruncate,
    McpApprovalParam,
)
from token_broker.simulator.realtime.server_events import Ids, ServerEvents
from token_broker.simulator.session_bodies.check import INVALID_VALUE, InvalidRequest


class ItemOperations:
    """Changes a conversation and emits what changed. Every method raises `InvalidRequest` where it can't do so."""

    def __init__(self, conversation: Conversation, dialect: Dialect, ids: Ids, events: ServerEvents) -> None:
        self._conversation = conversation
        self._dialect = dialect
        self._ids = ids
        self._events = events

    def add(self, item: Item, after: str | None) -> None:
        try:
            previous = self._conversation.add(item, after)
        except KeyError:
            message = f"Error adding item: the previous item with id '{after}' does not exist."
            raise InvalidRequest("item_create_invalid_previous_item_id", message, "previous_item_id") from None
        self._events.emit_item("conversation.item.added", item, previous)
        self._events.emit_item("conversation.item.done", item, previous)

    def create(self, event: ItemCreate) -> Item:
        """Adds the client's item, and gives it."""
        item = read_item(event.item, self._dialect, self._ids.new("item"))
        if self._conversation.find(item.id) is not None:
            raise InvalidRequest(
                "item_create_duplicate_item_id", f"An item with id '{item.id}' already exists.", "item.id"
            )
        if isinstance(item, McpApproval) and not isinstance(
            self._conversation.find(item.approval_request_id), McpApprovalRequest
        ):
            message = f"No approval was requested with id '{item.approval_request_id}'."
            raise InvalidRequest(INVALID_VALUE, message, "item.approval_request_id")
        if isinstance(item, FunctionOutput) and not any(
            isinstance(made, FunctionCall) and made.call_id == item.call_id for made in self._conversation
        ):
            message = f"Tool call ID '{item.call_id}' not found in conversation."
            raise InvalidRequest("invalid_tool_call_id", message)
        self.add(item, event.previous_item_id)
        return item

    def delete(self, event: ItemReference) -> None:
        self._conversation.remove(self._found(event.item_id, "item_delete_invalid_item_id"))
        self._events.emit("conversation.item.deleted", item_id=event.item_id)

    def retrieve(self, event: ItemReference) -> None:
        item = self._found(event.item_id, "item_retrieve_invalid_item_id")
        self._events.emit("conversation.item.retrieved", item=self._dialect.item_object(item))

    def truncate(self, event: ItemTruncate) -> None:
        """Cuts an answer to what was heard of it. What was not sent can't have been heard."""
        item = self._found(event.item_id, "item_truncate_invalid_item_id")
        parts = item.parts if isinstance(item, Message) and item.role == "assistant" else []
        if event.content_index >= len(parts) or parts[event.content_index].kind != "audio":
            raise InvalidRequest(INVALID_VALUE, "Only model output audio messages can be truncated", "content_index")
        part = parts[event.content_index]
        if event.audio_end_ms > part.audio_ms:
            message = f"Audio content of {part.audio_ms}ms is already shorter than {event.audio_end_ms}ms"
            raise InvalidRequest(INVALID_VALUE, message, "audio_end_ms")
        # Which words were heard is not known, so the item keeps none: as OpenAI documents it.
        part.audio_ms, part.text = event.audio_end_ms, ""
        cut = event.model_dump(include={"item_id", "content_index", "audio_end_ms"})
        self._events.emit("conversation.item.truncated", **cut)

    def _found(self, item_id: str, code: str) -> Item:
        item = self._conversation.find(item_id)
        if item is None:
            raise InvalidRequest(code, f"Error: the item with id '{item_id}' does not exist.", "item_id")
        return item


def read_item(param: ItemParam, dialect: Dialect, new_id: str) -> Item:
    """An item as the client gave it, under its own id or a new one.

    Raises:
        InvalidRequest: it has content that its role can't have in this dialect, or audio that is no base64.

    """
    item_id = param.id or new_id
    if isinstance(param, FunctionCallParam):
        return FunctionCall(item_id, param.call_id or f"call_{new_id}", param.name, param.arguments)
    if isinstance(param, FunctionOutputParam):
        return FunctionOutput(item_id, param.call_id, param.output)
    if isinstance(param, McpApprovalParam):
        return McpApproval(item_id, param.approval_request_id, param.approve, param.reason)
    allowed = dialect.content_types(param.role)
    parts = [_read_part(content, number, allowed) for number, content in enumerate(param.content)]
    return Message(item_id, param.role, parts, given=True)


def _read_part(content: ContentParam, number: int, allowed: frozenset[str]) -> Part:
    place = f"item.content[{number}]"
    if content.type not in allowed:
        known = ", ".join(f"'{name}'" for name in sorted(allowed))
        message = f"Invalid value: '{content.type}'. Supported values are: {known}."
        raise InvalidRequest(INVALID_VALUE, message, f"{place}.type")
    if content.type == "input_audio":
        pcm = decode_audio(content.audio or "", f"{place}.audio")
        return Part("audio", content.transcript, pcm, duration_ms(pcm))
    if content.type in ("output_audio", "audio"):
        return Part("audio", content.transcript)
    return Part("text", content.text or "")


def decode_audio(audio: str, param: str) -> bytes:
    """The bytes of base64.

    Raises:
        InvalidRequest: it is none.

    """
    try:
        return b64decode(audio, validate=True)
    except (binascii.Error, ValueError):
        message = f"Invalid '{param}'. Expected base64-encoded audio bytes (mono PCM16 at 24kHz)."
        raise InvalidRequest(INVALID_VALUE, message, param) from None
