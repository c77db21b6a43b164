"""Handles Azure's events in a talk: notes turns, usage, handoffs and what is open, and decides what the client gets."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import structlog

from token_broker.relay.adapters import ProtocolAdapter
from token_broker.relay.answers.answer_retries import AnswerRetries, Remedy
from token_broker.relay.answers.hidden_calls import CALL_EVENTS, HiddenCalls
from token_broker.relay.answers.sequencer import ACTIVE_ALREADY, SEQUENCER_EVENTS
from token_broker.relay.answers.talk_answers import TalkAnswers
from token_broker.relay.answers.turn_clock import TurnClock, TurnLatency
from token_broker.relay.azure.route import UpstreamConnection
from token_broker.relay.counters import USAGE_EVENTS, RelayCounters, TalkCounters
from token_broker.relay.dialects.conversation_items import TOOL_LIST
from token_broker.relay.dialects.item_cache import CACHED_EVENTS
from token_broker.relay.event_text import SESSION_EVENTS, event_of, event_type, event_type_by_head, is_audio_delta
from token_broker.relay.guardrail.talk_guard import TalkGuard
from token_broker.relay.guardrail.word_checks import GUARD_EVENTS
from token_broker.relay.policy.allowlist import Refused
from token_broker.relay.policy.visibility import (
    ERROR_EVENTS,
    may_show_tools,
    without_agents_settings,
    without_quoted_secrets,
)
from token_broker.relay.resume.ledger import LEDGER_EVENTS, TalkLedger
from token_broker.relay.resume.restored import Restored
from token_broker.relay.transcripts.assembler import TURN_EVENTS
from token_broker.relay.transcripts.failed_answers import ANSWER_FAILED, failed_answer, log_failed_answer
from token_broker.relay.transcripts.recorder import TurnRecorder
from token_broker.security.tokens import Owner
from token_broker.sessions.agent import Agent
from token_broker.usage.talk_usage import TalkUsage

__all__ = ["EventHandler"]

log = structlog.get_logger("token_broker.relay")

# How long a talk whose client is gone keeps its place and its upstream for the sake of one transcript.
_LAST_TRANSCRIPT_S = 2.0
_NO_REMEDY = Remedy(asks=False, moves=False)
_AUDIO_DELTAS = frozenset({"response.audio.delta", "response.output_audio.delta"})
_NAMING_EVENTS = frozenset({"input_audio_buffer.speech_started", "input_audio_buffer.committed"})
_PARSED_EVENTS = (
    TURN_EVENTS | SESSION_EVENTS | ERROR_EVENTS | CACHED_EVENTS | LEDGER_EVENTS | SEQUENCER_EVENTS | CALL_EVENTS
) | (_NAMING_EVENTS | GUARD_EVENTS)


class Handoffs(Protocol):
    """`AgentHandoff`, as far as Azure's events concern it."""

    agent: Agent

    @property
    def holds(self) -> bool: ...
    def is_quiet(self, upstream: UpstreamConnection) -> None: ...
    def session_told(self, event: Mapping[str, Any], upstream: UpstreamConnection) -> None: ...
    def owns_error(self, event: Mapping[str, Any], upstream: UpstreamConnection) -> bool: ...


