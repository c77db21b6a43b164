"""What every talk over a WebSocket of the broker's has: a client that is read and told, tasks, a watch, and an end.

The kinds of talk differ in what they make of a client's message, and in what carries the talk at Azure's side.
"""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, Protocol

import structlog

from token_broker.relay.answers.actions import Refuse, Tell
from token_broker.relay.answers.agent_calls import AgentCalls
from token_broker.relay.azure.socket import AzureSocket
from token_broker.relay.client import TalkClient
from token_broker.relay.counters import TURNS_KEPT, TalkCounters
from token_broker.relay.policy.allowlist import Refused
from token_broker.relay.talk_parts import TalkParts
from token_broker.relay.watchdog import Snapshot, Watchdog, tick_s
from token_broker.security.tokens import Owner
from token_broker.server.close_codes import BAD_REQUEST, DRAINING, INTERNAL, TOO_LARGE, Ending, left
from token_broker.sessions.agents import Agent
from token_broker.tools.runner import ToolOutput
from token_broker.usage.talk_usage import TalkUsage

__all__ = ["SocketTalk", "TalkFace"]

log = structlog.get_logger("token_broker.relay")


class TalkFace(Protocol):
    """How a talk speaks to its client, as far as every kind of talk does."""

    transport: str

    def error(self, refusal: Refused, *, retryable: bool = False) -> str:
        """The event that says that something failed, or was refused, and the talk goes on."""
        ...

    def called(self, tool: Tell) -> str | None:
        """The event that says what becomes of a call of a tool, where this client knows one."""
        ...

    def farewell(self, ending: Ending) -> tuple[Ending, str | None]:
        """How the client's socket is closed, and the last event before that, where there is one."""
        ...


class Upstream(Protocol):
    """What carries a talk at Azure's side."""

    @property
    def socket(self) -> AzureSocket:
        """Azure's end of it."""
        ...

    @property
    def resource(self) -> str:
        """The name of the resource that it is at."""
        ...


