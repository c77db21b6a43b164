"""WebRTC calls that this process set up at Azure: posts the offer, and hangs up.

Media does not pass the broker. So it sees a call's end only where it causes the end, or listens to the call
(`sideband`). A call whose answer did not reach its client is hung up, and holds no place.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
import structlog

from strategies.azure_calls import AcceptedCall, AzureCalls
from strategies.base import EphemeralGrant
from strategies.credentials import Credentials
from strategies.endpoint import is_live_endpoint
from strategies.errors import MintError, MisconfiguredError, TimedOutError
from strategies.live_calls import Closes, LiveOffer, LiveSessions, never_closes
from strategies.single_flight import SingleFlight
from token_broker.calls.call_row import CallName, CallRow
from token_broker.calls.leases import CallLeases
from token_broker.security.limits import BoundedDict, SessionLease, SessionLimits
from token_broker.security.tokens import Owner
from token_broker.web.requests import uuid7

__all__ = ["Calls", "EndedCalls"]

log = structlog.get_logger("token_broker.calls.running_calls")

_FOLLOWED_S = 30.0  # an offer that nobody waits for: Azure answers within seconds, or not at all
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_PLACE_KEPT_S = 600.0  # beyond the longest time of a call, whose end gives its place back
_FIRST_CHECK_S = 1.0  # Azure ends a call in the background
_ENDED_KEPT_S = 300.0
_ENDED_AT_MOST = 10_000


@dataclass(frozen=True, slots=True)
class _Call:
    endpoint: str
    owner: Owner


class EndedCalls:
    """Calls that Azure has ended in the last five minutes; the oldest of more than 10,000 are dropped."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until_s = BoundedDict[CallName, float](_ENDED_AT_MOST)  # in the order of their ends

    def add(self, call: CallName) -> None:
        now_s = self._clock()
        self._until_s[call] = now_s + _ENDED_KEPT_S
        while self._until_s[next(iter(self._until_s))] <= now_s:
            self._until_s.popitem(last=False)

    def discard(self, call: CallName) -> None:
        self._until_s.pop(call, None)

    def __contains__(self, call: CallName) -> bool:
        return self._until_s.get(call, 0.0) > self._clock()

    def __len__(self) -> int:
        return len(self._until_s)


