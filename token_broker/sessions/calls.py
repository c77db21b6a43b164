"""WebRTC calls that this process set up at Azure: posting the offer, hanging up, and ending those of who was blocked.

Media flows past the broker, so a call's end is seen only where the broker brings it about, or listens (`sideband`).
A call whose answer did not reach its client is nobody's: it is hung up, and holds no place.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
import structlog

from strategies.azure_calls import AcceptedCall, AzureCalls
from strategies.base import EphemeralGrant
from strategies.credentials import Credentials
from strategies.errors import MintError
from token_broker.memory.types import Owner
from token_broker.security.rate_limits import SessionLease, SessionLimits

__all__ = ["Calls", "EndedCalls"]

log = structlog.get_logger("token_broker.sessions.calls")

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_ENDED_KEPT_S = 300.0
_ENDED_AT_MOST = 10_000

CallName = tuple[str, str]
"""The host that has the call, and its id there."""


@dataclass(frozen=True, slots=True)
class _Call:
    endpoint: str
    owner: Owner


class EndedCalls:
    """Calls that Azure has ended, for some minutes; of more than 10,000 the oldest are forgotten."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until_s: dict[CallName, float] = {}  # in the order of their ends

    def add(self, call: CallName) -> None:
        now_s = self._clock()
        self._until_s.pop(call, None)
        self._until_s[call] = now_s + _ENDED_KEPT_S
        while len(self._until_s) > _ENDED_AT_MOST or self._until_s[self._oldest] <= now_s:
            del self._until_s[self._oldest]

    def discard(self, call: CallName) -> None:
        self._until_s.pop(call, None)

    @property
    def _oldest(self) -> CallName:
        return next(iter(self._until_s))

    def __contains__(self, call: CallName) -> bool:
        return self._until_s.get(call, 0.0) > self._clock()

    def __len__(self) -> int:
        return len(self._until_s)


class Calls:
    """What is set up here is held in `limits` until it is over, for `max_talk_s` at most."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        credentials: Credentials,
        limits: SessionLimits,
        *,
        max_talk_s: float,
        hang_up_timeout_s: float,
    ) -> None:
        self._azure = AzureCalls(http, credentials)
        self._limits = limits
        self._max_talk_s = max_talk_s
        self._hang_up_timeout_s = hang_up_timeout_s
        self._running: dict[str, _Call] = {}
        self._ending: dict[str, asyncio.Task[None]] = {}
        self._asking: dict[CallName, asyncio.Task[None]] = {}
        self._ended = EndedCalls()

    async def offer(
        self,
        grant: EphemeralGrant,
        offer: bytes,
        *,
        filtered: bool,
        owner: Owner,
        lease: SessionLease,
        timeout_s: float,
    ) -> AcceptedCall:
        """Takes the SDP `offer` to the host that minted; `lease` is kept for the call. Raises MintError.

        A call that Azure made, but whose answer is of no use, is hung up.
        """
        made: list[str] = []
        try:
            accepted = await self._azure.offer(grant, offer, filtered=filtered, timeout_s=timeout_s, named=made.append)
        except BaseException:
            for call_id in made:
                self._ended.discard((grant.endpoint, call_id))
                self.end(grant.endpoint, call_id, owner, why="its answer was of no use")
            raise
        if accepted.call_id is not None:
            self._ended.discard((grant.endpoint, accepted.call_id))
            lease.keep(accepted.call_id, for_s=self._max_talk_s)
            self._forget_those_over()
            self._running[accepted.call_id] = _Call(grant.endpoint, owner)
        return accepted

    async def hang_up(self, endpoint: str, call_id: str) -> None:
        """Ends the call, whichever process set it up. Raises MintError.

        Azure is asked once for all who hang up at a time, and no more when it has ended the call. Who stops waiting
        does not stop that.
        """
        call = (endpoint, call_id)
        if call in self._ended:
            return
        if (asking := self._asking.get(call)) is None:
            asking = self._asking[call] = asyncio.create_task(self._ask(call), name="call-hang-up")
            asking.add_done_callback(_heard)
        await asyncio.shield(asking)

    def end(self, endpoint: str, call_id: str, owner: Owner, *, why: str) -> None:
        """Hangs the call up, in the background and again and again until Azure has done it.

        That goes on for as long as the call can last, `max_talk_s`. A place that it holds is given back when it is
        over.
        """
        if call_id not in self._ending:
            work = self._end_surely(call_id, _Call(endpoint, owner), why)
            self._ending[call_id] = asyncio.create_task(work, name="call-ending")

    def end_where(self, refused: Callable[[str, str | None], bool]) -> None:
        """Hangs up the calls of whom the operator has blocked; one that Azure does not end now is asked for again."""
        self._forget_those_over()
        for call_id, call in self._running.items():
            owner = call.owner
            if call_id not in self._ending and refused(owner.principal, owner.session_id):
                self._ending[call_id] = asyncio.create_task(self._end(call_id, call), name="blocked-call")

    async def _ask(self, call: CallName) -> None:
        endpoint, call_id = call
        try:
            await self._azure.hang_up(endpoint, call_id, timeout_s=self._hang_up_timeout_s)
        finally:
            del self._asking[call]
        self._ended.add(call)
        self._running.pop(call_id, None)
        self._limits.end(call_id)

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
                    return
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        finally:
            del self._ending[call_id]

    def _forget_those_over(self) -> None:
        self._running = {call_id: call for call_id, call in self._running.items() if self._limits.keeps(call_id)}

    async def _end(self, call_id: str, call: _Call) -> None:
        try:
            await self.hang_up(call.endpoint, call_id)
            log.info("blocked_call_ended", session_id=call.owner.session_id, principal=call.owner.principal)
        except MintError as error:
            log.warning(
                "blocked_call_not_ended", session_id=call.owner.session_id, outcome=error.outcome, why=str(error)
            )
        finally:
            del self._ending[call_id]

    async def aclose(self) -> None:
        """Gives up what it is just ending, and begins nothing more."""
        self._running.clear()
        ending = [*self._ending.values(), *self._asking.values()]
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending)


def _heard(asking: "asyncio.Task[None]") -> None:
    """Nobody may be left who waits for it: its error is no news to asyncio."""
    if not asking.cancelled():
        asking.exception()
