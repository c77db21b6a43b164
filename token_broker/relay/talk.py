"""One proxied talk, from its admission to its last turn.

Two tasks carry it, however many frames there are: one reads the client, one carries Azure's events to it. Neither
holds more than a few frames: the server reads no further while we do not receive, and Azure's socket pauses while the
client does not take what it has. All that waits is watched by one timer.
"""

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog

from strategies.base import SessionSpec
from token_broker.agents import Agent, AgentBook, session_spec
from token_broker.memory.base import Owner, Recall, Turn, TurnIntake
from token_broker.relay.closing import (
    BAD_REQUEST,
    CLIENT_STALLED,
    DONE,
    DRAINING,
    INTERNAL,
    TOO_LARGE,
    UPSTREAM_FAILED,
    Ending,
)
from token_broker.relay.counters import RelayCounters, TalkCounters
from token_broker.relay.events import (
    OWN_EVENT_IDS,
    broker_error,
    broker_event,
    history_item,
    new_agent_update,
)
from token_broker.relay.policy import (
    Broken,
    Command,
    Passed,
    Refused,
    event_type,
    is_plain_append,
    judge,
    without_secrets,
)
from token_broker.relay.turns import TURN_EVENTS, FinishedTurn, TurnAssembler
from token_broker.relay.upstreams import NoUpstreamError, SpecSupplier, Upstream, UpstreamConnector
from token_broker.settings import Settings

__all__ = ["Talk", "TalkParts"]

log = structlog.get_logger("token_broker.relay")

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
GiveUp = Callable[[int, str], None]

_AUDIO_DELTAS = frozenset({"response.audio.delta", "response.output_audio.delta"})
_SESSION_EVENTS = frozenset({"session.created", "session.updated"})
_READ_EVENTS = TURN_EVENTS | _SESSION_EVENTS | {"error"}
_LAST_WORDS_S = 2.0
_CLOSE_S = 1.0
_HISTORY_TURNS = 20
_LONGEST_TICK_S = 1.0

_LEFT = Ending(DONE, "the client left")


@dataclass(frozen=True, slots=True)
class TalkParts:
    """What all talks share."""

    settings: Settings
    agents: AgentBook
    connector: UpstreamConnector
    intake: TurnIntake
    recall: Recall
    counters: RelayCounters


@dataclass(frozen=True, slots=True)
class _Switch:
    """A change of agent that Azure has still to confirm."""

    agent: Agent
    event_id: str


