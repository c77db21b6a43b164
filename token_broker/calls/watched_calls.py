"""The calls that this process listens to, from their answer to their end.

Each is joined in the background: no answer waits for it. A plan has one live call: a newer one of the same talk
replaces the older, which is hung up, and whose late events touch nothing else.
"""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import structlog

from strategies.base import SessionSpec
from token_broker.calls.page_events import CallStreams
from token_broker.calls.sideband import CallListener
from token_broker.relay.azure.socket import AzureSocket
from token_broker.relay.talk_parts import TalkParts
from token_broker.relay.watchdog import BUDGET_USED
from token_broker.security.limits import SessionLimits
from token_broker.security.tokens import Owner
from token_broker.server.close_codes import DONE, Ending
from token_broker.server.drain import Drain
from token_broker.sessions.agents import Agent
from token_broker.sessions.talk_level import TalkLevelCounters
from token_broker.usage.budgets import Leash
from token_broker.usage.ledger import UsageLedger
from token_broker.usage.talk_usage import TalkUsage

__all__ = ["HangUp", "WatchedCalls"]

log = structlog.get_logger("token_broker.calls")

_LEFT_ALONE = Ending(DONE, "nobody listens to it any more", outcome="lost")
_REPLACED = Ending(DONE, "a newer call of its talk has replaced it", outcome="lost")
_HUNG_UP = Ending(DONE, "its client hung up", ends_talk=True, by_client=True, outcome="hung_up")
_ERASED = Ending(DONE, "its session was erased", ends_talk=True, outcome="blocked")
_BLOCKED = Ending(DONE, "the operator has blocked its session or its user", ends_talk=True, outcome="blocked")


class HangUp(Protocol):
    """Ends a call at Azure in the background, with retries."""

    def __call__(self, endpoint: str, call_id: str, owner: Owner, *, why: str) -> None: ...


@dataclass(slots=True)
class _Watched:
    owner: Owner
    endpoint: str
    listener: CallListener
    usage: TalkUsage
    task: "asyncio.Task[None] | None" = None
    ending: Ending | None = None  # why we have ended it
    is_told: bool = False  # level and ledger know that it is over


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
    ) -> None:
        self._streams = CallStreams()
        self._parts = parts
        self._hang_up = hang_up
        self._limits = limits
        self._drain = drain
        self._level = level or TalkLevelCounters()
        self._on_ended = on_ended
        self._ledger = ledger or UsageLedger(None)
        self._leash = leash
        self._calls: dict[str, _Watched] = {}

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
    ) -> None:
        """Joins the call with Azure's id `call_id`, unless it is `joined`; `spec` is the agent's session."""
        for other_id, other in list(self._calls.items()):
            of_talk = other.owner.talk_id == owner.talk_id and other.owner.session_id == owner.session_id
            if of_talk and other_id != call_id:
                self.end(other_id, _REPLACED)
        usage = self._ledger.open(owner, agent_id=agent.id, transport=transport, dialect="ga", seen=True)
        page = self.streams.of(owner.session_id, call_id)
        listener = CallListener(
            self._parts,
            owner=owner,
            agent=agent,
            spec=spec,
            resource=resource,
            lasts_s=min(self._parts.settings.max_talk_s, owner.narrowed.max_session_s or math.inf),
            hang_up=partial(self.end, call_id),
            holds_place=partial(self._limits.keeps, call_id),
            greets=partial(self._level.greets, owner.talk_id),
            page=page,
            joined=joined,
            usage=usage,
        )
        call = _Watched(owner, endpoint, listener, usage)
        self._calls[call_id] = call
        self._level.begin(owner)
        self._drain.add(listener)
        self._parts.counters.listened[call_id] = listener.counters

        def end_soon(left_s: float, when_quiet: bool) -> None:  # what is being said may end within it
            del when_quiet
            asyncio.get_running_loop().call_later(left_s, self.end, call_id, BUDGET_USED)

        async def run() -> None:
            ending = _LEFT_ALONE
            holding: asyncio.Task[None] | None = None
            if self._leash is not None:
                hold = self._leash.hold(usage, limit_key or owner.principal, warn=lambda: None, end=end_soon)
                holding = asyncio.create_task(hold, name="call-budget")
            try:
                ending = await listener.run(endpoint, call_id)
                if ending.code == DONE:  # otherwise the call may go on unheard, and keeps its place
                    self._limits.end(call_id)
                ending = call.ending or ending
                log.info("call_heard", reason=ending.reason, turns=listener.counters.turns)
            finally:
                self.streams.end(owner.session_id, call_id, events=page)
                if holding is not None:
                    holding.cancel()
                if self._calls.get(call_id) is call:
                    del self._calls[call_id]
                    del self._parts.counters.listened[call_id]
                self._drain.remove(listener)
                self._parts.counters.add(listener.counters)
                self._end_talk(call, ending)
                if listener.counters.turns:
                    self._on_ended(owner, agent.id)

        call.task = asyncio.create_task(run(), name="talk-sideband")

    def owner_of(self, call_id: str) -> Owner | None:
        """Whose call of that id this process listens to; None where it listens to no such call."""
        call = self._calls.get(call_id)
        return None if call is None else call.owner

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
            self._hang_up(call.endpoint, call_id, call.owner, why=ending.reason)

    def hung_up(self, call_id: str) -> None:
        """The client has hung this call up: its talk is over, unless it goes on over another connection."""
        if (call := self._calls.get(call_id)) is not None:
            call.ending = call.ending or _HUNG_UP
            self._end_talk(call, call.ending)
            call.listener.end(call.ending)

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
        if not call.is_told:
            call.is_told = True
            call.usage.end(ending.outcome)
            # A call that ends without our doing may be a page that was reloaded: its talk goes on.
            self._level.end(call.owner, ends_talk=ending.ends_talk, has_left=ending.by_client)

    async def aclose(self) -> None:
        """Stops listening; the turns that were heard are kept."""
        tasks = [call.task for call in self._calls.values() if call.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
