"""One talk with GPT-Live over a WebSocket of the broker's, from its admission to its last turn.

The client's events go to Azure where they are permitted, Azure's to the client without what is the agent's. Where a
session is lost or expires, the talk goes on in another one that is told what was said. Times are of the loop's clock.
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Any

import structlog

from strategies.errors import MalformedError, TransientError
from strategies.session_model.live_session import delegates_to_responses
from token_broker.relay.answers.agent_calls import HANDED_OVER
from token_broker.relay.answers.farewell import END_TALK_OUTPUT
from token_broker.relay.answers.turn_clock import TurnLatency
from token_broker.relay.azure.route import NoUpstreamError
from token_broker.relay.client import TalkClient
from token_broker.relay.event_text import compact, event_of, event_type
from token_broker.relay.live.azure_session import LiveUpstream, LiveUpstreams
from token_broker.relay.live.client_policy import AUDIO_APPEND, examine_live, wanted_format
from token_broker.relay.live.delegations import Delegations, greeting_appends
from token_broker.relay.live.faces import LiveFace
from token_broker.relay.live.goodbye import Goodbye
from token_broker.relay.live.session_events import LiveEvents
from token_broker.relay.live.spoken_turns import LiveTurns
from token_broker.relay.policy.allowlist import Broken, Command, Refused
from token_broker.relay.socket_talk import SocketTalk
from token_broker.relay.talk_parts import TalkParts
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
from token_broker.tools.runner import ToolOutput
from token_broker.usage.talk_usage import TalkUsage

__all__ = ["LiveTalk", "history_items"]

log = structlog.get_logger("token_broker.relay")

_RESUMES_AT_MOST = 3
_RESUMES_WITHIN_S = 60.0
_MOVES_BEFORE_S = 60.0  # the end of a session
_MOVES_SURELY_S = 10.0
_TURNS_TOLD = 20
_START_S = 20.0  # for a client that begins with its `session.start`
_LAST_WORD_S = 1.5  # for Azure's `session.closed`, which has the seconds that it bills
_CLOSE = compact({"type": "session.close", "event_id": "broker_close"})
_EXPIRED = "expired"
_OWN_HEAD = '{"type":"broker.'
_AUDIO_HEAD = f'{{"type":"{AUDIO_APPEND}"'
_AUDIO_CHARS_A_SECOND = 64_000  # base64 of PCM16 at 24 kHz, the richest of the formats
_GAP_CHARS = 65_536  # of everything else


def history_items(turns: LiveTurns) -> list[dict[str, Any]]:
    """What was said, as a session is told it at its start."""
    parts = {"user": "input_text", "assistant": "output_text"}
    return [
        {"type": "message", "role": role, "content": [{"type": parts[role], "text": text}]}
        for role, text in turns.history[-_TURNS_TOLD:]
    ]


class LiveTalk(SocketTalk):
    """A talk with GPT-Live, whose sound goes through the broker."""

    audio_way = f"in {AUDIO_APPEND}"
    _face: LiveFace
    _upstream: LiveUpstream | None

    def __init__(
        self,
        parts: TalkParts,
        upstreams: LiveUpstreams,
        face: LiveFace,
        client: TalkClient,
        *,
        owner: Owner,
        agent: Agent,
        usage: TalkUsage | None = None,
        **about: Any,
    ) -> None:
        super().__init__(parts, face, client, owner=owner, agent=agent, usage=usage, **about)
        self._upstreams = upstreams
        self._specs = TalkSpecs(parts.settings, owner, parts.recall)
        self._backend = False
        self._format: Mapping[str, Any] | None = None
        self._started: asyncio.Future[None] = self._loop.create_future()  # the client's `session.start` has come
        self._resumes: deque[float] = deque(maxlen=_RESUMES_AT_MOST)
        self._held: deque[str] = deque()  # what the client sent while no session was there
        self._held_at_most = round(parts.settings.resume_audio_s * _AUDIO_CHARS_A_SECOND) + _GAP_CHARS
        self._history: list[dict[str, Any]] = []  # of the sessions before this one
        self._closing = False  # the client has asked for it
        self._moving = False
        self._goodbye = Goodbye()
        self._source = LiveTurns()
        delegations = Delegations(
            agent,
            self._calls,
            send=self._send,
            tell=self._tell_call,
            words=self._source.take_words,
            typed=self._keep_typed,
            start=self._start,
        )
        self._events = LiveEvents(
            parts,
            owner,
            agent.id,
            TurnRecorder(
                owner, agent.id, ingest=parts.ingest, counters=self.counters, on_lost=self._tell_lost_turn,
                source=self._source,
            ),
            self._source,
            delegations,
            self.counters,
            self._note_wait,
            self._loop.time,
            usage,
        )  # fmt: skip

    # --- the client's side

    async def _take(self, text: str) -> None:
        if not self._started.done() and self._face.starts:
            self._take_start(text)
            return
        await self._started
        self._forward(text)

    def _take_start(self, text: str) -> None:
        """A client's first event. Of its session the audio format counts, where the agent lets it say that."""
        event = event_of(text)
        if event is None or event.get("type") != "session.start":
            self.end(Ending(BAD_REQUEST, "the first event has to be a session.start"))
            return
        if "formats" in self._agent.client_may_set:
            self._format = wanted_format(event)
        self._started.set_result(None)

    def _forward(self, text: str) -> None:
        if self._upstream is None and not self._has_room(text):
            self._refuse(Refused("gap_full", "Azure is being connected again, and too much waits for it"))
            return
        found = examine_live(text, self._events.delegations, backend=self._backend)
        if isinstance(found, Broken):
            self.end(Ending(BAD_REQUEST, found.reason))
        elif isinstance(found, Command):
            self._refuse(Refused("unknown_event", "in a talk with GPT-Live there is no such event: ask for a new plan"))
        elif isinstance(found, Refused):
            self._refuse(found)
        elif self._upstream is None:
            self._held.append(found)
            while sum(map(len, self._held)) > self._held_at_most:
                self._held.remove(next(each for each in self._held if each.startswith(_AUDIO_HEAD)))
        elif found:
            self._closing |= found.startswith('{"type":"session.close"')
            self._upstream.socket.send(found)

    def _has_room(self, text: str) -> bool:
        """Whether an event can wait for the next session: of speech the latest does, of all else what fits."""
        is_audio = event_type(text) == AUDIO_APPEND
        return is_audio or sum(map(len, self._held)) + len(text) <= self._held_at_most

    def _refuse(self, refusal: Refused) -> None:
        self.counters.refused_events += 1
        log.debug("client_event_refused", code=refusal.code, why=refusal.message)
        self._tell(self._face.error(refusal))

    # --- Azure's side

    async def _read_azure(self) -> None:
        if self._face.starts:
            try:
                async with asyncio.timeout(_START_S):
                    await self._started
            except TimeoutError:
                self.end(Ending(BAD_REQUEST, "no session.start has come"))
                return
        try:
            upstream = await self._connect()
        except NoUpstreamError as error:
            self.end(error.ending)
            return
        self._went_live(upstream.resource)
        opening = self._face.opening(upstream, session_id=self.owner.session_id, agent_id=self.agent_id)
        upstream.socket.put_first(opening)
        if self._agent.greeting is not None and self._greets():
            for event in greeting_appends(self._agent.greeting):
                self._send(event)
        if not self._started.done():
            self._started.set_result(None)
        self._ready.set()
        while await self._carry(upstream):
            again = await self._resume(upstream)
            if again is None:
                return
            upstream = again

    async def _connect(self, *, running: bool = False) -> LiveUpstream:
        """A session for this talk; from now on it carries the talk."""
        also: dict[str, Any] = {} if self._format is None else {"audio": {"format": dict(self._format)}}
        if self._history:
            also["input"] = self._history
        supply = self._specs.of(self._agent)
        upstream = await self._upstreams.start(
            supply, wanted=self._agent.wanted(self.owner.session_id, running=running), also=also
        )
        self._backend = delegates_to_responses(await supply(self._parts.connector.resource(upstream.resource)))
        self.book()
        self._upstream, self._resource = upstream, upstream.resource
        self._events.begin(upstream.resource, upstream.session_id)
        if self._usage is not None:
            self._usage.went_live(upstream.resource, "live")
        return upstream

    async def _carry(self, upstream: LiveUpstream) -> bool:
        """Carries one session's events until it is over. False: the talk is over, too."""
        socket = upstream.socket
        while self._upstream is upstream:
            if not socket.frames:
                if socket.failure is not None:
                    return not self._closing or self._ended_by_client()
                await socket.wait()
                continue
            text = socket.take()
            events = [text] if text.startswith(_OWN_HEAD) else self._events.handle(text)
            if events is None:
                upstream.health.failed(MalformedError("Azure sent something that is no event"))
                return True
            if self._source.is_answering(self._loop.time()):
                upstream.health.works()
            if self._source.awaits_user:
                self._goodbye.take_back()
            for event in events:
                if not await self._tell_client(event):
                    return False
            if (closed := self._events.closed) is not None:
                return self._after_close(closed)
        return True

    def _ended_by_client(self) -> bool:
        self.end(Ending(DONE, "the client closed the session", ends_talk=True, by_client=True, outcome="hung_up"))
        return False

    def _after_close(self, closed: Mapping[str, Any]) -> bool:
        """Whether the talk goes on in another session, since Azure has closed this one."""
        reason = closed.get("reason")
        if self._closing:
            return self._ended_by_client()
        if reason == "content":
            why = "Azure ended the session: its content filter"
            self.end(Ending(UPSTREAM_FAILED, why, "content_filter", ends_talk=True, told=True))
            return False
        return True

    async def _resume(self, lost: LiveUpstream) -> LiveUpstream | None:
        """Another session for a talk whose session is gone; None: the talk is over."""
        now_s = self._loop.time()
        closed = self._events.closed or {}
        is_expiry = closed.get("reason") == _EXPIRED or self._moving
        reason = "expiring" if is_expiry else "lost"
        self._upstream, self._moving = None, False
        await lost.socket.aclose()
        self._events.turns.cut(frozenset(), now_s)
        self._history = history_items(self._source)  # what is typed from now on, the next session gets for itself
        recent = [at_s for at_s in self._resumes if now_s - at_s < _RESUMES_WITHIN_S]
        if len(recent) >= _RESUMES_AT_MOST:
            self.end(Ending(UPSTREAM_FAILED, "Azure's side breaks again and again: ask for a new plan"))
            return None
        self._resumes.append(now_s)
        log.info("talk_resuming", session_id=self.owner.session_id, reason=reason, resource=lost.resource)
        if (told := self._face.resuming(reason)) is not None and not await self._tell_client(told):
            return None
        try:
            upstream = await self._connect(running=True)
        except NoUpstreamError as error:
            self._parts.counters.count_resume(lost.resource, "failed")
            self.end(error.ending)
            return None
        self._parts.counters.count_resume(lost.resource, reason)
        for text in self._held:
            upstream.socket.send(text)
        self._held.clear()
        if (told := self._face.resumed(upstream)) is not None and not await self._tell_client(told):
            return None
        return upstream

    # --- callbacks of the talk's parts

    def _send(self, event: Mapping[str, Any]) -> None:
        """Sends Azure an event of the broker's own; while no session is there, it is of no use."""
        if self._upstream is not None:
            self._upstream.socket.send(compact(event))

    def _tell(self, text: str) -> None:
        """Sends the client an event after those that wait."""
        if self._upstream is not None and self._upstream.socket.failure is None:
            self._upstream.socket.put(text)
        else:

            async def tell() -> None:
                await self._tell_client(text)

            self._start(tell(), "live-tell")

    async def _run_builtin(self, name: str, arguments: str, call_id: str) -> ToolOutput:
        del call_id
        agent_id = (event_of(arguments) or {}).get("agent_id")
        named = agent_id if isinstance(agent_id, str) and agent_id in self._agent.handoff_ids else None
        if name == "handoff" and named is not None and (told := self._face.switching(named)) is not None:
            self._tell(told)  # a session of GPT-Live's keeps its instructions and voice: the page takes a new plan
            return HANDED_OVER
        if name != "end_talk":
            return ToolOutput("This can't be done in this talk. Go on yourself.", ok=False)
        self._goodbye.ask(self._loop.time())
        return ToolOutput(END_TALK_OUTPUT, ok=True)

    def _keep_typed(self, text: str, item_id: str | None) -> None:
        self._goodbye.take_back()
        self._events.typed(text, item_id)

    def _note_wait(self, turn: TurnLatency) -> str | None:
        latency_ms = self._parts.note_answer(
            turn, transport=self._face.transport, agent_id=self.agent_id, resource=self._resource
        )
        self.turn_latencies_ms.append(latency_ms)
        return self._face.answered(turn)

    # --- time and the end

    def _is_answering(self, now_s: float) -> bool:
        return self._source.is_answering(now_s)

    def _look(self, now_s: float, snapshot: Snapshot | None) -> None:
        upstream = self._upstream
        if upstream is None or snapshot is None:
            return
        if self._goodbye.is_over(now_s, agent_until_s=self._source.plays_until_s):
            self.end(ENDED_BY_AGENT)
            return
        if self._watchdog.azure_is_dead(now_s, snapshot):
            upstream.health.failed(TransientError("Azure fell silent"))
            self._start(upstream.socket.aclose(graceful=False), "live-silent")
        self._move_before_end(now_s, upstream, quiet=not snapshot.answering and not self._source.awaits_user)
        for told in self._events.tick():
            self._tell(told)

    def _stop(self) -> None:
        """Nothing but tasks could begin anything."""

    def _move_before_end(self, now_s: float, upstream: LiveUpstream, *, quiet: bool) -> None:
        """Leaves a session that ends soon, at a pause."""
        if upstream.expires_s is None or self._moving or self._events.delegations.is_acting:
            return
        left_s = upstream.expires_s - now_s
        if left_s <= _MOVES_SURELY_S or (left_s <= _MOVES_BEFORE_S and quiet):
            self._moving = True
            upstream.socket.send(_CLOSE)

    async def _release(self) -> None:
        """Closes the session, which says what it billed, and keeps the turns that are left."""
        if self._upstream is not None:
            await self._close(self._upstream)
        self._events.turns.flush()
        self.book()

    async def _close(self, upstream: LiveUpstream) -> None:
        socket = upstream.socket
        try:
            if socket.failure is None and self._events.closed is None:
                socket.send(_CLOSE)
                async with asyncio.timeout(_LAST_WORD_S):
                    while self._events.closed is None:
                        await socket.wait()
                        if not socket.frames:
                            break
                        self._events.handle(socket.take())
        except TimeoutError:
            pass
        finally:
            await socket.aclose()
