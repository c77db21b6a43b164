"""One talk as a state machine: client events, audio and the time go in, server events come out. No I/O, no clock.

It answers speech with the caller's own speech, and text with a tone; every transcript says that it is simulated. With
an actor it plays the agent that the instructions describe, in words and a voice of its own.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from pydantic import JsonValue

from token_broker.simulator.audio import duration_ms
from token_broker.simulator.config import TranscriptTiming
from token_broker.simulator.faults.fault_table import FaultTable
from token_broker.simulator.faults.talk_behaviour import TalkBehaviour, UpdateRefused
from token_broker.simulator.realtime.conversation import (
    Conversation,
    Item,
    McpApproval,
    McpApprovalRequest,
    Message,
    Part,
)
from token_broker.simulator.realtime.dialects import Dialect, ResponseOptions, TalkSettings
from token_broker.simulator.realtime.item_operations import ItemOperations, decode_audio, read_item
from token_broker.simulator.realtime.mcp_servers import McpServers
from token_broker.simulator.realtime.received_events import (
    AudioAppend,
    ClientEvent,
    ItemCreate,
    ItemParam,
    ItemReference,
    ItemTruncate,
    ResponseCancel,
    ResponseCreate,
    SessionUpdate,
    read_event,
    read_items,
)
from token_broker.simulator.realtime.response_plan import (
    PlannedCall,
    ResponsePlan,
    ScriptedResponse,
    Tools,
    Words,
    follows,
    plan_for,
)
from token_broker.simulator.realtime.responses import PromptSize, Responses, SpeechRate
from token_broker.simulator.realtime.server_events import Event, Ids, ServerEvents
from token_broker.simulator.realtime.speech.input_buffer import InputBuffer
from token_broker.simulator.realtime.speech.playback import Playback
from token_broker.simulator.realtime.speech.transcripts import Transcripts
from token_broker.simulator.realtime.speech.vad import Started
from token_broker.simulator.realtime.speech.wire_audio import AudioReader
from token_broker.simulator.records.transcript import Follows, TalkRecord, utterance_key
from token_broker.simulator.session_bodies.check import INVALID_VALUE, InvalidRequest, check, parse_json
from token_broker.simulator.session_bodies.persona import DEFAULT_PERSONA
from token_broker.simulator.speech.actor import Actor, Heard, Role


@dataclass(frozen=True, slots=True)
class TalkOptions:
    """How this simulator's talks go."""

    speech_rate: SpeechRate = field(default_factory=SpeechRate)
    transcript_timing: TranscriptTiming = "during_answer"
    """When the user's transcript comes: all of these happen on Azure."""
    transcription_models: frozenset[str] | None = None
    """Those that can be used; `None`: any."""
    longest_s: float = 3600.0
    server_plays: bool = False
    """The server holds the playback, as over WebRTC; else the client does."""
    next_response: Callable[[], ScriptedResponse | None] = lambda: None
    """Takes what a test wants the next response to be."""
    behaviour: TalkBehaviour = field(default_factory=lambda: TalkBehaviour(FaultTable(), "/"))
    """What faults change in it."""
    check_update: Callable[[Any, Any], None] = lambda _before, _after: None
    """Refuses an update by what the session was and would be, with an `InvalidRequest`."""
    record: TalkRecord = field(default_factory=TalkRecord)
    """Where it is written down."""
    actor: Actor | None = None
    """Who plays the agent; `None`: answers say what came in."""


@dataclass(frozen=True, slots=True)
class ServerClose:
    """How the server ends a talk by itself: a WebSocket close."""

    code: int
    reason: str


