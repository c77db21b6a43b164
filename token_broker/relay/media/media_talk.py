"""One talk by WebRTC whose signalling the broker holds, from its offer to its last turn.

The client's WebSocket carries its offer, its events and the broker's; Azure's control socket carries Azure's. Media,
and most of what Azure tells of answers, go straight to the page (docs/azure.md §12.1). Socket and call live in this
process: a lost control socket ends the connection, and the client takes a new plan.
"""

import asyncio
import math
import secrets
from collections.abc import Mapping
from functools import partial
from typing import Any

import structlog

from strategies.session_model.running_session import agents_session
from token_broker.observability.logging import audit_changed_call
from token_broker.relay.adapters import Answered, ToAzure
from token_broker.relay.answers.agent_calls import HANDED_OVER
from token_broker.relay.answers.farewell import END_TALK_OUTPUT, keys_of
from token_broker.relay.answers.greeting import greeting_response
from token_broker.relay.answers.sequencer import ACTIVE_ALREADY, AnswerSequencer
from token_broker.relay.answers.talk_answers import AnswerHooks, TalkAnswers
from token_broker.relay.azure.connector import NoUpstreamError
from token_broker.relay.azure.route import UpstreamConnection
from token_broker.relay.client import TalkClient
from token_broker.relay.counters import USAGE_EVENTS
from token_broker.relay.dialects.broker_events import OWN_EVENT_IDS
from token_broker.relay.event_text import SESSION_EVENTS, compact, event_of, event_type
from token_broker.relay.guardrail.client_words import words_of
from token_broker.relay.handoff import switch_refusal
from token_broker.relay.media.call_goodbye import CallGoodbye
from token_broker.relay.media.call_offers import CREATED, CallOffer, read_offer
from token_broker.relay.media.control_answers import ControlAnswers
from token_broker.relay.media.control_socket import CALL_ERROR, CallConnector, harmless_error
from token_broker.relay.media.kept_settings import RESTORE_ID, KeptSettings
from token_broker.relay.media.media_adapter import MediaAdapter
from token_broker.relay.policy.allowlist import Broken, Command, Refused
from token_broker.relay.policy.visibility import without_agents_settings, without_quoted_secrets
from token_broker.relay.resume.session_facts import SessionFacts
from token_broker.relay.socket_talk import SocketTalk
from token_broker.relay.talk_parts import TalkParts
from token_broker.relay.transcripts.assembler import TURN_EVENTS
from token_broker.relay.transcripts.failed_answers import failed_answer, log_failed_answer
from token_broker.relay.transcripts.recorder import TurnRecorder
from token_broker.relay.watchdog import Snapshot
from token_broker.security.tokens import Owner
from token_broker.server.close_codes import (
    BAD_REQUEST,
    DONE,
    ENDED_BY_AGENT,
    UPSTREAM_FAILED,
    Ending,
)
from token_broker.sessions.agents import Agent
from token_broker.sessions.plans import TalkSpecs
from token_broker.tools.guardrail import WordSource
from token_broker.tools.runner import ToolOutput
from token_broker.usage.talk_usage import TalkUsage

__all__ = ["MediaTalk"]

log = structlog.get_logger("token_broker.relay")

_OFFER_S = 15.0  # a page gathers its candidates for three seconds at most
_GREETING_AFTER_S = 1.0  # the peers connect meanwhile
_LIFE_S = 3600.0  # of a session of which Azure does not say when it ends
_EXPIRES_SOON_S = 60.0
_CHECKS_AT_MOST = 32  # of the guardrail, at once; each has a bound of its own
_OF_USE = ("response.", "conversation.item.", "input_audio_buffer.", "output_audio_buffer.")
_TRANSCRIBED = "conversation.item.input_audio_transcription.completed"
_SAID = frozenset(
    {
        "response.audio_transcript.done",
        "response.output_audio_transcript.done",
        "response.text.done",
        "response.output_text.done",
    }
)
_NO_OFFER = Ending(BAD_REQUEST, "no offer came in time")
_LOST = Ending(UPSTREAM_FAILED, "the control socket to Azure was lost: ask for a new plan", outcome="lost")
_EXPIRED = Ending(UPSTREAM_FAILED, "Azure has ended the session: ask for a new plan", outcome="lost")
_BROKE = Ending(UPSTREAM_FAILED, "Azure has ended the call: ask for a new plan", outcome="lost")
_GARBAGE = Ending(UPSTREAM_FAILED, "Azure sent something that is no event: ask for a new plan")
_CHANGED = Ending(DONE, "its client changed the agent's session again and again", ends_talk=True)