class EventHandler:
    """One talk's handler. It calls `broken` where Azure sends something that is not an event, and `user_spoke`.

    `gives_no_answers` is called where it fails answer after answer; `answered` gets the wait for each answer whose
    first sound has come. `redact` removes the secrets that are known now from a text; `events` counts what Azure has
    sent. `usage` counts what it bills.
    """

    def __init__(
        self,
        adapter: ProtocolAdapter,
        owner: Owner,
        *,
        turns: TurnRecorder,
        handoff: Handoffs,
        ledger: TalkLedger,
        answers: TalkAnswers,
        hidden: HiddenCalls,
        guard: TalkGuard,
        restored: Restored,
        clock: TurnClock,
        retries: AnswerRetries,
        counters: RelayCounters,
        talk: TalkCounters,
        broken: Callable[[UpstreamConnection], None],
        user_spoke: Callable[[], None],
        answered: Callable[[TurnLatency, UpstreamConnection], None],
        gives_no_answers: Callable[[UpstreamConnection], None],
        time_s: Callable[[], float],
        redact: Callable[[str], str],
        usage: TalkUsage | None = None,
    ) -> None:
        self._adapter = adapter
        self._owner = owner
        self._turns = turns
        self._handoff = handoff
        self._ledger = ledger
        self._answers = answers
        self._hidden = hidden
        self._guard = guard
        self._restored = restored
        self._clock = clock
        self._retries = retries
        self.events = 0
        self._counters = counters
        self._talk = talk
        self._broken = broken
        self._user_spoke = user_spoke
        self._answered = answered
        self._gives_no_answers = gives_no_answers
        self._time_s = time_s
        self._redact = redact
        self._usage = usage

    def handle(self, text: str, upstream: UpstreamConnection) -> list[str]:
        """Notes what an event means to the talk. Returns what the client is sent: no event, one or several."""
        self.events += 1
        kind = event_type(text)
        if not self._restored.is_empty and kind not in _AUDIO_DELTAS:
            if kind in _NAMING_EVENTS:
                self._restored.name_of(event_of(text) or {})
            text = self._restored.for_client(text)
        if kind in _AUDIO_DELTAS:
            self._note_audio(len(text) - text.find('"delta"'))
            if self._clock.waits and (turn := self._clock.sounded(text, self._time_s())) is not None:
                self._answered(turn, upstream)
                if (told := self._adapter.answered(turn)) is not None:
                    return [told, self._adapter.passed(text, upstream.route.dialect)]
        elif (
            kind is None
            or kind in _PARSED_EVENTS
            or TOOL_LIST in text
            or self._adapter.reads(kind, upstream.route.dialect)
        ):
            return self._handle_parsed(kind, text, upstream)
        return [self._adapter.passed(text, upstream.route.dialect)]

    def forwards(self, payload: bytes) -> bool:
        """Whether an event goes to the client byte for byte, judged by its head; if so, nothing else is left to do.

        Otherwise it has to be handled. An event that is not plain ASCII always is, since its UTF-8 may be invalid.
        """
        if self._adapter.dialect is not None or not payload.isascii():
            return False
        if not is_audio_delta(payload):
            kind = event_type_by_head(payload)
            if kind not in _AUDIO_DELTAS:
                if kind is None or kind in _PARSED_EVENTS or may_show_tools(payload) or not self._restored.is_empty:
                    return False
                self.events += 1
                return True
        if self._clock.waits:  # it may be the first sound of an answer
            return False
        self.events += 1
        self._note_audio(len(payload) - payload.find(b'"delta"'))
        return True

    async def await_last_transcript(self, upstream: UpstreamConnection) -> None:
        """Reads on for a moment where the user's last words are not transcribed yet. The client is gone by now."""
        socket, assembler = upstream.socket, self._turns.assembler
        try:
            async with asyncio.timeout(_LAST_TRANSCRIPT_S):
                while assembler.awaits_user:
                    await socket.wait()
                    if not socket.frames:
                        return
                    text = socket.take()
                    if event_type(text) in TURN_EVENTS:
                        self.handle(text, upstream)
        except TimeoutError:
            pass

    def count_late(self, upstream: UpstreamConnection, text: str) -> None:
        """Counts what an event says that Azure sent before it saw that the talk is closed."""
        if self._usage is not None and event_type(text) in USAGE_EVENTS | {"response.created"}:
            self._usage.azure_sent(event_of(text) or {}, resource=upstream.resource, dialect=upstream.route.dialect)

    def _note_audio(self, audio_chars: int) -> None:
        self._turns.assembler.heard(audio_chars, self._time_s())
        self._ledger.sounded(audio_chars)

    def _handle_parsed(self, kind: str | None, text: str, upstream: UpstreamConnection) -> list[str]:
        event = event_of(text)
        if kind is None or event is None:
            self._broken(upstream)
            return []
        if self._usage is not None:
            self._usage.azure_sent(event, resource=upstream.resource, dialect=upstream.route.dialect)
        if self._restored.is_known(event):
            self._ledger.told()
            return []
        self._ledger.azure_sent(event, self._time_s())
        keeps_turn = self._guard.azure_sent(event)  # first: no answer is asked for while it checks
        self._answers.azure_sent(event)
        failed = failed_answer(event) if kind == "response.done" else None
        if failed is not None and self._retries.is_barge_in(failed):
            failed = None
        remedy = _NO_REMEDY if failed is None else self._retries.remedy(failed, self._ledger.failed)
        reason = self._answers.sequencer.reason_of(event)
        self._clock.azure_sent(event, self._time_s(), reason=reason, again=remedy.asks)
        if kind in {"input_audio_buffer.speech_started", "input_audio_buffer.committed"}:
            self._user_spoke()
        elif kind == "response.created":
            self._retries.answer_began()
        if self._handoff.holds and not self._answers.sequencer.is_answering:
            self._handoff.is_quiet(upstream)
        if self._restored.is_told(event):
            return []
        if kind == "session.updated":
            self._handoff.session_told(event, upstream)
        elif kind not in SESSION_EVENTS:
            error = event.get("error") if kind == "error" else None
            if error is not None and upstream.health is not None:
                upstream.health.told_error(error)
            if isinstance(error, dict) and error.get("code") == "session_expired":
                return []  # the talk goes on in another session
            if kind == "error" and self._handoff.owns_error(event, upstream):
                return self._refused(event)
            if kind in USAGE_EVENTS:
                self._counters.count_usage_of(
                    event,
                    principal=self._owner.principal,
                    agent_id=self._handoff.agent.id,
                    talk=self._talk,
                    resource=upstream.resource,
                )
        if keeps_turn:
            self._turns.feed(event, self._time_s())
        visible = self._hidden.for_client(self._guard.for_client(event))
        shown = event if visible is None else without_quoted_secrets(without_agents_settings(visible), self._redact)
        # What hides nothing and needs no translation is sent as Azure wrote it: serialising would double the cost.
        events: list[str] = []
        if visible is None:
            pass
        elif shown is not event or self._adapter.reads(kind, upstream.route.dialect):
            events = self._adapter.to_client(shown, upstream.route.dialect, text=text if shown is event else None)
        else:
            events = [self._adapter.passed(text, upstream.route.dialect)]
        if kind == "response.done" and self._ledger.is_success(event.get("response")):
            self._retries.begin_anew()
            if upstream.health is not None:
                upstream.health.works()
        if failed is not None:
            self._counters.count_failed_answer(failed, self._talk, resource=upstream.resource)
            if upstream.health is not None and failed.status == "failed":
                upstream.health.answer_failed(failed.code)
            log_failed_answer(failed, self._owner, self._handoff.agent.id, asked_again=remedy.asks)
            message = "Azure failed to answer: the broker asks once more" if remedy.asks else failed.message
            events.append(self._adapter.error(Refused(ANSWER_FAILED, message), retryable=failed.retryable))
            self._remedy(remedy, upstream)
        return events

    def _remedy(self, remedy: Remedy, upstream: UpstreamConnection) -> None:
        """Asks once more for an answer that failed, or leaves a session that gives none, whichever is due."""
        if remedy.moves:
            if not remedy.asks:
                self._ledger.forget_failed()
            self._gives_no_answers(upstream)  # the next session is asked for what the ledger has
        elif remedy.asks and (answer := self._ledger.failed) is not None:
            response = (answer.request or {}).get("response")
            response = response if isinstance(response, dict) else {}
            # What Voice Live appended to the conversation is there.
            wanted = {name: value for name, value in response.items() if name != "append_input_items"}
            self._answers.want("retry", wanted or None)

    def _refused(self, event: dict[str, Any]) -> list[str]:
        """Azure refused an event of the broker's own: what the client is told of it."""
        error = event["error"]
        event_id, code = error.get("event_id"), error.get("code")
        self._restored.refused(event_id)
        if code == ACTIVE_ALREADY:  # no fault: it is asked again after that answer
            return []
        log.warning("own_event_refused", event_id=event_id[:64], code=code if isinstance(code, str) else None)
        return []
