"""The active response, if there is one: what it says and calls, in which events, and how it ends."""

from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from token_broker.simulator.audio import duration_ms
from token_broker.simulator.realtime.conversation import (
    Conversation,
    FunctionCall,
    Item,
    McpApprovalRequest,
    McpCall,
    Message,
    Part,
)
from token_broker.simulator.realtime.dialects import Dialect, ResponseOptions
from token_broker.simulator.realtime.response_plan import CHUNK_MS, PlannedCall, ResponsePlan, Words, output_message
from token_broker.simulator.realtime.server_events import Ids, ServerEvents
from token_broker.simulator.realtime.speech.lip_sync import lip_sync
from token_broker.simulator.realtime.speech.playback import Playback
from token_broker.simulator.realtime.speech.wire_audio import AudioFormat, written
from token_broker.simulator.session_bodies.check import InvalidRequest

CancelReason = Literal["turn_detected", "client_cancelled"]
ResponseStatus = Literal["completed", "cancelled", "failed", "incomplete"]

# As OpenAI counts: a token for 100 ms of the user's audio, and for 50 ms of the model's.
_AUDIO_TOKENS_PER_S = {"input": 10, "output": 20}
_CHARS_PER_TOKEN = 4
_WORD_S = 0.02
# A synthetic voice is made in another thread; one that takes longer than 5 s is not waited for.
_LOOK_S = 0.02
_MOST_LOOKS = 250
# What came due while the socket was not looked at comes in portions, so that a cancel is heard in between.
_MOST_AT_ONCE = 10


@dataclass(frozen=True, slots=True)
class SpeechRate:
    """How fast answers come: `thinking_s` before the first piece, then `speed` times real time."""

    thinking_s: float = 0.05
    speed: float = 5.0


@dataclass(frozen=True, slots=True)
class PromptSize:
    """What a response answers, for its usage: text and audio that went in."""

    characters: int = 0
    audio_ms: int = 0


@dataclass(slots=True)
class _Active:
    id: str
    session: Any
    options: ResponseOptions
    plan: ResponsePlan
    prompt: PromptSize
    session_id: str
    outputs: list[Item] = field(default_factory=list)
    open_item: Message | FunctionCall | McpCall | None = None
    """The last output while it is not complete."""
    previous_item_id: str | None = None
    """Of the last output."""


