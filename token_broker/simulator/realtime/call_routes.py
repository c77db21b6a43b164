"""WebRTC's HTTP side: an offer opens a call, a hang-up ends it, a sideband socket joins it (docs/azure.md §5)."""

import asyncio
import secrets
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from token_broker.simulator import azure_errors
from token_broker.simulator.auth import Credential, admit, bearer_of
from token_broker.simulator.ephemeral import EphemeralSecret
from token_broker.simulator.faults.fault_table import DieAfterFault, Fault, IceNeverFault
from token_broker.simulator.faults.http_faults import CALL_FAULT
from token_broker.simulator.realtime.talk_opening import minted_opening, new_talk
from token_broker.simulator.resource import Resource

if TYPE_CHECKING:
    from token_broker.simulator.realtime.call import Call

_STANDING = frozenset({Credential.KEY, Credential.KEY_AS_BEARER, Credential.ENTRA})
_HANGING_UP = _STANDING | {Credential.EPHEMERAL}
_CALLS = "/openai/v1/realtime/calls"
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class OpenCall:
    """A call, and the task that holds it."""

    call: "Call"
    task: "asyncio.Task[None]"


class CallRoutes:
    """The open calls of one simulated resource."""

    def __init__(self, resource: Resource) -> None:
        self._resource = resource
        self._open: dict[str, OpenCall] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._open)

    def routes(self) -> list[Route]:
        if "direct" not in self._resource.config.kinds:
            return []
        return [
            Route(_CALLS, self.create, methods=["POST"]),
            Route(f"{_CALLS}/{{call_id}}/hangup", self.hang_up, methods=["POST"]),
        ]

    def find(self, call_id: str) -> "Call":
        """The open call of that id.

        Raises:
            AzureError: there is none.

        """
        if call_id not in self._open:
            raise azure_errors.structured(404, "404", "No call found for the given call id.")
        return self._open[call_id].call

    async def until(self, count: int) -> None:
        """Returns once exactly so many calls are open."""
        while len(self._open) != count:
            self._changed.clear()
            await self._changed.wait()

    async def close(self) -> None:
        """Ends all calls."""
        tasks = [entry.task for entry in self._open.values()]
        for entry in self._open.values():
            entry.call.ended.set()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def create(self, request: Request) -> Response:
        """Takes an offer with an ephemeral secret, and nothing else; answers 201 with the answer and its `Location`."""
        credential = self._resource.credential_of(request.headers)
        if credential in _STANDING:
            raise azure_errors.ephemeral_needed()
        admit(credential, self._resource.config, {Credential.EPHEMERAL})
        secret = self._resource.secrets.find(bearer_of(request.headers) or "")
        if secret is None:
            # It expired between the two looks at the clock.
            raise azure_errors.key_wrong()
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/sdp":
            raise azure_errors.structured(415, "UnsupportedMediaType", f"Unsupported media type: {media_type}")
        if "api-version" in request.query_params:
            raise azure_errors.api_version_not_allowed()
        if len(self._open) >= self._resource.config.max_talks:
            raise azure_errors.structured(429, "429", "Too many open sessions.")
        offer = (await request.body()).decode(errors="replace")
        filtered = request.query_params.get("webrtcfilter") == "on"
        fault: Fault | None = request.scope["extensions"].get(CALL_FAULT)
        call_id, answer = await self._answer(secret, offer, filtered, fault)
        headers = azure_errors.MODEL_HEADERS | {
            "location": f"/v1/realtime/calls/{call_id}",
            "content-type": self._resource.config.sdp_answer_type,
            "timing-allow-origin": "*",
        }
        return Response(answer, 201, headers)

    async def hang_up(self, request: Request) -> Response:
        admit(self._resource.credential_of(request.headers), self._resource.config, _HANGING_UP)
        self.find(request.path_params["call_id"]).ended.set()
        return Response(status_code=200)

    async def _answer(
        self, secret: EphemeralSecret, offer: str, filtered: bool, fault: Fault | None
    ) -> tuple[str, str]:
        try:
            # The first import takes most of a second, which would stop every other talk.
            await asyncio.to_thread(import_module, "token_broker.simulator.realtime.call")
            from aioice.ice import get_host_addresses

            from token_broker.simulator.realtime.call import Call, unusable
        except ModuleNotFoundError as missing:
            message = f"[simulated] WebRTC is not part of this installation: {missing.name} is missing."
            raise azure_errors.structured(501, "501", message) from missing
        talk = new_talk(self._resource, minted_opening(self._resource, secret), _CALLS, server_plays=True)
        call = Call(talk, filtered=filtered)
        try:
            # Loopback first: a simulator's caller is mostly on the same machine.
            addresses = self._resource.config.ice_addresses or (
                _LOOPBACK,
                *get_host_addresses(use_ipv4=True, use_ipv6=False),
            )
            answer = await call.answer(offer, addresses)
        except ValueError as error:
            await call.close()
            raise azure_errors.invalid_request("invalid_offer", f"The offer can't be answered: {error}") from error
        call_id = f"rtc_{secrets.token_hex(16)}"
        if isinstance(fault, IceNeverFault):
            await call.close()
            return call_id, unusable(answer)
        task = asyncio.create_task(
            call.run(fault if isinstance(fault, DieAfterFault) else None), name=f"call {call_id}"
        )
        self._open[call_id] = OpenCall(call, task)
        self._changed.set()

        def forget(_task: "asyncio.Task[None]") -> None:
            del self._open[call_id]
            self._changed.set()

        task.add_done_callback(forget)
        return call_id, answer
