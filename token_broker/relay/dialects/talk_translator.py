"""The translation of one talk's events for its client, where one event alone does not tell enough. No I/O.

Over Voice Live, a client of GA is told by these means what GA itself would have told:

- the `usage` of a transcription, which Voice Live leaves out and OpenAI's type requires: the length of the speech;
- the end of an item once. Voice Live tells itself that the user's audio is complete, but nothing else; and it tells of
  the end of an item that is in no conversation as of any other (docs/azure.md §4.5).
"""

from collections.abc import Callable
from typing import Any

from strategies.session_model.agent_settings import Dialect
from token_broker.relay.dialects.translation import Event, needs_reading, to_client
from token_broker.security.limits import BoundedDict

__all__ = ["TalkTranslator"]

_ADDED = "conversation.item.added"
_DONE = "conversation.item.done"
_TRANSCRIBED = "conversation.item.input_audio_transcription.completed"
_SPEECH_TIMES = {
    "input_audio_buffer.speech_started": "audio_start_ms",
    "input_audio_buffer.speech_stopped": "audio_end_ms",
}
_TOKENS = ("input_tokens", "output_tokens", "total_tokens")
_ITEMS_KEPT = 256


class TalkTranslator:
    """Translates the events of one talk, whose upstream may change, for a client of one dialect."""

    def __init__(self, client: Dialect, *, new_id: Callable[[], str]) -> None:
        self._client = client
        self._new_id = new_id
        self._open_items = BoundedDict[str, None](_ITEMS_KEPT)  # their end is not told yet
        self._speech_ms = BoundedDict[str, dict[str, int]](_ITEMS_KEPT)  # when an item's speech began and ended

    def reads(self, kind: str, upstream: Dialect) -> bool:
        """Whether events of this type need `to_client`; for the others `translation.renamed` is enough."""
        if self._client == "ga" != upstream and (kind in _SPEECH_TIMES or kind == _TRANSCRIBED):
            return True
        return needs_reading(kind, client=self._client, upstream=upstream)

    def to_client(self, event: Event, upstream: Dialect) -> list[Event]:
        """Azure's event, complete, in the client's dialect: none, one or two."""
        told = to_client(event, client=self._client, upstream=upstream, new_id=self._new_id)
        if self._client == "preview":
            return [each for each in told if each.get("type") != _DONE]  # no client of preview knows it
        if upstream == "ga":
            return told
        return [self._with_usage(each) for each in told if not self._repeats_end(each)]

    def _repeats_end(self, event: Event) -> bool:
        kind, item = event.get("type"), event.get("item")
        if kind not in (_ADDED, _DONE) or not isinstance(item, dict) or not isinstance(item_id := item.get("id"), str):
            return False
        if kind == _ADDED:
            self._open_items[item_id] = None
            return False
        if item_id not in self._open_items:
            return True
        del self._open_items[item_id]
        return False

    def _with_usage(self, event: Event) -> Event:
        kind, item_id = event.get("type"), event.get("item_id")
        if not isinstance(kind, str) or not isinstance(item_id, str):
            return event
        if (name := _SPEECH_TIMES.get(kind)) is not None and isinstance(at_ms := event.get(name), int):
            times = self._speech_ms.setdefault(item_id, {})
            times[name] = times.get(name, at_ms) if name == "audio_start_ms" else at_ms
        if kind != _TRANSCRIBED:
            return event
        times = self._speech_ms.pop(item_id, {})
        usage: Any = event.get("usage")
        if isinstance(usage, dict):
            if isinstance(usage.get("type"), str):
                return event
            if all(isinstance(usage.get(each), int) for each in _TOKENS):
                return {**event, "usage": {"type": "tokens", **usage}}
        # Speech that the client committed itself has no times: its length is not known here.
        length_ms = times.get("audio_end_ms", 0) - times.get("audio_start_ms", 0) if len(times) > 1 else 0
        return {**event, "usage": {"type": "duration", "seconds": max(length_ms, 0) / 1000}}