@dataclass(frozen=True, slots=True)
class _LateCall:
    """A call to an MCP server that is not over when its answer is."""

    active: _Active
    item: McpCall
    place: dict[str, Any]
    due_s: float


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
        on_ending: Callable[[], None],
        spend: Callable[[int], None] = lambda _tokens: None,
        mcp_takes_s: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._mcp_takes_s = mcp_takes_s
        self._late_calls: list[_LateCall] = []
        self._on_ending = on_ending
        self._spend = spend
        self._playback = playback
        self._dialect = dialect
        self._conversation = conversation
        self._conversation_id = ids.new("conv")
        self._ids = ids
        self._events = events
        self._speech_rate = speech_rate
        self._active: _Active | None = None
        self._steps: Iterator[float] = iter(())
        self._now_s = 0.0
        self._step_s = float("inf")  # when the next piece, or the end, is due
        self.has_spoken = False
        """Whether any audio was sent: from then on the voice is fixed."""

    @property
    def active(self) -> bool:
        return self._active is not None

    @property
    def due_s(self) -> float:
        """When the next piece, the end, or the result of a call that outlasts its answer is due."""
        return min([self._step_s, *(late.due_s for late in self._late_calls)])

    def begin(
        self,
        plan: ResponsePlan,
        options: ResponseOptions,
        prompt: PromptSize,
        *,
        session: Any,
        session_id: str,
        now_s: float,
    ) -> str:
        """Starts a response, and gives its id. Its first output is added once the model has thought, as on Azure.

        Raises:
            InvalidRequest: one is active already.

        """
        if self._active is not None:
            raise InvalidRequest(
                "conversation_already_has_active_response",
                f"Conversation already has an active response in progress: {self._active.id}. Wait until the response "
                "is finished before creating a new one.",
            )
        self._active = active = _Active(self._ids.new("resp"), session, options, plan, prompt, session_id)
        self._events.emit("response.created", response=self._response(active, "in_progress"))
        self._steps = self._run(active)
        self._step_s = now_s + next(self._steps)
        return active.id

    def advance(self, now_s: float) -> None:
        """Sends what is due, and ends the response after the last of it."""
        for late in [late for late in self._late_calls if late.due_s <= now_s]:
            self._late_calls.remove(late)
            self._events.emit("response.mcp_call.completed", **late.place)
            late.item.output = _given(late.item)
            self._complete_output(late.active, late.item, late.place["output_index"])
        for _ in range(_MOST_AT_ONCE):
            if self._active is None or self._step_s > now_s:
                return
            self._now_s = self._step_s
            self._step_s += next(self._steps, float("inf"))

    def cancel(self, reason: CancelReason, response_id: str | None = None) -> None:
        """Ends the response before its time.

        Raises:
            InvalidRequest: there is none, or not that one.

        """
        if self._active is None or response_id not in (None, self._active.id):
            raise InvalidRequest("response_cancel_not_active", "Cancellation failed: no active response found")
        # The steps that are left are never asked for: the next response brings its own.
        self._end(self._active, "cancelled", {"type": "cancelled", "reason": reason})

    def _run(self, active: _Active) -> Iterator[float]:
        """Emits the whole response; each value is the time in seconds until the next step."""
        plan = active.plan
        yield self._speech_rate.thinking_s if plan.thinking_s is None else plan.thinking_s
        if plan.status == "failed":
            message = (
                "The server had an error while processing your request. Sorry about that! Please contact us if the "
                f"error persists. (include session ID in your message: {active.session_id})"
            )
            # As reported from eastus2: no output at all, and a client that waits for audio hangs (docs/azure.md §8.5).
            error = plan.error or {"type": "server_error", "code": None, "message": message}
            self._end(active, "failed", {"type": "failed", "error": error})
            return
        for output in plan.outputs:
            match output:
                case Words(voice=None):
                    yield from self._say(active, output)
                case Words(voice=Future() as voice):
                    looks = 0
                    while not voice.done() and looks < _MOST_LOOKS:
                        looks += 1
                        yield _LOOK_S
                    yield from self._say(active, output.spoken())
                case PlannedCall(mcp=tool) if (
                    tool is not None and tool.needs_approval and not output.approval_request_id
                ):
                    request = McpApprovalRequest(
                        self._ids.new("mcpr"), tool.server_label, output.name, output.arguments
                    )
                    self._add_output(active, request)
                    self._complete_output(active, request)
                case PlannedCall():
                    yield from self._call(active, output)
        self._on_ending()
        if plan.status == "incomplete":
            self._end(active, "incomplete", {"type": "incomplete", "reason": plan.reason})
        else:
            self._end(active, "completed", None)

    def _say(self, active: _Active, words: Words) -> Iterator[float]:
        part = Part("audio" if words.pcm else "text", "")
        item = Message(self._ids.new("item"), "assistant", [], "in_progress")
        active.open_item = item
        # Added while it is empty, as recorded: its part is told apart.
        self._add_output(active, item)
        item.parts.append(part)
        emit, place = self._events.emit, self._place(active) | {"content_index": 0}
        # A server that plays by itself has a codec of its own, whatever the session names.
        wire_format = active.options.output_format if self._playback is None else AudioFormat()
        emit("response.content_part.added", **place, **self._dialect.content_part(part, done=False))
        pieces = words.pieces()
        if active.plan.status == "incomplete":
            pieces = pieces[: (len(pieces) + 1) // 2]
        for piece in pieces:
            part.text = (part.text or "") + piece.text
            if part.kind == "text":
                emit("response.output_text.delta", **place, delta=piece.text)
                yield _WORD_S
                continue
            if piece.text:
                emit("response.output_audio_transcript.delta", **place, delta=piece.text)
            self.has_spoken = True
            settings, offset_ms, length_ms = (
                self._dialect.settings(active.session),
                part.audio_ms,
                duration_ms(piece.pcm),
            )
            tells = {"visemes": settings.tells_visemes, "words": settings.tells_word_times}
            for timed in lip_sync(piece.text, offset_ms, length_ms, **tells):
                emit(timed.pop("type"), **place, **timed)
            part.audio_ms += length_ms
            if self._playback is not None:
                self._playback.starts(active.id, item.id, part, self._now_s)
            emit("response.output_audio.delta", **place, delta=b64encode(written(piece.pcm, wire_format)).decode())
            yield CHUNK_MS / 1000 / self._speech_rate.speed
        self._on_ending()
        # An incomplete answer stays open, for the end to close it as such.
        if active.plan.status != "incomplete":
            self._close_item(active, "completed")

    def _call(self, active: _Active, call: PlannedCall) -> Iterator[float]:
        """A function call ends with its arguments; an MCP call is carried out, and the answer to it follows."""
        item: FunctionCall | McpCall
        if call.mcp is None:
            item = FunctionCall(self._ids.new("item"), self._ids.new("call"), call.name, "", "in_progress")
        else:
            item = McpCall(self._ids.new("mcp"), call.mcp.server_label, call.name, "", call.approval_request_id)
        active.open_item = item
        self._add_output(active, item)
        place = self._place(active)
        kind, called = ("mcp_call", {}) if isinstance(item, McpCall) else ("function_call", {"call_id": item.call_id})
        for piece in call.pieces():
            item.arguments += piece
            self._events.emit(f"response.{kind}_arguments.delta", **place, **called, delta=piece)
            yield _WORD_S
        if isinstance(item, McpCall):
            self._events.emit("response.mcp_call_arguments.done", **place, arguments=item.arguments)
            # Unlike the arguments' events, these do not name their response.
            del place["response_id"]
            self._events.emit("response.mcp_call.in_progress", **place)
            if (late_s := self._mcp_takes_s()) is not None:
                active.open_item = None
                self._late_calls.append(_LateCall(active, item, place, self._now_s + late_s))
                return
            yield self._speech_rate.thinking_s
            item.output = _given(item)
            self._events.emit("response.mcp_call.completed", **place)
            active.open_item = None
            self._complete_output(active, item)
            yield from self._say(active, output_message(item.output, speaks=active.options.speaks))
        else:
            self._close_item(active, "completed")

    # --- Outputs ------------------------------------------------------------------------------------------------------

    def _add_output(self, active: _Active, item: Item) -> None:
        active.outputs.append(item)
        active.previous_item_id = self._conversation.add(item) if active.options.in_conversation else None
        self._events.emit(
            "response.output_item.added",
            response_id=active.id,
            output_index=len(active.outputs) - 1,
            item=self._dialect.item_object(item),
        )
        if active.options.in_conversation:
            self._events.emit_item("conversation.item.added", item, active.previous_item_id)

    def _close_item(self, active: _Active, status: Literal["completed", "incomplete"]) -> None:
        """Ends the open output, complete or as far as it came."""
        item, active.open_item = active.open_item, None
        emit = self._events.emit
        match item:
            case Message():
                part, place = item.parts[0], self._place(active) | {"content_index": 0}
                if part.kind == "text":
                    emit("response.output_text.done", **place, text=part.text or "")
                else:
                    settings = self._dialect.settings(active.session)
                    if settings.tells_word_times:
                        emit("response.audio_timestamp.done", **place)
                    if settings.tells_visemes:
                        emit("response.animation_viseme.done", **place)
                    emit("response.output_audio.done", **place)
                    emit("response.output_audio_transcript.done", **place, transcript=part.text or "")
                emit("response.content_part.done", **place, **self._dialect.content_part(part, done=True))
                item.status = status
            case FunctionCall():
                called = {"call_id": item.call_id, "name": item.name, "arguments": item.arguments}
                emit("response.function_call_arguments.done", **self._place(active), **called)
                item.status = status
            case None:
                return
        self._complete_output(active, item)

    def _complete_output(self, active: _Active, item: Item, index: int | None = None) -> None:
        if active.options.in_conversation:
            # Recorded: null for a conversation's second item, and the right id for every later one.
            previous = None if self._conversation.is_second(item) else active.previous_item_id
            self._events.emit_item("conversation.item.done", item, previous)
        self._events.emit(
            "response.output_item.done",
            response_id=active.id,
            output_index=len(active.outputs) - 1 if index is None else index,
            item=self._dialect.item_object(item),
        )

    def _place(self, active: _Active) -> dict[str, Any]:
        number = len(active.outputs) - 1
        return {"response_id": active.id, "item_id": active.outputs[number].id, "output_index": number}

    # --- The end ------------------------------------------------------------------------------------------------------

    def _end(self, active: _Active, status: ResponseStatus, details: dict[str, Any] | None) -> None:
        self._close_item(active, "completed" if status == "completed" else "incomplete")
        self._active, self._step_s = None, float("inf")
        response = self._response(active, status, details=details)
        self._spend(response["usage"]["total_tokens"])
        self._events.emit("response.done", response=response)
        if self._playback is not None:
            self._playback.ends()
        limits = [
            {"name": "requests", "limit": 1000, "remaining": 999, "reset_seconds": 60.0},
            {"name": "tokens", "limit": 100_000, "remaining": 99_000, "reset_seconds": 60.0},
        ]
        self._events.emit("rate_limits.updated", rate_limits=limits)

    def _response(self, active: _Active, status: str, *, details: Any = None) -> dict[str, Any]:
        stated = {
            "id": active.id,
            "status": status,
            "status_details": details,
            "output": [self._dialect.item_object(item) for item in active.outputs],
            "conversation_id": self._conversation_id if active.options.in_conversation else None,
            "usage": None if status == "in_progress" else self._usage(active),
            "metadata": active.options.metadata,
        }
        return self._dialect.response_object(active.session, stated, speaks=active.options.speaks)

    def _usage(self, active: _Active) -> dict[str, Any]:
        """The usage in all its fields: Voice Live's clients take it whole or not at all (docs/azure.md §4.4).

        A response that ended before its first output is billed nothing (docs/azure.md §4.5).
        """
        audio_in = text_in = audio_out = text_out = 0
        if active.outputs:
            audio_in = active.prompt.audio_ms * _AUDIO_TOKENS_PER_S["input"] // 1000
            text_in = active.prompt.characters // _CHARS_PER_TOKEN + 1
        for item in active.outputs:
            if isinstance(item, Message):
                audio_out += item.parts[0].audio_ms * _AUDIO_TOKENS_PER_S["output"] // 1000
                text_out += len(item.parts[0].text or "") // _CHARS_PER_TOKEN + 1
            elif isinstance(item, FunctionCall | McpCall):
                text_out += len(item.arguments) // _CHARS_PER_TOKEN + 1
        reasoning = {"reasoning_tokens": 0} if self._dialect.name == "voice_live" else {}
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
            "output_token_details": {"text_tokens": text_out, "audio_tokens": audio_out} | reasoning,
        }


def _given(call: McpCall) -> str:
    return f"[simulated] {call.name} was called with {call.arguments}"
