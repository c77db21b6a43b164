"""When nobody says anything of use in a call any more. Pure: times are passed in."""

__all__ = ["IdleClock"]

_BUSY_AT_MOST_S = 600.0  # an answer or a tool that takes longer counts as lost
_SPEECH = frozenset({"input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped"})
# What says that somebody speaks or writes, on either side. Azure sends a sideband no audio.
_OF_USE = ("response.", "output_audio_buffer.", "conversation.item.", "input_audio_buffer.committed")
_BEGINS = frozenset({"response.created", "output_audio_buffer.started"})
_ENDS = {
    "response.done": "response.created",
    "output_audio_buffer.stopped": "output_audio_buffer.started",
    "output_audio_buffer.cleared": "output_audio_buffer.started",
}


class IdleClock:
    """One call's. It runs while the call is listened to: what happens meanwhile is unknown.

    An answer, its sound and a tool keep a call alive without an event, for ten minutes at most. What Azure says by
    itself because nobody speaks (`idle_timeout_ms`) does not, and neither do the answers to that.
    """

    def __init__(self, idle_s: float, now_s: float) -> None:
        self._idle_s = idle_s
        self._last_s = now_s
        self._left_s: float | None = None
        self._under_way: dict[str, float] = {}
        self._speaks_alone = False

    @property
    def is_busy(self) -> bool:
        """Whether an answer is being made, or played."""
        return bool(self._under_way)

    def heard(self, kind: str, text: str, now_s: float) -> None:
        """Azure sent the event `text` of the type `kind`."""
        if kind in _SPEECH:
            self._speaks_alone = False
            self._last_s = now_s
        elif kind == "input_audio_buffer.timeout_triggered":
            self._speaks_alone = True
            self._under_way.clear()
        elif kind.startswith(_OF_USE) and (not self._speaks_alone or '"input_text"' in text):
            self._speaks_alone = False
            self._last_s = now_s
            if kind in _BEGINS:
                self._under_way[kind] = now_s
            elif (begun := _ENDS.get(kind)) is not None:
                self._under_way.pop(begun, None)

    def leave(self, now_s: float) -> None:
        """The call is not listened to from now on."""
        self._left_s = now_s
        self._under_way.clear()

    def join(self, now_s: float) -> None:
        """The call is listened to again."""
        if self._left_s is not None:
            self._last_s += now_s - self._left_s
            self._left_s = None

    def is_idle(self, now_s: float, *, tool_since_s: float | None = None) -> bool:
        """Whether the call is to end. `tool_since_s`: since when a tool of the agent's has run."""
        since_s = [*self._under_way.values(), *(() if tool_since_s is None else (tool_since_s,))]
        if any(now_s - each_s < _BUSY_AT_MOST_S for each_s in since_s):
            self._last_s = now_s  # what follows has its own time
            return False
        return now_s - self._last_s >= self._idle_s
