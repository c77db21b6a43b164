"""The sideband of a WebRTC call that the broker set up: Azure sends us the call's events, which bypass the broker.

Azure lets the resource's owner join a call by its id (docs/azure.md §5.4). Turns and usage are kept from there; what
the page reports as well has the same ids, and is kept once. The call does not depend on the sideband.

The agent's tools run over the sideband: their outputs go over it, and the `response.create` that follows them. A client
asks itself for the answer to an output of its own, unless its page reads the call's events: then the broker asks alone.
"""

import json
import math
from functools import partial
from typing import Any

import structlog

from strategies.base import SessionSpec
from token_broker.calls.listener import SidebandListener
from token_broker.calls.restored_session import RestoredSession
from token_broker.relay.answers.actions import Refuse, Run, Tell
from token_broker.relay.answers.answer_retries import AnswerRetries
from token_broker.relay.answers.farewell import Farewell, keys_of
from token_broker.relay.answers.greeting import greeting_response
from token_broker.relay.answers.sequencer import SEQUENCER_EVENTS, AnswerSequencer
from token_broker.relay.answers.talk_answers import AnswerHooks, TalkAnswers
from token_broker.relay.answers.turn_clock import TurnClock
from token_broker.relay.azure.socket import AzureSocket
from token_broker.relay.counters import USAGE_EVENTS
from token_broker.relay.event_text import compact, event_type
from token_broker.relay.guardrail.client_words import words_of
from token_broker.relay.recalled.call_memory import RECALL_EVENTS, CallMemory
from token_broker.relay.resume.open_answers import OpenAnswer
from token_broker.relay.resume.session_facts import SessionFacts
from token_broker.relay.talk_parts import TalkParts
from token_broker.relay.transcripts.assembler import TURN_EVENTS
from token_broker.relay.transcripts.failed_answers import ANSWER_FAILED, failed_answer, log_failed_answer
from token_broker.relay.transcripts.recorder import TurnRecorder
from token_broker.tools.guardrail import GuardrailClient, WordSource
from token_broker.tools.runner import ToolOutput
from token_broker.usage.talk_usage import MOVED

__all__ = ["CallListener", "IdleClock"]

log = structlog.get_logger("token_broker.relay")

_HANDLED = TURN_EVENTS | SEQUENCER_EVENTS | {"session.updated"}
_SPOKEN = frozenset({"input_audio_buffer.speech_started", "input_audio_buffer.committed"})
_CHECKS_AT_MOST = 32  # at once; each has a bound of its own
_MOST_OUTPUT_BYTES = (
    65_536 - 2_048
)  # as JSON: every browser's data channel takes 64 KiB, the rest of the event included
_TOO_LONG_OUTPUT = ToolOutput("The tool's answer is too long for a call, and was left out. Tell the user.", ok=False)
_SESSION_OVER = "session_expired"  # the code of the error that ends a session (docs/azure.md §8.1)
_PAGES = frozenset({"webrtc_relay", "webrtc"})
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


