"""What the listeners of both kinds of call have: they join its sideband again and again, and know what ends it.

A connection that ends, however it ends, says nothing of the call: the listener joins again, for as long as the call may
last. The call is over when Azure says so, or when Azure repeatedly does not know a call that was joined before. Then
it ended with its last connection, and its time is counted until there. If Azure does not know a call for half a minute,
its client never connected: the call is hung up, and its place is freed.
"""

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ClassVar

import structlog

from strategies.errors import MintError
from token_broker.calls.page_events import PageEvents
from token_broker.relay.answers.actions import Tell
from token_broker.relay.answers.agent_calls import HANDED_OVER, AgentCalls
from token_broker.relay.answers.farewell import END_TALK_OUTPUT
from token_broker.relay.azure.connector import NO_SUCH_CALL
from token_broker.relay.azure.socket import AzureSocket
from token_broker.relay.counters import TalkCounters
from token_broker.relay.event_text import event_of
from token_broker.relay.talk_parts import TalkParts
from token_broker.relay.watchdog import BUDGET_USED, SoftEnd
from token_broker.security.tokens import Owner
from token_broker.server.close_codes import CALL_OVER, DONE, DRAINING, ENDED_BY_AGENT, INTERNAL, Ending
from token_broker.sessions.agents import Agent
from token_broker.tools.runner import ToolOutput
from token_broker.usage.talk_usage import TalkUsage

__all__ = ["NO_PLACE", "CallEnd", "SidebandListener"]

log = structlog.get_logger("token_broker.relay")

NO_PLACE = Ending(DONE, "the call was ended elsewhere", by_client=True, outcome="lost")

_CHECK_S = 1.0  # how often a listener looks whether its call still has a place
_LAST_EVENTS_S = 1.0  # for what Azure had sent before it hung up
_LAST_HANG_UP_S = 4.0  # before the drain goes on
_PAUSES_S = (0.3, 1.0, 3.0, 6.0, 12.0)  # between joins; each is shortened by up to a third at random
_STEADY_S = 10.0  # a connection that lasted this long did not fail from the start
_UNKNOWN_S = 30.0  # Azure knows a call once its client has connected, which may take this long
_UNKNOWN_PAUSES = 2  # while Azure does not know it, the pauses grow no further than the second
_UNKNOWN_TIMES = 3  # in a row
_NEVER_CONNECTED = Ending(DONE, "its client never connected", outcome="lost")
_TOO_LONG = Ending(DONE, "the talk has reached its longest time", ends_talk=True, outcome="longest_time")
_IDLE = Ending(DONE, "nobody said anything any more", ends_talk=True, outcome="idle")


class CallEnd:
    """The end of one call, for its listener, which goes on until `over` is done.

    `hang_up` asks Azure to end the call; `holds_place` says whether it still has its place among the open talks. Once
    Azure has hung up, `on_hung_up` is called, and a listener with an open sideband (`is_heard`) goes on for a second:
    an answer that ended before the hang-up may still be on its way, and costs something.
    """

    def __init__(self, hang_up: Callable[[Ending], None], holds_place: Callable[[], bool]) -> None:
        self.on_hung_up: Callable[[], None] = lambda: None
        self.is_asked = False  # Azure, to end the call, and it may not have done it yet
        self.is_heard = False
        self.last: Ending | None = None  # Azure has hung up
        self._hang_up = hang_up
        self._holds_place = holds_place
        self._loop = asyncio.get_running_loop()
        self.over: asyncio.Future[Ending] = self._loop.create_future()

    def ask(self, ending: Ending) -> None:
        """Hangs the call up; it is listened to until it is over, which Azure may take its time for."""
        if not self.is_asked:
            self.is_asked = True
            self._hang_up(ending)

    def stop(self, ending: Ending) -> None:
        """Stops listening for this reason; the call goes on. Where the broker goes away it is hung up before."""
        if ending.code == DRAINING:
            self.ask(ending)
            self._loop.call_later(_LAST_HANG_UP_S, self._set, ending)
        else:
            self._set(ending)

    def hung_up(self, ending: Ending) -> None:
        """Azure has hung the call up."""
        if self.last is None:
            self.last = ending
            self.is_asked = True
            self.on_hung_up()
            if self.is_heard:
                self._loop.call_later(_LAST_EVENTS_S, self._set, ending)
            else:
                self._set(ending)

    def look(self) -> None:
        """A call without a place was hung up, here or elsewhere."""
        if not self._holds_place():
            self.hung_up(NO_PLACE)

    async def pause(self, seconds: float) -> None:
        """Waits for so long, or until the call is over."""
        until_s = self._loop.time() + seconds
        while not self.over.done() and (left_s := until_s - self._loop.time()) > 0:
            await asyncio.wait((self.over,), timeout=min(left_s, _CHECK_S))
            self.look()

    def _set(self, ending: Ending) -> None:
        if not self.over.done():
            self.over.set_result(ending)