class MediaTalk(SocketTalk):
    """A talk whose sound goes by WebRTC between page and Azure. The page measures how long its answers take."""

    audio_way = "over the peer connection"
    _face: MediaAdapter
    _upstream: UpstreamConnection | None

    def __init__(
        self,
        parts: TalkParts,
        adapter: MediaAdapter,
        client: TalkClient,
        *,
        calls: CallConnector,
        owner: Owner,
        agent: Agent,
        usage: TalkUsage,
        **about: Any,
    ) -> None:
        idle_s = parts.settings.call_idle_s
        super().__init__(parts, adapter, client, owner=owner, agent=agent, usage=usage, idle_s=idle_s, **about)
        self._connector = calls
        usage.is_measured = False  # Azure tells the page alone what an answer costs
        self._usage: TalkUsage = usage
        self._offer: asyncio.Future[CallOffer] = self._loop.create_future()
        self._offer_by_s = self._loop.time() + _OFFER_S
        self._specs = TalkSpecs(parts.settings, owner, parts.recall)
        self._turns = TurnRecorder(
            owner, agent.id, ingest=parts.ingest, counters=self.counters, on_lost=self._tell_lost_turn
        )
        self._facts = SessionFacts()
        self._kept = KeptSettings({})
        self._goodbye = CallGoodbye()
        self._guardrail = None if agent.guardrail is None else parts.guardrail
        self._concluded = ControlAnswers()
        self._concluding: asyncio.TimerHandle | None = None
        self._answers = TalkAnswers(
            AnswerSequencer(
                self._calls.tools,
                facts=self._facts,
                holds=lambda: self._goodbye.holds(keys_of(self._answers.sequencer.calls)),
                page_writes=True,
            ),
            AnswerHooks(tell=self._tell_call, refuse=self._tell_refusal, run=self._calls.run, start=self._start),
        )
        self._heard = 0
        self._expires_s: float | None = None

    # --- the client's side

    async def _take(self, text: str) -> None:
        if not self._offer.done():
            offer = read_offer(text)
            if isinstance(offer, str):
                self.end(Ending(BAD_REQUEST, offer))
            else:
                self._offer.set_result(offer)
            return
        if not self._ready.is_set():  # one message is held; the server reads no further meanwhile
            await self._ready.wait()
        upstream = self._upstream
        assert upstream is not None  # noqa: S101  # set before `ready`
        self._forward(text, upstream)
        await upstream.socket.has_room()

    def _forward(self, text: str, upstream: UpstreamConnection) -> None:
        """Handles a client's message."""
        match self._face.from_client(text, upstream.route.dialect, self._agent.client_may_set):
            case ToAzure(texts=checked, left_out=left_out, told=told):
                self.counters.fields_left_out += left_out
                for error in told:
                    upstream.socket.put(error)
                for message in checked:
                    self._send_clients(message, upstream)
            case Answered(text=answer):
                upstream.socket.put(answer)
            case Command(event={"type": "broker.agent.switch"} as event):
                refusal = switch_refusal(event, self._parts.agents, self._agent)
                told_of = self._face.switching(event["agent_id"]) if refusal is None else self._face.error(refusal)
                upstream.socket.put(told_of)
            case Command():
                self.counters.refused_events += 1
                upstream.socket.put(self._face.error(Refused("unknown_event", "the broker knows no such event")))
            case Refused() as refusal:
                self.counters.refused_events += 1
                log.debug("client_event_refused", code=refusal.code, why=refusal.message)
                upstream.socket.put(self._face.error(refusal))
            case Broken(reason=reason):
                self.end(Ending(BAD_REQUEST, reason))

    def _send_clients(self, message: str, upstream: UpstreamConnection) -> None:
        event = event_of(message) or {}
        kind, item = str(event.get("type")), event.get("item")
        if kind == "conversation.item.create" and isinstance(item, dict) and item.get("role") == "user":
            self._goodbye.user_spoke()
            self._show_guardrail(words_of(event), "typed")
            if not item.get("id"):  # Azure would give one, and perhaps tell the page alone
                item["id"] = f"item_{secrets.token_hex(12)}"
                message = compact(event)
        if self._answers.admits(kind, event):
            self._concluded.sent(event, self._loop.time())
            upstream.socket.send(message)
            if kind == "conversation.item.create":  # whether Azure has it is told on the data channel, if at all
                self._turns.feed({"type": "conversation.item.created", "item": item}, self._loop.time())
        self._answers.tick()
        self._conclude()

    # --- Azure's side

    async def _read_azure(self) -> None:
        """Makes the call, sends the client the opening, and carries events until either side is over."""
        offer = await self._offer
        agent = self._agent
        supply = self._specs.of(agent)
        try:
            upstream = await self._connector.call(
                supply, offer, wanted=agent.wanted(self.owner.session_id), on_answer=self._tell_at_once
            )
        except NoUpstreamError as error:
            self.end(error.ending)
            return
        self._upstream, self._resource = upstream, upstream.resource
        if upstream.session:  # otherwise it is stated at Azure
            spec = await supply(self._parts.connector.resource(upstream.resource))
            own = agents_session(spec, upstream.route.dialect, without=agent.client_may_set)
            self._kept = KeptSettings({name: own[name] for name in own if name in upstream.session})
        life_s = self._loop.time() + _LIFE_S if upstream.expires_s is None else upstream.expires_s
        self._expires_s = life_s
        self._usage.went_live(upstream.resource, upstream.route.dialect)
        self._went_live(upstream.resource)
        self._answers.begin(upstream.route.dialect, self._send_own)
        upstream.socket.put_first(
            self._face.opening(upstream, session_id=self.owner.session_id, agent_id=self.agent_id)
        )
        self._ready.set()
        self._start(self._greet(), "talk-greeting")
        if await self._carry(upstream):
            self.end(_LOST)

    async def _carry(self, upstream: UpstreamConnection) -> bool:
        """Carries the upstream's events until it is over; False: the client is gone."""
        socket = upstream.socket
        while True:
            if not socket.frames:
                if socket.failure is not None:
                    return True
                await socket.wait()
                continue
            for event in self._handle(socket.take(), upstream):
                if not await self._tell_client(event):
                    return False

    async def _tell_at_once(self, text: str) -> None:
        await self._tell_client(text)

    def _handle(self, text: str, upstream: UpstreamConnection) -> list[str]:
        """Notes what an event means to the talk. Returns what the client is sent."""
        kind = event_type(text)
        if kind is not None and kind.startswith("broker."):
            return [text]
        event = event_of(text)
        if kind is None or event is None:
            log.warning("azure_sent_no_event", session_id=self.owner.session_id)
            self.end(_GARBAGE)
            return []
        if kind.startswith(_OF_USE):
            self._heard += 1
        if kind == CREATED:
            return []
        if kind == CALL_ERROR:
            log.warning("call_broke", session_id=self.owner.session_id, resource=upstream.resource)
            self.end(_BROKE)
            return [harmless_error(event)]
        dialect, now_s = upstream.route.dialect, self._loop.time()
        self._note_words(kind, event)
        for told in self._concluded.azure_sent(event, now_s):
            self._answers.azure_sent(told)
        self._conclude()
        if kind in SESSION_EVENTS:
            self._facts.note(event.get("session"))
        if kind == "session.updated":
            self._keep_session(event.get("session"), upstream)
        elif kind == "error":
            if upstream.health is not None:
                upstream.health.told_error(event.get("error"))
            if self._is_own(event.get("error")):
                return []
        self._usage.azure_sent(event, resource=upstream.resource, dialect=dialect)
        if kind in USAGE_EVENTS:
            self._parts.counters.count_usage_of(
                event,
                principal=self.owner.principal,
                agent_id=self.agent_id,
                talk=self.counters,
                resource=upstream.resource,
            )
        if kind in TURN_EVENTS:
            self._turns.feed(event, now_s)
        events = self._shown(kind, text, event, upstream)
        if kind in _SAID:
            self._answer_was_said(str(event.get("response_id")), upstream, now_s)
        elif kind == "response.done" and (failed := failed_answer(event)) is not None:
            self._parts.counters.count_failed_answer(failed, self.counters, resource=upstream.resource)
            if upstream.health is not None and failed.status == "failed":
                upstream.health.answer_failed(failed.code)
            log_failed_answer(failed, self.owner, self.agent_id)
            events.append(self._face.error(Refused("answer_failed", failed.message), retryable=failed.retryable))
        return events

    def _shown(self, kind: str, text: str, event: dict[str, Any], upstream: UpstreamConnection) -> list[str]:
        """The event without the agent's own, and without secrets that an error may quote."""
        shown = without_quoted_secrets(without_agents_settings(event), self._parts.redact)
        if shown is not event or self._face.reads(kind, upstream.route.dialect):
            return self._face.to_client(shown, upstream.route.dialect, text=text if shown is event else None)
        return [text]

    def _answer_was_said(self, response_id: str, upstream: UpstreamConnection, now_s: float) -> None:
        """An answer's words are complete: here that is all that is heard of its end."""
        done = {"type": "response.done", "response": {"id": response_id, "status": "completed"}}
        self._turns.feed(done, now_s)
        self._usage.azure_sent(done, resource=upstream.resource, dialect=upstream.route.dialect)
        if upstream.health is not None:
            upstream.health.works()

    def _note_words(self, kind: str, event: Mapping[str, Any]) -> None:
        """Notes who says something, and shows the guardrail what the user says. It holds nothing up."""
        response_id = str(event.get("response_id"))
        if kind == "input_audio_buffer.speech_started":
            self._goodbye.user_spoke()
        elif kind == _TRANSCRIBED:
            self._show_guardrail(event.get("transcript"), "speech")
        elif kind in _SAID:
            self._goodbye.agent_said(response_id, event.get("transcript") or event.get("text"), self._loop.time())
        elif kind == "response.function_call_arguments.done":
            self._goodbye.called(response_id)

    def _is_own(self, error: Any) -> bool:
        """Whether Azure's error is about an event of the broker's, and so is not the client's; or ends the session."""
        error = error if isinstance(error, dict) else {}
        event_id, code = error.get("event_id"), error.get("code")
        if code == "session_expired":
            self.end(_EXPIRED)
            return True
        if not isinstance(event_id, str) or not event_id.startswith(OWN_EVENT_IDS):
            return False
        if code != ACTIVE_ALREADY:
            log.warning("own_event_refused", event_id=event_id[:64], code=code if isinstance(code, str) else None)
        if event_id.startswith(RESTORE_ID):
            self._end_changed()
        return True

    def _keep_session(self, stated: object, upstream: UpstreamConnection) -> None:
        """Puts the agent's session back where the page has changed it, and ends a talk whose page goes on with that."""
        update = self._kept.restoring(stated)
        if update is not None and self._kept.is_hopeless:
            self._end_changed()
        elif update is not None:
            upstream.socket.send(update)

    def _end_changed(self) -> None:
        self._parts.counters.calls_ended += 1
        audit_changed_call(
            principal=self.owner.principal,
            session_id=self.owner.session_id,
            agent_id=self.agent_id,
            changes=self._kept.changes,
        )
        self.end(_CHANGED)

    # --- answers and tools

    def _conclude(self) -> None:
        """Has the sequencer told what can be concluded, now and when it is due next."""
        now_s = self._loop.time()
        if self._concluding is not None:
            self._concluding.cancel()
            self._concluding = None
        while self._concluded.due_s <= now_s:
            for event in self._concluded.due(now_s):
                self._answers.azure_sent(event)
        if self._over.done() or (due_s := self._concluded.due_s) == math.inf:
            return
        self._concluding = self._loop.call_at(due_s, self._conclude)

    def _send_own(self, event: Mapping[str, Any]) -> None:
        assert self._upstream is not None  # noqa: S101  # nothing is asked before it is there
        self._concluded.sent(event, self._loop.time())
        self._upstream.socket.send(compact(event))
        self._loop.call_soon(self._conclude)

    async def _run_builtin(self, name: str, arguments: str, call_id: str) -> ToolOutput:
        if name == "end_talk":
            self._goodbye.ask(call_id, self._loop.time())
            return ToolOutput(END_TALK_OUTPUT, ok=True)
        agent_id = (event_of(arguments) or {}).get("agent_id")
        if name == "handoff" and isinstance(agent_id, str) and agent_id in self._agent.handoff_ids:
            # A voice can't change in a call, and a new plan ends this one, with whatever still runs in it.
            self._answers.once_answered(partial(self._tell, self._face.switching(agent_id)))
            return HANDED_OVER
        return ToolOutput("This can't be done in this call. Go on yourself.", ok=False)

    async def _greet(self) -> None:
        """Has the agent speak first, once a talk, unless the user does."""
        greeting = self._agent.greeting
        if greeting is not None and self._greets():
            await asyncio.sleep(_GREETING_AFTER_S)
            self._answers.want("greeting", greeting_response(greeting, self._facts.instructions))

    def _show_guardrail(self, words: object, source: WordSource) -> None:
        guardrail = self._guardrail
        if guardrail is None or not isinstance(words, str) or not words.strip():
            return
        if len(self._tasks) >= _CHECKS_AT_MOST:
            return

        async def check() -> None:
            verdict = await guardrail.check(self._agent, self.owner, words, source)
            if verdict.action != "allow":
                about = {"session_id": self.owner.session_id, "agent_id": self.agent_id}
                log.warning("guardrail_not_enforced", **about, action=verdict.action, source=source)

        self._start(check(), "talk-guardrail")

    # --- callbacks of the talk's parts

    def _tell(self, text: str) -> None:
        """Sends the client an event after those that wait."""
        if self._upstream is not None:
            self._upstream.socket.put(text)

    # --- time and the end

    @property
    def _signs_of_life(self) -> int:
        return self._heard  # what Azure tells: the client itself is silent while it talks

    def _is_answering(self, now_s: float) -> bool:
        acting = self._answers.sequencer.calls.is_acting or now_s < self._goodbye.plays_until_s
        return acting or self._turns.assembler.is_answering(now_s)

    def _look(self, now_s: float, snapshot: Snapshot | None) -> None:
        self._turns.tell_due(now_s)
        if not self._offer.done() and now_s >= self._offer_by_s:
            self.end(_NO_OFFER)
        if snapshot is None:
            return
        sequencer = self._answers.sequencer
        if self._goodbye.is_over(now_s, keys_of(sequencer.calls), answering=sequencer.is_answering):
            self.end(ENDED_BY_AGENT)
        elif self._watchdog.azure_is_dead(now_s, snapshot):
            self.end(_LOST)
        elif self._expires_s is not None and (left_s := self._expires_s - now_s) <= _EXPIRES_SOON_S:
            self._expires_s = None
            self._tell(self._face.expiring(max(0.0, left_s)))

    def _stop(self) -> None:
        self._answers.aclose()
        if self._concluding is not None:
            self._concluding.cancel()

    async def _release(self) -> None:
        """Keeps the turns that are left, and ends the call: its control socket is closed."""
        self._turns.flush()
        self.book()
        if self._upstream is not None:
            await self._upstream.socket.aclose()
