"""WebRTC calls that this process set up at Azure: posting the offer, hanging up, and ending those of who was cut off.

Media flows past the broker, so a call's end is seen only where the broker brings it about, or listens (`sideband`).
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import httpx
import structlog

from strategies.base import EphemeralGrant
from strategies.calls import AcceptedCall, AzureCalls
from strategies.credentials import Credentials
from strategies.errors import MintError
from token_broker.limits import SessionLease, SessionLimits
from token_broker.memory.base import Owner

__all__ = ["Calls"]

log = structlog.get_logger("token_broker.calls")


@dataclass(frozen=True, slots=True)
class _Call:
    endpoint: str
    owner: Owner


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
        """Takes the SDP `offer` to the host that minted; `lease` is kept for the call. Raises MintError."""
        accepted = await self._azure.offer(grant, offer, filtered=filtered, timeout_s=timeout_s)
        if accepted.call_id is not None:
            lease.keep(accepted.call_id, for_s=self._max_talk_s)
            self._forget_those_over()
            self._running[accepted.call_id] = _Call(grant.endpoint, owner)
        return accepted

    async def hang_up(self, endpoint: str, call_id: str) -> None:
        """Ends the call, whichever process set it up. Raises MintError."""
        await self._azure.hang_up(endpoint, call_id, timeout_s=self._hang_up_timeout_s)
        self._running.pop(call_id, None)
        self._limits.end(call_id)

    def end_where(self, refused: Callable[[str, str | None], bool]) -> None:
        """Hangs up the calls of whom the operator has cut off; one that Azure does not end now is asked for again."""
        self._forget_those_over()
        for call_id, call in self._running.items():
            owner = call.owner
            if call_id not in self._ending and refused(owner.principal, owner.session_id):
                self._ending[call_id] = asyncio.create_task(self._end(call_id, call), name="call-cut-off")

    def _forget_those_over(self) -> None:
        self._running = {call_id: call for call_id, call in self._running.items() if self._limits.keeps(call_id)}

    async def _end(self, call_id: str, call: _Call) -> None:
        try:
            await self.hang_up(call.endpoint, call_id)
            log.info("call_cut_off", session_id=call.owner.session_id, principal=call.owner.principal)
        except MintError as error:
            log.warning("call_not_cut_off", session_id=call.owner.session_id, outcome=error.outcome, why=str(error))
        finally:
            del self._ending[call_id]

    async def aclose(self) -> None:
        """Gives up what it is just ending, and begins nothing more."""
        self._running.clear()
        ending = list(self._ending.values())
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending)
