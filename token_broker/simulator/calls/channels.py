"""Which events of a call with a control socket go where: the socket, the data channel, or both (docs/azure.md §12.1).

The names are Voice Live's and GA's alike, since Foundry's voice agents speak GA's.
"""

from typing import Any

Event = dict[str, Any]

_TRANSCRIPTS = frozenset(
    {
        "conversation.item.input_audio_transcription.completed",
        "response.audio_transcript.done",
        "response.output_audio_transcript.done",
    }
)
# Stated by the documentation, which says of a session only on the socket that holds it.
_CONTROL_ALONE = frozenset(
    {
        "session.created",
        "session.updated",
        "error",
        "warning",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
    }
)
_ITEMS = frozenset(
    {
        "conversation.item.created",
        "conversation.item.added",
        "conversation.item.done",
        "response.output_item.added",
        "response.output_item.done",
    }
)
_FUNCTION_ITEMS = frozenset({"function_call", "function_call_output"})
# Made from audio that is sent as events, which there is none of.
_OF_SENT_AUDIO = ("response.audio_timestamp.", "response.animation_")


def on_control(event: Event) -> bool:
    """Whether the control socket gets it: sessions, errors, function calls, and transcripts that are complete."""
    name = event["type"]
    if name in _ITEMS:
        return event["item"]["type"] in _FUNCTION_ITEMS
    return name in _CONTROL_ALONE or name in _TRANSCRIPTS


def on_data_channel(event: Event) -> bool:
    """Whether the data channel gets it. What is on both has one `event_id`."""
    return event["type"] not in _CONTROL_ALONE and not event["type"].startswith(_OF_SENT_AUDIO)
