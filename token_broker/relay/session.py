"""One proxied talk, from its admission to its last turn.

While both sides accept data, frames go from socket to socket (`relay.fast_path`). Two tasks carry everything else: one
reads the client, one sends Azure's events to it. Neither holds more than a few frames: the server stops reading the
client while we do not receive, and Azure's socket stops reading while the client does not accept its events. One timer
watches all waits. Where Azure's side is lost, the talk goes on in another session (`relay.resume`).
"""

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import structlog

from strategies.base import SessionSpec, SpecSupplier
from strategies.errors import MalformedError
from strategies.resources import Resource
from token_broker.relay.adapters import Answered, ProtocolAdapter, ToAzure
from token_broker.relay.answers.actions import Refuse
from token_broker.relay.answers.answer_retries import AnswerRetries
from token_broker.relay.answers.farewell import END_TALK_OUTPUT, Farewell, keys_of
from token_broker.relay.answers.greeting import greeting_response
from token_broker.relay.answers.hidden_calls import HiddenCalls
from token_broker.relay.answers.sequencer import AnswerSequencer
from token_broker.relay.answers.talk_answers import AnswerHooks, TalkAnswers
from token_broker.relay.answers.turn_clock import TurnClock, TurnLatency
from token_broker.relay.azure.connector import NoUpstreamError, UpstreamConnection
from token_broker.relay.client import TalkClient
from token_broker.relay.event_handler import EventHandler
from token_broker.relay.event_text import compact, event_type_by_head, parsed
from token_broker.relay.fast_path import FastPath
from token_broker.relay.guardrail.talk_guard import GuardHooks, NoHook, TalkGuard
from token_broker.relay.handoff import AgentHandoff, HandoffHooks
from token_broker.relay.policy.allowlist import Broken, Command, Refused, is_plain_append
from token_broker.relay.policy.visibility import without_agents_settings
from token_broker.relay.recalled.talk_memory import TalkMemory
from token_broker.relay.resume.held_audio import HeldAudio
from token_broker.relay.resume.history import Item
from token_broker.relay.resume.ledger import ASK_ID, TalkLedger
from token_broker.relay.resume.replay import NewSession, item_event, replay
from token_broker.relay.resume.restored import Restored
from token_broker.relay.resume.resumption import Resumption, TalkHooks
from token_broker.relay.resume.steps import Ask, Say, Step
from token_broker.relay.socket_talk import SocketTalk
from token_broker.relay.talk_parts import TalkParts
from token_broker.relay.transcripts.recorder import TurnRecorder
from token_broker.relay.watchdog import Snapshot
from token_broker.security.tokens import Owner
from token_broker.server.client_wire import IMAGE_FIELD
from token_broker.server.close_codes import (
    BAD_REQUEST,
    ENDED_BY_AGENT,
    Ending,
)
from token_broker.sessions.agents import Agent
from token_broker.sessions.plans import TalkSpecs
from token_broker.tools.runner import ToolOutput
from token_broker.usage.talk_usage import TalkUsage

__all__ = ["Talk"]

log = structlog.get_logger("token_broker.relay")

_AUDIO_CHARS_A_SECOND = 64_000  # base64 of PCM16 at 24 kHz, the richest of the formats
_HEAD_CHARS = 128
_GREETING_AFTER_S = 0.3  # for a client that sets its session first, such as its format, or says something itself


