"""The sideband of a WebRTC call that the broker set up: Azure sends us the call's events, which bypass the broker.

Azure lets the resource's owner join a call by its id (docs/azure.md §5.4). Turns and usage are kept from there; what
the page reports as well has the same ids, and is kept once. The call does not depend on the sideband. If Azure does
not know a call for half a minute, its client never connected: the call is hung up, and its place is freed.

The agent's tools run over the sideband: their outputs go over it, and the `response.create` that follows them. A client
asks itself for the answer to an output of its own, unless its page reads the call's events: then the broker asks alone.

A connection that ends, however it ends, says nothing of the call: the sideband joins again, for as long as the call may
last. The call is over when Azure says so, or when Azure repeatedly does not know a call that was joined before. Then
it ended with its last connection, and its time is counted until there.
"""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import structlog

from strategies.base import SessionSpec
from strategies.errors import MintError
from token_broker.calls.call_end import CHECK_S, CallEnd, IdleClock
from token_broker.calls.page_events import PageEvents
from token_broker.calls.restored_session import RestoredSession
from token_broker.relay.answers.actions import Refuse, Run, Tell
from token_broker.relay.answers.agent_calls import HANDED_OVER, AgentCalls
from token_broker.relay.answers.answer_retries import AnswerRetries
from token_broker.relay.answers.farewell import END_TALK_OUTPUT, Farewell, keys_of
from token_broker.relay.answers.greeting import greeting_response
from token_broker.relay.answers.sequencer import SEQUENCER_EVENTS, AnswerSequencer
from token_broker.relay.answers.talk_answers import AnswerHooks, TalkAnswers
from token_broker.relay.answers.turn_clock import TurnClock
from token_broker.relay.azure.connector import NO_SUCH_CALL
from token_broker.relay.azure.socket import AzureSocket
from token_broker.relay.counters import USAGE_EVENTS, TalkCounters
from token_broker.relay.event_text import compact, event_of, event_type
from token_broker.relay.guardrail.client_words import words_of
from token_broker.relay.recalled.call_memory import RECALL_EVENTS, CallMemory
from token_broker.relay.resume.open_answers import OpenAnswer
from token_broker.relay.resume.session_facts import SessionFacts
from token_broker.relay.talk_parts import TalkParts
from token_broker.relay.transcripts.assembler import TURN_EVENTS
from token_broker.relay.transcripts.failed_answers import ANSWER_FAILED, failed_answer, log_failed_answer
from token_broker.relay.transcripts.recorder import TurnRecorder
from token_broker.relay.watchdog import BUDGET_USED, SoftEnd
from token_broker.security.tokens import Owner
from token_broker.server.close_codes import CALL_OVER, DONE, ENDED_BY_AGENT, INTERNAL, Ending
from token_broker.sessions.agents import Agent
from token_broker.tools.guardrail import GuardrailClient, WordSource
from token_broker.tools.runner import ToolOutput
from token_broker.usage.talk_usage import TalkUsage

__all__ = ["CallListener"]

log = structlog.get_logger("token_broker.relay")

_PAUSES_S = (0.3, 1.0, 3.0, 6.0, 12.0)  # between joins; each is shortened by up to a third at random
_STEADY_S = 10.0  # a connection that lasted this long did not fail from the start
_UNKNOWN_S = 30.0  # Azure knows a call once its client has connected, which may take this long
_UNKNOWN_PAUSES = 2  # while Azure does not know it, the pauses grow no further than the second
_UNKNOWN_TIMES = 3  # in a row
_HANDLED = TURN_EVENTS | SEQUENCER_EVENTS | {"session.updated"}
_SPOKEN = frozenset({"input_audio_buffer.speech_started", "input_audio_buffer.committed"})
_CHECKS_AT_MOST = 32  # at once; each has a bound of its own
_MOST_OUTPUT_BYTES = (
    65_536 - 2_048
)  # as JSON: every browser's data channel takes 64 KiB, the rest of the event included
_TOO_LONG_OUTPUT = ToolOutput("The tool's answer is too long for a call, and was left out. Tell the user.", ok=False)
_SESSION_OVER = "session_expired"  # the code of the error that ends a session (docs/azure.md §8.1)
_PAGES = frozenset({"webrtc_relay", "webrtc"})
_NEVER_CONNECTED = Ending(DONE, "its client never connected", outcome="lost")
_TOO_LONG = Ending(DONE, "the talk has reached its longest time", ends_talk=True, outcome="longest_time")
_IDLE = Ending(DONE, "nobody said anything any more", ends_talk=True, outcome="idle")


