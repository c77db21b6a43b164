"""The outermost layer: notes every request, lets it meet its fault if one is set, and marks every answer.

It also owns the end: `stop` ends whatever still hangs, drips or floods, and nothing of it is left over.
"""

import asyncio
from urllib.parse import unquote

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from token_broker.simulator import errors
from token_broker.simulator.answering import SIMULATED, client_left, marking, marks, respond_error, respond_to_preflight
from token_broker.simulator.faults import http as fault_http
from token_broker.simulator.faults import websocket as fault_websocket
from token_broker.simulator.faults.control import PREFIX as CONTROL
from token_broker.simulator.faults.http import Exchange
from token_broker.simulator.faults.rules import FaultTable
from token_broker.simulator.faults.websocket import Socket
from token_broker.simulator.resource import Resource
from token_broker.simulator.seen import RequestLog, SeenRequest
from token_broker.simulator.wire import wire_of

_FAREWELL_S = 1.0


class Front:
    """An ASGI application around the simulator's own."""

    def __init__(self, app: ASGIApp, resource: Resource, faults: FaultTable, log: RequestLog) -> None:
        self._app = app
        self._resource = resource
        self._faults = faults
        self._log = log
        self._running: set[asyncio.Task[object]] = set()
        self._changed = asyncio.Event()
        self._stopping = False

    @property
    def running(self) -> int:
        """Requests and WebSockets that have not ended."""
        return len(self._running)

    async def until(self, running: int) -> None:
        """Returns once exactly so many requests and WebSockets are running."""
        while len(self._running) != running:
            self._changed.clear()
            await self._changed.wait()

    def stop(self) -> None:
        """Ends all that is running; what comes later ends at once."""
        self._stopping = True
        for task in self._running:
            task.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith(CONTROL):
            # Without CORS: a page of another origin must not read it.
            await self._app(scope, receive, marking(send, lambda: SIMULATED))
            return
        entry = self._note(scope)
        send = marking(send, lambda: marks(self._resource.clock.now), entry)
        if _is_preflight(scope):
            # Neither a request to Azure's API nor to be met by a fault that is meant for the one that follows.
            await respond_to_preflight(scope, send)
            return
        self._log.add(entry)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - an ASGI server runs applications in tasks
        self._running.add(task)
        self._changed.set()
        try:
            await self._serve(scope, receive, send, entry)
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            task.uncancel()
            await _cut(scope, receive)
        finally:
            self._running.discard(task)
            self._changed.set()
            entry.ended = True

    def _note(self, scope: Scope) -> SeenRequest:
        headers = Headers(scope=scope)
        return SeenRequest(
            protocol=scope["type"],
            method=scope.get("method", "GET"),
            path=scope["path"],
            query=self._log.scrub(unquote(scope["query_string"].decode("latin-1"))),
            header_names=sorted(set(headers.keys())),
            auth=self._resource.credential_of(headers),
            body=None,
            at=self._resource.clock.now(),
        )

    async def _serve(self, scope: Scope, receive: Receive, send: Send, entry: SeenRequest) -> None:
        fault = self._faults.take(scope["type"], entry.method, entry.path, entry.auth)
        entry.fault = fault.fault if fault is not None else None
        if scope["type"] == "websocket":
            await fault_websocket.serve(fault, Socket(self._app, scope, receive, send, entry))
            return
        body = await _read(receive, self._resource.config.max_body_bytes)
        if body is None:
            await respond_error(scope, send, errors.page(413))
            return
        entry.body = self._log.readable(body)
        exchange = Exchange(
            self._app, scope, body, receive, send, entry, self._resource.secrets, self._resource.clock.now
        )
        if fault is None:
            await exchange.answer_honestly()
        else:
            await fault_http.meet(fault, exchange)


def _is_preflight(scope: Scope) -> bool:
    return scope.get("method") == "OPTIONS" and b"access-control-request-method" in dict(scope["headers"])


async def _read(receive: Receive, limit_bytes: int) -> bytes | None:
    """The whole body; None if it is over the limit. A client that leaves before its end has sent what it has sent."""
    body = bytearray()
    while (message := await receive())["type"] == "http.request":
        body += message.get("body", b"")
        if len(body) > limit_bytes:
            return None
        if not message.get("more_body", False):
            break
    return bytes(body)


async def _cut(scope: Scope, receive: Receive) -> None:
    """Breaks the connection off, and waits until the server has noticed."""
    wire_of(scope).abort()
    try:
        await asyncio.wait_for(client_left(receive), _FAREWELL_S)
    except TimeoutError:
        return