class SidebandListener(ABC):
    """Listens to one call from its answer to its end; draining waits for it as for a talk.

    `lasts_s` is the longest that the call may go on; `hang_up` ends it at Azure. `holds_place` says whether the call
    still has its place among the open talks; without one it was ended elsewhere. `greets` says whether the agent speaks
    first now. A call of another process is `age_s` old, and that one may have heard it (`was_heard`).
    `confirm` waits, after a time in which this process did not run, until it is known whether the call is still ours.
    """

    dialect: ClassVar[str]

    def __init__(
        self,
        parts: TalkParts,
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
        age_s: float = 0.0,
        was_heard: bool = False,
    ) -> None:
        self.counters = TalkCounters()
        self.owner = owner
        self._parts = parts
        self._agent = agent
        self._resource = resource
        self._end = CallEnd(hang_up, holds_place)
        self._greets = greets
        self._page = page or PageEvents()
        self._confirm = confirm
        self._usage = usage
        self._transport = transport
        self._now_s = asyncio.get_running_loop().time
        self._until_s = self._now_s() + lasts_s
        self._was_heard = was_heard
        self._known_by_s = self._now_s() + (0.0 if was_heard else _UNKNOWN_S - age_s)
        self._joins = 0
        # Of a call that its former holder may have heard, and wrote nothing of: it has gone on since then.
        self._made_s = self._now_s() - age_s if age_s else None
        self._call = ("", "")
        self._budget = SoftEnd()
        self._tasks: set[asyncio.Task[None]] = set()
        self._calls = AgentCalls(parts.tools, owner, lambda: agent, self.counters, builtin=self._run_builtin)

    def end(self, ending: Ending) -> None:
        """Stops listening for this reason; the call goes on, unless the broker goes away."""
        self._end.stop(ending)

    def hung_up(self, ending: Ending) -> None:
        """Azure has hung the call up: what it had sent before is heard still, for a second."""
        self._end.hung_up(ending)

    def moved(self, ending: Ending) -> None:
        """Another process holds the call: here it is heard for a second more, since that one may be joining it yet."""
        self._page.detach()
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
        self._call = endpoint, call_id

        def on_hung_up() -> None:
            self._leave_sight()
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
                try:
                    socket = await self._join(endpoint, call_id)
                except MintError as error:
                    failures += 1
                    unknown = unknown + 1 if error.status in NO_SUCH_CALL else 0
                    may_be_over = unknown > 0
                    if unknown:
                        self._made_s = None
                    # One 404 may come of a fault at Azure, while the call goes on.
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
                joined_s = self._now_s()
                unknown, may_be_over = 0, True
                try:
                    ending = await self._listen(socket)
                finally:
                    self._end.is_heard = False
                    self._leave_sight()
                    self._page.left()
                    self._left()
                    await socket.aclose()
                if ending is not None:
                    return ending
                failures = failures + 1 if self._now_s() - joined_s < _STEADY_S else 1
                log.info("sideband_broke", session_id=self.owner.session_id)
            return self._end.over.result()
        finally:
            for task in self._tasks:
                task.cancel()
            if not may_be_over and self._usage is not None:
                self._usage.went_on(call_id)
            await self._release()

    async def _listen(self, socket: AzureSocket) -> Ending | None:
        """Why listening is over; None where the connection ended and the call may go on."""
        self._joins += 1
        self._end.is_heard = True
        if self._usage is not None:
            made_s = self._made_s if self._usage.is_unheard else None
            unheard_s = None if made_s is None else self._now_s() - made_s
            self._usage.went_live(self._resource, self.dialect, by=self._call[1], unheard_s=unheard_s)
        self._joined(socket)
        self._page.joined()
        pinged_s = self._now_s()
        while not self._end.over.done():
            if self._confirm is not None:
                await self._confirm()
                if self._end.over.done():
                    break
            now_s = self._now_s()
            self._tick(now_s)
            self._end.look()
            if socket.frames:
                self._handle(socket)
            elif self._is_session_over():
                return self._end.last or CALL_OVER
            elif socket.failure is not None:
                return self._end.last
            elif not self._end.is_asked and (due := self._due(now_s)) is not None:
                self._end.ask(due)
            elif now_s - pinged_s >= self._parts.settings.ping_interval_s:
                pinged_s = now_s
                if not socket.ping():
                    return self._end.last
            else:
                frame = asyncio.ensure_future(socket.wait())
                try:
                    await asyncio.wait((frame, self._end.over), timeout=_CHECK_S, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    frame.cancel()
                    await asyncio.wait((frame,))
        return self._end.over.result()

    def _due(self, now_s: float) -> Ending | None:
        """Why the call is to be hung up now."""
        if self._takes_leave(now_s):
            return ENDED_BY_AGENT
        if now_s >= self._until_s:
            return _TOO_LONG
        if self._budget.is_due(now_s, self._is_playing(now_s)):
            return BUDGET_USED
        return _IDLE if self._is_idle(now_s) else None

    # --- what the kinds of call do

    @abstractmethod
    async def _join(self, endpoint: str, call_id: str) -> AzureSocket:
        """Opens the sideband. Raises MintError."""

    @abstractmethod
    def _joined(self, socket: AzureSocket) -> None:
        """The call is heard from now on, or again: says what it has to hear first."""

    @abstractmethod
    def _left(self) -> None:
        """The sideband is about to be closed; what happens until the next join is not seen."""

    @abstractmethod
    async def _release(self) -> None:
        """Nothing is listened to any more: keeps what is left of the talk."""

    @abstractmethod
    def _tick(self, now_s: float) -> None:
        """Does what is due, before the next event is looked at."""

    @abstractmethod
    def _handle(self, socket: AzureSocket) -> None:
        """Takes the next of Azure's events."""

    @abstractmethod
    def _is_session_over(self) -> bool:
        """Whether Azure has said so."""

    @abstractmethod
    def _is_playing(self, now_s: float) -> bool:
        """Whether an answer is being made, or played."""

    @abstractmethod
    def _is_idle(self, now_s: float) -> bool:
        """Whether nobody has said anything for too long."""

    @abstractmethod
    def _ask_for_end(self, call_id: str) -> None:
        """The model has called `end_talk`, with this call."""

    @abstractmethod
    def _takes_leave(self, now_s: float) -> bool:
        """Whether the goodbye of such a call was heard: true once."""

    def _hand_over(self, agent_id: str) -> None:
        """The page is to take a new plan, with that agent."""
        self._page.tell("broker.agent.switch", agent_id=agent_id)

    # --- tools and tasks

    async def _run_builtin(self, name: str, arguments: str, call_id: str) -> ToolOutput:
        agent_id = (event_of(arguments) or {}).get("agent_id")
        if name == "handoff" and agent_id in self._agent.handoff_ids and self._page.is_heard:
            # A voice can't change in a call: the page takes a new plan, with the other agent.
            self._hand_over(agent_id)
            return HANDED_OVER
        if name != "end_talk":
            return ToolOutput("This can't be done in this call. Go on yourself.", ok=False)
        self._ask_for_end(call_id)
        return ToolOutput(END_TALK_OUTPUT, ok=True)

    def _tell_call(self, tool: Tell) -> None:
        self._calls.note(tool)
        if self._usage is not None and tool.duration_ms is not None:
            self._usage.tool_ran()
        self._page.tell("broker.tool", **tool.fields)

    def _log_lost_turn(self) -> None:
        log.warning("turn_lost", session_id=self.owner.session_id, why="the memory is full")

    def _leave_sight(self) -> None:
        if self._usage is not None:
            self._usage.out_of_sight(self._call[1])

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        def on_done(task: "asyncio.Task[None]") -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("call_failed", session_id=self.owner.session_id, error=type(error).__name__, exc_info=error)
                self._end.stop(Ending(INTERNAL, "the broker failed"))

        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(on_done)
