"""Where the server holds the playback, as over WebRTC: what of the answers is being heard (docs/azure.md §5.2)."""

from token_broker.simulator.realtime.server_events import ServerEvents


class Playback:
    """Tells of the output audio buffer, one response at a time."""

    def __init__(self, events: ServerEvents) -> None:
        self._events = events
        self._response_id: str | None = None

    def starts(self, response_id: str) -> None:
        """Audio of a response is on its way."""
        if response_id != self._response_id:
            self._response_id = response_id
            self._events.emit("output_audio_buffer.started", response_id=response_id)

    def ends(self) -> None:
        """All of it has been heard."""
        self._end("output_audio_buffer.stopped")

    def clears(self) -> None:
        """What was not heard yet is dropped."""
        self._end("output_audio_buffer.cleared")

    def _end(self, name: str) -> None:
        if self._response_id is not None:
            self._events.emit(name, response_id=self._response_id)
            self._response_id = None
