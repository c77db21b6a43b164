"""WebRTC's HTTP side: an offer opens a call, a hang-up ends it, a sideband socket joins it (docs/azure.md §5)."""

from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from token_broker.simulator import azure_errors
from token_broker.simulator.auth import Credential, admit, bearer_of
from token_broker.simulator.calls.ongoing import OfferRefused, OngoingCalls, load_webrtc, new_call_id
from token_broker.simulator.ephemeral import EphemeralSecret
from token_broker.simulator.faults.call_faults import DataChannelFault, DieAfterFault, IceNeverFault
from token_broker.simulator.faults.fault_table import Fault
from token_broker.simulator.faults.http_faults import CALL_FAULT
from token_broker.simulator.realtime.talk_opening import minted_opening, new_talk
from token_broker.simulator.resource import Resource

_STANDING = frozenset({Credential.KEY, Credential.KEY_AS_BEARER, Credential.ENTRA})
_HANGING_UP = _STANDING | {Credential.EPHEMERAL}
_CALLS = "/openai/v1/realtime/calls"


class CallRoutes:
    """The routes of GA's calls."""

    def __init__(self, resource: Resource, calls: OngoingCalls) -> None:
        self._resource = resource
        self._calls = calls

    def routes(self) -> list[Route]:
        if "direct" not in self._resource.config.kinds:
            return []
        return [
            Route(_CALLS, self.create, methods=["POST"]),
            Route(f"{_CALLS}/{{call_id}}/hangup", self.hang_up, methods=["POST"]),
        ]

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
        self._calls.find(request.path_params["call_id"]).end()
        return Response(status_code=200)

    async def _answer(
        self, secret: EphemeralSecret, offer: str, filtered: bool, fault: Fault | None
    ) -> tuple[str, str]:
        await load_webrtc()
        from token_broker.simulator.realtime.call import Lines, unfiltered, unusable

        talk = new_talk(self._resource, minted_opening(self._resource, secret), _CALLS, server_plays=True)
        lines = Lines(channel=self._resource.faults.switched(DataChannelFault, _CALLS))
        if filtered:
            lines = replace(lines, page=unfiltered)
        try:
            call, answer = await self._calls.answer(talk, offer, _CALLS, lines)
        except OfferRefused as refused:
            raise azure_errors.invalid_request("invalid_offer", f"The offer can't be answered: {refused}") from refused
        call_id = new_call_id()
        if isinstance(fault, IceNeverFault):
            await call.close()
            return call_id, unusable(answer)
        self._calls.start(call, call_id, fault if isinstance(fault, DieAfterFault) else None)
        return call_id, answer