class Talk:
    """One accepted client's talk. `run` returns when all is over and nothing is left open.

    `give_up` closes the client's socket without waiting for it to read; None where the server has no such thing.
    """

    def __init__(
        self, parts: TalkParts, *, owner: Owner, agent: Agent, receive: Receive, send: Send, give_up: GiveUp | None
    ) -> None:
        self.counters = TalkCounters()
        self._parts = parts
        self._owner = owner
        self._agent = agent
        self._receive = receive
        self._send = send
        self._give_up = give_up
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[Ending] = self._loop.create_future()
        self._ready = asyncio.Event()
        self._client_gone = False
        self._upstream: Upstream | None = None
        self._turns = TurnAssembler()
        self._history: deque[FinishedTurn] = deque(maxlen=_HISTORY_TURNS)
        self._recalled: asyncio.Task[str] = asyncio.create_task(parts.recall.block(owner), name="talk-recall")
        self._switch: _Switch | None = None
        self._moving: asyncio.Task[None] | None = None
        self._switches = 0
        self._own_items: set[str] = set()
        self._tick_s = _tick_s(parts.settings)
        self._began_s = self._loop.time()
        self._watch = _Watch(self._began_s)
        self._sending = False
        self._azure_full = False

    def end(self, ending: Ending) -> None:
        """Ends the talk for this reason, unless it is ending already."""
        if not self._over.done():
            self._over.set_result(ending)

    async def run(self) -> Ending:
        """Carries the talk to its end, and returns that."""
        tasks = [
            self._start(self._read_client(), "talk-client"),
            self._start(self._carry(), "talk-azure"),
        ]
        self._ticker = self._loop.call_later(self._tick_s, self._tick)
        ending = Ending(DRAINING, "the broker is going away: ask for a new plan")
        try:
            ending = await asyncio.shield(self._over)
        finally:
            self._ticker.cancel()
            await self._finish(ending, tasks)
        return ending

    # --- the client's side

    async def _read_client(self) -> None:
        receive = self._receive
        counters = self.counters
        longest = self._parts.settings.client_message_bytes
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                self._client_gone = True
                code = message.get("code")
                self.end(Ending(TOO_LARGE, "a message was too large") if code == TOO_LARGE else _LEFT)
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
        match judge(text):
            case Passed(text=checked):
                upstream.socket.send(checked)
            case Command(event=event):
                self._on_command(event, upstream)
            case Refused(code=code, message=message):
                upstream.socket.put(broker_error(code, message))
            case Broken(reason=reason):
                self.end(Ending(BAD_REQUEST, reason))

    def _on_command(self, event: MutableMapping[str, Any], upstream: Upstream) -> None:
        if event["type"] != "broker.agent.switch":
            upstream.socket.put(broker_error("unknown_event", "the broker knows no such event"))
            return
        agent_id = event.get("agent_id")
        agent = self._parts.agents.get(agent_id) if isinstance(agent_id, str) else None
        if agent is None:
            known = ", ".join(self._parts.agents.ids)
            upstream.socket.put(broker_error("unknown_agent", f"there is no such agent; the known ones are {known}"))
        elif self._switch is not None or self._moving is not None:
            upstream.socket.put(broker_error("switch_pending", "another change of agent is under way", retryable=True))
        else:
            self._switches += 1
            dialect = upstream.route.dialect
            if agent.voices[dialect] != self._agent.voices[dialect]:
                self._moving = self._start(self._move(agent, upstream), "talk-move")
            else:
                self._moving = self._start(self._retell(agent, upstream), "talk-retell")

    # --- Azure's side

    async def _carry(self) -> None:
        """Connects, says `broker.ready`, and carries events until Azure's side is over."""
        try:
            self._upstream = await self._parts.connector.connect(self._supply(self._agent))
        except NoUpstreamError as error:
            self.end(error.ending)
            return
        self._parts.counters.ready += 1
        route = self._upstream.route
        self._upstream.first.insert(
            0,
            broker_event(
                "broker.ready",
                session_id=self._owner.session_id,
                agent_id=self._agent.id,
                dialect=route.dialect,
                upstream=route.name,
            ),
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
        send = self._send
        socket = upstream.socket
        frames = socket.frames
        counters = self.counters
        for text in reversed(upstream.first):
            frames.appendleft(text)
        while self._upstream is upstream:
            if not frames:
                if socket.failure is not None:
                    return True
                await socket.wait()
                continue
            text = socket.take()
            kind = event_type(text)
            if kind in _AUDIO_DELTAS:
                self._turns.heard(len(text) - text.find('"delta"'), self._loop.time())
            elif kind in _READ_EVENTS or kind is None:
                shown = self._read(kind, text)
                if shown is None:
                    continue
                text = shown
            self._sending = True
            try:
                await send({"type": "websocket.send", "text": text})
            except (OSError, RuntimeError):  # closed under our hands: what the server says of a client that left
                self._client_gone = True
                self.end(_LEFT)
                return False
            self._sending = False
            counters.to_client_frames += 1
            counters.to_client_bytes += len(text)
        return True

    def _read(self, kind: str | None, text: str) -> str | None:
        """An event that matters here: noted, and as the client may see it; None where it may not."""
        try:
            event = json.loads(text)
        except (ValueError, RecursionError):
            kind = event = None
        if kind is None or not isinstance(event, dict):
            self.end(Ending(UPSTREAM_FAILED, "Azure sent something that is no event: ask for a new plan"))
            return None
        if kind in _SESSION_EVENTS:
            if kind == "session.updated":
                self._confirm_switch()
            return without_secrets(event)
        if kind == "error":
            return None if self._on_error(event) else text
        if _item_id(event) in self._own_items:
            return None
        if kind == "response.done":
            self._count_usage(event)
        self._keep(self._turns.feed(event, self._loop.time()))
        return text

    def _on_error(self, event: MutableMapping[str, Any]) -> bool:
        """True where Azure's error is about an event of the broker's own: not the client's affair."""
        error = event.get("error")
        event_id = error.get("event_id") if isinstance(error, dict) else None
        if not isinstance(event_id, str) or not event_id.startswith(OWN_EVENT_IDS):
            return False
        if self._switch is not None and self._switch.event_id == event_id and self._upstream is not None:
            self._switch = None
            self._upstream.socket.put(
                broker_error("switch_failed", "Azure refused the change of agent", retryable=True)
            )
        return True

    # --- changes of agent

    async def _retell(self, agent: Agent, upstream: Upstream) -> None:
        """The same voice: Azure is told the other agent's instructions and tools."""
        spec = await self._supply(agent)()
        event_id = f"{OWN_EVENT_IDS}switch_{self._switches}"
        self._switch = _Switch(agent, event_id)
        self._moving = None
        upstream.socket.send(new_agent_update(spec, upstream.route.dialect, event_id))

    def _confirm_switch(self) -> None:
        if self._switch is None or self._upstream is None:
            return
        self._agent, self._switch = self._switch.agent, None
        self._parts.counters.switches += 1
        self._upstream.socket.put(broker_event("broker.agent.switched", agent_id=self._agent.id))

    async def _move(self, agent: Agent, old: Upstream) -> None:
        """Another voice: a new upstream of the same dialect, with the last turns as its history.

        The old one goes on until the new one is ready, and stays where none can be had.
        """
        try:
            new = await self._parts.connector.connect(self._supply(agent), only=old.route.name)
        except NoUpstreamError:
            old.socket.put(broker_error("switch_failed", "Azure took no talk with the other voice", retryable=True))
            return
        finally:
            self._moving = None
        self._keep(self._turns.flush())
        for number, turn in enumerate(self._history):
            item_id, event = history_item(turn.role, turn.content, new.route.dialect, number)
            self._own_items.add(item_id)
            self._turns.ignore(item_id)
            new.socket.send(event)
        new.first.insert(0, broker_event("broker.agent.switched", agent_id=agent.id))
        self._agent = agent
        self._upstream = new
        self._parts.counters.switches += 1
        await old.socket.aclose()

    def _supply(self, agent: Agent) -> SpecSupplier:
        """The agent's spec with what was recalled for this talk, which is asked for once."""

        async def supply() -> SessionSpec:
            return session_spec(agent, self._parts.settings, recalled=await asyncio.shield(self._recalled))

        return supply

    # --- turns

    def _keep(self, turns: list[FinishedTurn]) -> None:
        for turn in turns:
            self._history.append(turn)
            self.counters.failed_transcriptions += not turn.transcribed
            taken = self._parts.intake.offer(
                Turn(
                    owner=self._owner,
                    turn_id=turn.item_id,
                    agent_id=self._agent.id,
                    role=turn.role,
                    content=turn.content,
                    created_at=datetime.now(UTC),
                    source="proxy",
                    sequence=turn.sequence,
                    interrupted=turn.interrupted,
                )
            )
            if taken:
                self.counters.turns += 1
                continue
            self.counters.turns_lost += 1
            if self._upstream is not None and not self._over.done():
                self._upstream.socket.put(broker_error("turn_lost", "the memory is full: a turn was not kept"))

    def _count_usage(self, event: MutableMapping[str, Any]) -> None:
        response = event.get("response")
        usage = response.get("usage") if isinstance(response, dict) else None
        if isinstance(usage, dict):
            self._parts.counters.count_usage(
                usage, principal=self._owner.principal, agent_id=self._agent.id, talk=self.counters
            )

    # --- watching

    def _tick(self) -> None:
        """Looks at everything that may take too long, once in a while."""
        now_s = self._loop.time()
        if (ending := self._overdue(now_s)) is not None:
            self.end(ending)
            return
        if (due_s := self._turns.due_s) is not None and due_s <= now_s:
            self._keep(self._turns.due(now_s))
        self._ticker = self._loop.call_later(self._tick_s, self._tick)

    def _overdue(self, now_s: float) -> Ending | None:
        settings, watch = self._parts.settings, self._watch
        if now_s - self._began_s >= settings.max_talk_s:
            return Ending(DONE, "the talk has reached its longest time: ask for a new plan")
        if self._upstream is None:
            return None
        watch.client.see(self.counters.to_azure_frames, now_s)
        watch.to_client.see(self.counters.to_client_frames if self._sending else None, now_s)
        watch.to_azure.see(self.counters.to_azure_frames if self._azure_full else None, now_s)
        if watch.client.still_s(now_s) >= settings.idle_timeout_s:
            return Ending(DONE, "nothing was heard from the client for long: ask for a new plan")
        if watch.to_client.still_s(now_s) >= settings.client_write_timeout_s:
            return Ending(CLIENT_STALLED, "the client does not read")
        if watch.to_azure.still_s(now_s) >= settings.client_write_timeout_s:
            return Ending(UPSTREAM_FAILED, "Azure takes no more data: ask for a new plan")
        if now_s - watch.pinged_s >= settings.ping_interval_s:
            watch.pinged_s = now_s
            if not self._upstream.socket.ping():
                return Ending(UPSTREAM_FAILED, "Azure fell silent: ask for a new plan")
        return None

    # --- the end

    def _start(self, work: Any, name: str) -> "asyncio.Task[None]":
        task: asyncio.Task[None] = self._loop.create_task(work, name=name)
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("talk_failed", session_id=self._owner.session_id, error=type(error).__name__, exc_info=error)
            self.end(Ending(INTERNAL, "the broker failed: ask for a new plan"))

    async def _finish(self, ending: Ending, tasks: list["asyncio.Task[None]"]) -> None:
        """Closes the client, waits shortly for words that are being transcribed, keeps what is left, closes Azure."""
        running: list[asyncio.Task[Any]] = [*tasks, self._recalled]
        if self._moving is not None:
            running.append(self._moving)
        for task in running:
            task.cancel()
        await asyncio.wait(running)
        try:
            await self._close_client(ending)
            await self._hear_last_words()
        finally:
            self._keep(self._turns.flush())
            if self._upstream is not None:
                await self._upstream.socket.aclose()

    async def _close_client(self, ending: Ending) -> None:
        if self._client_gone:
            return
        if ending.code != CLIENT_STALLED:
            try:
                async with asyncio.timeout(_CLOSE_S):
                    await self._send({"type": "websocket.close", "code": ending.code, "reason": ending.reason})
                    return
            except TimeoutError:
                pass
            except (OSError, RuntimeError):
                return
        if self._give_up is not None:
            self._give_up(ending.code, ending.reason)

    async def _hear_last_words(self) -> None:
        """Reads Azure on for a moment, where it has not yet told what the user said last."""
        if self._upstream is None or not self._turns.awaits_user:
            return
        socket = self._upstream.socket
        try:
            async with asyncio.timeout(_LAST_WORDS_S):
                while self._turns.awaits_user:
                    await socket.wait()
                    if not socket.frames:
                        return
                    text = socket.take()
                    kind = event_type(text)
                    if kind in TURN_EVENTS:
                        self._read(kind, text)
        except TimeoutError:
            pass


class _Stillness:
    """Since when a figure has not moved; a figure of None is no concern."""

    def __init__(self, now_s: float) -> None:
        self._figure: int | None = None
        self._since_s = now_s

    def see(self, figure: int | None, now_s: float) -> None:
        if figure is None or figure != self._figure:
            self._figure = figure
            self._since_s = now_s

    def still_s(self, now_s: float) -> float:
        return now_s - self._since_s


class _Watch:
    """What `Talk._tick` remembers between two looks."""

    def __init__(self, now_s: float) -> None:
        self.client = _Stillness(now_s)
        self.to_client = _Stillness(now_s)
        self.to_azure = _Stillness(now_s)
        self.pinged_s = now_s


def _tick_s(settings: Settings) -> float:
    """How often to look: a tenth of the shortest limit, at least once a second."""
    shortest = min(
        settings.idle_timeout_s, settings.client_write_timeout_s, settings.ping_interval_s, settings.max_talk_s
    )
    return max(0.01, min(_LONGEST_TICK_S, shortest / 10))


def _item_id(event: MutableMapping[str, Any]) -> str | None:
    item = event.get("item")
    found = item.get("id") if isinstance(item, dict) else None
    return found if isinstance(found, str) else None
