"""Builds one simulated Azure resource: the routes of its kinds, and the fault middleware around them."""

from collections.abc import Mapping

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from token_broker.simulator import azure_errors
from token_broker.simulator.asgi_answers import respond_error
from token_broker.simulator.calls.ongoing import OngoingCalls
from token_broker.simulator.calls.voice_agents import VoiceAgents
from token_broker.simulator.calls.voice_live_calls import VoiceLiveCalls
from token_broker.simulator.config import SimulatorConfig
from token_broker.simulator.fault_middleware import FaultMiddleware
from token_broker.simulator.faults.control import Control
from token_broker.simulator.live.live_routes import LiveRoutes
from token_broker.simulator.mint import Mint
from token_broker.simulator.realtime.call_routes import CallRoutes
from token_broker.simulator.realtime.sockets import RealtimeSockets
from token_broker.simulator.records.request_log import RequestLog
from token_broker.simulator.records.transcript import TalkTranscript
from token_broker.simulator.resource import Resource
from token_broker.simulator.session_bodies.check import InvalidRequest


class Simulator:
    """One simulated Azure resource, as an ASGI application. `server.serve` runs it."""

    def __init__(
        self,
        config: SimulatorConfig,
        name: str = "default",
        transcript: TalkTranscript | None = None,
        peers: "Mapping[str, Simulator] | None" = None,
    ) -> None:
        """`peers` are all resources of the process by name, which its control routes reach as well."""
        self.base_url = ""
        """Where it listens, once it does."""
        self.resource = Resource(config, name, transcript)
        self.faults = self.resource.faults
        known = {config.key, *config.entra_tokens, *config.roleless_entra_tokens}
        self.log = RequestLog(known, config.max_remembered_requests)
        self._calls = OngoingCalls(self.resource)
        sockets = RealtimeSockets(self.resource, self._calls.join)
        control = Control(
            self.resource,
            self.log,
            lambda: self.running,
            lambda: self.calls,
            self._calls.close,
            {name: self} if peers is None else peers,
        )
        routes = Starlette(
            routes=[
                *control.routes(),
                *Mint(self.resource).routes(),
                *CallRoutes(self.resource, self._calls).routes(),
                *sockets.routes(),
                *VoiceAgents(self.resource, self._calls, sockets).routes(),
                *LiveRoutes(self.resource, self._calls, sockets).routes(),
                *VoiceLiveCalls(self.resource, self._calls, sockets).routes(),
            ],
            exception_handlers={
                azure_errors.AzureError: _respond_to_exception,
                InvalidRequest: _respond_to_exception,
                # Azure knows operations, not methods of a path: a wrong method answers as a wrong path does.
                HTTPException: lambda request, _: _respond_to_exception(request, azure_errors.resource_not_found()),
            },
        )
        # Azure does not redirect to a path with a slash, and answers in its own shape where nothing matches.
        routes.router.redirect_slashes = False
        routes.router.default = lambda scope, _, send: respond_error(scope, send, azure_errors.resource_not_found())
        self._middleware = FaultMiddleware(routes, self.resource, self.log)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._middleware(scope, receive, send)

    @property
    def running(self) -> int:
        """Requests and WebSockets that have not ended."""
        return self._middleware.running

    async def until(self, running: int) -> None:
        """Returns once exactly so many are running."""
        await self._middleware.until(running)

    @property
    def calls(self) -> int:
        """WebRTC calls that have not ended."""
        return len(self._calls)

    async def until_calls(self, count: int) -> None:
        """Returns once exactly so many calls are open."""
        await self._calls.until(count)

    async def stop(self) -> None:
        """Ends what is running: hanging requests, talks, calls."""
        self._middleware.stop()
        await self._calls.close()


def _respond_to_exception(_request: Request, error: Exception) -> Response:
    if isinstance(error, InvalidRequest):
        error = azure_errors.invalid_request(error.code, error.message, param=error.param)
    assert isinstance(error, azure_errors.AzureError)  # noqa: S101 - registered for no other
    return Response(error.body, error.status, error.headers, error.media_type)