class Talk(SocketTalk):
    """A talk whose sound goes through the broker, in whatever dialect the client speaks."""

    audio_way = "in input_audio_buffer.append"
    _face: ProtocolAdapter
    _upstream: UpstreamConnection | None

    def __init__(
        self,
        parts: TalkParts,
        adapter: ProtocolAdapter,
        client: TalkClient,
        *,
        owner: Owner,
        agent: Agent,
        usage: TalkUsage | None = None,
        **about: Any,
    ) -> None:
        super().__init__(parts, adapter, client, owner=owner, agent=agent, usage=usage, **about)
        self._memory = TalkMemory(
            parts.recall,
            owner,
            agent=lambda: self._handoff.agent,
            tell=self._tell_note,
            start=self._start,
        )
        self._turns = TurnRecorder(
            owner,
            agent.id,
            ingest=self._memory.listening(parts.ingest),
            counters=self.counters,
            on_lost=self._tell_lost_turn,
            scope=secrets.token_hex(4),
        )
        self._specs = TalkSpecs(parts.settings, owner, None)
        self._ledger = TalkLedger(HeldAudio(round(parts.settings.resume_audio_s * _AUDIO_CHARS_A_SECOND)))
        self._restored = Restored()
        self._clock = TurnClock()
        # An official client asks again by itself.
        self._retries = AnswerRetries(asks=parts.settings.retry_failed_answer == "on" and adapter.dialect is None)
        self._handoff = AgentHandoff(
            agent,
            session_id=owner.session_id,
            agents=parts.agents,
            connector=parts.connector,
            turns=self._turns,
            hooks=HandoffHooks(
                supply=self._supply,
                changes=lambda: self._ledger.settings,
                start=self._start,
                move=self._hand_over,
                lost=lambda upstream: self._resumption.leave(upstream, "refused", "Azure did not change the agent"),
                tell=self._tell,
                switched=adapter.switched,
                send=self._send_context,
                want=lambda: self._answers.want("handoff"),
                changed=self._follow_agent,
                time_s=self._loop.time,
            ),
            timeout_s=parts.settings.proxy_connect_timeout_s,
        )
        self._farewell = Farewell()
        self._ledger.notes = self._memory.notes
        self._memory.begin()
        self._session: UpstreamConnection | None = None  # the one that is told things, also while it takes over
        sequencer = AnswerSequencer(
            self._calls.tools,
            facts=self._ledger.facts,
            holds=self._holds_answers,
            plays_until_s=lambda: self._turns.assembler.plays_until_s,
        )
        self._ledger.acting = lambda: sequencer.calls.is_acting
        self._answers = TalkAnswers(
            sequencer,
            AnswerHooks(tell=self._tell_call, refuse=self._tell_refusal, run=self._calls.run, start=self._start),
        )
        self._guard = TalkGuard(
            parts.guardrail or NoHook(),
            owner,
            agent,
            GuardHooks(
                send=self._send_own,
                forward=self._send_checked,
                want=lambda response: self._answers.want("guardrail", response),
                keep=lambda event: self._turns.feed(event, self._loop.time()),
                drop=self._turns.drop,
                refuse=lambda refusal: self._tell_refusal(Refuse(refusal.code, refusal.message, refusal.event_id)),
                instructions=lambda: self._ledger.facts.instructions,
                settled=self._answers.tick,
                start=self._start,
            ),
        )
        hidden = HiddenCalls(sequencer.is_clients, sequencer.calls.withholds)
        self._handler = EventHandler(
            adapter,
            owner,
            turns=self._turns,
            handoff=self._handoff,
            ledger=self._ledger,
            answers=self._answers,
            hidden=hidden,
            guard=self._guard,
            restored=self._restored,
            clock=self._clock,
            retries=self._retries,
            counters=parts.counters,
            talk=self.counters,
            broken=self._on_garbage,
            user_spoke=self._user_spoke,
            answered=self._note_answer,
            gives_no_answers=lambda upstream: self._resumption.leave(upstream, "refused", "Azure's answers fail"),
            time_s=self._loop.time,
            redact=parts.redact,
            usage=usage,
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
            supply=self._supply,
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

    def _follow_agent(self, agent: Agent) -> None:
        self._guard.follow(agent)
        if self._usage is not None:
            self._usage.handed_over(agent.id)

    @property
    def _agent_now(self) -> Agent:
        return self._handoff.agent

    # --- the client's side

    async def _take(self, text: str) -> None:
        if not self._ready.is_set():  # one message is held; the server reads no further meanwhile
            await self._ready.wait()
        upstream = self._upstream
        if upstream is None:  # Azure is being connected again
            await self._resumption.hold(text)
            return
        self._forward(text, upstream)
        if not is_plain_append(text):
            # The broker's own answers wait with Azure's events. A client that floods us with refused events and reads
            # none of the answers must not fill the queue.
            await upstream.socket.has_room()

    def _has_own_limit(self, text: str) -> bool:
        return IMAGE_FIELD.decode() in text

    def _forward(self, text: str, upstream: UpstreamConnection) -> None:
        """Handles a client's message: most go to Azure as they are."""
        if is_plain_append(text):
            upstream.socket.send(text)
            self._ledger.audio.append(text)
            return
        match self._face.from_client(text, upstream.route.dialect, self._handoff.agent.client_may_set):
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
                upstream.socket.put(self._face.error(Refused("unknown_event", "the broker knows no such event")))
            case Refused() as refusal:
                self.counters.refused_events += 1
                log.debug("client_event_refused", code=refusal.code, why=refusal.message)
                upstream.socket.put(self._face.error(refusal))
            case Broken(reason=reason):
                self.end(Ending(BAD_REQUEST, reason))

    def _send(self, message: str, upstream: UpstreamConnection) -> None:
        """Sends Azure an event of the client's, in Azure's dialect, and notes what is open because of it."""
        kind = event_type_by_head(message[:_HEAD_CHARS].encode()) or ""  # written here, the type in its head
        if kind == "input_audio_buffer.append":
            upstream.socket.send(message)
            self._ledger.audio.append(message)
            return
        event = parsed(message)
        if self._guard.admits(kind, event, len(message)):
            self._pass_on(kind, message, event, upstream)

    def _send_checked(self, event: Mapping[str, Any]) -> None:
        """Sends Azure an event of the client's that has waited for a verdict."""
        assert self._session is not None  # noqa: S101  # the guard lets nothing go on while none is there
        self._pass_on(event["type"], compact(event), dict(event), self._session)

    def _pass_on(self, kind: str, message: str, event: dict[str, Any], upstream: UpstreamConnection) -> None:
        if kind == "conversation.item.create" and (event.get("item") or {}).get("role") == "user":
            self._user_spoke()
        if not self._answers.admits(kind, event):
            self._answers.tick()
            return
        self._clock.client_sent(kind, event, self._loop.time())
        if kind == "conversation.item.truncate" and self._restored.answers_truncate(event.get("item_id")):
            # To Azure the item is text, which it does not truncate.
            self._ledger.truncate(event)
            upstream.socket.put(compact({**event, "type": "conversation.item.truncated"}))
            return
        if kind == "input_audio_buffer.commit" and self._upstream is None and self._ledger.hears_nothing:
            empty = Refused("input_audio_buffer_commit_empty", "there is no audio", event_id=event.get("event_id"))
            upstream.socket.put(self._face.error(empty))
            return
        self._ledger.client_sent(kind, message, event)
        if kind == "session.update":
            message = self._guard.for_azure(event, message)
        upstream.socket.send(self._restored.for_azure(message))
        self._answers.tick()

    # --- Azure's side

    async def _read_azure(self) -> None:
        """Connects, sends the client the opening, and carries events until Azure's side or the client's is over."""
        try:
            upstream = await self._parts.connector.connect(
                self._supply(self._handoff.agent),
                wanted=self._handoff.agent.wanted(self.owner.session_id),
                prefer=self._face.dialect,
            )
        except NoUpstreamError as error:
            self.end(error.ending)
            return
        self._begin_answers(upstream, ())
        for note in await self._memory.opening():
            self._tell_note(note)
        self._use(upstream)
        self._went_live(upstream.resource)
        self._start(self._greet(), "talk-greeting")
        upstream.first[:] = self._face.opening(
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
        socket.put_first(upstream.first)
        while self._upstream is upstream:
            if not frames:
                if socket.failure is not None:
                    return True
                await socket.wait()
                continue
            for event in self._handler.handle(socket.take(), upstream):
                if not await self._tell_client(event):
                    return False
        return True

    def _use(self, upstream: UpstreamConnection) -> None:
        self.book()
        self._upstream, self._resource = upstream, upstream.resource
        self._retries.begin_anew()
        if upstream.health is not None:
            upstream.health.was_asked = lambda: self._ledger.was_asked
        if self._usage is not None:
            self._usage.went_live(upstream.resource, upstream.route.dialect)
        self._fast_path.join(upstream)
        self._resumption.begin(upstream)

    def _supply(self, agent: Agent) -> SpecSupplier:
        """The agent's spec for a session over a socket, which answers nothing that its guardrail has not seen."""
        supply = self._specs.of(agent)

        async def held(resource: Resource) -> SessionSpec:
            return replace(await supply(resource), holds_answers=True)

        return supply if agent.guardrail is None else held

    async def _greet(self) -> None:
        """Has the agent speak first, once a talk, unless the user does."""
        greeting = self._handoff.agent.greeting
        if greeting is None or not self._greets():
            return
        await asyncio.sleep(_GREETING_AFTER_S)
        if self._handoff.agent.greeting == greeting:
            self._answers.want("greeting", greeting_response(greeting, self._ledger.facts.instructions))

    def _send_own(self, event: Mapping[str, Any]) -> None:
        """Sends Azure an event of the broker's own that another session would have to be told."""
        assert self._session is not None  # noqa: S101  # nobody sends while none is there
        text = compact(event)
        self._ledger.client_sent(event["type"], text, event)
        self._session.socket.send(self._restored.for_azure(text))

    def _send_context(self, event: Mapping[str, Any]) -> None:
        """Tells this session of Azure's something that neither the client nor another session needs."""
        if self._session is not None:
            self._restored.expect_item(event["item"]["id"], event["item"]["id"])
            self._session.socket.send(compact(event))

    def _user_spoke(self) -> None:
        self._handoff.user_spoke()
        self._retries.user_spoke()
        self._farewell.take_back()

    def _note_answer(self, turn: TurnLatency, upstream: UpstreamConnection) -> None:
        latency_ms = self._parts.note_answer(
            turn, transport=self._face.transport, agent_id=self._handoff.agent.id, resource=upstream.resource
        )
        self.turn_latencies_ms.append(latency_ms)

    def _holds_answers(self) -> bool:
        """Whether no answer may be asked for now, whatever is due."""
        if self._ledger.holds_speech or self._guard.is_checking or self._handoff.holds:
            return True
        if not self._farewell.is_asked:
            return False
        return self._farewell.holds(keys_of(self._answers.sequencer.calls), spoke=self._ledger.last_spoke)

    def _tell_note(self, note: Item) -> None:
        """Tells the session what the memory knows; the next one is told it again."""
        if self._session is not None:
            self._restored.expect_note(note.item_id)
            self._session.socket.send(item_event(note, note.item_id, self._session.route.dialect))

    def _begin_answers(self, upstream: UpstreamConnection, steps: Sequence[Step]) -> None:
        """From now on this session is asked for answers; `steps` is what it was told of an earlier one."""
        self._session = upstream
        asked = (step.request or {"event_id": ASK_ID} for step in steps if isinstance(step, Ask))
        self._answers.begin(
            upstream.route.dialect, self._send_own, asked=frozenset(str(event.get("event_id")) for event in asked)
        )
        self._guard.begin()
        told = {step.item.item_id for step in steps if isinstance(step, Say)}
        for note in self._memory.notes():
            if note.item_id not in told:  # a search has found it since the steps were made
                self._tell_note(note)

    def _begin_gap(self) -> None:
        """No session carries the talk: nothing of the last one reaches it any more."""
        self._upstream = self._session = None
        self._clock.cut()
        self._answers.cut()
        self._guard.cut()
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
            ended += self._face.to_client(without_agents_settings(event), old.route.dialect)
        new.first[:0] = ended
        self._restored.begin()
        dialect = new.route.dialect
        self._clock.cut()
        self._answers.cut()
        self._guard.cut()
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

    def _tell(self, text: str) -> None:
        """Sends the client an event after those that wait."""
        if self._upstream is not None:
            self._upstream.socket.put(text)
        else:
            self._resumption.tell_later(text)

    async def _run_builtin(self, name: str, arguments: str, call_id: str) -> ToolOutput:
        if name == "handoff":
            return ToolOutput(*self._handoff.request_by_model(arguments))
        self._farewell.ask(call_id)
        return ToolOutput(END_TALK_OUTPUT, ok=True)

    # --- time and the end

    def _is_answering(self, now_s: float) -> bool:
        return self._turns.assembler.is_answering(now_s)

    def _look(self, now_s: float, snapshot: Snapshot | None) -> None:
        self._turns.tell_due(now_s)
        upstream = self._upstream
        if upstream is not None and snapshot is not None:
            answering = self._answers.sequencer.is_answering
            if self._farewell.is_over(
                now_s,
                keys_of(self._answers.sequencer.calls),
                answering=answering,
                spoke=self._ledger.last_spoke,
                plays_until_s=self._turns.assembler.plays_until_s,
            ):
                self.end(ENDED_BY_AGENT)
                return
            if self._handoff.holds and not answering:
                self._handoff.is_quiet(upstream)
            self._handoff.tick(now_s, upstream)
            if self._watchdog.azure_is_dead(now_s, snapshot):
                self._resumption.fell_silent(upstream)
            else:
                self._resumption.tick(now_s, upstream, events=self._handler.events, sending=self._sending)

    def _stop(self) -> None:
        self._fast_path.join(None)
        self._answers.aclose()
        self._guard.aclose()
        self._parts.counters.handoffs += self._handoff.count
        if self._memory.recalling is not None:
            self._tasks.add(self._memory.recalling)

    async def _release(self) -> None:
        """Waits shortly for a transcript under way, keeps the turns that are left, and closes Azure's side."""
        try:
            if self._upstream is not None:
                await self._handler.await_last_transcript(self._upstream)
        finally:
            self._turns.flush()
            self.book()
            await self._resumption.aclose()
            if self._upstream is not None:
                self._upstream.socket.on_late = partial(self._handler.count_late, self._upstream)
                await self._upstream.socket.aclose()
