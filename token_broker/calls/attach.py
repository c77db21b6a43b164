"""Takes over calls that pages set up at Azure by themselves, with the ephemeral token of a plan.

A page names its call. Whoever owns the resource can join any call there, so the name proves nothing: the broker joins
with an update that changes nothing, and Azure's answer tells the session. Only if that is the one which was minted for
this very plan does the broker write anything else, listen, or hang up. Any other call is left as it was found.
"""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import structlog

from strategies.base import SessionSpec, SpecSupplier
from strategies.errors import MintError
from strategies.resources import Resource
from token_broker.calls.attach_claims import AttachClaims
from token_broker.calls.call_row import AttachClaim, CallRow
from token_broker.calls.page_events import CallStreams, PageEvents
from token_broker.calls.running_calls import Calls
from token_broker.memory.store_errors import StoreError
from token_broker.memory.types import Blocklist
from token_broker.relay.azure.socket import AzureSocket
from token_broker.relay.dialects.broker_events import OWN_EVENT_IDS
from token_broker.relay.event_text import compact, event_type
from token_broker.security.limits import BoundedDict, SessionLease
from token_broker.security.tokens import MintedSession, Owner
from token_broker.sessions.agents import Agent
from token_broker.sessions.talk_level import TalkLevelCounters

__all__ = ["CallAttacher"]

log = structlog.get_logger("token_broker.calls")

_CALL_ID = re.compile(r"[A-Za-z0-9_-]{1,200}")
_PAUSES_S = (0.3, 1.0)
_JOINED_BY_S = 30.0  # Azure knows a call once its client has connected, which may take this long
_ANSWER_S = 10.0
_ASIDE_AT_MOST = 256
_REFUSED_KEPT = 10_000
_ASKING = f"{OWN_EVENT_IDS}attach"
_TELLING = frozenset({"session.created", "session.updated", "error"})
_NOTHING = {"type": "session.update", "event_id": _ASKING, "session": {"type": "realtime"}}


