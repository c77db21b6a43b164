"""The sideband of a WebRTC call that the broker set up: Azure sends us the call's events, which bypass the broker.

Azure lets the resource's owner join a call by its id (docs/azure.md §5.4). Turns and usage are kept from there; what
the page reports as well has the same ids, and is kept once. The call does not depend on the sideband. If Azure does
not know a call for half a minute, its client never connected: the call is hung up, and its place is freed.

Nobody checks what such a client sends to Azure. Some clients set instructions of their own as soon as they connect. A
sideband begins in silence, so what was changed before it joined is not seen: each join sends the agent's session. From
then on the session is restored whenever it differs, and a client that keeps changing it loses the call.

The agent's tools run over the sideband: their outputs go over it, and the `response.create` that follows them. A client
asks itself for the answer to an output of its own, unless its page reads the call's events: then the broker asks alone.

A connection that ends, however it ends, says nothing of the call: the sideband joins again, for as long as the call may
last. The call is over when Azure says so, or when Azure repeatedly does not know a call that was joined before.
"""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from strategies.base import SessionSpec
from strategies.errors import MintError
from strategies.session_model.refused_field import field_to_leave_out, shown_path, without
from strategies.session_model.running_session import agents_session
from strategies.session_model.session_paths import Path
from token_broker.calls.idle import IdleClock
from token_broker.calls.page_events import PageEvents
from token_broker.observability.logging import audit_changed_call
from token_broker.relay.answers.actions import Refuse, Tell
from token_broker.relay.answers.agent_calls import AgentCalls
from token_broker.relay.answers.farewell import END_TALK_OUTPUT, Farewell, keys_of
from token_broker.relay.answers.greeting import greeting_response
from token_broker.relay.answers.sequencer import SEQUENCER_EVENTS, AnswerSequencer
from token_broker.relay.answers.talk_answers import AnswerHooks, TalkAnswers
from token_broker.relay.answers.turn_clock import TurnClock
from token_broker.relay.azure.connector import NO_SUCH_CALL
from token_broker.relay.azure.socket import AzureSocket
from token_broker.relay.counters import USAGE_EVENTS, TalkCounters
from token_broker.relay.dialects.broker_events import OWN_EVENT_IDS
from token_broker.relay.event_text import compact, event_of, event_type
from token_broker.relay.guardrail.client_words import words_of
from token_broker.relay.resume.session_facts import SessionFacts
from token_broker.relay.talk_parts import TalkParts
from token_broker.relay.transcripts.assembler import TURN_EVENTS
from token_broker.relay.transcripts.failed_answers import failed_answer, log_failed_answer
from token_broker.relay.transcripts.recorder import TurnRecorder
from token_broker.security.tokens import Owner
from token_broker.server.close_codes import DONE, ENDED_BY_AGENT, INTERNAL, Ending
from token_broker.sessions.agents import Agent
from token_broker.tools.guardrail import GuardrailClient, WordSource
from token_broker.tools.runner import ToolOutput
from token_broker.usage.talk_usage import TalkUsage

__all__ = ["CALL_OVER", "CallListener"]

log = structlog.get_logger("token_broker.relay")

_CHECK_S = 1.0
_PAUSES_S = (0.3, 1.0, 3.0, 6.0, 12.0)  # between joins; each is shortened by up to a third at random
_STEADY_S = 10.0  # a connection that lasted this long did not fail from the start
_UNKNOWN_S = 30.0  # Azure knows a call once its client has connected, which may take this long
_UNKNOWN_PAUSES = 2  # meanwhile the pauses grow no further than the second
_UNKNOWN_TIMES = 3  # in a row
# An official client sets its own session when it connects, and perhaps with each of its agents. More is deliberate.
_CHANGES_AT_MOST = 5
_HANDLED = TURN_EVENTS | SEQUENCER_EVENTS | {"session.updated"}
_CHECKS_AT_MOST = 32  # at once; each has a bound of its own
_SESSION_OVER = "session_expired"  # the code of the error that ends a session (docs/azure.md §8.1)
_REMINDER = f"{OWN_EVENT_IDS}reminder_"
CALL_OVER = Ending(DONE, "the call has ended", by_client=True, outcome="lost")
_NO_PLACE = Ending(DONE, "the call was ended elsewhere", by_client=True, outcome="lost")
_NEVER_CONNECTED = Ending(DONE, "its client never connected", outcome="lost")
_TOO_LONG = Ending(DONE, "the talk has reached its longest time", ends_talk=True, outcome="longest_time")
_IDLE = Ending(DONE, "nobody said anything any more", ends_talk=True, outcome="idle")
_CHANGED = Ending(DONE, "its client changed the agent's session again and again", ends_talk=True)
_REFUSED = Ending(DONE, "Azure refuses the agent's settings", ends_talk=True)


