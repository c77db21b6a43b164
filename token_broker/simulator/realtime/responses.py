"""The response that is on its way, if one is: what it says, in which events, and how it ends."""

from base64 import b64encode
from dataclasses import dataclass
from typing import Any, Literal

from token_broker.simulator.audio import duration_ms
from token_broker.simulator.realtime.answer import Answer, Piece, Script, SpeechRate
from token_broker.simulator.realtime.conversation import Conversation, Message, Part
from token_broker.simulator.realtime.dialects import Dialect
from token_broker.simulator.realtime.server_events import Ids, ServerEvents
from token_broker.simulator.realtime.speech.playback import Playback
from token_broker.simulator.session_bodies.check import InvalidRequest

CancelReason = Literal["turn_detected", "client_cancelled"]

_AUDIO_TOKENS_PER_S = {"input": 10, "output": 20}
_CHARS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Prompted:
    """What a response answers, for its bill: text and audio that went in."""

    characters: int = 0
    audio_ms: int = 0


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a response was asked for."""

    metadata: dict[str, str] | None = None
    in_conversation: bool = True


@dataclass(slots=True)
class _Active:
    id: str
    answer: Answer
    item: Message
    part: Part
    previous_item_id: str | None
    session: Any
    prompted: Prompted
    wanted: Wanted


class Responses:
    """At most one response at a time, as the API has it."""

    def __init__(
        self,
        dialect: Dialect,
        conversation: Conversation,
        ids: Ids,
        events: ServerEvents,
        *,
        speech_rate: SpeechRate,
        playback: Playback | None,
    ) -> None:
        self._playback = playback
        self._dialect = dialect
        self._conversation = conversation
        self._conversation_id = ids.new("conv")
        self._ids = ids
        self._events = events
        self.speech_rate = speech_rate
        self._active: _Active | None = None
        self.has_spoken = False
        """Whether any audio was sent: from then on the voice is fixed."""

    @property
    def active(self) -> bool:
        return self._active is not None

    @property
    def due_s(self) -> float:
        return self._active.answer.due_s if self._active else float("inf")

    def begin(self, script: Script, session: Any, prompted: Prompted, wanted: Wanted, now_s: float) -> None:
        """Starts a response.

        Raises:
            InvalidRequest: one is on its way already.

        """
        if self._active is not None:
            raise InvalidRequest(
                "conversation_already_has_active_response",
                f"Conversation already has an active response in progress: {self._active.id}. Wait until the response "
                "is finished before creating a new one.",
            )
        part = Part("audio" if script.pcm else "text", "")
        item = Message(self._ids.new("item"), "assistant", [], "in_progress")
        active = _Active(
            self._ids.new("resp"),
            Answer(script, self.speech_rate, now_s),
            item,
            part,
            self._conversation.add(item) if wanted.in_conversation else None,
            session,
            prompted,
            wanted,
        )
        self._active = active
        emit = self._events.emit
        emit("response.created", response=self._response(active, "in_progress"))
        stated = self._dialect.item_object(item)
        emit("response.output_item.added", response_id=active.id, output_index=0, item=stated)
        if wanted.in_conversation:
            emit("conversation.item.added", previous_item_id=active.previous_item_id, item=stated)
        item.parts.append(part)
        emit("response.content_part.added", **_place(active), part=_bare_part(part))

    def advance(self, now_s: float) -> None:
        """Says what is due, and ends the response after the last of it."""
        if self._active is None:
            return
        for piece in self._active.answer.take(now_s):
            self._say(self._active, piece)
        if self._active.answer.finished and self._active.answer.due_s <= now_s:
            self._end(self._active, "completed", None)

    def cancel(self, reason: CancelReason, response_id: str | None = None) -> None:
        """Ends the response before its time.

        Raises:
            InvalidRequest: there is none, or not that one.

        """
        if self._active is None or response_id not in (None, self._active.id):
            raise InvalidRequest("response_cancel_not_active", "Cancellation failed: no active response found")
        self._end(self._active, "cancelled", {"type": "cancelled", "reason": reason})

    def _say(self, active: _Active, piece: Piece) -> None:
        part = active.part
        part.text = (part.text or "") + piece.text
        place = _place(active)
        if part.kind == "text":
            self._events.emit("response.output_text.delta", **place, delta=piece.text)
            return
        if piece.text:
            self._events.emit("response.output_audio_transcript.delta", **place, delta=piece.text)
        part.audio_ms += duration_ms(piece.pcm)
        self.has_spoken = True
        if self._playback is not None:
            self._playback.starts(active.id)
        self._events.emit("response.output_audio.delta", **place, delta=b64encode(piece.pcm).decode())

    def _end(self, active: _Active, status: Literal["completed", "cancelled"], details: dict[str, str] | None) -> None:
        emit, place, text = self._events.emit, _place(active), active.part.text or ""
        if active.part.kind == "text":
            emit("response.output_text.done", **place, text=text)
        else:
            emit("response.output_audio.done", **place)
            emit("response.output_audio_transcript.done", **place, transcript=text)
        emit("response.content_part.done", **place, part=_bare_part(active.part))
        active.item.status = "completed" if status == "completed" else "incomplete"
        stated = self._dialect.item_object(active.item)
        if active.wanted.in_conversation:
            emit("conversation.item.done", previous_item_id=active.previous_item_id, item=stated)
        emit("response.output_item.done", response_id=active.id, output_index=0, item=stated)
        self._active = None
        emit("response.done", response=self._response(active, status, details=details, usage=_usage(active)))
        limits = [
            {"name": "requests", "limit": 1000, "remaining": 999, "reset_seconds": 60.0},
            {"name": "tokens", "limit": 100_000, "remaining": 99_000, "reset_seconds": 60.0},
        ]
        emit("rate_limits.updated", rate_limits=limits)

    def _response(self, active: _Active, status: str, *, details: Any = None, usage: Any = None) -> dict[str, Any]:
        done = status != "in_progress"
        stated = {
            "id": active.id,
            "status": status,
            "status_details": details,
            "output": [self._dialect.item_object(active.item)] if done else [],
            "conversation_id": self._conversation_id if active.wanted.in_conversation else None,
            "usage": usage,
            "metadata": active.wanted.metadata,
        }
        return self._dialect.response_object(active.session, stated, speaks=active.answer.spoken)


def _place(active: _Active) -> dict[str, Any]:
    return {"response_id": active.id, "item_id": active.item.id, "output_index": 0, "content_index": 0}


def _bare_part(part: Part) -> dict[str, str]:
    """A part as `response.content_part.*` has it: under the same types in every dialect."""
    return {"type": part.kind, "text" if part.kind == "text" else "transcript": part.text or ""}


def _usage(active: _Active) -> dict[str, Any]:
    """A bill in all its fields: Voice Live's clients take it whole or not at all (docs/azure.md §4.4)."""
    audio_in = active.prompted.audio_ms * _AUDIO_TOKENS_PER_S["input"] // 1000
    text_in = active.prompted.characters // _CHARS_PER_TOKEN + 1
    audio_out = active.part.audio_ms * _AUDIO_TOKENS_PER_S["output"] // 1000
    text_out = len(active.part.text or "") // _CHARS_PER_TOKEN + 1
    return {
        "total_tokens": audio_in + text_in + audio_out + text_out,
        "input_tokens": audio_in + text_in,
        "output_tokens": audio_out + text_out,
        "input_token_details": {
            "text_tokens": text_in,
            "audio_tokens": audio_in,
            "image_tokens": 0,
            "cached_tokens": 0,
            "cached_tokens_details": {"text_tokens": 0, "audio_tokens": 0, "image_tokens": 0},
        },
        "output_token_details": {"text_tokens": text_out, "audio_tokens": audio_out},
    }