class CallListener(SidebandListener):
    """Listens to a call of GPT Realtime.

    The guardrail sees the user's words, and holds nothing up: Azure answers them by itself. `joined` is its sideband
    where that is open already. `is_new` is False for a call that another process has told what the memory knows.
    """

    dialect = "ga"

    def __init__(
        self,
        parts: TalkParts,
        *,
        spec: SessionSpec,
        joined: AzureSocket | None = None,
        is_new: bool = True,
        **about: Any,
    ) -> None:
        super().__init__(parts, **about)
        owner, agent = self.owner, self._agent
        self._first = joined
        self._clock = TurnClock()
        self._session = RestoredSession(parts, owner, agent, spec, resource=self._resource, end=self._end.ask)
        self._session_over = False  # Azure said so
        self._idle = IdleClock(parts.settings.call_idle_s, self._now_s())
        self._tool_since_s: float | None = None
        self._memory = CallMemory(parts.recall, owner, agent, start=self._start)
        if is_new:
            self._memory.begin()
        ingest = self._memory.listening(parts.ingest)
        self._turns = TurnRecorder(owner, agent.id, ingest=ingest, counters=self.counters, on_lost=self._log_lost_turn)
        self._facts = SessionFacts()
        self._guardrail = None if agent.guardrail is None else parts.guardrail
        self._farewell = Farewell()
        self._spoke = False  # in the last answer
        self._sounded: object = None  # the id of the latest answer that was played
        # An official client asks again by itself.
        asks = parts.settings.retry_failed_answer == "on" and self._transport in _PAGES
        self._retries = AnswerRetries(asks=asks)

        async def run(call: Run) -> ToolOutput:
            output = await self._calls.run(call)
            # Azure tells the page of it, whose data channel would break over a larger event.
            return output if len(json.dumps(output.text)) <= _MOST_OUTPUT_BYTES else _TOO_LONG_OUTPUT

        self._answers = TalkAnswers(
            AnswerSequencer(
                self._calls.tools,
                facts=self._facts,
                holds=lambda: self._farewell.holds(keys_of(self._answers.sequencer.calls), spoke=self._spoke),
                listens=True,
                leads=lambda: self._page.is_heard,
            ),
            AnswerHooks(tell=self._tell_call, refuse=self._refuse, run=run, start=self._start),
        )

    async def _join(self, endpoint: str, call_id: str) -> AzureSocket:
        socket, self._first = self._first, None
        return socket or await self._parts.connector.join_call(endpoint, call_id)

    def _joined(self, socket: AzureSocket) -> None:
        self._facts.session_id = self._call[1]  # it stays the same on each join
        self._idle.join(self._now_s())
        self._session.send(socket)
        self._memory.join(lambda event: socket.send(compact(event)))
        self._answers.begin("ga", lambda event: socket.send(compact(event)))
        if self._joins == 1:
            self._start(self._open(), "call-opening")

    def _left(self) -> None:
        self._idle.leave(self._now_s())
        self._answers.cut(lost=False)
        self._memory.leave()
        self._clock = TurnClock()

    async def _release(self) -> None:
        self._answers.aclose()
        self._memory.aclose()
        if self._end.last is not None and self._end.last.outcome == MOVED:
            self._turns.tell_due(math.inf)  # the rest of an answer is heard by who holds the call now
        else:
            self._turns.flush()
        if self._first is not None:
            await self._first.aclose()

    def _tick(self, now_s: float) -> None:
        self._turns.tell_due(now_s)

    def _is_session_over(self) -> bool:
        return self._session_over

    def _is_playing(self, now_s: float) -> bool:
        del now_s
        return self._idle.is_busy

    def _is_idle(self, now_s: float) -> bool:
        return self._idle.is_idle(now_s, tool_since_s=self._tool_since_s)

    def _ask_for_end(self, call_id: str) -> None:
        self._farewell.ask(call_id)

    def _hand_over(self, agent_id: str) -> None:
        # The page's new plan ends this call, and with it whatever still runs.
        self._answers.once_answered(partial(super()._hand_over, agent_id))

    def _takes_leave(self, now_s: float) -> bool:
        sequencer = self._answers.sequencer
        is_over = self._farewell.is_over(
            now_s,
            keys_of(sequencer.calls),
            answering=sequencer.is_answering,
            spoke=self._spoke,
            plays_until_s=self._turns.assembler.plays_until_s,
        )
        if is_over:
            self._farewell.take_back()
        return is_over

    def _tell_call(self, tool: Tell) -> None:
        # One clock for all of them: tools have bounds of their own.
        self._tool_since_s = self._now_s() if tool.duration_ms is None else None
        super()._tell_call(tool)

    def _refuse(self, refusal: Refuse) -> None:
        """Tells the page of an answer that does not come, and of an output of its own that was taken out."""
        self._page.tell("broker.error", code=refusal.code, message=refusal.message, retryable=refusal.retryable)

    async def _open(self) -> None:
        """Tells what the memory knows; then the agent speaks first, where it does."""
        await self._memory.open()
        if (greeting := self._agent.greeting) and self._greets():
            self._answers.want("greeting", greeting_response(greeting, self._session.instructions))

    def _handle(self, socket: AzureSocket) -> None:
        kind = event_type(text := socket.take())
        if kind is None:
            return
        self._idle.heard(kind, text, self._now_s())
        if kind not in _HANDLED:
            return
        try:
            event: Any = json.loads(text)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict):
            return
        if self._end.last is None:  # otherwise nothing is done in the call any more
            self._note_words(kind, event)
            self._answers.azure_sent(event)
        self._clock.azure_sent(event, self._now_s(), reason=self._answers.sequencer.reason_of(event))
        if kind == "output_audio_buffer.started":
            turn = self._clock.began_to_sound(str(event.get("response_id")), self._now_s())
            if turn is not None:
                about = {"agent_id": self._agent.id, "resource": self._resource}
                self._parts.note_answer(turn, transport=self._transport, **about)
        if kind == "session.updated":
            session = event.get("session")
            self._facts.note({**session, "id": self._facts.session_id} if isinstance(session, dict) else None)
            self._session.updated(socket, session)
        elif kind == "error":
            self._note_error(socket, event.get("error"))
            return
        if self._usage is not None:
            self._usage.azure_sent(event, resource=self._resource, dialect="ga")
        if kind in USAGE_EVENTS:
            self._parts.counters.count_usage_of(
                event,
                principal=self.owner.principal,
                agent_id=self._agent.id,
                talk=self.counters,
                resource=self._resource,
            )
        self._note_answer(kind, event)
        self._turns.feed(event, self._now_s())

    def _note_answer(self, kind: str, event: dict[str, Any]) -> None:
        """Tells of an answer that failed, and asks for it once more where the page leaves that to the broker."""
        if kind == "response.created":
            self._retries.answer_began()
        elif kind == "output_audio_buffer.started":
            self._sounded = event.get("response_id")
        if kind != "response.done":
            return
        response = event.get("response")
        response = response if isinstance(response, dict) else {}
        if response.get("status") == "completed":
            self._retries.begin_anew()
        if (failed := failed_answer(event)) is not None and not self._retries.is_barge_in(failed):
            heard = self._spoke or self._sounded == failed.response_id
            answer = (
                OpenAnswer(response=response, heard=heard) if self._page.is_heard and self._end.last is None else None
            )
            asks = self._retries.remedy(failed, answer).asks
            self._parts.counters.count_failed_answer(failed, self.counters, resource=self._resource)
            log_failed_answer(failed, self.owner, self._agent.id, asked_again=asks)
            message = "Azure failed to answer: the broker asks once more" if asks else failed.message
            self._page.tell("broker.error", code=ANSWER_FAILED, message=message, retryable=failed.retryable)
            if asks:
                self._answers.want("retry")

    def _note_words(self, kind: str, event: dict[str, Any]) -> None:
        """Notes who speaks or types, and shows the guardrail what the user says."""
        if kind in _SPOKEN or _is_typed_by_user(kind, event):
            self._farewell.take_back()
            self._retries.user_spoke()
        elif kind == "response.done":
            response = event.get("response")
            output = response.get("output") if isinstance(response, dict) else None
            said = output if isinstance(output, list) else []
            self._spoke = any(isinstance(item, dict) and item.get("type") == "message" for item in said)
        if self._guardrail is None or len(self._tasks) >= _CHECKS_AT_MOST:
            return
        item, words = event.get("item"), None
        source: WordSource = "speech"
        if kind == "conversation.item.input_audio_transcription.completed":
            words = event.get("transcript")
        elif kind == "conversation.item.added" and isinstance(item, dict) and self._is_typed(item):
            words, source = words_of(event).text, "typed"
        if isinstance(words, str) and words.strip():
            self._start(self._check(self._guardrail, words, source), "call-guardrail")

    def _is_typed(self, item: dict[str, Any]) -> bool:
        """Whether the page wrote the item: words of the user's, or what a tool of the page's gave."""
        is_output = item.get("type") == "function_call_output"
        return item.get("role") == "user" or (
            is_output and self._answers.sequencer.calls.is_clients(str(item.get("call_id")))
        )

    async def _check(self, guardrail: GuardrailClient, words: str, source: WordSource) -> None:
        verdict = await guardrail.check(self._agent, self.owner, words, source)
        if verdict.action != "allow":
            about = {"session_id": self.owner.session_id, "agent_id": self._agent.id}
            log.warning("guardrail_not_enforced", **about, action=verdict.action, source=source)

    def _note_error(self, socket: AzureSocket, error: Any) -> None:
        if not isinstance(error, dict):
            return
        self._session_over |= error.get("code") == _SESSION_OVER
        if (event_id := str(error.get("event_id"))).startswith(RECALL_EVENTS):
            log.warning("own_event_refused", event_id=event_id[:64], code=str(error.get("code"))[:64])
        self._session.refused(socket, error)


def _is_typed_by_user(kind: str, event: dict[str, Any]) -> bool:
    item = event.get("item")
    is_users = kind == "conversation.item.added" and isinstance(item, dict) and item.get("role") == "user"
    return is_users and bool(words_of(event).text)
