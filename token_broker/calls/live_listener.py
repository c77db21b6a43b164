"""The sideband of a session with GPT-Live over WebRTC: turns, tools and usage are the broker's from there.

Azure takes one sideband a session, as far as is known, so the official clients' sidebands are observers of ours. The
session is over when Azure says so, or does not know it any more; a connection that ends is opened again.
"""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

import structlog

from strategies.errors import MintError
from token_broker.calls.call_end import CHECK_S, CallEnd
from token_broker.calls.page_events import PageEvents
from token_broker.relay.answers.actions import Tell
from token_broker.relay.answers.agent_calls import HANDED_OVER, AgentCalls
from token_broker.relay.answers.farewell import END_TALK_OUTPUT
from token_broker.relay.answers.turn_clock import TurnLatency
from token_broker.relay.azure.connector import NO_SUCH_CALL
from token_broker.relay.counters import TalkCounters
from token_broker.relay.event_text import compact, event_of
from token_broker.relay.live.client_policy import PRIMARY_ONLY, examine_live
from token_broker.relay.live.delegations import Delegations, greeting_appends
from token_broker.relay.live.faces import CompatFace
from token_broker.relay.live.goodbye import Goodbye
from token_broker.relay.live.session_events import AUDIO_DELTA, LiveEvents
from token_broker.relay.live.sidebands import LiveSidebands, Sideband
from token_broker.relay.live.spoken_turns import LiveTurns
from token_broker.relay.policy.allowlist import Broken, Command, Refused, event_id_of
from token_broker.relay.talk_parts import TalkParts
from token_broker.relay.transcripts.recorder import TurnRecorder
from token_broker.relay.watchdog import BUDGET_USED, SoftEnd
from token_broker.security.tokens import Owner
from token_broker.server.close_codes import CALL_OVER, DONE, ENDED_BY_AGENT, INTERNAL, Ending
from token_broker.sessions.agents import Agent
from token_broker.tools.runner import ToolOutput
from token_broker.usage.talk_usage import TalkUsage

__all__ = ["LiveListener", "SidebandObserver"]

log = structlog.get_logger("token_broker.relay")

_PAUSES_S = (0.3, 1.0, 3.0, 6.0, 12.0)
_UNKNOWN_S = 30.0  # Azure may know a session only once its client has connected
_UNKNOWN_TIMES = 3
_WAITING_AT_MOST = 512  # events for an observer that is too slow
_HELD_AT_MOST = 16  # events of observers while nothing is joined
_NEVER_CONNECTED = Ending(DONE, "its client never connected", outcome="lost")
_TOO_LONG = Ending(DONE, "the talk has reached its longest time", ends_talk=True, outcome="longest_time")
_IDLE = Ending(DONE, "nobody said anything any more", ends_talk=True, outcome="idle")


class SidebandObserver:
    """An official client's sideband of the session. `is_over`: nothing more comes; `is_slow`: it has missed some."""

    def __init__(self) -> None:
        self.waiting: deque[str] = deque()
        self.changed = asyncio.Event()
        self.is_over = self.is_slow = False

    def put(self, text: str) -> None:
        """Gives it an event."""
        self.is_slow |= len(self.waiting) >= _WAITING_AT_MOST
        if not self.is_slow:
            self.waiting.append(text)
        self.changed.set()

    def end(self) -> None:
        """The session is over, or is heard no more."""
        self.is_over = True
        self.changed.set()


