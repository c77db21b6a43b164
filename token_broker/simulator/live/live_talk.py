"""A GPT-Live session as a state machine: events, sound and the time go in, events come out. No I/O, no clock.

It has no turns: what the user said comes as pieces of a transcript, and so does what the model says. What it would call
a tool for is delegated. It stops when it is spoken to.
"""

import secrets
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from token_broker.simulator.audio import described, duration_ms
from token_broker.simulator.live.backend import PendingDelegations
from token_broker.simulator.live.client_events import (
    BackendItem,
    ContextAppend,
    FunctionGiven,
    LiveAudio,
    LiveEvent,
    LiveUpdate,
    read_live_event,
)
from token_broker.simulator.live.session_config import (
    DEFAULT_INSTRUCTIONS,
    LiveSession,
    ResponsesDelegation,
    SessionChanges,
    SocketSession,
    functions_of,
    resource_object,
)
from token_broker.simulator.realtime.conversation import Message, Part
from token_broker.simulator.realtime.item_operations import decode_audio
from token_broker.simulator.realtime.response_plan import (
    CHUNK_MS,
    PlannedCall,
    ScriptedResponse,
    Tools,
    Words,
    output_message,
    plan_for,
)
from token_broker.simulator.realtime.responses import SpeechRate
from token_broker.simulator.realtime.simulated_talk import ServerClose
from token_broker.simulator.realtime.speech.input_buffer import InputBuffer
from token_broker.simulator.realtime.speech.vad import Started, VadSettings
from token_broker.simulator.realtime.speech.wire_audio import AudioFormat, AudioReader, written
from token_broker.simulator.records.transcript import TalkRecord, utterance_key
from token_broker.simulator.session_bodies.check import INVALID_VALUE, InvalidRequest, check, parse_json

Event = dict[str, Any]

_NEVER = float("inf")
_USAGE_EVERY_S = 10.0
_LISTENING = VadSettings(silence_duration_ms=500)
# Of sound alone: these have no id.
_WITHOUT_ID = frozenset({"session.output_audio.delta", "session.input_audio.append"})


@dataclass(frozen=True, slots=True)
class LiveOptions:
    """How this simulator's Live sessions go."""

    speech_rate: SpeechRate = field(default_factory=SpeechRate)
    longest_s: float = 3600.0
    expires_at: int = 0
    next_response: Callable[[], ScriptedResponse | None] = lambda: None
    record: TalkRecord = field(default_factory=TalkRecord)