class Watches(Protocol):
    """`WatchedCalls`, as far as it is needed here."""

    @property
    def streams(self) -> CallStreams: ...
    def owner_of(self, call_id: str) -> Owner | None: ...
    def watch(
        self,
        owner: Owner,
        agent: Agent,
        *,
        endpoint: str,
        call_id: str,
        spec: SessionSpec,
        resource: str,
        joined: AzureSocket | None,
        transport: str,
        limit_key: str,
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class _Wanted:
    row: CallRow  # what the store has of it, once it is verified
    agent: Agent
    minted: MintedSession
    supply: SpecSupplier


class CallAttacher:
    """Attaches calls in the background. With `checks` off every call that can be joined passes for the page's own.

    `join` opens the sideband of a call by its host and id, or raises MintError.
    """

    def __init__(
        self,
        *,
        join: Callable[[str, str], Awaitable[AzureSocket]],
        resources: Mapping[str, Resource],
        calls: Calls,
        watched: Watches,
        level: TalkLevelCounters,
        blocklist: Blocklist,
        claims: AttachClaims,
        max_talk_s: float,
        checks: bool,
    ) -> None:
        self._claims = claims
        self._max_talk_s = max_talk_s
        self._join = join
        self._resources = resources
        self._calls = calls
        self._watched = watched
        self._level = level
        self._blocklist = blocklist
        self._checks = checks
        self._running: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._refused = BoundedDict[tuple[str, str], None](_REFUSED_KEPT)

    def is_attached(self, owner: Owner, call_id: object) -> bool:
        """Whether the session has this call already, or it is being attached."""
        if not isinstance(call_id, str):
            return False
        holder = self._watched.owner_of(call_id)
        if holder is not None:
            return (holder.session_id, holder.principal) == (owner.session_id, owner.principal)
        return (owner.session_id, call_id) in self._running

    def refusal(self, owner: Owner, minted: MintedSession | None, call_id: object) -> str | None:
        """Why the call can't be the session's, as far as that is known without asking Azure; None where it can."""
        if not isinstance(call_id, str) or not _CALL_ID.fullmatch(call_id):
            return "its id has another form than A-Z, a-z, 0-9, _ and -, up to 200 of them"
        if self._watched.owner_of(call_id) is not None and not self.is_attached(owner, call_id):
            return "it is another session's"
        if minted is None:
            return "this plan has no call of its own, or none that can be told from others"
        if (owner.session_id, call_id) in self._refused or not self._calls.takes(minted.endpoint, call_id):
            return "it was refused before, or has ended"
        return None

    async def begin(
        self,
        owner: Owner,
        agent: Agent,
        minted: MintedSession,
        call_id: str,
        *,
        supply: SpecSupplier,
        lease: SessionLease,
    ) -> AttachClaim:
        """Attaches the call in the background, if it is `claimed`; its page's events tell how that goes.

        `lease` is kept for the call, or released. Raises StoreError or TimeoutError where the store is silent.
        """
        key = owner.session_id, call_id
        row = CallRow(
            key=f"attached {owner.session_id} {minted.endpoint} {call_id}",
            owner=owner,
            agent_id=agent.id,
            limit_key=lease.key,
            resource=minted.resource,
            endpoint=minted.endpoint,
            call_id=call_id,
            transport="webrtc",
            lasts_s=self._level.left_s(owner, self._max_talk_s),
        )
        claim: AttachClaim | None = None
        try:
            claim = await self._claims.claim(row)
        finally:
            if claim != "claimed":
                lease.release()
        if claim != "claimed":
            return claim
        page = self._watched.streams.of(*key)

        async def run() -> None:
            try:
                with lease:
                    await self._attach(_Wanted(row, agent, minted, supply), lease, page)
            finally:
                del self._running[key]
                if self._watched.owner_of(call_id) is None:
                    self._watched.streams.end(*key, events=page)

        self._running[key] = asyncio.create_task(run(), name="call-attach")
        return claim

    async def aclose(self) -> None:
        """Gives up what is being attached."""
        for task in (tasks := list(self._running.values())):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _attach(self, wanted: _Wanted, lease: SessionLease, page: PageEvents) -> None:
        row, minted, call_id = wanted.row, wanted.minted, wanted.row.call_id
        resource = self._resources.get(minted.resource)  # it may be configured no more
        socket = None if resource is None else await self._joined(minted, call_id)
        taken = False
        try:
            # Others may have come first while Azure was asked; and the operator may have blocked the session.
            is_free = self._watched.owner_of(call_id) is None and self._calls.takes(minted.endpoint, call_id)
            is_blocked = self._blocklist.refused(row.owner.principal, row.owner.session_id)
            row = replace(row, owner=self._level.of(row.owner))
            is_own = socket is not None and is_free and not is_blocked
            try:
                is_own = await self._claims.settle(row, verified=is_own)
            except (StoreError, TimeoutError):
                if is_own:
                    log.warning("call_not_attached", session_id=row.owner.session_id, resource=minted.resource)
                    message = "Whose this call is can't be told just now: the broker leaves it alone."
                    page.tell("broker.error", code="store_away", message=message, retryable=True)
                    return
            if socket is None or resource is None or not is_own:
                self._refused[row.owner.session_id, call_id] = None
                log.warning("call_not_verified", session_id=row.owner.session_id, resource=minted.resource)
                message = "The broker can't tell that this call is yours, and leaves it alone."
                # Where the agent must be seen, the page takes a new plan; elsewhere the talk goes on as it is.
                page.tell("broker.error", code="not_verified", message=message, retryable=wanted.agent.is_seen)
                return
            spec = await wanted.supply(resource)
            self._calls.take_over(call_id, lease)
            self._watched.watch(
                row.owner,
                wanted.agent,
                endpoint=minted.endpoint,
                call_id=call_id,
                spec=spec,
                resource=minted.resource,
                joined=socket,
                transport=row.transport,
                limit_key=lease.key,
            )
            taken = True
            log.info("call_attached", session_id=row.owner.session_id, resource=minted.resource)
        finally:
            if socket is not None and not taken:
                await socket.aclose()

    async def _joined(self, minted: MintedSession, call_id: str) -> AzureSocket | None:
        """The sideband of the call, once its session is known as the minted one; None where it is not."""
        loop = asyncio.get_running_loop()
        until_s, tries = loop.time() + _JOINED_BY_S, 0
        while loop.time() < until_s:
            if tries:
                await asyncio.sleep(_PAUSES_S[min(tries, len(_PAUSES_S)) - 1])
            tries += 1
            try:
                socket = await self._join(minted.endpoint, call_id)
            except MintError:
                continue
            try:
                azure_id = await _session_of(socket) if self._checks else minted.azure_id
            except BaseException:
                await socket.aclose()
                raise
            if azure_id == minted.azure_id:
                return socket
            await socket.aclose()
            if azure_id is not None:
                return None
        return None


async def _session_of(socket: AzureSocket) -> str | None:
    """The id of the session behind the sideband, empty where Azure does not tell it; None: the connection ended.

    What else came meanwhile is left to be taken, but for the sessions: nothing of them was asked for yet.
    """
    aside: list[str] = []
    socket.send(compact(_NOTHING))
    try:
        async with asyncio.timeout(_ANSWER_S):
            while True:
                if not socket.frames:
                    if socket.failure is not None:
                        return None
                    await socket.wait()
                    continue
                kind = event_type(text := socket.take())
                if kind not in _TELLING:
                    aside.append(text)
                    if len(aside) > _ASIDE_AT_MOST:
                        return ""
                    continue
                try:
                    event: Any = json.loads(text)
                    about = event["error" if kind == "error" else "session"]
                    told = about.get("event_id" if kind == "error" else "id")
                except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
                    continue
                if kind == "error" and told == _ASKING:
                    return ""
                if kind != "error" and isinstance(told, str) and told:
                    socket.put_first(aside)
                    return told
    except TimeoutError:
        return ""
