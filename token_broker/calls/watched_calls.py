"""The calls that this process listens to, from their answer to their end.

Each is joined in the background: no answer waits for it. A plan has one live call: a newer one of the same talk
replaces the older, which is hung up, and whose late events touch nothing else. Calls of a process that is gone are
taken over, with what is left of their time.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import structlog

from strategies.base import SessionSpec
from strategies.endpoint import is_live_endpoint
from strategies.session_model.live_session import delegates_to_responses
from token_broker.calls.call_row import MADE, CallName, TakenCall
from token_broker.calls.followed_calls import SharedEvents
from token_broker.calls.leases import CallLeases
from token_broker.calls.listener import NO_PLACE
from token_broker.calls.live_listener import LiveListener
from token_broker.calls.page_events import CallStreams
from token_broker.calls.sideband import CallListener
from token_broker.relay.azure.socket import AzureSocket
from token_broker.relay.live.sidebands import LiveSidebands
from token_broker.relay.talk_parts import TalkParts
from token_broker.relay.watchdog import BUDGET_USED
from token_broker.security.limits import SessionLimits
from token_broker.security.tokens import Owner
from token_broker.server.close_codes import CALL_OVER, DONE, Ending
from token_broker.server.drain import Drain
from token_broker.sessions.agents import Agent
from token_broker.sessions.plans import TalkSpecs
from token_broker.sessions.talk_level import TalkLevelCounters
from token_broker.usage.budgets import Leash
from token_broker.usage.ledger import UsageLedger
from token_broker.usage.talk_usage import MOVED, TalkUsage

__all__ = ["HangUp", "WatchedCalls"]

log = structlog.get_logger("token_broker.calls")

_LEFT_ALONE = Ending(DONE, "nobody listens to it any more", outcome="lost")
_MOVED = Ending(DONE, "another process holds it", outcome=MOVED)
_REPLACED = Ending(DONE, "a newer call of its talk has replaced it", outcome="lost")
_HUNG_UP = Ending(DONE, "its client hung up", ends_talk=True, by_client=True, outcome="hung_up")
_WITHOUT_AGENT = Ending(DONE, "its agent is gone", outcome="lost")
_UNANSWERED = Ending(DONE, "its client never had its answer", outcome="lost")
_ERASED = Ending(DONE, "its session was erased", ends_talk=True, outcome="blocked")
_BLOCKED = Ending(DONE, "the operator has blocked its session or its user", ends_talk=True, outcome="blocked")
_BY_OUTCOME = {ending.outcome: ending for ending in (_BLOCKED, _HUNG_UP, _REPLACED, BUDGET_USED)}
_TAKEN_S = 2.0  # until a call that was taken is listened to
_PLACE_KEPT_S = 600.0  # beyond the longest time of a call, whose end gives its place back


class HangUp(Protocol):
    """Ends a call at Azure in the background, with retries."""

    def __call__(self, endpoint: str, call_id: str, owner: Owner, *, why: str) -> None: ...


@dataclass(slots=True)
class _Watched:
    owner: Owner
    endpoint: str
    listener: CallListener | LiveListener
    usage: TalkUsage
    task: "asyncio.Task[None] | None" = None
    ending: Ending | None = None  # why we have ended it
    is_over: bool = False  # Azure has hung it up, or it is not listened to any more


class WatchedCalls:
    """All calls of the process. `hang_up` ends one at Azure; `limits` keeps each call's place under Azure's id."""

    def __init__(
        self,
        parts: TalkParts,
        *,
        hang_up: HangUp,
        limits: SessionLimits,
        drain: Drain,
        level: TalkLevelCounters | None = None,
        on_ended: Callable[[Owner, str], None] = lambda _owner, _agent_id: None,
        ledger: UsageLedger | None = None,
        leash: Leash | None = None,
        leases: CallLeases | None = None,
        shared: SharedEvents | None = None,
        sidebands: LiveSidebands | None = None,
    ) -> None:
        self._sidebands = sidebands or LiveSidebands(parts.connector.join_call)
        self._streams = CallStreams() if shared is None else CallStreams(shared.told)
        self._parts = parts
        self._hang_up = hang_up
        self._limits = limits
        self._drain = drain
        self._level = level or TalkLevelCounters()
        self._on_ended = on_ended
        self._ledger = ledger or UsageLedger(None)
        self._leash = leash
        self._calls: dict[str, _Watched] = {}
        self._counting: dict[CallName, TalkUsage] = {}  # of calls that are watched, or are over and not yet written
        self._leases = leases
        self._tasks: set[asyncio.Task[None]] = set()
        if leases is not None:
            leases.watcher = self

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def streams(self) -> CallStreams:
        """What the pages of the calls are told."""
        return self._streams

    def watch(
        self,
        owner: Owner,
        agent: Agent,
        *,
        endpoint: str,
        call_id: str,
        spec: SessionSpec,
        resource: str,
        joined: AzureSocket | None = None,
        transport: str = "webrtc_relay",
        limit_key: str = "",
        taken: TakenCall | None = None,
    ) -> None:
        """Joins the call with Azure's id `call_id`, unless it is `joined`; `spec` is the agent's session.

        `taken` is what the store says of a call that another process held before.
        """
        longest_s = self._level.left_s(owner, self._parts.settings.max_talk_s)
        for other_id, other in list(self._calls.items()):
            of_talk = other.owner.talk_id == owner.talk_id and other.owner.session_id == owner.session_id
            if taken is None and of_talk and other_id != call_id:
                self.end(other_id, _REPLACED)
        is_live = is_live_endpoint(endpoint)
        dialect = "live" if is_live else "ga"
        usage = self._ledger.open(owner, agent_id=agent.id, transport=transport, dialect=dialect, seen=True)
        usage.expect(resource, dialect)
        if taken is not None and taken.unheard_s is not None:
            usage.went_live(resource, dialect, by=call_id, unheard_s=taken.unheard_s, lost_s=taken.lost_s)
        page = self.streams.of(owner.session_id, call_id)
        about: dict[str, Any] = {
            "owner": owner,
            "agent": agent,
            "resource": resource,
            "lasts_s": longest_s if taken is None else taken.row.lasts_s,
            "hang_up": partial(self.end, call_id),
            "holds_place": partial(self._limits.keeps, call_id),
            "greets": partial(self._level.greets, owner.talk_id) if taken is None else lambda: False,
            "page": page,
            "confirm": None if self._leases is None else self._leases.confirm,
            "usage": usage,
            "transport": transport,
            "age_s": 0.0 if taken is None else taken.age_s,
            "was_heard": taken is not None and taken.was_heard,
        }
        listener: CallListener | LiveListener
        if is_live:
            about["backend"] = delegates_to_responses(spec)
            about["engaged"] = (lambda: None) if self._leases is None else self._leases.engaged
            listener = LiveListener(self._parts, self._sidebands, **about)
        else:
            listener = CallListener(self._parts, **about, spec=spec, joined=joined, is_new=taken is None)
        call = _Watched(owner, endpoint, listener, usage)
        self._calls[call_id] = call
        if self._leases is not None:
            self._counting[endpoint, call_id] = usage
        self._level.begin(owner)
        self._drain.add(listener)
        self._parts.counters.listened[call_id] = listener.counters

        async def run() -> None:
            ending = _LEFT_ALONE
            holding: asyncio.Task[None] | None = None
            if self._leash is not None:
                why = "the budget of today is nearly used up: the talk ends soon"
                warn = partial(page.tell, "broker.error", code="budget_used", message=why, retryable=False)
                hold = self._leash.hold(usage, limit_key or owner.principal, warn=warn, end=listener.end_softly)
                holding = asyncio.create_task(hold, name="call-budget")
            try:
                ending = await listener.run(endpoint, call_id)
                if ending is CALL_OVER and self._leases is not None:
                    self._leases.over((endpoint, call_id))
                # Otherwise the call may go on unheard, and keeps its place; or it is another one of the same id.
                if ending.code == DONE and self._calls.get(call_id) is call:
                    self._limits.end(call_id)
                ending = call.ending or ending
                log.info("call_heard", reason=ending.reason, turns=listener.counters.turns)
            finally:
                if holding is not None:
                    holding.cancel()
                if self._calls.get(call_id) is call:  # we may have lost it, and taken it again
                    self.streams.end(owner.session_id, call_id, events=page)
                    del self._calls[call_id]
                    del self._parts.counters.listened[call_id]
                self._drain.remove(listener)
                self._parts.counters.add(listener.counters)
                if call.ending is not _MOVED:
                    usage.end(ending.outcome, by=call_id)
                self._end_talk(call, ending)
                if listener.counters.turns:
                    self._on_ended(owner, agent.id)

        call.task = asyncio.create_task(run(), name="talk-sideband")

    def owner_of(self, call_id: str) -> Owner | None:
        """Whose call of that id this process listens to; None where it listens to no such call that goes on."""
        call = self._calls.get(call_id)
        return None if call is None or call.is_over else call.owner

    def live_call(self, call_id: str, owner: Owner) -> LiveListener | None:
        """The owner's session with GPT-Live of that id, where this process listens to it."""
        call = self._calls.get(call_id)
        is_theirs = call is not None and call.owner.session_id == owner.session_id
        listener = call.listener if call is not None and is_theirs else None
        return listener if isinstance(listener, LiveListener) else None

    async def fetch_live_call(self, call_id: str, owner: Owner) -> LiveListener | None:
        """As `live_call`. A session that another replica listens to is taken from it.

        Raises EngagedElsewhereError where it has to stay there, and StoreError.
        """
        found = self.live_call(call_id, owner)
        if found is not None or self._leases is None or not await self._leases.take((owner.session_id, call_id)):
            return found
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TAKEN_S):
                while (found := self.live_call(call_id, owner)) is None:  # noqa: ASYNC110  # it has no event
                    await asyncio.sleep(0.02)
        return found

    def endpoint_of(self, call_id: str, owner: Owner) -> str | None:
        """The host of the owner's call of that id; None where this process listens to no such call of theirs."""
        call = self._calls.get(call_id)
        if call is None or (call.owner.session_id, call.owner.principal) != (owner.session_id, owner.principal):
            return None
        return call.endpoint

    def end(self, call_id: str, ending: Ending) -> None:
        """Hangs the call up at Azure, in the background; it is listened to until it is over."""
        if (call := self._calls.get(call_id)) is not None:
            call.ending = call.ending or ending
            if self._leases is None:
                self._hang_up(call.endpoint, call_id, call.owner, why=ending.reason)
            else:
                self._start(self._claim_and_hang_up(self._leases, call, call_id, ending), "call-end")

    def delivered(self, call: CallName) -> None:
        """The client has its answer."""
        if self._leases is not None:
            self._leases.delivered(call)

    def taken(self, found: TakenCall) -> None:
        """A call of a process that is gone is ours now."""
        row = found.row
        log.info("call_taken", session_id=row.owner.session_id, epoch=found.epoch, left_s=round(row.lasts_s, 1))
        self._limits.hold(row.limit_key, row.call_id, for_s=max(0.0, row.lasts_s) + _PLACE_KEPT_S)
        agent = self._parts.agents.get(row.agent_id)
        if found.ending is not None and found.is_counted:  # its holder died before it had noted that
            self._hang_up(row.endpoint, row.call_id, row.owner, why=_wanted(found).reason)
        elif agent is None or (found.state == MADE and found.unheard_s is None):
            ending = _WITHOUT_AGENT if agent is None else _UNANSWERED
            dialect = "live" if is_live_endpoint(row.endpoint) else "ga"
            about = {"agent_id": row.agent_id, "transport": row.transport, "dialect": dialect}
            usage = self._ledger.open(row.owner, **about, seen=True)
            usage.expect(row.resource, dialect)
            usage.end(ending.outcome)
            self._hang_up(row.endpoint, row.call_id, row.owner, why=ending.reason)
        else:
            self._start(self._watch_taken(found, agent), "call-taken")

    def lost(self, name: CallName) -> None:
        """Another process holds this call by now: it is left alone here."""
        self._limits.end(name[1])
        self._counting.pop(name, None)
        if (call := self._calls.get(name[1])) is not None:
            log.info("call_left_to_another", session_id=call.owner.session_id)
            call.ending = _MOVED
            call.usage.end(_MOVED.outcome, by=name[1])  # at once: should we take it again, that is another part
            call.listener.moved(_MOVED)

    def end_wanted(self, found: TakenCall) -> None:
        """Somebody wants this call of ours to end, at another process."""
        row = found.row
        if row.call_id in self._calls:
            self.end(row.call_id, _wanted(found))
        else:
            self._hang_up(row.endpoint, row.call_id, row.owner, why=found.ending or "it has ended")

    def replaced(self, found: TakenCall) -> None:
        """A newer call of the same talk has its answer, here or elsewhere."""
        row = found.row
        if row.call_id in self._calls:
            self.end(row.call_id, _REPLACED)
        else:
            self._hang_up(row.endpoint, row.call_id, row.owner, why=_REPLACED.reason)

    def lasts(self, found: TakenCall) -> None:
        """How long this call may go on: its talk may have begun at another replica."""
        if (call := self._calls.get(found.row.call_id)) is not None:
            call.listener.last_at_most(found.row.lasts_s)

    def unheard_s(self, name: CallName) -> float | None:
        """For how long no call of this one's talk has been heard; None where one is."""
        usage = self._counting.get(name)
        return None if usage is None else usage.out_of_sight_s

    def is_counted(self, name: CallName) -> bool:
        """Whether what this call has used is written; where another call of its talk goes on, that one is the last."""
        usage = self._counting.get(name)
        if usage is not None and (name[1] in self._calls or (usage.observers <= 0 and not usage.is_kept)):
            return False
        self._counting.pop(name, None)
        return True

    def read_elsewhere(self, found: TakenCall) -> None:
        """A page reads this call's events at another replica."""
        row = found.row
        if (page := self._streams.find(row.owner.session_id, row.call_id)) is not None:
            page.read_elsewhere(found.read_for_s)

    def is_engaged(self, name: CallName) -> bool:
        """Whether a client observes this session here, or a tool works for it."""
        call = self._calls.get(name[1])
        return call is not None and isinstance(call.listener, LiveListener) and call.listener.is_engaged

    async def _watch_taken(self, found: TakenCall, agent: Agent) -> None:
        row, pool = found.row, self._parts.connector.pool
        if (resource := pool.by_name.get(row.resource)) is None:
            # Nobody here can join it or hang it up.
            log.warning("call_without_resource", session_id=row.owner.session_id, resource=row.resource)
            self._limits.end(row.call_id)
            if self._leases is not None:
                self._leases.over(row.name)
            return
        specs = TalkSpecs(self._parts.settings, row.owner, None)  # it was told what is recalled
        self.watch(
            row.owner,
            agent,
            endpoint=row.endpoint,
            call_id=row.call_id,
            spec=await specs.of(agent)(resource),
            resource=row.resource,
            transport=row.transport,
            limit_key=row.limit_key,
            taken=found,
        )
        if found.ending is not None or found.state == MADE:
            self.end(row.call_id, _wanted(found))
        elif found.read_for_s:
            self.read_elsewhere(found)

    async def _claim_and_hang_up(self, leases: CallLeases, call: _Watched, call_id: str, ending: Ending) -> None:
        if await leases.claim_end((call.endpoint, call_id), ending.outcome):
            self._hang_up(call.endpoint, call_id, call.owner, why=ending.reason)

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def leaving(self, call_id: str) -> None:
        """The client asks for the end of this call: once Azure has ended it, its talk is over, too."""
        if (call := self._calls.get(call_id)) is not None:
            call.ending = call.ending or _HUNG_UP

    def hung_up(self, call_id: str) -> None:
        """The client has hung this call up: its talk is over, unless it goes on over another connection."""
        if (call := self._calls.get(call_id)) is not None:
            call.ending = call.ending or _HUNG_UP
            self.ended_at_azure(call_id, went_on=False)

    def ended_at_azure(self, call_id: str, went_on: bool) -> None:
        """Azure has hung this call up: what it had sent before is heard still, for a moment.

        `went_on`: the call is known to have gone on until then.
        """
        if (call := self._calls.get(call_id)) is not None:
            if went_on:
                call.usage.went_on(call_id)
            call.listener.hung_up(call.ending or NO_PLACE)
            if call.ending is not None:
                self._end_talk(call, call.ending)

    def end_session(self, owner: Owner) -> None:
        """Ends the calls of an erased session of `owner`: no turn of them could be kept any more."""
        for call_id, call in list(self._calls.items()):
            if call.owner.session_id == owner.session_id and call.owner.principal == owner.principal:
                self.end(call_id, _ERASED)

    def end_where(self, refused: Callable[[str, str | None], bool]) -> None:
        """Ends the calls of whom `refused` says so, of principal and session."""
        for call_id, call in list(self._calls.items()):
            if refused(call.owner.principal, call.owner.session_id):
                self.end(call_id, _BLOCKED)

    def _end_talk(self, call: _Watched, ending: Ending) -> None:
        if not call.is_over:
            call.is_over = True
            if ending is _MOVED:
                return  # the talk goes on, and its new holder says so
            # A call that ends without our doing may be a page that was reloaded: its talk goes on.
            self._level.end(call.owner, ends_talk=ending.ends_talk, has_left=ending.by_client)

    async def aclose(self) -> None:
        """Stops listening; the turns that were heard are kept."""
        tasks = [*self._tasks, *(call.task for call in self._calls.values() if call.task is not None)]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def _wanted(found: TakenCall) -> Ending:
    """The end that somebody wants, here or elsewhere."""
    if found.state == MADE:
        return _UNANSWERED
    outcome = found.ending or _HUNG_UP.outcome
    return _BY_OUTCOME.get(outcome) or Ending(DONE, "its end was wanted before", ends_talk=True, outcome=outcome)
