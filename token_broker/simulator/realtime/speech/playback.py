"""Where the server holds the playback, as over WebRTC: which answer is heard, and how far (docs/azure.md §5.2)."""

from collections.abc import Callable
from dataclasses import dataclass

from token_broker.simulator.realtime.conversation import Part


@dataclass(frozen=True, slots=True)
class _Playing:
    response_id: str
    item_id: str
    part: Part
    since_s: float


class Playback:
    """Tells of the output audio buffer, one response at a time."""

    def __init__(self, emit: Callable[..., None]) -> None:
        """`emit` takes an event's name and its fields."""
        self._emit = emit
        self._playing: _Playing | None = None

    def starts(self, response_id: str, item_id: str, part: Part, now_s: float) -> None:
        """Audio of a response is being sent."""
        # Once a response: each of its pieces comes here.
        if self._playing is None or self._playing.response_id != response_id:
            self._playing = _Playing(response_id, item_id, part, now_s)
            self._emit("output_audio_buffer.started", response_id=response_id)

    def ends(self) -> None:
        """All of it has been heard."""
        if self._playing is not None:
            self._emit("output_audio_buffer.stopped", response_id=self._playing.response_id)
            self._playing = None

    def clears(self, *, truncates_at_s: float | None = None) -> None:
        """What was not heard yet is dropped; with a time, the item is cut to what was heard until then as well."""
        playing, self._playing = self._playing, None
        if playing is None:
            return
        if truncates_at_s is not None:
            heard_ms = round((truncates_at_s - playing.since_s) * 1000)
            playing.part.audio_ms = min(max(heard_ms, 0), playing.part.audio_ms)
            # What was heard of the words is not known, so the item keeps none of them.
            playing.part.text = ""
            self._emit(
                "conversation.item.truncated",
                item_id=playing.item_id,
                content_index=0,
                audio_end_ms=playing.part.audio_ms,
            )
        self._emit("output_audio_buffer.cleared", response_id=playing.response_id)
