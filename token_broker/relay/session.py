"""One proxied talk, from its admission to its last turn.

While both sides accept data, frames go from socket to socket (`relay.fast_path`). Two tasks carry everything else: one
reads the client, one sends Azure's events to it. Neither holds more than a few frames: the server stops reading the
client while we do not receive, and Azure's socket stops reading while the client does not accept its events. One timer
watches all waits.
"""

import asyncio
import secrets
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import structlog

from token_broker.memory.types import Recall, TurnIngest
from token_broker.relay.adapters import Answered, ProtocolAdapter, ToAzure
from token_broker.relay.azure.connector import NoUpstreamError, UpstreamConnection, UpstreamConnector
from token_broker.relay.client import TalkClient
from token_broker.relay.counters import RelayCounters, TalkCounters
from token_broker.relay.event_handler import EventHandler
from token_broker.relay.fast_path import FastPath
from token_broker.relay.handoff import AgentHandoff
from token_broker.relay.policy.allowlist import Broken, Command, Refused, is_plain_append
from token_broker.relay.transcripts.recorder import TurnRecorder
from token_broker.relay.watchdog import Snapshot, Watchdog, tick_s
from token_broker.security.tokens import Owner
from token_broker.server.client_wire import IMAGE_FIELD
from token_broker.server.close_codes import (
    BAD_REQUEST,
    DRAINING,
    INTERNAL,
    TOO_LARGE,
    UPSTREAM_FAILED,
    Ending,
    left,
)
from token_broker.sessions.agents import Agent, AgentRegistry
from token_broker.sessions.plans import TalkSpecs
from token_broker.settings import Settings

__all__ = ["Talk", "TalkParts"]

log = structlog.get_logger("token_broker.relay")


@dataclass(frozen=True, slots=True)
class TalkParts:
    """What all talks share. `redact` removes the secrets that are known now from a text."""

    settings: Settings
    agents: AgentRegistry
    connector: UpstreamConnector
    ingest: TurnIngest
    recall: Recall
    counters: RelayCounters
    redact: Callable[[str], str]


class Talk:
    """One accepted client's talk. `run` returns when the talk is over and nothing is left open."""

    def __init__(
        self, parts: TalkParts, adapter: ProtocolAdapter, client: TalkClient, *, owner: Owner, agent: Agent
    ) -> None:
        self.counters = TalkCounters()
        self._parts = parts
        self._adapter = adapter
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
        self._handoff = AgentHandoff(
            agent,
            agents=parts.agents,
            connector=parts.connector,
            turns=self._turns,
            supply=self._specs.of,
            start=self._start,
            move=self._use,
        )
        self._handler = EventHandler(
            adapter,
            owner,
            turns=self._turns,
            handoff=self._handoff,
            counters=parts.counters,
            talk=self.counters,
            end=self.end,
            time_s=self._loop.time,
            redact=parts.redact,
        )
        self._fast_path = FastPath(
            client.wire,
            forwards=self._handler.forwards,
            handle=self._handler.handle,
            counters=self.counters,
            failed=self._fail,
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
            assert upstream is not None  # noqa: S101  # set before `_ready`
            if is_plain_append(text):
                upstream.socket.send(text)
            else:
                self._on_event(text, upstream)
                # The broker's own answers wait with Azure's events. A client that floods us with refused events and
                # reads none of the answers must not fill the queue.
                await upstream.socket.has_room()
            if not upstream.socket.writable:
                self._azure_full = True
                await upstream.socket.drained()
                self._azure_full = False

    def _on_event(self, text: str, upstream: UpstreamConnection) -> None:
        match self._adapter.from_client(text, upstream.route.dialect):
            case ToAzure(texts=checked, left_out=left_out, told=told):
                self.counters.fields_left_out += left_out
                for error in told:
                    upstream.socket.put(error)
                for message in checked:
                    upstream.socket.send(message)
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

    # --- Azure's side

    async def _read_azure(self) -> None:
        """Connects, sends the client the opening, and carries events until Azure's side or the client's is over."""
        try:
            upstream = await self._parts.connector.connect(
                self._specs.of(self._handoff.agent), prefer=self._adapter.dialect
            )
        except NoUpstreamError as error:
            self.end(error.ending)
            return
        self._use(upstream)
        self._parts.counters.ready += 1
        upstream.first[:] = self._adapter.opening(
            upstream, session_id=self.owner.session_id, agent_id=self._handoff.agent.id
        )
        self._ready.set()
        while (current := self._upstream) is not None and await self._carry(current):
            if self._upstream is current:  # otherwise a handoff has replaced it
                self.end(Ending(UPSTREAM_FAILED, f"{current.socket.failure}: ask for a new plan"))
                return

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

    # --- callbacks of the talk's parts

    def _report_lost_turn(self) -> None:
        if self._upstream is not None and not self._over.done():
            self._upstream.socket.put(
                self._adapter.error(Refused("turn_lost", "the memory is full: a turn was not kept"))
            )

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
                expires_s=upstream.expires_s,
                sending=self._sending,
                azure_full=self._azure_full,
                azure=upstream.socket,
            )
            if (left_s := self._watchdog.to_announce_s(now_s, upstream.expires_s)) is not None:
                log.info("session_expiring", session_id=self.owner.session_id, left_s=round(left_s))
                if (told := self._adapter.announce_end(left_s)) is not None:
                    upstream.socket.put(told)
        if (ending := self._watchdog.overdue(now_s, snapshot)) is not None:
            self.end(ending)
            return
        self._turns.tell_due(now_s)
        self._ticker = self._loop.call_later(self._tick_s, self._tick)

    async def _finish(self, ending: Ending) -> None:
        """Closes the client, waits shortly for a transcript under way, keeps the turns that are left, closes Azure."""
        self._fast_path.join(None)
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
            if self._upstream is not None:
                await self._upstream.socket.aclose()
