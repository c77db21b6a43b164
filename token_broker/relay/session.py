"""One proxied talk, from its admission to its last turn.

While both sides accept data, frames go from socket to socket (`relay.fast_path`). Two tasks carry everything else: one
reads the client, one sends Azure's events to it. Neither holds more than a few frames: the server stops reading the
client while we do not receive, and Azure's socket stops reading while the client does not accept its events. One timer
watches all waits. Where Azure's side is lost, the talk goes on in another session (`relay.resume`).
"""

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from strategies.errors import MalformedError
from token_broker.memory.types import Recall, TurnIngest
from token_broker.relay.adapters import Answered, ProtocolAdapter, ToAzure
from token_broker.relay.answers.actions import Refuse, Run, Tell
from token_broker.relay.answers.catalogue import tools_of
from token_broker.relay.answers.hidden_calls import HiddenCalls
from token_broker.relay.answers.sequencer import AnswerSequencer
from token_broker.relay.answers.talk_answers import AnswerHooks, TalkAnswers
from token_broker.relay.azure.connector import NoUpstreamError, UpstreamConnection, UpstreamConnector
from token_broker.relay.client import TalkClient
from token_broker.relay.counters import RelayCounters, TalkCounters
from token_broker.relay.event_handler import EventHandler
from token_broker.relay.event_text import compact, event_type_by_head, parsed
from token_broker.relay.fast_path import FastPath
from token_broker.relay.handoff import AgentHandoff
from token_broker.relay.policy.allowlist import Broken, Command, Refused, is_plain_append
from token_broker.relay.policy.visibility import without_agents_settings
from token_broker.relay.resume.held_audio import HeldAudio
from token_broker.relay.resume.ledger import ASK_ID, TalkLedger
from token_broker.relay.resume.replay import NewSession, replay
from token_broker.relay.resume.restored import Restored
from token_broker.relay.resume.resumption import Resumption, TalkHooks
from token_broker.relay.resume.steps import Ask, Step
from token_broker.relay.transcripts.recorder import TurnRecorder
from token_broker.relay.watchdog import Snapshot, Watchdog, tick_s
from token_broker.security.tokens import Owner
from token_broker.server.client_wire import IMAGE_FIELD
from token_broker.server.close_codes import (
    BAD_REQUEST,
    DRAINING,
    INTERNAL,
    TOO_LARGE,
    Ending,
    left,
)
from token_broker.sessions.agents import Agent, AgentRegistry
from token_broker.sessions.plans import TalkSpecs
from token_broker.settings import Settings
from token_broker.tools.runner import ToolCall, ToolOutput, ToolRunner

__all__ = ["Talk", "TalkParts"]

log = structlog.get_logger("token_broker.relay")

_AUDIO_CHARS_A_SECOND = 64_000  # base64 of PCM16 at 24 kHz, the richest of the formats
_HEAD_CHARS = 128
_LONGEST_NOTED = 65_536  # a longer event of a client's may be an item with an image


@dataclass(frozen=True, slots=True)
class TalkParts:
    """What all talks share. `redact` removes the secrets that are known now from a text; `tools` runs agents' tools."""

    settings: Settings
    agents: AgentRegistry
    connector: UpstreamConnector
    ingest: TurnIngest
    recall: Recall
    counters: RelayCounters
    redact: Callable[[str], str]
    tools: ToolRunner | None = None