class LiveListener:
    """Listens to one session from its answer to its end; the arguments are those of `CallListener`.

    `engaged` is called where the session has to stay at this replica from now on (`is_engaged`).
    """

    def __init__(
        self,
        parts: TalkParts,
        sidebands: LiveSidebands,
        *,
        owner: Owner,
        agent: Agent,
        resource: str,
        lasts_s: float,
        hang_up: Callable[[Ending], None],
        holds_place: Callable[[], bool],
        greets: Callable[[], bool] = lambda: False,
        page: PageEvents | None = None,
        confirm: Callable[[], Awaitable[None]] | None = None,
        usage: TalkUsage | None = None,
        transport: str = "webrtc_relay",
        backend: bool = False,
        age_s: float = 0.0,
        was_heard: bool = False,
        engaged: Callable[[], None] = lambda: None,
    ) -> None:
        self.counters = TalkCounters()
        self.owner = owner
        self._parts = parts
        self._sidebands = sidebands
        self._agent = agent
        self._resource = resource
        self._end = CallEnd(hang_up, holds_place)
        self._greets = greets
        self._page = page or PageEvents()
        self._confirm = confirm
        self._usage = usage
        self._transport = transport
        self._backend = backend
        self._face = CompatFace()
        self._now_s = asyncio.get_running_loop().time
        self._until_s = self._now_s() + lasts_s
        self._heard_s = self._now_s()
        self._was_heard = was_heard
        self._engaged = engaged
        self._known_by_s = self._now_s() + (0.0 if was_heard else _UNKNOWN_S - age_s)
        self._joins = 0
        self._sideband: Sideband | None = None
        self._observers: set[SidebandObserver] = set()
        self._held: deque[tuple[str, SidebandObserver]] = deque()  # what they sent while nothing was joined
        self._tasks: set[asyncio.Task[None]] = set()
        self._goodbye = Goodbye()
        self._budget = SoftEnd()
        self._source = LiveTurns()
        calls = AgentCalls(parts.tools, owner, lambda: agent, self.counters, builtin=self._run_builtin)

        def tell(tool: Tell) -> None:
            calls.note(tool)
            if self._usage is not None and tool.duration_ms is not None:
                self._usage.tool_ran()
            self._page.tell("broker.tool", **tool.fields)

        def log_lost() -> None:
            log.warning("turn_lost", session_id=owner.session_id, why="the memory is full")

        self._events = LiveEvents(
            parts,
            owner,
            agent.id,
            TurnRecorder(
                owner, agent.id, ingest=parts.ingest, counters=self.counters, on_lost=log_lost, source=self._source
            ),
            self._source,
            Delegations(
                agent, calls, send=self._send, tell=tell, words=self._source.take_words, typed=self._keep_typed,
                start=self._start,
            ),
            self.counters,
            self._note_wait,
            self._now_s,
            usage,
        )  # fmt: skip

    def end(self, ending: Ending) -> None:
        """Stops listening for this reason; the session goes on, unless the broker goes away."""
        self._end.stop(ending)

    def hung_up(self, ending: Ending) -> None:
        """The session is closed: what Azure had sent before is heard still, for a second."""
        self._end.hung_up(ending)

    def last_at_most(self, lasts_s: float) -> None:
        """The session may go on for so long from now, if not less."""
        self._until_s = min(self._until_s, self._now_s() + lasts_s)

    def end_softly(self, left_s: float, when_quiet: bool) -> None:
        """The budget is used up: the session ends with what is being played, and in `left_s` at the latest.

        `when_quiet`: at once where nothing is.
        """
        self._budget.begin(left_s, when_quiet, self._now_s())

    @property
    def observers(self) -> int:
        """How many observe it."""
        return len(self._observers)

    @property
    def is_engaged(self) -> bool:
        """Whether the session has to stay here: somebody observes it, or works for it."""
        delegations = self._events.delegations
        return bool(self._observers or self._held or delegations.is_acting or delegations.calls_of_client)

    def observe(self, observer: SidebandObserver) -> None:
        """From now on `observer` gets the session's events, until `leave`; first the calls that wait for an output."""
        self._observers.add(observer)
        self._engaged()
        for call in self._events.delegations.calls_of_client:
            observer.put(compact(call))
        if self._end.over.done():
            observer.end()

    def leave(self, observer: SidebandObserver) -> None:
        """The observer is gone."""
        self._observers.discard(observer)

    def from_observer(self, text: str, observer: SidebandObserver) -> Broken | str | None:
        """Takes an event of an observer's: an error event for it, None where it goes to Azure, Broken: it is none.

        While the session is being joined again, a few wait.
        """
        event = event_of(text) or {}
        event_id = event_id_of(event)
        if (sideband := self._sideband) is None and isinstance(event.get("type"), str):
            if len(self._held) >= _HELD_AT_MOST:
                why = "Azure is being joined again: send this later"
                return self._face.error(Refused("not_joined", why, None, event_id))
            self._held.append((text, observer))
            return None
        found = examine_live(text, self._events.delegations, backend=self._backend)
        if event.get("type") in PRIMARY_ONLY:
            why = "not over a sideband: the session runs, and has its own audio"
            found = Refused("not_permitted", why, "type", event_id)
        if isinstance(found, Command):
            found = Refused("unknown_event", "there is no such event", "type", event_id)
        if isinstance(found, Refused):
            self.counters.refused_events += 1
            return self._face.error(found)
        if isinstance(found, Broken):
            return found
        if found and sideband is not None:
            sideband.socket.send(found)
        return None

    async def run(self, endpoint: str, call_id: str) -> Ending:
        """Listens until the session is over, or has reached the longest time of a talk. Never raises MintError."""

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
                    slots = _PAUSES_S[:2] if unknown else _PAUSES_S
                    pause_s = slots[min(failures, len(slots)) - 1] * random.uniform(0.67, 1)  # noqa: S311  # no secret
                    await self._end.pause(pause_s)
                self._end.look()
                if self._end.over.done():
                    break
                if self._now_s() >= self._until_s:
                    self._end.ask(_TOO_LONG)
                try:
                    self._sideband = await self._sidebands.open(endpoint, call_id)
                except MintError as error:
                    failures += 1
                    unknown = unknown + 1 if error.status in NO_SUCH_CALL else 0
                    may_be_over = unknown > 0
                    if unknown >= _UNKNOWN_TIMES and (self._joins or self._now_s() >= self._known_by_s):
                        if self._joins or self._was_heard:
                            return CALL_OVER
                        log.info("call_never_connected", session_id=self.owner.session_id)
                        self._end.ask(_NEVER_CONNECTED)
                        return _NEVER_CONNECTED
                    if failures == len(_PAUSES_S) and not unknown:
                        about = {"outcome": error.outcome, "why": str(error)}
                        log.warning("sideband_refused", session_id=self.owner.session_id, **about)
                    continue
                failures, unknown, may_be_over = 1, 0, True
                socket = self._sideband.socket
                try:
                    ending = await self._listen(self._sideband, call_id)
                finally:
                    self._end.is_heard = False
                    self._leave_sight(call_id)
                    self._sidebands.release(endpoint, call_id, self._sideband)
                    self._sideband = None
                    self._page.left()
                    await socket.aclose()
                if ending is not None:
                    return ending
                log.info("sideband_broke", session_id=self.owner.session_id)
            return self._end.over.result()
        finally:
            for task in self._tasks:
                task.cancel()
            self._events.turns.flush()
            if not may_be_over and self._usage is not None:
                self._usage.went_on(call_id)
            for observer in self._observers:
                observer.end()

    def _leave_sight(self, call_id: str) -> None:
        if self._usage is not None:
            self._usage.out_of_sight(call_id)

    async def _listen(self, sideband: Sideband, call_id: str) -> Ending | None:
        """Why listening is over; None where the connection ended and the session may go on."""
        self._joins += 1
        self._heard_s = self._now_s()
        self._end.is_heard = True
        if self._usage is not None:
            self._usage.went_live(self._resource, "live", by=call_id)
        if self._joins == 1:
            self._events.begin(self._resource, call_id)
            if self._agent.greeting and self._greets():
                for event in greeting_appends(self._agent.greeting):
                    self._send(event)
        while self._held:
            text, observer = self._held.popleft()
            if (error := self.from_observer(text, observer)) is not None:
                observer.put(str(error))
        self._page.joined()
        socket, pinged_s = sideband.socket, self._now_s()
        while not self._end.over.done():
            if self._confirm is not None:
                await self._confirm()
                if self._end.over.done():
                    break
            now_s = self._now_s()
            for told in self._events.tick():
                self._tell_all(told)
            self._end.look()
            is_asked = self._end.is_asked
            if socket.frames:
                self._handle(socket.take(), sideband)
            elif sideband.over.is_set():
                return self._end.last or CALL_OVER
            elif socket.failure is not None:
                return self._end.last
            elif not is_asked and self._goodbye.is_over(now_s, agent_until_s=self._source.plays_until_s):
                self._goodbye.take_back()
                self._end.ask(ENDED_BY_AGENT)
            elif not is_asked and now_s >= self._until_s:
                self._end.ask(_TOO_LONG)
            elif not is_asked and self._budget.is_due(now_s, now_s < self._source.plays_until_s):
                self._end.ask(BUDGET_USED)
            elif not is_asked and now_s - self._heard_s >= self._parts.settings.call_idle_s:
                self._end.ask(_IDLE)
            elif now_s - pinged_s >= self._parts.settings.ping_interval_s:
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

    def _handle(self, text: str, sideband: Sideband) -> None:
        events = self._events.handle(text)
        if self._source.due_s is not None or self._events.delegations.is_acting:
            self._heard_s = self._now_s()
        if self._source.awaits_user:
            self._goodbye.take_back()
        for event in events or ():
            if AUDIO_DELTA not in event[:64]:  # the audio has a line of its own
                self._tell_all(event)
        if self._events.closed is not None:
            sideband.over.set()

    def _tell_all(self, text: str) -> None:
        for observer in self._observers:
            observer.put(text)

    def _send(self, event: Mapping[str, Any]) -> None:
        if self._sideband is not None:
            self._sideband.socket.send(compact(event))

    def _keep_typed(self, text: str, item_id: str | None) -> None:
        self._goodbye.take_back()
        self._events.typed(text, item_id)

    def _note_wait(self, turn: TurnLatency) -> str | None:
        self._parts.note_answer(turn, transport=self._transport, agent_id=self._agent.id, resource=self._resource)
        self._page.tell("broker.latency", **turn.fields)
        return None

    async def _run_builtin(self, name: str, arguments: str, call_id: str) -> ToolOutput:
        del call_id
        agent_id = (event_of(arguments) or {}).get("agent_id")
        if name == "handoff" and agent_id in self._agent.handoff_ids and self._page.is_heard:
            self._page.tell("broker.agent.switch", agent_id=agent_id)  # the page takes a new plan
            return HANDED_OVER
        if name != "end_talk":
            return ToolOutput("This can't be done in this call. Go on yourself.", ok=False)
        self._goodbye.ask(self._now_s())
        return ToolOutput(END_TALK_OUTPUT, ok=True)

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        def on_done(task: "asyncio.Task[None]") -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("call_failed", session_id=self.owner.session_id, error=type(error).__name__, exc_info=error)
                self._end.stop(Ending(INTERNAL, "the broker failed"))

        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(on_done)