class CallListener:
    """Listens to one call from its answer to its end; draining waits for it as for a talk.

    `lasts_s` is the longest that the call may go on; `hang_up` ends it at Azure. `holds_place` says whether the call
    still has its place among the open talks; without one it was ended elsewhere. The guardrail sees the user's words,
    and holds nothing up: Azure answers them by itself. `greets` says whether the agent speaks first now.
    `is_new` is False for a call that another process has told what the memory knows: it is `age_s` old, and that one
    may have heard it (`was_heard`).
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
        is_new: bool = True,
        age_s: float = 0.0,
        was_heard: bool = False,
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
        self._end = CallEnd(hang_up, holds_place)
        self._session = RestoredSession(parts, owner, agent, spec, resource=resource, end=self._end.ask)
        self._resource = resource
        self._joins = 0
        self._was_heard = was_heard
        self._session_over = False  # Azure said so
        self._budget = SoftEnd()
        self._now_s = asyncio.get_running_loop().time
        self._usage = usage
        self._confirm = confirm
        self._idle = IdleClock(parts.settings.call_idle_s, self._now_s())
        self._until_s = self._now_s() + lasts_s
        self._known_by_s = self._now_s() + (0.0 if was_heard else _UNKNOWN_S - age_s)
        self._tool_since_s: float | None = None

        def log_lost() -> None:
            log.warning("turn_lost", session_id=owner.session_id, why="the memory is full")

        self._memory = CallMemory(parts.recall, owner, agent, start=self._start)
        if is_new:
            self._memory.begin()
        ingest = self._memory.listening(parts.ingest)
        self._turns = TurnRecorder(owner, agent.id, ingest=ingest, counters=self.counters, on_lost=log_lost)
        self._tasks: set[asyncio.Task[None]] = set()
        self._facts = SessionFacts()
        self._guardrail = None if agent.guardrail is None else parts.guardrail
        self._greets = greets
        self._page = page or PageEvents()
        self._first = joined
        self._farewell = Farewell()
        self._spoke = False  # in the last answer
        self._sounded: object = None  # the id of the latest answer that was played
        # An official client asks again by itself.
        asks = parts.settings.retry_failed_answer == "on" and transport in _PAGES
        self._retries = AnswerRetries(asks=asks)
        calls = AgentCalls(parts.tools, owner, lambda: agent, self.counters, builtin=self._run_builtin)

        def note(tool: Tell) -> None:
            calls.note(tool)
            # One clock for all of them: tools have bounds of their own.
            self._tool_since_s = self._now_s() if tool.duration_ms is None else None
            if self._usage is not None and tool.duration_ms is not None:
                self._usage.tool_ran()
            self._page.tell("broker.tool", **tool.fields)

        async def run(call: Run) -> ToolOutput:
            output = await calls.run(call)
            # Azure tells the page of it, whose data channel would break over a larger event.
            return output if len(json.dumps(output.text)) <= _MOST_OUTPUT_BYTES else _TOO_LONG_OUTPUT

        self._answers = TalkAnswers(
            AnswerSequencer(
                calls.tools,
                facts=self._facts,
                holds=lambda: self._farewell.holds(keys_of(self._answers.sequencer.calls), spoke=self._spoke),
                listens=True,
                leads=lambda: self._page.is_heard,
            ),
            AnswerHooks(tell=note, refuse=self._refuse, run=run, start=self._start),
        )

    def end(self, ending: Ending) -> None:
        """Stops listening for this reason; the call goes on, unless the broker goes away."""
        self._end.stop(ending)

    def hung_up(self, ending: Ending) -> None:
        """Azure has hung the call up: what it had sent before is heard still, for a second."""
        self._end.hung_up(ending)

    def last_at_most(self, lasts_s: float) -> None:
        """The call may go on for so long from now, if not less."""
        self._until_s = min(self._until_s, self._now_s() + lasts_s)

    def end_softly(self, left_s: float, when_quiet: bool) -> None:
        """The budget is used up: the call ends with what is being played, and in `left_s` at the latest.

        `when_quiet`: at once where nothing is.
        """
        self._budget.begin(left_s, when_quiet, self._now_s())

    async def run(self, endpoint: str, call_id: str) -> Ending:
        """Listens until the call is over, or has reached the longest time of a talk. Never raises MintError."""
        self._facts.session_id = call_id  # it stays the same on each join

        def on_hung_up() -> None:
            self._leave_sight(call_id)
            for task in self._tasks:  # no tool has anybody to tell
                task.cancel()

        self._end.on_hung_up = on_hung_up
        failures = unknown = 0  # in a row
        may_be_over = True  # as far as the latest join says
        try:
            while not self._end.over.done():
                if failures:
                    slots = _PAUSES_S[:_UNKNOWN_PAUSES] if unknown else _PAUSES_S
                    pause_s = slots[min(failures, len(slots)) - 1] * random.uniform(0.67, 1)  # noqa: S311  # no secret
                    await self._end.pause(pause_s)
                self._end.look()
                if self._end.over.done():
                    break
                if self._now_s() >= self._until_s:
                    self._end.ask(_TOO_LONG)
                elif self._budget.is_due(self._now_s(), None):
                    self._end.ask(BUDGET_USED)
                socket, self._first = self._first, None
                try:
                    socket = socket or await self._connector.join_call(endpoint, call_id)
                except MintError as error:
                    failures += 1
                    unknown = unknown + 1 if error.status in NO_SUCH_CALL else 0
                    may_be_over = unknown > 0
                    # One 404 may come of a fault at Azure, while the call goes on.
                    if unknown >= _UNKNOWN_TIMES and (self._joins or self._now_s() >= self._known_by_s):
                        return self._note_unknown()
                    if failures == len(_PAUSES_S) and not unknown:
                        about = {"outcome": error.outcome, "why": str(error)}
                        log.warning("sideband_refused", session_id=self._owner.session_id, **about)
                    continue
                joined_s = self._now_s()
                unknown, may_be_over = 0, True
                try:
                    ending = await self._listen(socket, call_id)
                finally:
                    self._end.is_heard = False
                    self._leave_sight(call_id)
                    self._page.left()
                    self._idle.leave(self._now_s())
                    self._answers.cut(lost=False)
                    self._memory.leave()
                    self._clock = TurnClock()  # what happens meanwhile is not seen
                    await socket.aclose()
                if ending is not None:
                    return ending
                failures = failures + 1 if self._now_s() - joined_s < _STEADY_S else 1
                log.info("sideband_broke", session_id=self._owner.session_id)
            return self._end.over.result()
        finally:
            self._answers.aclose()
            self._memory.aclose()
            for task in self._tasks:
                task.cancel()
            self._turns.flush()
            if not may_be_over and self._usage is not None:
                self._usage.went_on(call_id)
            if self._first is not None:
                await self._first.aclose()

    def _leave_sight(self, call_id: str) -> None:
        if self._usage is not None:
            self._usage.out_of_sight(call_id)

    def _note_unknown(self) -> Ending:
        """Azure does not know the call: it is over, or its client never connected."""
        if self._joins or self._was_heard:
            return CALL_OVER
        log.info("call_never_connected", session_id=self._owner.session_id)
        self._end.ask(_NEVER_CONNECTED)
        return _NEVER_CONNECTED

    def _refuse(self, refusal: Refuse) -> None:
        """Tells the page of an answer that does not come, and of an output of its own that was taken out."""
        self._page.tell("broker.error", code=refusal.code, message=refusal.message, retryable=refusal.retryable)

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        def on_done(task: "asyncio.Task[None]") -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("call_failed", session_id=self._owner.session_id, error=type(error).__name__, exc_info=error)
                self._end.stop(Ending(INTERNAL, "the broker failed"))

        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(on_done)

    async def _listen(self, socket: AzureSocket, call_id: str) -> Ending | None:
        """Why listening is over; None where the connection ended and the call may go on."""
        self._joins += 1
        self._end.is_heard = True
        self._idle.join(self._now_s())
        if self._usage is not None:
            self._usage.went_live(self._resource, "ga", by=call_id)
        self._session.send(socket)
        self._memory.join(lambda event: socket.send(compact(event)))
        self._answers.begin("ga", lambda event: socket.send(compact(event)))
        if self._joins == 1:
            self._start(self._open(), "call-opening")
        self._page.joined()
        pinged_s = self._now_s()
        while not self._end.over.done():
            if self._confirm is not None:
                await self._confirm()
                if self._end.over.done():
                    break
            now_s = self._now_s()
            self._turns.tell_due(now_s)
            self._end.look()
            is_asked = self._end.is_asked
            if socket.frames:
                self._handle(socket)
            elif self._session_over:
                return CALL_OVER
            elif socket.failure is not None:
                return self._end.last
            elif not is_asked and self._is_over(now_s):
                self._farewell.take_back()
                self._end.ask(ENDED_BY_AGENT)
            elif not is_asked and now_s >= self._until_s:
                self._end.ask(_TOO_LONG)
            elif not is_asked and self._budget.is_due(now_s, self._idle.is_busy):
                self._end.ask(BUDGET_USED)
            elif not is_asked and self._idle.is_idle(now_s, tool_since_s=self._tool_since_s):
                self._end.ask(_IDLE)
            elif now_s - pinged_s >= self._settings.ping_interval_s:
                pinged_s = now_s
                if not socket.ping():
                    return self._end.last
            else:
                frame = asyncio.ensure_future(socket.wait())
                try:
                    await asyncio.wait((frame, self._end.over), timeout=CHECK_S, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    frame.cancel()
                    await asyncio.wait((frame,))
        return self._end.over.result()

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
            self._relay.count_usage_of(
                event,
                principal=self._owner.principal,
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
            self._relay.count_failed_answer(failed, self.counters, resource=self._resource)
            log_failed_answer(failed, self._owner, self._agent.id, asked_again=asks)
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
        verdict = await guardrail.check(self._agent, self._owner, words, source)
        if verdict.action != "allow":
            about = {"session_id": self._owner.session_id, "agent_id": self._agent.id}
            log.warning("guardrail_not_enforced", **about, action=verdict.action, source=source)

    async def _run_builtin(self, name: str, arguments: str, call_id: str) -> ToolOutput:
        agent_id = (event_of(arguments) or {}).get("agent_id")
        if name == "handoff" and agent_id in self._agent.handoff_ids and self._page.is_heard:
            # A voice can't change in a call: the page takes a new plan, with the other agent. That ends this call, and
            # with it whatever still runs.
            self._answers.once_answered(partial(self._page.tell, "broker.agent.switch", agent_id=agent_id))
            return HANDED_OVER
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
        if (event_id := str(error.get("event_id"))).startswith(RECALL_EVENTS):
            log.warning("own_event_refused", event_id=event_id[:64], code=str(error.get("code"))[:64])
        self._session.refused(socket, error)


def _is_typed_by_user(kind: str, event: dict[str, Any]) -> bool:
    item = event.get("item")
    is_users = kind == "conversation.item.added" and isinstance(item, dict) and item.get("role") == "user"
    return is_users and bool(words_of(event).text)