class Talk:
    """One accepted client's talk. `run` returns when the talk is over and nothing is left open."""

    def __init__(
        self,
        parts: TalkParts,
        adapter: ProtocolAdapter,
        client: TalkClient,
        *,
        owner: Owner,
        agent: Agent,
        on_live: Callable[[str], None] = lambda _resource: None,
    ) -> None:
        self.counters = TalkCounters()
        self._parts = parts
        self._adapter = adapter
        self._on_live = on_live
        self.owner = owner
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[Ending] = self._loop.create_future()
        self._ready = asyncio.Event()
        self._upstream: UpstreamConnection | None = None
        self._turns = TurnRecorder(
            owner,
            agent.id,
            ingest=parts.ingest,
            counters=self.counters,
            on_lost=self._report_lost_turn,
            scope=secrets.token_hex(4),
        )
        self._specs = TalkSpecs(parts.settings, owner, parts.recall)
        self._specs.start()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ledger = TalkLedger(HeldAudio(round(parts.settings.resume_audio_s * _AUDIO_CHARS_A_SECOND)))
        self._restored = Restored()
        self._handoff = AgentHandoff(
            agent,
            session_id=owner.session_id,
            agents=parts.agents,
            connector=parts.connector,
            turns=self._turns,
            supply=self._specs.of,
            start=self._start,
            move=self._hand_over,
            tell=self._tell,
        )
        sequencer = AnswerSequencer(
            lambda: tools_of(self._handoff.agent),
            facts=self._ledger.facts,
            holds=lambda: self._ledger.holds,
            plays_until_s=lambda: self._turns.assembler.plays_until_s,
        )
        self._ledger.acting = lambda: sequencer.calls.is_acting
        self._answers = TalkAnswers(
            sequencer,
            AnswerHooks(tell=self._tell_call, refuse=self._refuse, run=self._run_call, start=self._start),
        )
        hidden = HiddenCalls(
            lambda name: (tool := tools_of(self._handoff.agent).get(name)) is not None and tool.by == "client",
            sequencer.calls.withholds,
        )
        self._handler = EventHandler(
            adapter,
            owner,
            turns=self._turns,
            handoff=self._handoff,
            ledger=self._ledger,
            answers=self._answers,
            hidden=hidden,
            restored=self._restored,
            counters=parts.counters,
            talk=self.counters,
            broken=self._on_garbage,
            time_s=self._loop.time,
            redact=parts.redact,
        )
        self._fast_path = FastPath(
            client.wire,
            forwards=self._handler.forwards,
            handle=self._handler.handle,
            hold=self._ledger.audio.append,
            counters=self.counters,
            failed=self._fail,
        )
        self._resumption = Resumption(
            parts.settings,
            adapter,
            client,
            session_id=owner.session_id,
            connector=parts.connector,
            supply=self._specs.of,
            turns=self._turns,
            ledger=self._ledger,
            restored=self._restored,
            hooks=TalkHooks(
                next_agent=lambda: self._handoff.next_agent,
                confirm_agent=self._handoff.confirm,
                begin_gap=self._begin_gap,
                begin=self._begin_answers,
                use=self._use,
                forward=self._forward,
                start=self._start,
                count=parts.counters.count_resume,
            ),
        )
        self._tick_s = tick_s(parts.settings)
        self._watchdog = Watchdog(parts.settings, self._loop.time())
        self._sending = False
        self._azure_full = False

    def end(self, ending: Ending) -> None:
        """Ends the talk for this reason, unless it is ending already."""
        if not self._over.done():
            self._over.set_result(ending)

    async def run(self) -> Ending:
        """Carries the talk to its end, and returns the reason."""
        self._start(self._read_client(), "talk-client")
        self._start(self._read_azure(), "talk-azure")
        self._ticker = self._loop.call_later(self._tick_s, self._tick)
        ending = Ending(DRAINING, "the broker is going away: ask for a new plan")
        try:
            ending = await asyncio.shield(self._over)
        finally:
            self._ticker.cancel()
            await self._finish(ending)
        return ending

    # --- the client's side

    async def _read_client(self) -> None:
        receive = self._client.receive
        counters = self.counters
        longest = self._parts.settings.client_message_bytes
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                self._client.gone = True
                self.end(left(message.get("code")))
                return
            if not self._ready.is_set():  # one message is held; the server reads no further meanwhile
                await self._ready.wait()
            text = message.get("text")
            if text is None:
                self.end(Ending(BAD_REQUEST, "text messages only: audio travels in input_audio_buffer.append"))
                return
            if len(text) > longest and IMAGE_FIELD.decode() not in text:  # an image has a limit of its own
                self.end(Ending(TOO_LARGE, "a message was too large"))
                return
            counters.to_azure_frames += 1
            counters.to_azure_bytes += len(text)
            upstream = self._upstream
            if upstream is None:  # Azure is being connected again
                await self._resumption.hold(text)
                continue
            self._forward(text, upstream)
            if not is_plain_append(text):
                # The broker's own answers wait with Azure's events. A client that floods us with refused events and
                # reads none of the answers must not fill the queue.
                await upstream.socket.has_room()
            if not upstream.socket.writable:
                self._azure_full = True
                await upstream.socket.drained()
                self._azure_full = False

    def _forward(self, text: str, upstream: UpstreamConnection) -> None:
        """Handles a client's message: most go to Azure as they are."""
        if is_plain_append(text):
            upstream.socket.send(text)
            self._ledger.audio.append(text)
            return
        match self._adapter.from_client(text, upstream.route.dialect, self._handoff.agent.client_may_set):
            case ToAzure(texts=checked, left_out=left_out, told=told):
                self.counters.fields_left_out += left_out
                for error in told:
                    upstream.socket.put(error)
                for message in checked:
                    self._send(message, upstream)
            case Answered(text=answer):
                upstream.socket.put(answer)
            case Command(event={"type": "broker.agent.switch"} as event):
                self._handoff.request(event, upstream)
            case Command():
                self.counters.refused_events += 1
                upstream.socket.put(self._adapter.error(Refused("unknown_event", "the broker knows no such event")))
            case Refused() as refusal:
                self.counters.refused_events += 1
                log.debug("client_event_refused", code=refusal.code, why=refusal.message)
                upstream.socket.put(self._adapter.error(refusal))
            case Broken(reason=reason):
                self.end(Ending(BAD_REQUEST, reason))

    def _send(self, message: str, upstream: UpstreamConnection) -> None:
        """Sends Azure an event of the client's, in Azure's dialect, and notes what is open because of it."""
        kind = event_type_by_head(message[:_HEAD_CHARS].encode()) or ""  # written here, the type in its head
        if kind == "input_audio_buffer.append":
            upstream.socket.send(message)
            self._ledger.audio.append(message)
            return
        noted = len(message) <= _LONGEST_NOTED or kind == "response.create" or IMAGE_FIELD.decode() not in message
        event = parsed(message) if noted else {}
        if not self._answers.admits(kind, event):
            self._answers.tick()
            return
        if kind == "conversation.item.truncate" and self._restored.answers_truncate(event.get("item_id")):
            # To Azure the item is text, which it does not truncate.
            self._ledger.truncate(event)
            upstream.socket.put(compact({**event, "type": "conversation.item.truncated"}))
            return
        if kind == "input_audio_buffer.commit" and self._upstream is None and self._ledger.hears_nothing:
            empty = Refused("input_audio_buffer_commit_empty", "there is no audio", event_id=event.get("event_id"))
            upstream.socket.put(self._adapter.error(empty))
            return
        self._ledger.client_sent(kind, message, event)
        upstream.socket.send(self._restored.for_azure(message))
        self._answers.tick()

    # --- Azure's side

    async def _read_azure(self) -> None:
        """Connects, sends the client the opening, and carries events until Azure's side or the client's is over."""
        try:
            upstream = await self._parts.connector.connect(
                self._specs.of(self._handoff.agent),
                wanted=self._handoff.agent.wanted(self.owner.session_id),
                prefer=self._adapter.dialect,
            )
        except NoUpstreamError as error:
            self.end(error.ending)
            return
        self._begin_answers(upstream, ())
        self._use(upstream)
        self._parts.counters.ready += 1
        self._on_live(upstream.resource)
        upstream.first[:] = self._adapter.opening(
            upstream, session_id=self.owner.session_id, agent_id=self._handoff.agent.id
        )
        self._ready.set()
        current = upstream
        while await self._carry(current):
            if self._upstream is current or self._upstream is None:  # otherwise a handoff has replaced it
                ending = await self._resumption.resume(current)
                if ending is not None:
                    self.end(ending)
                    return
            assert self._upstream is not None  # noqa: S101  # a handoff or `resume` has set it
            current = self._upstream

    async def _carry(self, upstream: UpstreamConnection) -> bool:
        """Carries one upstream's events until it is over or replaced; False: the client is gone."""
        socket = upstream.socket
        frames = socket.frames
        counters = self.counters
        socket.put_first(upstream.first)
        while self._upstream is upstream:
            if not frames:
                if socket.failure is not None:
                    return True
                await socket.wait()
                continue
            for event in self._handler.handle(socket.take(), upstream):
                self._sending = True
                if not await self._client.tell(event):
                    self.end(left(self._client.code))
                    return False
                self._sending = False
                counters.to_client_frames += 1
                counters.to_client_bytes += len(event)
        return True

    def _use(self, upstream: UpstreamConnection) -> None:
        self._upstream = upstream
        self._fast_path.join(upstream)
        self._resumption.begin(upstream)

    def _begin_answers(self, upstream: UpstreamConnection, steps: Sequence[Step]) -> None:
        """From now on this session is asked for answers; `steps` is what it was told of an earlier one."""

        def send(event: Mapping[str, Any]) -> None:
            text = compact(event)
            self._ledger.client_sent(event["type"], text, event)
            upstream.socket.send(self._restored.for_azure(text))

        asked = (step.request or {"event_id": ASK_ID} for step in steps if isinstance(step, Ask))
        self._answers.begin(
            upstream.route.dialect, send, asked=frozenset(str(event.get("event_id")) for event in asked)
        )

    def _begin_gap(self) -> None:
        """No session carries the talk: nothing of the last one reaches it any more."""
        self._upstream = None
        self._answers.cut()
        self._fast_path.join(None)

    def _hand_over(self, old: UpstreamConnection, new: UpstreamConnection, settings: dict[str, Any]) -> bool:
        """Moves the talk to another agent's session, which has these settings; False: the old one was lost meanwhile.

        What is open ends for the client. A question of whose answer nothing was heard is asked of the other agent.
        """
        if self._upstream is not old:
            return False
        ledger, now_s = self._ledger, self._loop.time()
        handover = ledger.cut(now_s, goes_on=False)
        self._turns.cut(handover.unsaid, now_s)
        ended: list[str] = []
        for event in handover.endings:
            ended += self._adapter.to_client(without_agents_settings(event), old.route.dialect)
        new.first[:0] = ended
        self._restored.begin()
        dialect = new.route.dialect
        self._answers.cut()
        steps = ledger.steps()
        made = replay(steps, NewSession(dialect, settings), old=old.route.dialect, restored=self._restored)
        ledger.moved(replayed_chars=made.committed_chars, listened_chars=made.open_chars)
        for message in made.messages:  # at once: nothing of the client's may come between
            new.socket.send(message)
        self._begin_answers(new, steps)
        self._use(new)
        return True

    def _on_garbage(self, upstream: UpstreamConnection) -> None:
        log.warning("azure_sent_no_event", session_id=self.owner.session_id)
        if self._upstream is upstream:
            if upstream.health is not None:
                upstream.health.failed(MalformedError("Azure sent something that is no event"))
            self._resumption.leave(upstream, "lost", "Azure sent something that is no event")

    # --- callbacks of the talk's parts

    def _report_lost_turn(self) -> None:
        if not self._over.done():
            self._tell(self._adapter.error(Refused("turn_lost", "the memory is full: a turn was not kept")))

    def _tell(self, text: str) -> None:
        """Sends the client an event after those that wait."""
        if self._upstream is not None:
            self._upstream.socket.put(text)
        else:
            self._resumption.tell_later(text)

    def _tell_call(self, tool: Tell) -> None:
        if tool.duration_ms is not None:
            self.counters.tool_calls += 1
            self.counters.tool_calls_failed += tool.state == "failed"
            log.info(
                "tool_called",
                session_id=self.owner.session_id,
                agent_id=self._handoff.agent.id,
                tool=tool.name,
                call_id=tool.call_id,
                state=tool.state,
                ms=round(tool.duration_ms),
            )
        if (text := self._adapter.called(tool)) is not None:
            self._tell(text)

    def _refuse(self, what: Refuse) -> None:
        refusal = Refused(what.code, what.message, event_id=what.event_id)
        self._tell(self._adapter.error(refusal, retryable=what.retryable))

    async def _run_call(self, call: Run) -> ToolOutput:
        name = call.tool.name
        if call.tool.by == "builtin" and name != "recall":
            return ToolOutput("This can't be done in this talk.", ok=False)
        if self._parts.tools is None:
            return ToolOutput("No tool can be used here.", ok=False)
        agent, owner = self._handoff.agent, self.owner
        made = ToolCall(owner.talk_id, call.azure_session, call.call_id, name, call.arguments, agent, owner)
        return await self._parts.tools.run(made)

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        def on_done(task: "asyncio.Task[None]") -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                self._fail(error)

        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(on_done)

    def _fail(self, error: BaseException) -> None:
        log.error("talk_failed", session_id=self.owner.session_id, error=type(error).__name__, exc_info=error)
        self.end(Ending(INTERNAL, "the broker failed: ask for a new plan"))

    # --- time and the end

    def _tick(self) -> None:
        """Checks everything that may take too long. One timer does it for all waits: a timeout a frame costs more."""
        snapshot = None
        now_s = self._loop.time()
        upstream, wire = self._upstream, self._client.wire
        if upstream is not None:
            snapshot = Snapshot(
                frames_from_client=self.counters.to_azure_frames,
                frames_to_client=self.counters.to_client_frames,
                pings=0 if wire is None else wire.pings,
                answering=self._turns.assembler.is_answering(now_s),
                sending=self._sending,
                azure_full=self._azure_full,
                azure=upstream.socket,
            )
        if (ending := self._watchdog.overdue(now_s, snapshot)) is not None:
            self.end(ending)
            return
        if upstream is not None and snapshot is not None:
            if self._watchdog.azure_is_dead(now_s, snapshot):
                self._resumption.fell_silent(upstream)
            else:
                self._resumption.tick(now_s, upstream, events=self._handler.events, sending=self._sending)
        self._turns.tell_due(now_s)
        self._ticker = self._loop.call_later(self._tick_s, self._tick)

    async def _finish(self, ending: Ending) -> None:
        """Closes the client, waits shortly for a transcript under way, keeps the turns that are left, closes Azure."""
        self._fast_path.join(None)
        self._answers.aclose()
        self._parts.counters.handoffs += self._handoff.count
        running: list[asyncio.Task[Any]] = [*self._tasks, *filter(None, [self._specs.recalling])]
        for task in running:
            task.cancel()
        await asyncio.wait(running)  # before closing: a task must not write to a socket that is being closed
        try:
            await self._client.close(*self._adapter.farewell(ending))
            if self._upstream is not None:
                await self._handler.await_last_transcript(self._upstream)
        finally:
            self._turns.flush()
            await self._resumption.aclose()
            if self._upstream is not None:
                await self._upstream.socket.aclose()