class SimulatedTalk:
    """A talk in one dialect, from `open` until its `ending` or the client's. Times are seconds of any steady clock."""

    def __init__(
        self,
        dialect: Dialect,
        session: Any,
        options: TalkOptions,
        expires_at: int | None,
        session_id: str | None = None,
    ) -> None:
        self.ending: ServerClose | None = None
        self._dialect = dialect
        self._session = session
        self.settings: TalkSettings = dialect.settings(session)
        self._options = options
        self._expires_at = expires_at
        self._ids = Ids()
        self._session_id = session_id or self._ids.new("sess")
        self._events = ServerEvents(dialect, self._ids)
        self._conversation = Conversation()
        self._items = ItemOperations(self._conversation, dialect, self._ids, self._events)
        self._mcp = McpServers(self._conversation, self._ids, self._events)
        self._playback = Playback(self._events.emit) if options.server_plays else None
        self._transcripts = Transcripts(self._events, options.transcription_models, options.transcript_timing)
        self._responses = Responses(
            dialect,
            self._conversation,
            self._ids,
            self._events,
            speech_rate=options.speech_rate,
            playback=self._playback,
            on_ending=self._transcripts.answer_ending,
            spend=options.behaviour.spend,
            mcp_takes_s=options.behaviour.mcp_takes_s,
        )
        self._input = InputBuffer(self.settings.detection)
        self._reader = AudioReader(self.settings.input_format)
        self._user_item_id = ""
        self._ends_s = float("inf")
        self._late_updates: list[tuple[float, SessionUpdate, dict[str, Any]]] = []
        self._said_modalities = False
        self._close_after_answer: int | None = None
        self.record = options.record

    @property
    def due_s(self) -> float:
        """When `advance` has something to do next."""
        late_s = self._late_updates[0][0] if self._late_updates else float("inf")
        return min(self._responses.due_s, self._transcripts.due_s, self._mcp.due_s, self._ends_s, late_s)

    def open(self, now_s: float) -> list[Event]:
        """Begins the talk."""
        self._ends_s = now_s + self._options.longest_s
        self.record.opened(self._session_id, self._dialect.name)
        self._events.emit("session.created", session=self.session_object())
        self._mcp.follow(self.settings.tools, now_s)
        return self._events.drain()

    def describe(self) -> Event:
        """The session as it is now, for an observer that joins later."""
        self._events.emit("session.created", session=self.session_object())
        return self._events.drain()[-1]

    def receive(self, message: str | bytes, now_s: float) -> list[Event]:
        """Takes a message from the client. What is wrong with it is answered with an `error`, and is not fatal."""
        event_id: str | None = None
        try:
            if isinstance(message, bytes):
                raise InvalidRequest("invalid_event", "An event is a text message, not a binary one.")
            value = parse_json(message)
            # Read before the event is checked, so that an error about it can name it.
            if isinstance(value, dict) and isinstance(value.get("event_id"), str):
                event_id = value["event_id"]
            self._handle(read_event(value), now_s)
        except InvalidRequest as invalid:
            self._events.emit_error(invalid, event_id)
            if isinstance(invalid, UpdateRefused) and invalid.close is not None:
                self.ending = ServerClose(invalid.close, invalid.code)
        return self._events.drain()

    def hear(self, pcm: bytes, now_s: float) -> list[Event]:
        """Takes audio that did not come in an event, as over WebRTC."""
        try:
            self._hear(pcm, now_s)
        except InvalidRequest as invalid:
            self._events.emit_error(invalid, None)
        return self._events.drain()

    def leave(self, _now_s: float) -> list[Event]:
        """The client of a call has gone: nobody is told."""
        return []

    def played(self) -> list[Event]:
        """All audio that was sent so far has been heard. Called by what plays it."""
        if self._playback is not None:
            self._playback.runs_dry()
        return self._events.drain()

    def advance(self, now_s: float) -> list[Event]:
        """Does what is due."""
        was_active = self._responses.active
        self._responses.advance(now_s)
        if was_active and not self._responses.active:
            self._transcripts.answer_ended(now_s)
            if self._close_after_answer is not None:
                self.ending = ServerClose(self._close_after_answer, "simulated")
        while self._late_updates and self._late_updates[0][0] <= now_s:
            _, event, taken = self._late_updates.pop(0)
            try:
                self._apply_update(taken, now_s)
            except InvalidRequest as invalid:
                self._events.emit_error(invalid, event.event_id)
        self._transcripts.advance(now_s)
        self._mcp.advance(now_s)
        if now_s >= self._ends_s:
            minutes = round(self._options.longest_s / 60)
            message = f"Your session hit the maximum duration of {minutes} minutes."
            self._events.emit_error(InvalidRequest("session_expired", message), None)
            self.ending = ServerClose(1001, "session_expired")
            self._ends_s = float("inf")
        return self._events.drain()

    def _handle(self, event: ClientEvent, now_s: float) -> None:
        match event:
            case SessionUpdate():
                self._update_session(event, now_s)
            case AudioAppend():
                self._hear(self._reader.read(decode_audio(event.audio, "audio")), now_s)
            case ItemCreate():
                self._create_item(event, now_s)
            case ItemTruncate():
                self._items.truncate(event)
            case ItemReference(type="conversation.item.delete"):
                self._items.delete(event)
            case ItemReference():
                self._items.retrieve(event)
            case ResponseCreate():
                self._create_response(event, now_s)
            case ResponseCancel():
                self._responses.cancel("client_cancelled", event.response_id)
                self._transcripts.answer_ended(now_s)
            case ClientEvent(type="input_audio_buffer.commit"):
                self._commit(self._input.commit(), self._ids.new("item"), now_s)
            case ClientEvent(type="input_audio_buffer.clear"):
                self._input.clear()
                self._events.emit("input_audio_buffer.cleared")
            case _ if self._playback is not None:
                self._playback.clears()
            case _ if self._dialect.name == "voice_live":
                # On a WebSocket too, where no server holds the playback: for avatars.
                self._events.emit("output_audio_buffer.cleared")
            case _:
                message = "output_audio_buffer.clear is only supported for WebRTC and SIP connections."
                raise InvalidRequest("invalid_event", message, "type")

    def session_object(self) -> dict[str, Any]:
        """The session as it is now, as events state it."""
        stated = self._dialect.session_object(self._session, self._session_id)
        if stated.pop("expires_at", None) is not None and self._expires_at is not None:
            stated["expires_at"] = self._expires_at
        return stated

    # --- The session ----------------------------------------------------------------------------------------------

    def _update_session(self, event: SessionUpdate, now_s: float) -> None:
        taken = self._options.behaviour.take_update(event.session)
        late_s = self._options.behaviour.update_takes_s()
        if late_s:
            self._late_updates.append((now_s + late_s, event, taken))
        else:
            self._apply_update(taken, now_s)

    def _apply_update(self, taken: Mapping[str, Any], now_s: float) -> None:
        asked = check(self._dialect.session_model, taken, "session")
        updated = self._dialect.updated(self._session, asked.model_dump(mode="json", exclude_unset=True))
        if updated.model != self._session.model:
            raise InvalidRequest(INVALID_VALUE, "The model of a session can't be changed.", "session.model")
        settings = self._dialect.settings(updated)
        self._options.check_update(self._session, updated)
        self._check_voice(settings.voice, "session")
        self._session, self.settings = updated, settings
        self._said_modalities |= not {"modalities", "output_modalities"}.isdisjoint(taken)
        self._input.follow(settings.detection)
        if settings.input_format != self._reader.audio_format:
            self._reader = AudioReader(settings.input_format)
        self._events.emit("session.updated", session=self.session_object())
        self._mcp.follow(settings.tools, now_s)

    def _check_voice(self, voice: JsonValue, where: str) -> None:
        """Once it has spoken, a talk keeps its voice."""
        if self._responses.has_spoken and voice != self.settings.voice:
            message = "Cannot update a conversation's voice if assistant audio is present."
            raise InvalidRequest("cannot_update_voice", message, f"{where}.{self._dialect.voice_param}")

    # --- What comes in --------------------------------------------------------------------------------------------

    def _hear(self, pcm: bytes, now_s: float) -> None:
        settings = self.settings
        detection = settings.detection
        for turn in self._input.hear(pcm):
            if isinstance(turn, Started):
                self._user_item_id = self._ids.new("item")
                place: dict[str, Any] = {"audio_start_ms": turn.at_ms, "item_id": self._user_item_id}
                self._events.emit("input_audio_buffer.speech_started", **place)
                if settings.transcribes:
                    self._transcripts.speech_started(self._user_item_id, settings.transcription_model)
                if detection is None or not detection.interrupt_response:
                    continue
                if self._responses.active:
                    self._responses.cancel("turn_detected")
                    self._transcripts.answer_ended(now_s)
                if self._playback is not None:
                    # Over WebRTC the server knows what was heard, and truncates the item itself.
                    self._playback.clears(truncates_at_s=now_s)
            else:
                place = {"audio_end_ms": turn.at_ms, "item_id": self._user_item_id}
                self._events.emit("input_audio_buffer.speech_stopped", **place)
                self._commit(turn.speech, self._user_item_id, now_s)
                if detection is not None and detection.create_response and not self._responses.active:
                    self._respond(self._conversation, self._dialect.response_options({}, self._session), None, now_s)

    def _commit(self, speech: bytes, item_id: str, now_s: float) -> None:
        part = Part("audio", None, speech, duration_ms(speech))
        previous = self._conversation.last_id
        self._events.emit("input_audio_buffer.committed", previous_item_id=previous, item_id=item_id)
        self._items.add(Message(item_id, "user", [part]), None)
        self.record.utterance(item_id, None, speech)
        settings = self.settings
        if settings.transcribes:
            self._transcripts.speech_committed(item_id, part, settings.transcription_model, now_s)

    def _create_item(self, event: ItemCreate, now_s: float) -> None:
        self._options.behaviour.check_item(event.item.model_dump(), self._dialect.text_part)
        item = self._items.create(event)
        if isinstance(item, Message) and item.role == "user":
            self.record.utterance(item.id, item.typed, item.pcm)
        if not isinstance(item, McpApproval) or not item.approve or self._responses.active:
            return
        # An allowed call is made at once, without a `response.create` of the client's.
        request = self._conversation.find(item.approval_request_id)
        tools = Tools(self.settings.tools, self._mcp.tools)
        if isinstance(request, McpApprovalRequest) and (call := tools.approved(request)) is not None:
            options = self._dialect.response_options({}, self._session)
            self._begin(ResponsePlan([call]), options, PromptSize(), list(self._conversation), now_s, by_client=False)

    # --- What goes out --------------------------------------------------------------------------------------------

    def _create_response(self, event: ResponseCreate, now_s: float) -> None:
        options = self._dialect.response_options(event.response or {}, self._session)
        self._check_voice(options.voice, "response")
        given: Iterable[Item] = self._conversation
        if options.input is not None:
            params: list[ItemParam] = read_items(options.input, "response.input")
            given = [read_item(param, self._dialect, self._ids.new("item")) for param in params]
        self._respond(given, options, event, now_s)

    def _respond(
        self, items: Iterable[Item], options: ResponseOptions, asked: ResponseCreate | None, now_s: float
    ) -> None:
        """Begins the answer to these items. Without an event that asked for it, turn detection did."""
        items = list(items)
        behaviour = self._options.behaviour
        parts = [part for item in items if isinstance(item, Message) for part in item.parts]
        prompt = PromptSize(sum(len(part.text or "") for part in parts), sum(part.audio_ms for part in parts))
        # An active response refuses a second one, which must not use up what a test scripted.
        scripted = None if self._responses.active else self._options.next_response()
        tools = Tools(options.tools, self._mcp.tools, options.tool_choice)
        if options.speaks and not self._responses.active:
            given = [item for item in items if isinstance(item, Message) and item.given and item.role == "assistant"]
            said = asked is not None and not {"modalities", "output_modalities"}.isdisjoint(asked.response or {})
            speaks = behaviour.speaks(
                len([item for item in given if not any(part.kind == "audio" for part in item.parts)]),
                in_session=self._said_modalities,
                in_response=said,
            )
            options = replace(options, speaks=speaks)
        told = options.instructions or ""
        persona, actor = self.settings.instructions, self._options.actor
        acted: Callable[[], Words | PlannedCall] | None = None
        if actor is not None and not self._responses.active:
            heard, role = Heard(items, tools, told), Role(persona, options.voice)
            acted = partial(actor.answer, heard, role, speaks=options.speaks)
        plan = plan_for(
            items, speaks=options.speaks, tools=tools, scripted=scripted, told=told, persona=persona, acted=acted
        )
        if not self._responses.active:
            plan = replace(plan, thinking_s=behaviour.thinking_s(self._options.speech_rate.thinking_s))
            if (failure := behaviour.failure()) is not None:
                plan = replace(plan, status="failed", error=failure.error)
                self._close_after_answer = failure.close
        self._begin(plan, options, prompt, items, now_s, by_client=asked is not None)

    def _begin(
        self,
        plan: ResponsePlan,
        options: ResponseOptions,
        prompt: PromptSize,
        items: Sequence[Item],
        now_s: float,
        *,
        by_client: bool,
    ) -> None:
        response_id = self._responses.begin(
            plan, options, prompt, session=self._session, session_id=self._session_id, now_s=now_s
        )
        users = [item for item in items if isinstance(item, Message) and item.role == "user"]
        instructions = self._session.instructions
        kind: Follows = "nothing"
        match follows(items):
            case Message(role="user"):
                kind = "utterance"
            case Message():
                kind = "answer"
            case None:
                pass
            case _:
                kind = "tool"
        self.record.answer(
            response_id,
            utterance_key(users[-1].typed, users[-1].pcm, users[-1].id) if users else None,
            kind,
            by_client=by_client,
            instructions=instructions,
            default_persona=instructions == DEFAULT_PERSONA,
        )