class SocketTalk(ABC):
    """One accepted client's talk. `run` returns when the talk is over and nothing is left open.

    `on_live` is told the resource that carries the talk first, `greets` says whether the agent speaks first now, and
    `leash` is `Leash.hold` of this talk, which is `age_s` old already; `idle_s` is another bound of its silence.
    """

    audio_way: ClassVar[str]
    """How a client's sound travels, since it does not as bytes."""

    def __init__(
        self,
        parts: TalkParts,
        face: TalkFace,
        client: TalkClient,
        *,
        owner: Owner,
        agent: Agent,
        on_live: Callable[[str], None] = lambda _resource: None,
        greets: Callable[[], bool] = lambda: True,
        usage: TalkUsage | None = None,
        leash: Callable[..., Coroutine[Any, Any, None]] | None = None,
        age_s: float = 0.0,
        idle_s: float | None = None,
    ) -> None:
        self.counters = TalkCounters()
        self.turn_latencies_ms: deque[float] = deque(maxlen=TURNS_KEPT)
        self.owner = owner
        self._parts = parts
        self._face = face
        self._client = client
        self._agent = agent
        self._on_live = on_live
        self._greets = greets
        self._usage = usage
        self._leash = leash
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[Ending] = self._loop.create_future()
        self._ready = asyncio.Event()  # the client has been told that there is a talk
        self._upstream: Upstream | None = None
        self._resource = ""  # which carries the talk, or did last
        self._tasks: set[asyncio.Task[Any]] = set()
        self._calls = AgentCalls(parts.tools, owner, lambda: self._agent_now, self.counters, builtin=self._run_builtin)
        self._tick_s = tick_s(parts.settings)
        self._watchdog = Watchdog(
            parts.settings, self._loop.time(), longest_s=owner.narrowed.max_session_s, age_s=age_s, idle_s=idle_s
        )
        self._sending = self._azure_full = False

    @property
    def _agent_now(self) -> Agent:
        return self._agent

    @property
    def agent_id(self) -> str:
        """The agent that speaks now, or spoke last."""
        return self._agent_now.id

    def end(self, ending: Ending) -> None:
        """Ends the talk for this reason, unless it is ending already."""
        if not self._over.done():
            self._over.set_result(ending)

    def book(self) -> None:
        """Counts what was relayed for the resource that carries the talk."""
        if self._resource:
            self._parts.counters.book(self.counters, self._resource)

    async def run(self) -> Ending:
        """Carries the talk to its end, and returns the reason."""
        self._start(self._read_client(), "talk-client")
        self._start(self._read_azure(), "talk-azure")
        if self._leash is not None:
            self._start(self._leash(warn=self._warn_of_budget, end=self._watchdog.end_softly), "talk-budget")
        self._ticker = self._loop.call_later(self._tick_s, self._tick)
        ending = Ending(DRAINING, "the broker is going away: ask for a new plan", outcome="drain")
        try:
            ending = await asyncio.shield(self._over)
        finally:
            self._ticker.cancel()
            self._stop()
            running = list(self._tasks)
            for task in running:
                task.cancel()
            if running:
                await asyncio.wait(running)  # before closing: a task must not write to a socket that is being closed
            try:
                await self._client.close(*self._face.farewell(ending))
            finally:
                await self._release()
        return ending

    # --- what the kinds of talk do

    @abstractmethod
    async def _take(self, text: str) -> None:
        """Handles a client's message; the next one is read when this one is done with."""

    @abstractmethod
    async def _read_azure(self) -> None:
        """Connects, and carries Azure's events until the talk is over."""

    @abstractmethod
    def _tell(self, text: str) -> None:
        """Sends the client an event after those that wait."""

    @abstractmethod
    async def _run_builtin(self, name: str, arguments: str, call_id: str) -> ToolOutput:
        """Runs a tool that the broker itself has."""

    @abstractmethod
    def _is_answering(self, now_s: float) -> bool:
        """Whether an answer is being made, or played."""

    @abstractmethod
    def _look(self, now_s: float, snapshot: Snapshot | None) -> None:
        """Checks what may take too long; `snapshot` is None while no session of Azure's carries the talk."""

    @abstractmethod
    def _stop(self) -> None:
        """The talk is over: nothing is begun any more."""

    @abstractmethod
    async def _release(self) -> None:
        """Keeps what is left of the talk, and closes Azure's side; the client's is closed."""

    # --- the client's side

    async def _read_client(self) -> None:
        longest = self._parts.settings.client_message_bytes
        while not self._over.done():
            message = await self._client.receive()
            if message["type"] == "websocket.disconnect":
                self._client.gone = True
                self.end(left(message.get("code")))
                return
            text = message.get("text")
            if text is None:
                self.end(Ending(BAD_REQUEST, f"text messages only: audio travels {self.audio_way}"))
                return
            if len(text) > longest and not self._has_own_limit(text):
                self.end(Ending(TOO_LARGE, "a message was too large"))
                return
            self.counters.to_azure_frames += 1
            self.counters.to_azure_bytes += len(text)
            await self._take(text)
            upstream = self._upstream
            if upstream is not None and not upstream.socket.writable:
                self._azure_full = True
                await upstream.socket.drained()
                self._azure_full = False

    def _has_own_limit(self, text: str) -> bool:
        del text
        return False

    async def _tell_client(self, text: str) -> bool:
        """Sends the client an event at once, waiting until it accepts it. False: it is gone, and the talk is over."""
        self._sending = True
        if not await self._client.tell(text):
            self.end(left(self._client.code))
            return False
        self._sending = False
        self.counters.to_client_frames += 1
        self.counters.to_client_bytes += len(text)
        return True

    def _tell_call(self, tool: Tell) -> None:
        self._calls.note(tool)
        if self._usage is not None and tool.duration_ms is not None:
            self._usage.tool_ran()
        if (text := self._face.called(tool)) is not None:
            self._tell(text)

    def _tell_refusal(self, what: Refuse) -> None:
        refusal = Refused(what.code, what.message, event_id=what.event_id)
        self._tell(self._face.error(refusal, retryable=what.retryable))

    def _tell_lost_turn(self) -> None:
        if not self._over.done():
            self._tell(self._face.error(Refused("turn_lost", "the memory is full: a turn was not kept")))

    def _warn_of_budget(self) -> None:
        async def warn() -> None:
            await self._ready.wait()  # nothing is told before
            why = "the budget of today is nearly used up: the talk ends soon"
            self._tell(self._face.error(Refused("budget_used", why)))

        self._start(warn(), "talk-budget-warning")

    # --- tasks and time

    def _went_live(self, resource: str) -> None:
        self._parts.counters.ready += 1
        self._parts.counters.use_of(resource).ready += 1
        self._on_live(resource)

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

    def _tick(self) -> None:
        """Checks everything that may take too long. One timer does it for all waits: a timeout a frame costs more."""
        now_s = self._loop.time()
        snapshot = self._snapshot(now_s)
        if (ending := self._watchdog.overdue(now_s, snapshot)) is not None:
            self.end(ending)
        else:
            self._look(now_s, snapshot)
        if not self._over.done():
            self._ticker = self._loop.call_later(self._tick_s, self._tick)

    def _snapshot(self, now_s: float) -> Snapshot | None:
        if self._upstream is None:
            return None
        return Snapshot(
            frames_from_client=self.counters.to_azure_frames,
            frames_to_client=self.counters.to_client_frames,
            pings=0 if self._client.wire is None else self._client.wire.pings,
            answering=self._is_answering(now_s),
            sending=self._sending,
            azure_full=self._azure_full,
            azure=self._upstream.socket,
        )
