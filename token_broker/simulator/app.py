"""Puts one simulator together: the routes of its kinds inside Starlette, and the front around them."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from token_broker.simulator import errors
from token_broker.simulator.answering import respond_error
from token_broker.simulator.config import SimulatorConfig
from token_broker.simulator.faults.control import Control
from token_broker.simulator.faults.rules import FaultTable
from token_broker.simulator.front import Front
from token_broker.simulator.mint import Mint
from token_broker.simulator.realtime.calls import Calls
from token_broker.simulator.realtime.sockets import RealtimeSockets
from token_broker.simulator.resource import Resource
from token_broker.simulator.seen import RequestLog
from token_broker.simulator.session_bodies.check import Complaint


class Simulator:
    """One simulated Azure resource, as an ASGI application. `server.serve` runs it."""

    def __init__(self, config: SimulatorConfig) -> None:
        self.resource = Resource(config)
        self.faults = FaultTable()
        known = {config.key, *config.entra_tokens, *config.roleless_entra_tokens}
        self.log = RequestLog(known, config.max_remembered_requests)
        self._front = Front(self._routes, self.resource, self.faults, self.log)
        self._calls = Calls(self.resource)
        control = Control(self.resource, self.faults, self.log, lambda: self._front.running, lambda: self.calls)
        self._starlette = Starlette(
            routes=[
                *control.routes(),
                *Mint(self.resource).routes(),
                *self._calls.routes(),
                *RealtimeSockets(self.resource, self._calls).routes(),
            ],
            exception_handlers={
                errors.AzureError: _azure_error,
                Complaint: _complaint,
                HTTPException: _no_such_route,
            },
        )
        self._starlette.router.redirect_slashes = False
        self._starlette.router.default = _nothing_here

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._front(scope, receive, send)

    @property
    def running(self) -> int:
        """Requests and WebSockets that have not ended."""
        return self._front.running

    async def until(self, running: int) -> None:
        """Returns once exactly so many are running."""
        await self._front.until(running)

    @property
    def calls(self) -> int:
        """WebRTC calls that have not ended."""
        return len(self._calls)

    async def until_calls(self, count: int) -> None:
        """Returns once exactly so many calls are open."""
        await self._calls.until(count)

    async def stop(self) -> None:
        """Ends what is running: hanging requests, talks, calls."""
        self._front.stop()
        await self._calls.close()

    async def _routes(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._starlette(scope, receive, send)


async def _nothing_here(scope: Scope, _receive: Receive, send: Send) -> None:
    await respond_error(scope, send, errors.resource_not_found())


def _no_such_route(request: Request, _error: Exception) -> Response:
    """Azure knows operations, not methods of a path: another method is not found either."""
    return _azure_error(request, errors.resource_not_found())


def _complaint(request: Request, error: Exception) -> Response:
    assert isinstance(error, Complaint)  # noqa: S101 - registered for no other
    return _azure_error(request, errors.invalid_request(error.code, error.message, param=error.param))


def _azure_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, errors.AzureError)  # noqa: S101 - registered for no other
    return Response(error.body, error.status, error.headers, error.media_type)
