"""The events that a client may send to Azure, one row each with its fields: the one allowlist of the proxy and of the
compatible endpoints. Pure.

What stands in no row is refused (an event) or left out (a field). The rows hold both dialects' names: an event that
only the other dialect has is Azure's to refuse. docs/client-events.md shows them to the clients' authors.
"""

from collections.abc import Mapping

from token_broker.relay.dialects.client_values import ITEM
from token_broker.relay.dialects.session_settings import CLIENT_RESPONSE, CLIENT_SESSION
from token_broker.relay.dialects.shapes import Fields, Number, Shape, Text

__all__ = ["CLIENT_EVENTS"]


def _event(**fields: Shape) -> Fields:
    return Fields({"type": Text(), "event_id": Text(), **fields})


CLIENT_EVENTS: Mapping[str, Fields] = {
    "session.update": _event(session=CLIENT_SESSION),
    "input_audio_buffer.append": _event(audio=Text()),
    "input_audio_buffer.commit": _event(),
    "input_audio_buffer.clear": _event(),
    "conversation.item.create": _event(previous_item_id=Text(), item=ITEM),
    "conversation.item.retrieve": _event(item_id=Text()),
    "conversation.item.delete": _event(item_id=Text()),
    "conversation.item.truncate": _event(item_id=Text(), content_index=Number(), audio_end_ms=Number()),
    "response.create": _event(response=CLIENT_RESPONSE),
    "response.cancel": _event(response_id=Text()),
    "output_audio_buffer.clear": _event(),
    # of Voice Live alone
    "input_audio.clear": _event(),
    "input_audio.turn.start": _event(turn_id=Text()),
    "input_audio.turn.append": _event(turn_id=Text(), audio=Text()),
    "input_audio.turn.end": _event(turn_id=Text()),
    "input_audio.turn.cancel": _event(turn_id=Text()),
    "input_text.delta": _event(id=Text(), content_index=Number(), delta=Text()),
    "input_text.done": _event(id=Text(), content_index=Number()),
    "session.avatar.connect": _event(client_sdp=Text()),
}
