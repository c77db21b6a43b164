"""What a session's events say of how it hears and answers. Pure."""

from dataclasses import dataclass

from token_broker.relay.resume.history import text_of

__all__ = ["PLAIN_CHARS_A_MS", "SessionFacts"]

PLAIN_CHARS_A_MS = 64.0  # PCM16 at 24 kHz in base64; the others by the names that both dialects have
_FORMATS = {
    "pcm16": 64.0,
    "audio/pcm": 64.0,
    "pcm16_16000hz": 42.7,
    "pcm16-16000hz": 42.7,
    "pcm16_8000hz": 21.3,
    "pcm16-8000hz": 21.3,
    "g711_ulaw": 10.7,
    "audio/pcmu": 10.7,
    "g711_alaw": 10.7,
    "audio/pcma": 10.7,
}


@dataclass(slots=True)
class SessionFacts:
    """One session's, in either dialect. `session_id` is Azure's own.

    `interim`: Azure itself says something while a tool runs. `detects`: turn detection is on; then `answers_by_itself`,
    and `interrupts` when the user speaks. `reasons`: the model thinks before it answers. The rates are base64
    characters a millisecond.
    """

    session_id: str = ""
    instructions: str = ""
    interim: bool = False
    detects: bool = True
    answers_by_itself: bool = True
    interrupts: bool = True
    transcribes: bool = True
    reasons: bool = False
    modalities: tuple[str, ...] = ("audio",)
    heard_chars_a_ms: float = PLAIN_CHARS_A_MS
    spoken_chars_a_ms: float = PLAIN_CHARS_A_MS

    def note(self, session: object) -> None:
        """Takes the session of a `session.created` or `session.updated`."""
        if not isinstance(session, dict):
            return
        self.session_id = text_of(session.get("id")) or self.session_id
        self.instructions = text_of(session.get("instructions"))
        self.interim = bool(session.get("interim_response"))
        audio = session.get("audio")
        given, made = (audio.get(name) if isinstance(audio, dict) else None for name in ("input", "output"))
        inside = given if isinstance(given, dict) else session
        if "turn_detection" in inside:
            detection = inside["turn_detection"]
            self.detects = isinstance(detection, dict) and detection.get("type") != "none"
            if isinstance(detection, dict):
                self.answers_by_itself = detection.get("create_response") is not False
                self.interrupts = detection.get("interrupt_response") is not False
        self.transcribes = bool(inside.get("transcription") or session.get("input_audio_transcription"))
        modalities = session.get("output_modalities") or session.get("modalities")
        if isinstance(modalities, list):
            self.modalities = tuple(text_of(each) for each in modalities)
        self.heard_chars_a_ms = _rate(given, session.get("input_audio_format"))
        self.spoken_chars_a_ms = _rate(made, session.get("output_audio_format"))
        thinking = session.get("reasoning") or session.get("reasoning_effort")
        self.reasons = bool(thinking) or text_of(session.get("model")).startswith("gpt-realtime-2")


def _rate(direction: object, flat: object) -> float:
    format_ = direction.get("format") if isinstance(direction, dict) else flat
    name = format_.get("type") if isinstance(format_, dict) else format_
    return _FORMATS.get(text_of(name), PLAIN_CHARS_A_MS)
