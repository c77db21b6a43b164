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
        self._is_dry = False
        self._is_whole = False

    def starts(self, response_id: str, item_id: str, part: Part, now_s: float) -> None:
        """Audio of a response is being sent."""
        self._is_dry = self._is_whole = False
        # Once a response: each of its pieces comes here.
        if self._playing is None or self._playing.response_id != response_id:
            self._playing = _Playing(response_id, item_id, part, now_s)
            self._emit("output_audio_buffer.started", response_id=response_id)

    def runs_dry(self) -> None:
        """All that was sent so far has been heard: the end of a response that is whole, else an underrun."""
        self._is_dry = True
        self._stop_at_end()

    def ends(self) -> None:
        """No more audio of the response comes."""
        self._is_whole = True
        self._stop_at_end()

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

    def _stop_at_end(self) -> None:
        if self._playing is not None and self._is_dry and self._is_whole:
            self._emit("output_audio_buffer.stopped", response_id=self._playing.response_id)
            self._playing = None
