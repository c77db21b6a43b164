"""The user's transcripts: on Azure they come before, during or after the answer, and may fail (docs/azure.md §4.5)."""

import re
from dataclasses import dataclass

from token_broker.simulator.audio import described
from token_broker.simulator.config import TranscriptTiming
from token_broker.simulator.realtime.conversation import Part
from token_broker.simulator.realtime.server_events import ServerEvents

# Transcribes while the user still speaks, so that its first words come before the commit.
STREAMING_MODEL = "gpt-realtime-whisper"
_EVENT = "conversation.item.input_audio_transcription"
_OPENING = "[simulated]"
_DELAY_S = 0.03
_WORD_S = 0.02
_NEVER = float("inf")


@dataclass(slots=True)
class _Expected:
    item_id: str
    part: Part
    deltas: list[str]
    text: str | None
    """None: no deployment can transcribe it."""
    due_s: float


class Transcripts:
    """Those that are not complete."""

    def __init__(self, events: ServerEvents, usable_models: frozenset[str] | None, timing: TranscriptTiming) -> None:
        self._events = events
        self._usable_models = usable_models
        self._timing = timing
        self._expected: list[_Expected] = []
        self._begun_id: str | None = None

    @property
    def due_s(self) -> float:
        return min((expected.due_s for expected in self._expected), default=_NEVER)

    def speech_started(self, item_id: str, model: str | None) -> None:
        """A streaming model gives the first words at once."""
        if model == STREAMING_MODEL and self._is_usable(model):
            self._begun_id = item_id
            self._events.emit(f"{_EVENT}.delta", item_id=item_id, content_index=0, delta=_OPENING)

    def speech_committed(self, item_id: str, part: Part, model: str | None, now_s: float) -> None:
        """The transcript is due at its time, and then stands in `part`."""
        if self._timing == "after_next_turn":
            self._release(now_s)
        if not self._is_usable(model):
            self._expected.append(_Expected(item_id, part, [], None, now_s + _DELAY_S))
            return
        text = f"{_OPENING} {described(part.pcm)}"
        deltas = re.findall(r"\s*\S+", text)[1 if self._begun_id == item_id else 0 :]
        waits = self._timing in ("after_answer", "after_next_turn")
        self._expected.append(_Expected(item_id, part, deltas, text, _NEVER if waits else now_s + _DELAY_S))

    def answer_ended(self, now_s: float) -> None:
        """Releases the transcripts that wait for an answer's end."""
        if self._timing == "after_answer":
            self._release(now_s)

    def answer_ending(self) -> None:
        """Sends what is left of a transcript that comes during the answer, however short the answer is."""
        if self._timing == "during_answer":
            for expected in self._expected:
                expected.due_s = 0.0
            self.advance(0.0)

    def advance(self, now_s: float) -> None:
        """Sends what is due: word by word during the answer, else all at once."""
        while self._expected:
            expected = min(self._expected, key=lambda each: each.due_s)
            if expected.due_s > now_s:
                return
            place = {"item_id": expected.item_id, "content_index": 0}
            if expected.deltas:
                self._events.emit(f"{_EVENT}.delta", **place, delta=expected.deltas.pop(0))
                # Word by word: on Azure they are interleaved with the answer's own events.
                expected.due_s += _WORD_S if self._timing == "during_answer" and now_s else 0.0
                continue
            self._expected.remove(expected)
            if expected.text is None:
                message = f"Input transcription failed for item '{expected.item_id}'."
                error = {"type": "server_error", "code": "DeploymentNotFound", "message": message, "param": None}
                self._events.emit(f"{_EVENT}.failed", **place, error=error)
                continue
            expected.part.text = expected.text
            usage = {"type": "duration", "seconds": expected.part.audio_ms / 1000}
            # Voice Live bills the transcription apart, and states no usage here.
            billed = {} if self._events.dialect.name == "voice_live" else {"usage": usage}
            self._events.emit(f"{_EVENT}.completed", **place, transcript=expected.text, **billed)

    def _is_usable(self, model: str | None) -> bool:
        return self._usable_models is None or model in self._usable_models

    def _release(self, now_s: float) -> None:
        for expected in self._expected:
            expected.due_s = min(expected.due_s, now_s + _DELAY_S)
