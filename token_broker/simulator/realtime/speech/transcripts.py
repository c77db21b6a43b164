"""The user's transcripts, which on Azure come before or after the answer, and may fail (docs/azure.md §4.2)."""

from dataclasses import dataclass

from token_broker.simulator.realtime.conversation import Part
from token_broker.simulator.realtime.server_events import ServerEvents

_DELAY_S = 0.03
_NEVER = float("inf")


@dataclass(slots=True)
class _Expected:
    item_id: str
    part: Part
    model: str | None
    due_s: float


class Transcripts:
    """Those that are on their way."""

    def __init__(self, events: ServerEvents, usable_models: frozenset[str] | None, after_answer: bool) -> None:
        self._events = events
        self._usable_models = usable_models
        self._after_answer = after_answer
        self._expected: list[_Expected] = []

    @property
    def due_s(self) -> float:
        return min((expected.due_s for expected in self._expected), default=_NEVER)

    def expect(self, item_id: str, part: Part, model: str | None, now_s: float) -> None:
        """Speech was committed; its transcript is due shortly, or after the answer to it, and then stands in `part`."""
        due_s = _NEVER if self._after_answer else now_s + _DELAY_S
        self._expected.append(_Expected(item_id, part, model, due_s))

    def answer_ended(self, now_s: float) -> None:
        """Releases the transcripts that waited for an answer's end."""
        for expected in self._expected:
            expected.due_s = min(expected.due_s, now_s + _DELAY_S)

    def advance(self, now_s: float) -> None:
        """Sends those that are due."""
        for expected in [expected for expected in self._expected if expected.due_s <= now_s]:
            self._expected.remove(expected)
            self._send(expected)

    def _send(self, expected: _Expected) -> None:
        name = "conversation.item.input_audio_transcription"
        place = {"item_id": expected.item_id, "content_index": 0}
        if self._usable_models is not None and expected.model not in self._usable_models:
            message = "The API deployment for this resource does not exist."
            error = {"type": "invalid_request_error", "code": "DeploymentNotFound", "message": message, "param": None}
            self._events.emit(f"{name}.failed", **place, error=error)
            return
        seconds = expected.part.audio_ms / 1000
        text = expected.part.text = f"[simulated] {seconds:.1f} s of speech"
        self._events.emit(f"{name}.delta", **place, delta=text)
        usage = {"type": "duration", "seconds": seconds}
        self._events.emit(f"{name}.completed", **place, transcript=text, usage=usage)