class SimulatedLiveTalk:
    """A session from `open` until its `ending` or the client's. Times are seconds of any steady clock."""

    def __init__(
        self, session: LiveSession, options: LiveOptions, session_id: str, client_event_id: str | None = None
    ) -> None:
        self.ending: ServerClose | None = None
        self.record = options.record
        self.session_id = session_id
        self._session = session
        self._options = options
        self._start_id = client_event_id
        self._over_socket = isinstance(session, SocketSession)
        named = session.audio.format if isinstance(session, SocketSession) else None
        self._format = AudioFormat.named(named.type, named.rate) if named else AudioFormat()
        self._reader = AudioReader(self._format)
        self._input = InputBuffer(_LISTENING)
        self._muted = False
        self._events: list[Event] = []
        self._delegations = PendingDelegations(self._emit)
        self._speech: Iterator[float] = iter(())
        self._speech_s = self._usage_s = self._ends_s = _NEVER
        self._began_s = self._now_s = 0.0
        self._heard_ms = 0  # of sound
        self._answered: str | None = None

    @property
    def due_s(self) -> float:
        """When `advance` has something to do next."""
        return min(self._speech_s, self._usage_s, self._ends_s)

    def open(self, now_s: float) -> list[Event]:
        """Begins the session."""
        self._began_s = self._now_s = now_s
        self._ends_s, self._usage_s = now_s + self._options.longest_s, now_s + _USAGE_EVERY_S
        self.record.opened(self.session_id, "live")
        self._emit("session.started", self._start_id, session=self.session_object())
        return self._drain()

    def describe(self) -> Event:
        """The session as it is now, for a sideband."""
        self._emit("session.started", session=self.session_object())
        return self._drain()[-1]

    def receive(self, message: str | bytes, now_s: float) -> list[Event]:
        """Takes a message from the client. What is wrong with it is answered with an `error`, and is not fatal."""
        self._now_s = now_s
        event_id: str | None = None
        try:
            if isinstance(message, bytes):
                raise InvalidRequest("invalid_event", "An event is a text message, not a binary one.")
            value = parse_json(message)
            if isinstance(value, dict) and isinstance(value.get("event_id"), str):
                event_id = value["event_id"]
            self._handle(read_live_event(value))
        except InvalidRequest as invalid:
            self.refuse(invalid, event_id)
        return self._drain()

    def refuse(self, invalid: InvalidRequest, event_id: str | None = None) -> None:
        """Puts an `error` among what goes out next."""
        self._emit("error", error=stated_error(invalid, event_id))

    def hear(self, pcm: bytes, now_s: float) -> list[Event]:
        """Takes sound, 24 kHz PCM16: from events, or over RTP."""
        self._now_s = now_s
        self._heard_ms += duration_ms(pcm)
        self._emit("session.input_audio.append", audio=b64encode(pcm).decode())
        # A muted microphone is silence to the model, so that what was begun ends.
        for turn in self._input.hear(bytes(len(pcm)) if self._muted else pcm):
            if isinstance(turn, Started):
                self._stop_speaking()
            else:
                self._answer(turn.speech, turn.at_ms)
        return self._drain()

    def played(self) -> list[Event]:
        """All of an answer was heard: nobody is told."""
        return []

    def leave(self, now_s: float) -> list[Event]:
        """The client has gone: what others than it are told."""
        self._now_s = now_s
        if self.ending is None:
            self._end("remote_hangup", None)
        return self._drain()

    def advance(self, now_s: float) -> list[Event]:
        """Does what is due."""
        self._now_s = now_s
        while self._speech_s <= now_s:
            self._speech_s += next(self._speech, _NEVER)
        if self._usage_s <= now_s:
            self._usage_s = now_s + _USAGE_EVERY_S
            self._emit("session.usage.updated", usage=self._usage(), context_window={"usage_ratio": 0.01})
        if self._ends_s <= now_s:
            self._end("expired", None)
        return self._drain()

    def session_object(self) -> dict[str, Any]:
        """The session as events state it."""
        return resource_object(self._session, self.session_id, self._options.expires_at)

    # --- What comes in ----------------------------------------------------------------------------------------------

    def _handle(self, event: LiveEvent) -> None:
        match event:
            case LiveAudio() if self._over_socket:
                self._events += self.hear(self._reader.read(decode_audio(event.audio, "audio")), self._now_s)
            case LiveUpdate():
                self._update(check(SessionChanges, event.session, "session"), event)
            case LiveEvent(type="session.input_audio.mute" | "session.input_audio.unmute"):
                self._muted = event.type.endswith(".mute")
                self._emit(f"{event.type}d", event.event_id)
            case ContextAppend():
                self._append(event)
            case BackendItem():
                self._require_backend(event.type)
                if event.item.get("type") == "function_call_output":
                    given = check(FunctionGiven, event.item, "item")
                    self._delegations.give(given.call_id, str(given.output))
                elif event.item.get("role") == "user" and (text := _text_of(event.item.get("content"))):
                    self._delegations.write(text)
            case LiveEvent(type="response.create"):
                self._require_backend(event.type)
                for text in self._delegations.go_on():
                    self._speak([output_message(text, speaks=True)], None)
            case LiveEvent(type="session.close"):
                self._end("close_requested", event.event_id)
            case _:
                message = f"'{event.type}' is not accepted on this connection, or not any more."
                raise InvalidRequest("invalid_event", message, "type")

    def _update(self, changes: SessionChanges, event: LiveUpdate) -> None:
        changed = changes.delegation
        if changed is not None:
            before = self._session.delegation.type if self._session.delegation else "client"
            if changed.type != before:
                message = "The delegation type of a session can't be changed."
                raise InvalidRequest(INVALID_VALUE, message, "session.delegation.type")
            patch = changed.model_dump(mode="json", exclude_unset=True)
            stated = self._session.model_dump(mode="json")
            merged: dict[str, Any] = dict(stated["delegation"] or {})
            merged |= patch | {"responses": merged.get("responses", {}) | patch.get("responses", {})}
            if before == "client":
                del merged["responses"]
            self._session = type(self._session).model_validate(stated | {"delegation": merged})
        self._emit("session.updated", event.event_id, session=self.session_object())

    def _append(self, event: ContextAppend) -> None:
        if event.delegation_id is not None:
            if isinstance(self._session.delegation, ResponsesDelegation):
                message = "A delegation_id is only accepted with client delegation."
                raise InvalidRequest(INVALID_VALUE, message, "delegation_id")
            self._delegations.find(event.delegation_id)
        at = self._at_ms()
        self._emit(f"{event.type}ed", event.event_id, start_ms=at, end_ms=at)
        if event.type == "session.commentary.append":
            self._speak([output_message(event.content, speaks=True)], None)

    def _require_backend(self, name: str) -> None:
        if not isinstance(self._session.delegation, ResponsesDelegation):
            raise InvalidRequest("invalid_event", f"'{name}' requires Responses delegation.", "type")

    # --- What goes out ----------------------------------------------------------------------------------------------

    def _answer(self, speech: bytes, at_ms: int) -> None:
        """The user has said this, and falls silent: its transcript, and what the model makes of it."""
        item_id, length_ms = f"item_{secrets.token_hex(12)}", duration_ms(speech)
        self.record.utterance(item_id, None, speech)
        place = {"start_ms": max(at_ms - length_ms, 0), "end_ms": at_ms}
        for delta in ("[simulated] ", described(speech)):
            self._emit("session.input_transcript.delta", delta=delta, **place)
        heard = Message(item_id, "user", [Part("audio", None, speech, length_ms)])
        plan = plan_for(
            [heard],
            speaks=True,
            tools=Tools(functions_of(self._session)),
            scripted=self._options.next_response(),
            persona=self._session.instructions or "",
        )
        calls = [output for output in plan.outputs if isinstance(output, PlannedCall)]
        if calls and isinstance(self._session.delegation, ResponsesDelegation):
            self._delegations.to_backend(calls, self._at_ms())
        elif calls:
            self._delegations.to_client(self._at_ms())
        words = [output for output in plan.outputs if isinstance(output, Words)]
        if words:
            self._speak(words, utterance_key(None, speech, item_id))

    def _speak(self, words: list[Words], answers: str | None) -> None:
        self._stop_speaking()
        self._answered = f"live_{secrets.token_hex(8)}"
        instructions = self._session.instructions or DEFAULT_INSTRUCTIONS
        self.record.answer(
            self._answered,
            answers,
            "utterance" if answers else "tool",
            by_client=answers is None,
            instructions=instructions,
            default_persona=self._session.instructions is None,
        )
        self._speech = self._say(words)
        self._speech_s = self._now_s + next(self._speech)

    def _say(self, words: list[Words]) -> Iterator[float]:
        """Says them; each value is the time in seconds until the next piece."""
        rate = self._options.speech_rate
        yield rate.thinking_s
        for piece in [piece for said in words for piece in said.pieces()]:
            start_ms = self._at_ms()
            place = {"start_ms": start_ms, "end_ms": start_ms + CHUNK_MS}
            if piece.text:
                self._emit("session.output_transcript.delta", delta=piece.text, **place)
            sound = b64encode(written(piece.pcm, self._format)).decode()
            self._emit("session.output_audio.delta", delta=sound, **({} if self._over_socket else place))
            self.record.said(self._answered or "", piece.text, duration_ms(piece.pcm))
            yield CHUNK_MS / 1000 / rate.speed
        self.record.answered(self._answered or "", "completed")
        self._answered = None
        self._emit("session.usage.updated", usage=self._usage(), context_window={"usage_ratio": 0.01})

    def _stop_speaking(self) -> None:
        """What was not sent yet is never said."""
        if self._answered is not None:
            self.record.answered(self._answered, "cancelled")
            self._answered = None
        self._speech, self._speech_s = iter(()), _NEVER

    def _end(self, reason: str, client_event_id: str | None) -> None:
        self._stop_speaking()
        stated = {"session": self.session_object(), "usage": self._usage()}
        self._emit("session.closed", client_event_id, reason=reason, **stated)
        self.ending = ServerClose(1000, reason)
        self._ends_s = self._usage_s = _NEVER

    def _usage(self) -> Mapping[str, Any]:
        return {"seconds": int(self._now_s - self._began_s)}

    def _at_ms(self) -> int:
        """Where the session's timeline is now. Sound may come faster than time passes."""
        return max(int((self._now_s - self._began_s) * 1000), self._heard_ms)

    def _emit(self, name: str, client_event_id: str | None = None, /, **fields: Any) -> None:
        event: Event = {"type": name} | ({} if name in _WITHOUT_ID else {"event_id": f"event_{secrets.token_hex(11)}"})
        if client_event_id is not None:
            event["client_event_id"] = client_event_id
        self._events.append(event | fields)

    def _drain(self) -> list[Event]:
        events, self._events = self._events, []
        if self._over_socket:
            # Reflected to sidebands only.
            events = [event for event in events if event["type"] != "session.input_audio.append"]
        return events


def _text_of(content: object) -> str:
    """What a message says."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return " ".join(
        str(part.get("text")) for part in parts if isinstance(part, dict) and part.get("type") == "input_text"
    )


def stated_error(invalid: InvalidRequest, client_event_id: str | None) -> dict[str, Any]:
    """An error as events state it."""
    stated = {"type": invalid.type, "code": invalid.code, "message": invalid.message}
    return stated | {"param": invalid.param, "client_event_id": client_event_id}