class Calls:
    """Sets up calls. Each holds its place in `limits` until it is over.

    `credentials_at` has the credentials by an endpoint's base URL: a call is hung up at the host that made it.
    `goes_on(endpoint, call_id)` asks Azure whether a call still can be joined, and raises MintError where it is not
    known: Azure takes a hang-up, and the call may live all the same. `closes_live` ends a session of GPT-Live's.
    `on_ended` gets the id of each call that Azure has hung up, and whether it went on until then.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        credentials_at: Mapping[str, Credentials],
        limits: SessionLimits,
        *,
        max_talk_s: float,
        hang_up_timeout_s: float,
        goes_on: Callable[[str, str], Awaitable[bool]],
        closes_live: Closes = never_closes,
        leases: CallLeases | None = None,
    ) -> None:
        self.on_ended: Callable[[str, bool], None] = lambda _call_id, _went_on: None
        self._azure: dict[str, AzureCalls | LiveSessions] = {
            endpoint: LiveSessions(http, credentials, closes_live)
            if is_live_endpoint(endpoint)
            else AzureCalls(http, credentials)
            for endpoint, credentials in credentials_at.items()
        }
        self._limits = limits
        self._max_talk_s = max_talk_s
        self._hang_up_timeout_s = hang_up_timeout_s
        self._goes_on = goes_on
        self._leases = leases
        self._abandoned: set[asyncio.Task[AcceptedCall]] = set()
        self._ending: dict[str, asyncio.Task[None]] = {}
        self._asking: SingleFlight[CallName, None] = SingleFlight("call-hang-up")
        self._ended = EndedCalls()
        self._checking: set[asyncio.Task[None]] = set()

    async def offer(
        self,
        grant: EphemeralGrant | LiveOffer,
        offer: bytes,
        *,
        filtered: bool,
        owner: Owner,
        lease: SessionLease,
        agent_id: str,
        transport: str,
        timeout_s: float,
        share_s: float | None = None,
        lasts_s: float | None = None,
    ) -> AcceptedCall:
        """Takes the SDP `offer` to the host that minted; `lease` is kept for the call. Raises MintError.

        `lasts_s` is the longest that the call may go on, without it as long as any.

        The call's row is written with the headers of Azure's answer, and the client waits for it: should we die before
        the client has its answer, another process hangs the call up. Without an answer no client ever connects, and
        a call whose row is not there has none.

        A call that Azure made, but whose answer is of no use, is hung up. An offer that was not answered within
        `share_s` is followed to its end, since a call may come of it: that is hung up too.
        """

        def made(call_id: str) -> None:
            row = CallRow(
                key=uuid7(),
                owner=owner,
                agent_id=agent_id,
                limit_key=lease.key,
                resource=grant.resource,
                endpoint=grant.endpoint,
                call_id=call_id,
                transport=transport,
                lasts_s=self._max_talk_s if lasts_s is None else lasts_s,
            )
            if self._leases is not None:
                self._leases.made(row)

        offering = partial(self._offer, grant, offer, filtered=filtered, owner=owner, on_made=made)
        if share_s is None or share_s >= timeout_s:
            accepted = await offering(timeout_s=timeout_s)
        else:
            task = asyncio.create_task(offering(timeout_s=_FOLLOWED_S), name="call-offer")
            try:
                await asyncio.wait({task}, timeout=share_s)
            except BaseException:
                task.cancel()
                raise
            if not task.done():
                self._abandon(task, grant.endpoint, owner)
                raise TimedOutError(f"no answer within its share of {share_s:.1f} s")
            accepted = task.result()
        if accepted.call_id is not None:
            self._ended.discard((grant.endpoint, accepted.call_id))
            lease.keep(accepted.call_id, for_s=self._max_talk_s + _PLACE_KEPT_S)
            if self._leases is not None:
                try:
                    await self._leases.stored((grant.endpoint, accepted.call_id))
                except BaseException:
                    self.end(grant.endpoint, accepted.call_id, owner, why="its client left before it was answered")
                    raise
        return accepted

    def takes(self, endpoint: str, call_id: str) -> bool:
        """Whether a call of that name may be taken over: its host is one of ours, and it has not ended here."""
        return endpoint in self._azure and (endpoint, call_id) not in self._ended

    def take_over(self, call_id: str, lease: SessionLease) -> None:
        """Keeps the place of a call that its client set up by itself."""
        lease.keep(call_id, for_s=self._max_talk_s + _PLACE_KEPT_S)

    async def _offer(
        self,
        grant: EphemeralGrant | LiveOffer,
        offer: bytes,
        *,
        filtered: bool,
        owner: Owner,
        on_made: Callable[[str], None],
        timeout_s: float,
    ) -> AcceptedCall:
        made: list[str] = []

        def named(call_id: str) -> None:
            made.append(call_id)
            on_made(call_id)

        azure: Any = self._azure[grant.endpoint]  # of the same kind as the grant
        try:
            accepted: AcceptedCall = await azure.offer(
                grant, offer, filtered=filtered, timeout_s=timeout_s, named=named
            )
            return accepted
        except BaseException:
            for call_id in made:
                self._ended.discard((grant.endpoint, call_id))
                self.end(grant.endpoint, call_id, owner, why="its answer was of no use")
            raise

    def _abandon(self, task: "asyncio.Task[AcceptedCall]", endpoint: str, owner: Owner) -> None:
        """Nobody waits for this offer any more: a call that comes of it is hung up."""

        def ended(task: "asyncio.Task[AcceptedCall]") -> None:
            self._abandoned.discard(task)
            if task.cancelled() or task.exception() is not None:
                return
            if (call_id := task.result().call_id) is not None:
                self._ended.discard((endpoint, call_id))
                self.end(endpoint, call_id, owner, why="its answer came after another resource was asked")

        self._abandoned.add(task)
        task.add_done_callback(ended)

    async def hang_up(self, endpoint: str, call_id: str) -> None:
        """Ends the call, whichever process set it up. Raises MintError.

        Several hang-ups at a time share one request to Azure, and a call that has ended needs none. A caller that is
        cancelled does not cancel the request.
        """
        call = (endpoint, call_id)
        if call in self._ended:
            self._limits.end(call_id)  # it was hung up here, and held elsewhere until now
            return
        await self._asking.run(call, partial(self._ask, call))

    def end(self, endpoint: str, call_id: str, owner: Owner, *, why: str) -> None:
        """Hangs the call up in the background, and repeats it until Azure has done it, for `max_talk_s` at most.

        The call's place is given back when it is over.
        """
        if call_id not in self._ending:
            work = self._end_surely(call_id, _Call(endpoint, owner), why)
            self._ending[call_id] = asyncio.create_task(work, name="call-ending")

    async def _ask(self, call: CallName) -> None:
        endpoint, call_id = call
        if (azure := self._azure.get(endpoint)) is None:  # of a resource that is configured no more
            raise MisconfiguredError("no resource has the endpoint of this call")
        is_over = await azure.hang_up(endpoint, call_id, timeout_s=self._hang_up_timeout_s)
        self._ended.add(call)
        if self._leases is not None and is_over:
            self._leases.over(call)
        if not is_over:
            if self._leases is not None:
                self._leases.want_end(call, "hung_up")
            task = asyncio.create_task(self._check_ended(azure, call), name="call-ended-check")
            self._checking.add(task)
            task.add_done_callback(self._checking.discard)
        self._limits.end(call_id)
        self.on_ended(call_id, not is_over)

    async def _check_ended(self, azure: AzureCalls | LiveSessions, call: CallName) -> None:
        """Hangs the call up again for as long as Azure lets us join it."""
        until_s = time.monotonic() + self._max_talk_s
        pause_s = _FIRST_CHECK_S
        while time.monotonic() + pause_s <= until_s:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            with contextlib.suppress(MintError):
                if not await self._goes_on(*call):
                    break
                log.warning("call_lives_on", do="hung up again")
            with contextlib.suppress(MintError):
                if await azure.hang_up(*call, timeout_s=self._hang_up_timeout_s):
                    break
        if self._leases is not None:
            self._leases.over(call)

    async def _end_surely(self, call_id: str, call: _Call, why: str) -> None:
        until_s = time.monotonic() + self._max_talk_s
        pause_s = _FIRST_PAUSE_S
        try:
            while True:
                try:
                    await self.hang_up(call.endpoint, call_id)
                    log.info("call_ended", session_id=call.owner.session_id, why=why)
                    return
                except MintError as error:
                    log.warning(
                        "call_not_ended", session_id=call.owner.session_id, outcome=error.outcome, why=str(error)
                    )
                if time.monotonic() + pause_s > until_s:
                    if self._leases is not None:
                        self._leases.over((call.endpoint, call_id))
                    return
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        finally:
            del self._ending[call_id]

    async def aclose(self) -> None:
        """Cancels the hang-ups in progress and starts no new ones."""
        ending = [*self._abandoned, *self._ending.values(), *self._checking]
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending)
