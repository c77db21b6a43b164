"""The WebRTC calls of one simulated resource that have not ended, whichever route they came by."""

import asyncio
import secrets
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from token_broker.simulator import azure_errors
from token_broker.simulator.faults.call_faults import (
    DieAfterFault,
    LateSidebandFault,
    StrictSdpFault,
)
from token_broker.simulator.resource import Resource

if TYPE_CHECKING:
    from token_broker.simulator.realtime.call import Call, HeldTalk, Lines

_LOOPBACK = "127.0.0.1"


class OfferRefused(Exception):  # noqa: N818 - it is what the caller is told
    """An offer that can't be answered; the message says why."""


@dataclass(frozen=True, slots=True)
class OpenCall:
    """A call, and the task that holds it."""

    call: "Call"
    task: "asyncio.Task[None]"


class OngoingCalls:
    """Answers offers, keeps the calls until they end, and finds them."""

    def __init__(self, resource: Resource) -> None:
        self._resource = resource
        self._open: dict[str, OpenCall] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._open)

    def find(self, call_id: str) -> "Call":
        """The open call of that id.

        Raises:
            AzureError: there is none.

        """
        if call_id not in self._open:
            raise azure_errors.structured(404, "404", "No call found for the given call id.")
        return self._open[call_id].call

    def join(self, call_id: str, path: str) -> "Call":
        """As `find`, for a sideband on that path. Until the peer is connected a fault may hide the call from it."""
        call = self.find(call_id)
        if not call.connected.is_set() and self._resource.faults.switched(LateSidebandFault, path):
            raise azure_errors.structured(404, "404", "No call found for the given call id.")
        return call

    async def until(self, count: int) -> None:
        """Returns once exactly so many calls are open."""
        while len(self._open) != count:
            self._changed.clear()
            await self._changed.wait()

    async def close(self) -> None:
        """Ends all calls."""
        tasks = [entry.task for entry in self._open.values()]
        for entry in self._open.values():
            entry.call.end()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def answer(self, talk: "HeldTalk", offer: str, path: str, lines: "Lines") -> "tuple[Call, str]":
        """A call that holds this talk, which has not begun, and the SDP answer. `start` or `Call.close` comes next.

        Raises:
            AzureError: WebRTC is not installed, or too many calls are open.
            OfferRefused: the offer can't be answered.

        """
        if len(self._open) >= self._resource.config.max_talks:
            raise azure_errors.structured(429, "429", "Too many open sessions.")
        await load_webrtc()
        from aioice.ice import get_host_addresses

        from token_broker.simulator.realtime.call import Call

        whole = offer.endswith("\r\n") and "\n" not in offer.replace("\r\n", "")
        if not whole and self._resource.faults.switched(StrictSdpFault, path):
            raise OfferRefused("a line of the offer does not end in CR and LF")
        call = Call(talk, lines)
        # Loopback first: a simulator's caller is mostly on the same machine.
        addresses = self._resource.config.ice_addresses or (
            _LOOPBACK,
            *get_host_addresses(use_ipv4=True, use_ipv6=False),
        )
        try:
            return call, await call.answer(offer, addresses)
        except ValueError as error:
            await call.close()
            raise OfferRefused(str(error)) from error

    def start(self, call: "Call", call_id: str, fault: DieAfterFault | None) -> None:
        """Holds an answered call until it ends."""
        task = asyncio.create_task(call.run(fault), name=f"call {call_id}")
        self._open[call_id] = OpenCall(call, task)
        self._changed.set()

        def forget(_task: "asyncio.Task[None]") -> None:
            del self._open[call_id]
            self._changed.set()

        task.add_done_callback(forget)


async def load_webrtc() -> None:
    """Loads what answers offers: the first import takes most of a second, which would stop every other talk.

    Raises:
        AzureError: it is not installed.

    """
    try:
        await asyncio.to_thread(import_module, "token_broker.simulator.realtime.call")
    except ModuleNotFoundError as missing:
        message = f"[simulated] WebRTC is not part of this installation: {missing.name} is missing."
        raise azure_errors.structured(501, "501", message) from missing


def new_call_id() -> str:
    """An id such as Azure gives."""
    return f"rtc_{secrets.token_hex(16)}"