class CallListener:
    """Listens to one call from its answer to its end; draining waits for it as for a talk.

    `lasts_s` is the longest that the call may go on; `hang_up` ends it at Azure. `holds_place` says whether the call
    still has its place among the open talks; without one it was ended elsewhere. The guardrail sees the user's words,
    and holds nothing up: Azure answers them by itself. `greets` says whether the agent speaks first now.
    `confirm` waits, after a time in which this process did not run, until it is known whether the call is still ours.
    """

    def __init__(
        self,
        parts: TalkParts,
        *,
        owner: Owner,
        agent: Agent,
        spec: SessionSpec,
        resource: str,
        lasts_s: float,
        hang_up: Callable[[Ending], None],
        holds_place: Callable[[], bool],
        greets: Callable[[], bool] = lambda: False,
        page: PageEvents | None = None,
        joined: AzureSocket | None = None,
        confirm: Callable[[], Awaitable[None]] | None = None,
        usage: TalkUsage | None = None,
        transport: str = "webrtc_relay",
    ) -> None:
        self.counters = TalkCounters()
        self._parts = parts
        self._transport = transport
        self._clock = TurnClock()
        self._settings = parts.settings
        self._connector = parts.connector
        self._relay = parts.counters
        self._owner = owner
        self._agent = agent
        # What its client may not change. Over WebRTC it can all the same: then this is put back.
        self._session = agents_session(spec, "ga", without=agent.client_may_set)
        self._wanted = _shown(self._session)
        self._resource = resource
        self._hang_up = hang_up
        self._holds_place = holds_place
        self._changes = 0
        self._joins = 0
        self._session_over = False  # Azure said so
        self._confirmed = False  # whether Azure has ever shown exactly the agent's session
        self._left_out: Path | None = None  # a field that Azure has refused
        self._gave_up = False
        self._deviation: dict[str, Any] | None = None  # what the last reminder was sent to correct
        self._now_s = asyncio.get_running_loop().time
        self._usage = usage
        self._confirm = confirm
        self._idle = IdleClock(parts.settings.call_idle_s, self._now_s())
        self._until_s = self._now_s() + lasts_s
        self._is_ended = False  # by us, and Azure may not have done it yet
        self._tool_since_s: float | None = None
        self._over: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()

        def log_lost() -> None:
            log.warning("turn_lost", session_id=owner.session_id, why="the memory is full")

        self._turns = TurnRecorder(owner, agent.id, ingest=parts.ingest, counters=self.counters, on_lost=log_lost)
        self._tasks: set[asyncio.Task[None]] = set()
        self._facts = SessionFacts()
        self._guardrail = None if agent.guardrail is None else parts.guardrail
        self._greets = greets
        self._page = page or PageEvents()
        self._first = joined
        self._farewell = Farewell()
        self._spoke = False  # in the last answer
        calls = AgentCalls(parts.tools, owner, lambda: agent, self.counters, builtin=self._run_builtin)

        def note(tool: Tell) -> None:
            calls.note(tool)
            # One clock for all of them: tools have bounds of their own.
            self._tool_since_s = self._now_s() if tool.duration_ms is None else None
            if self._usage is not None and tool.duration_ms is not None:
                self._usage.tool_ran()
            took = {} if tool.duration_ms is None else {"duration_ms": round(tool.duration_ms)}
            self._page.tell("broker.tool", name=tool.name, call_id=tool.call_id, state=tool.state, **took)

        self._answers = TalkAnswers(
            AnswerSequencer(
                calls.tools,
                facts=self._facts,
                holds=lambda: self._farewell.holds(keys_of(self._answers.sequencer.calls), spoke=self._spoke),
                listens=True,
                leads=lambda: self._page.is_heard,
            ),
            AnswerHooks(tell=note, refuse=self._refuse, run=calls.run, start=self._start),
        )

    def end(self, ending: Ending) -> None:
        """Stops listening for this reason; the call goes on."""
        if not self._over.done():
            self._over.set_result(ending)

    async def run(self, endpoint: str, call_id: str) -> Ending:
        """Listens until the call is over, or has reached the longest time of a talk. Never raises MintError."""
        self._facts.session_id = call_id  # it stays the same on each join
        known_by_s = self._now_s() + _UNKNOWN_S
        failures = unknown = 0  # in a row
        try:
            while not self._over.done():
                if failures:
                    slots = _PAUSES_S[:_UNKNOWN_PAUSES] if unknown and not self._joins else _PAUSES_S
                    pause_s = slots[min(failures, len(slots)) - 1] * random.uniform(0.67, 1)  # noqa: S311  # no secret
                    await asyncio.wait((self._over,), timeout=pause_s)
                if not self._over.done() and not self._holds_place():
                    return _NO_PLACE
                if self._now_s() >= self._until_s:
                    self._end_call(_TOO_LONG)
                socket, self._first = self._first, None
                try:
                    socket = socket or await self._connector.join_call(endpoint, call_id)
                except MintError as error:
                    failures += 1
                    unknown = unknown + 1 if error.status in NO_SUCH_CALL else 0
                    # One 404 may come of a fault at Azure, while the call goes on.
                    if unknown >= _UNKNOWN_TIMES and (self._joins or self._now_s() >= known_by_s):
                        return self._note_unknown()
                    if failures == len(_PAUSES_S) and not unknown:
                        about = {"outcome": error.outcome, "why": str(error)}
                        log.warning("sideband_refused", session_id=self._owner.session_id, **about)
                    continue
                joined_s = self._now_s()
                unknown = 0
                try:
                    ending = await self._listen(socket)
                finally:
                    self._page.left()
                    self._idle.leave(self._now_s())
                    self._answers.cut(lost=False)
                    self._clock = TurnClock()  # what happens meanwhile is not seen
                    await socket.aclose()
                if ending is not None:
                    return ending
                failures = failures + 1 if self._now_s() - joined_s < _STEADY_S else 1
                log.info("sideband_broke", session_id=self._owner.session_id)
            return self._over.result()
        finally:
            self._answers.aclose()
            for task in self._tasks:
                task.cancel()
            self._turns.flush()
            if self._first is not None:
                await self._first.aclose()

    def _note_unknown(self) -> Ending:
        """Azure does not know the call: it is over, or its client never connected."""
        if self._joins:
            return CALL_OVER
        log.info("call_never_connected", session_id=self._owner.session_id)
        self._hang_up(_NEVER_CONNECTED)
        return _NEVER_CONNECTED

    def _refuse(self, refusal: Refuse) -> None:
        """Tells the page of an answer that does not come. Of what it sends itself the broker drops nothing."""
        self._page.tell("broker.error", code=refusal.code, message=refusal.message, retryable=refusal.retryable)

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        def on_done(task: "asyncio.Task[None]") -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("call_failed", session_id=self._owner.session_id, error=type(error).__name__, exc_info=error)
                self.end(Ending(INTERNAL, "the broker failed"))

        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(on_done)

    async def _listen(self, socket: AzureSocket) -> Ending | None:
        """Why listening is over; None where the connection ended and the call may go on."""
        self._joins += 1
        self._idle.join(self._now_s())
        if self._usage is not None and self._joins == 1:
            self._usage.went_live(self._resource, "ga")
        self._send_session(socket, f"join_{self._joins}")
        self._answers.begin("ga", lambda event: socket.send(compact(event)))
        if (greeting := self._agent.greeting) and self._joins == 1 and self._greets():
            self._answers.want("greeting", greeting_response(greeting, self._session.get("instructions", "")))
        self._page.joined()
        pinged_s = self._now_s()
        while not self._over.done():
            if self._confirm is not None:
                await self._confirm()
                if self._over.done():
                    break
            now_s = self._now_s()
            self._turns.tell_due(now_s)
            if socket.frames:
                self._handle(socket)
            elif self._session_over:
                return CALL_OVER
            elif socket.failure is not None:
                return None
            elif not self._holds_place():
                return _NO_PLACE
            elif self._is_over(now_s):
                self._farewell.take_back()
                self._end_call(ENDED_BY_AGENT)
            elif not self._is_ended and now_s >= self._until_s:
                self._end_call(_TOO_LONG)
            elif not self._is_ended and self._idle.is_idle(now_s, tool_since_s=self._tool_since_s):
                self._end_call(_IDLE)
            elif now_s - pinged_s >= self._settings.ping_interval_s:
                pinged_s = now_s
                if not socket.ping():
                    return None
            else:
                frame = asyncio.ensure_future(socket.wait())
                try:
                    await asyncio.wait((frame, self._over), timeout=_CHECK_S, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    frame.cancel()
                    await asyncio.wait((frame,))
        return self._over.result()

    def _end_call(self, ending: Ending) -> None:
        """Hangs the call up; it is listened to until it is over, which Azure may take its time for."""
        if not self._is_ended:
            self._is_ended = True
            self._hang_up(ending)

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
            self._compare(socket, session)
        elif kind == "error":
            self._note_error(socket, event.get("error"))
            return
        if self._usage is not None:
            self._usage.azure_sent(event, resource=self._resource, dialect="ga")
        if kind in USAGE_EVENTS:
            self._relay.count_usage_of(
                event,
                principal=self._owner.principal,
                agent_id=self._agent.id,
                talk=self.counters,
                resource=self._resource,
            )
        if kind == "response.done" and (failed := failed_answer(event)) is not None:
            self._relay.count_failed_answer(failed, self.counters, resource=self._resource)
            log_failed_answer(failed, self._owner, self._agent.id)
            self._page.tell("broker.error", code="answer_failed", message=failed.message, retryable=failed.retryable)
        self._turns.feed(event, self._now_s())

    def _note_words(self, kind: str, event: dict[str, Any]) -> None:
        """Notes that somebody speaks, and shows the guardrail what the user says."""
        if kind == "input_audio_buffer.speech_started":
            self._farewell.take_back()
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
        verdict = await guardrail.check(self._agent, self._owner, words, source)
        if verdict.action != "allow":
            about = {"session_id": self._owner.session_id, "agent_id": self._agent.id}
            log.warning("guardrail_not_enforced", **about, action=verdict.action, source=source)

    async def _run_builtin(self, name: str, arguments: str, call_id: str) -> ToolOutput:
        agent_id = (event_of(arguments) or {}).get("agent_id")
        if name == "handoff" and agent_id in self._agent.handoff_ids and self._page.is_heard:
            # A voice can't change in a call: the page takes a new plan, with the other agent.
            self._page.tell("broker.agent.switch", agent_id=agent_id)
            return ToolOutput("The talk is being handed over. Say one short sentence about it, and no more.", ok=True)
        if name != "end_talk":
            return ToolOutput("This can't be done in this call. Go on yourself.", ok=False)
        self._farewell.ask(call_id)
        return ToolOutput(END_TALK_OUTPUT, ok=True)

    def _is_over(self, now_s: float) -> bool:
        sequencer = self._answers.sequencer
        return self._farewell.is_over(
            now_s,
            keys_of(sequencer.calls),
            answering=sequencer.is_answering,
            spoke=self._spoke,
            plays_until_s=self._turns.assembler.plays_until_s,
        )

    def _note_error(self, socket: AzureSocket, error: Any) -> None:
        if not isinstance(error, dict):
            return
        self._session_over |= error.get("code") == _SESSION_OVER
        event_id = error.get("event_id")
        if isinstance(event_id, str) and event_id.startswith(_REMINDER):
            # A refused reminder has restored nothing.
            log.warning("reminder_refused", session_id=self._owner.session_id, code=str(error.get("code"))[:64])
            about = {"resource": self._resource, "agent_id": self._agent.id}
            field = field_to_leave_out(error, self._session)
            if field is not None and self._left_out is None:
                self._left_out = field
                self._session = without(self._session, field)
                self._wanted = _shown(self._session)
                self._connector.settings_report.note_left_out((shown_path(field),), **about)
                self._send_session(socket, f"without_{self._joins}")
            elif field is not None and not self._gave_up:
                self._gave_up = True
                self._connector.settings_report.note_refused(**about)
                self._end_call(_REFUSED)
            elif field is None:
                self._restore(socket)

    def _compare(self, socket: AzureSocket, session: Any) -> None:
        """Restores the agent's instructions, tools and transcription where the session has others."""
        wanted = self._wanted
        if not isinstance(session, dict):
            return
        if _agrees(session, wanted):
            self._confirmed = True
            self._deviation = None
            return
        deviation = {name: session.get(name) for name in wanted}
        if deviation == self._deviation and not self._confirmed:
            # A reminder changed nothing, and Azure has never shown the agent's session exactly: it normalises some
            # value. That is not a change by the client.
            return
        self._deviation = deviation
        self._restore(socket)

    def _restore(self, socket: AzureSocket) -> None:
        """Sends the agent's session again, and hangs the call up where that was needed too often."""
        self._changes += 1
        if self._changes == _CHANGES_AT_MOST + 1:
            self._relay.calls_ended += 1
            audit_changed_call(
                principal=self._owner.principal,
                session_id=self._owner.session_id,
                agent_id=self._agent.id,
                changes=self._changes,
            )
            self._end_call(_CHANGED)
        self._send_session(socket, str(self._changes))

    def _send_session(self, socket: AzureSocket, number: str) -> None:
        update = {"type": "session.update", "event_id": f"{_REMINDER}{number}"}
        socket.send(compact({**update, "session": self._session}))


def _shown(session: dict[str, Any]) -> dict[str, Any]:
    """The session as Azure states it: of the transcription's hints only these (docs/azure.md §4.5)."""
    hints = session.get("audio", {}).get("input", {}).get("transcription")
    if not hints:
        return session
    shown = {name: hints[name] for name in ("model", "language", "prompt") if name in hints}
    return {**session, "audio": {**session["audio"], "input": {**session["audio"]["input"], "transcription": shown}}}


def _agrees(stated: Any, wanted: Any) -> bool:
    """Whether `stated` has everything that is `wanted`; it may have more."""
    if isinstance(wanted, dict):
        return isinstance(stated, dict) and all(_agrees(stated.get(name), value) for name, value in wanted.items())
    if isinstance(wanted, list):
        stated = stated or []
        return len(stated) == len(wanted) and all(map(_agrees, stated, wanted))
    return bool(stated == wanted)
