"""One proxied talk, from its admission to its last turn.

While everybody takes what comes, frames go from socket to socket (`relay.direct`). For all else two tasks carry it,
however many frames there are: one reads the client, one carries Azure's events to it. Neither holds more than a few
frames: the server reads no further while we do not receive, and Azure's socket pauses while the client does not take
what it has. All that waits is watched by one timer.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import structlog

from strategies.base import SessionSpec
from token_broker.memory.types import Owner, Recall, TurnIngest
from token_broker.relay.adapters import Answered, ProtocolAdapter, ToAzure
from token_broker.relay.azure.connector import NoUpstreamError, SpecSupplier, Upstream, UpstreamConnector
from token_broker.relay.client import Client
from token_broker.relay.counters import RelayCounters, TalkCounters
from token_broker.relay.event_handler import EventReader
from token_broker.relay.fast_path import FastPath
from token_broker.relay.handoff import AgentHandoff
from token_broker.relay.policy.allowlist import Broken, Command, Refused, is_plain_append
from token_broker.relay.transcripts.recorder import TurnRecorder
from token_broker.relay.watchdog import Snapshot, Watchdog, tick_s
from token_broker.server.close_codes import (
    BAD_REQUEST,
    DRAINING,
    INTERNAL,
    TOO_LARGE,
    UPSTREAM_FAILED,
    Ending,
    left,
)
from token_broker.sessions.agents import Agent, AgentRegistry, session_spec
from token_broker.settings import Settings

__all__ = ["Talk", "TalkParts"]

log = structlog.get_logger("token_broker.relay")


@dataclass(frozen=True, slots=True)
class TalkParts:
    """What all talks share. `redact` takes the secrets that are known now out of a text."""

    settings: Settings
    agents: AgentRegistry
    connector: UpstreamConnector
    ingest: TurnIngest
    recall: Recall
    counters: RelayCounters
    redact: Callable[[str], str]


class Talk:
    """One accepted client's talk. `run` returns when all is over and nothing is left open.

    `front` is how it speaks to its client.
    """

    def __init__(
        self, parts: TalkParts, adapter: ProtocolAdapter, client: Client, *, owner: Owner, agent: Agent
    ) -> None:
        self.counters = TalkCounters()
        self._parts = parts
        self._adapter = adapter
        self.owner = owner
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[Ending] = self._loop.create_future()
        self._ready = asyncio.Event()
        self._upstream: Upstream | None = None
        self._turns = TurnRecorder(
            owner, agent.id, ingest=parts.ingest, counters=self.counters, on_lost=self._tell_lost
        )
        self._recalled: asyncio.Task[str] = asyncio.create_task(parts.recall.block(owner), name="talk-recall")
        self._tasks: set[asyncio.Task[None]] = set()
        self._switch = AgentHandoff(
            agent,
            agents=parts.agents,
            connector=parts.connector,
            turns=self._turns,
            supply=self._supply,
            start=self._start,
            move=self._move,
        )
        self._reader = EventReader(
            adapter,
            owner,
            turns=self._turns,
            switch=self._switch,
            counters=parts.counters,
            talk=self.counters,
            end=self.end,
            time_s=self._loop.time,
            redact=parts.redact,
        )
        self._direct = FastPath(client.wire, self._reader, counters=self.counters, failed=self._fail)
        self._tick_s = tick_s(parts.settings)
        self._watchdog = Watchdog(parts.settings, self._loop.time())
        self._sending = False
        self._azure_full = False

    def end(self, ending: Ending) -> None:
        """Ends the talk for this reason, unless it is ending already."""
        if not self._over.done():
            self._over.set_result(ending)

    async def run(self) -> Ending:
        """Carries the talk to its end, and returns that."""
        self._start(self._read_client(), "talk-client")
        self._start(self._carry(), "talk-azure")
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
            if not self._ready.is_set():
                await self._ready.wait()
            text = message.get("text")
            if text is None:
                self.end(Ending(BAD_REQUEST, "text messages only: audio travels in input_audio_buffer.append"))
                return
            if len(text) > longest:
                self.end(Ending(TOO_LARGE, "a message was too large"))
                return
            counters.to_azure_frames += 1
            counters.to_azure_bytes += len(text)
            upstream = self._upstream
            assert upstream is not None  # noqa: S101  # set before ready
            if is_plain_append(text):
                upstream.socket.send(text)
            else:
                self._on_event(text, upstream)
                await upstream.socket.has_room()
            if not upstream.socket.writable:
                self._azure_full = True
                await upstream.socket.drained()
                self._azure_full = False

    def _on_event(self, text: str, upstream: Upstream) -> None:
        match self._adapter.from_client(text, upstream.route.dialect):
            case ToAzure(texts=checked, left_out=left_out):
                self.counters.fields_left_out += left_out
                for message in checked:
                    upstream.socket.send(message)
            case Answered(text=answer):
                upstream.socket.put(answer)
            case Command(event={"type": "broker.agent.switch"} as event):
                self._switch.ask(event, upstream)
            case Command():
                self.counters.refused_events += 1
                upstream.socket.put(self._adapter.error("unknown_event", "the broker knows no such event"))
            case Refused(code=code, message=message):
                self.counters.refused_events += 1
                log.debug("client_event_refused", code=code, why=message)
                upstream.socket.put(self._adapter.error(code, message))
            case Broken(reason=reason):
                self.end(Ending(BAD_REQUEST, reason))

    # --- Azure's side

    async def _carry(self) -> None:
        """Connects, says `broker.ready`, and carries events until Azure's side is over."""
        try:
            self._upstream = await self._parts.connector.connect(
                self._supply(self._switch.agent), prefer=self._adapter.dialect
            )
        except NoUpstreamError as error:
            self.end(error.ending)
            return
        self._direct.join(self._upstream)
        self._parts.counters.ready += 1
        self._upstream.first[:] = self._adapter.opening(
            self._upstream, session_id=self.owner.session_id, agent_id=self._switch.agent.id
        )
        self._ready.set()
        while True:
            upstream = self._upstream
            if not await self._pump(upstream):
                return
            if self._upstream is upstream:
                self.end(Ending(UPSTREAM_FAILED, f"{upstream.socket.failure}: ask for a new plan"))
                return

    async def _pump(self, upstream: Upstream) -> bool:
        """Carries one upstream's events until it is over or another has taken its place; False: the client is gone."""
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
            for event in self._reader.told(socket.take(), upstream):
                self._sending = True
                if not await self._client.tell(event):
                    self.end(left(self._client.code))
                    return False
                self._sending = False
                counters.to_client_frames += 1
                counters.to_client_bytes += len(event)
        return True

    # --- what the talk is made of

    def _move(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._direct.join(upstream)

    def _supply(self, agent: Agent) -> SpecSupplier:
        """The agent's spec with what was recalled for this talk, which is asked for once."""

        async def supply() -> SessionSpec:
            return session_spec(agent, self._parts.settings, recalled=await asyncio.shield(self._recalled))

        return supply

    def _tell_lost(self) -> None:
        if self._upstream is not None and not self._over.done():
            self._upstream.socket.put(self._adapter.error("turn_lost", "the memory is full: a turn was not kept"))

    # --- watching

    def _tick(self) -> None:
        """Looks at everything that may take too long, once in a while."""
        now_s = self._loop.time()
        if (ending := self._watchdog.overdue(now_s, self._snapshot())) is not None:
            self.end(ending)
            return
        self._turns.tell_due(now_s)
        self._ticker = self._loop.call_later(self._tick_s, self._tick)

    def _snapshot(self) -> Snapshot | None:
        if self._upstream is None:
            return None
        return Snapshot(
            frames_from_client=self.counters.to_azure_frames,
            frames_to_client=self.counters.to_client_frames,
            sending=self._sending,
            azure_full=self._azure_full,
            azure=self._upstream.socket,
        )

    # --- the end

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        log.error("talk_failed", session_id=self.owner.session_id, error=type(error).__name__, exc_info=error)
        self.end(Ending(INTERNAL, "the broker failed: ask for a new plan"))

    async def _finish(self, ending: Ending) -> None:
        """Closes the client, waits shortly for words that are being transcribed, keeps what is left, closes Azure."""
        self._direct.join(None)
        self._parts.counters.switches += self._switch.count
        running: list[asyncio.Task[Any]] = [*self._tasks, self._recalled]
        for task in running:
            task.cancel()
        await asyncio.wait(running)
        try:
            await self._client.close(*self._adapter.farewell(ending))
            if self._upstream is not None:
                await self._reader.hear_last_words(self._upstream)
        finally:
            self._turns.flush()
            if self._upstream is not None:
                await self._upstream.socket.aclose()
