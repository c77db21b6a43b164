"""Shapes of the values of settings, and of conversation items, that a client may send. Pure.

They are the types of `openai.types.realtime` and `azure.ai.voicelive.models`, without anything that would let a client
speak for the agent or for its operator.
"""

from collections.abc import Mapping

from token_broker.relay.dialects.shapes import Fields, Flag, Kinds, ListOf, Number, OneOf, Shape, Text, Word

__all__ = [
    "AUDIO_FORMAT",
    "ECHO_CANCELLATION",
    "INPUTS",
    "ITEM",
    "MAX_TOKENS",
    "MODALITIES",
    "NOISE_REDUCTION",
    "OPERATORS_ROLES",
    "TOOL_CHOICE",
    "TRANSCRIPTION",
    "TURN_DETECTION",
    "VOICE",
]

OPERATORS_ROLES = frozenset({"system", "developer"})
"""Roles that the model obeys more than a user's: no client's item may have one of them."""

_ITEMS_AT_MOST = 64
_PARTS_AT_MOST = 64

AUDIO_FORMAT = OneOf((Text(), Fields({"type": Text(), "rate": Number()})))
MODALITIES = ListOf(Text(), 8)
MAX_TOKENS = OneOf((Number(), Word(("inf",))))
# Azure's guides switch both off with the type `none`, which its services do not take: null is what they take.
NOISE_REDUCTION = Fields({"type": Text(), "strength": Number()}, off="none")
TURN_DETECTION = Fields(
    {
        "type": Text(),
        "create_response": Flag(),
        "interrupt_response": Flag(),
        "threshold": Number(),
        "prefix_padding_ms": Number(),
        "silence_duration_ms": Number(),
        "idle_timeout_ms": Number(),
        "eagerness": Text(),
        "speech_duration_ms": Number(),
        "remove_filler_words": Flag(),
        "auto_truncate": Flag(),
        "languages": ListOf(Text(), 16),
        "end_of_utterance_detection": Fields(
            {
                "model": Text(),
                "threshold": Number(),
                "threshold_level": Text(),
                "timeout": Number(),
                "timeout_ms": Number(),
            }
        ),
    },
    off="none",
)

# What an agent may let its clients set beyond that.
ECHO_CANCELLATION = Fields({"type": Text(), "reference_source": Text(), "channels": Number()}, off="none")
TOOL_CHOICE = OneOf((Text(), Fields({"type": Text(), "name": Text(), "server_label": Text()})))
TRANSCRIPTION = Fields(
    {
        "model": Text(),
        "language": Text(),
        "prompt": Text(),
        "delay": Text(),
        "keywords": ListOf(Text(), 64),
        "languages": ListOf(Text(), 16),
        "phrase_list": ListOf(Text(), 64),
    },
    off="none",
)
VOICE = OneOf((Text(), Fields({"id": Text(), "type": Text(), "name": Text(), "rate": Text()})))

_ANY_ITEM: Mapping[str, Shape] = {"id": Text(), "object": Text(), "type": Text(), "status": Text()}


def _part(**fields: Shape) -> Fields:
    return Fields({"type": Text(), **fields})


def _message(**parts: Shape) -> Fields:
    return Fields({**_ANY_ITEM, "role": Text(), "content": ListOf(Kinds("type", parts), _PARTS_AT_MOST)})


_USERS = _message(
    input_text=_part(text=Text()),
    input_audio=_part(audio=Text(), transcript=Text()),
    input_image=_part(image_url=Text(), detail=Text()),
)
# Earlier turns as history. Text only: a client must not supply audio in the agent's voice.
_ASSISTANTS = _message(
    output_text=_part(text=Text()),
    text=_part(text=Text()),
    output_audio=_part(transcript=Text()),
    audio=_part(transcript=Text()),
)
_ITEMS: Mapping[str, Shape] = {
    "message": Kinds("role", {"user": _USERS, "assistant": _ASSISTANTS}),
    "function_call_output": Fields({**_ANY_ITEM, "call_id": Text(), "output": Text()}),
    "mcp_approval_response": Fields({**_ANY_ITEM, "approval_request_id": Text(), "approve": Flag(), "reason": Text()}),
}

ITEM = Kinds("type", _ITEMS)
"""An item of `conversation.item.create`."""
INPUTS = ListOf(Kinds("type", {**_ITEMS, "item_reference": Fields({"type": Text(), "id": Text()})}), _ITEMS_AT_MOST)
"""The input of a response: items, or references to items of the conversation."""
