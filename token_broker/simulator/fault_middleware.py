"""The outermost layer: logs every request, applies the fault that is set for it, and adds the common headers.

`stop` ends every request that still hangs, drips or floods, so that no task is left over.
"""

import asyncio
import contextlib
from urllib.parse import unquote

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from token_broker.simulator import azure_errors
from token_broker.simulator.asgi_answers import (
    SIMULATED,
    client_left,
    common_headers,
    respond_error,
    respond_to_preflight,
    with_headers,
)
from token_broker.simulator.faults import http_faults, socket_faults
from token_broker.simulator.faults.control import PREFIX as CONTROL
from token_broker.simulator.faults.fault_base import Protocol
from token_broker.simulator.faults.http_faults import Exchange
from token_broker.simulator.faults.socket_faults import SocketExchange
from token_broker.simulator.raw_wire import wire_of
from token_broker.simulator.records.request_log import RequestLog, SeenRequest
from token_broker.simulator.resource import Resource

_DISCONNECT_S = 1.0


class FaultMiddleware:
    """An ASGI application around the simulator's own."""

    def __init__(self, app: ASGIApp, resource: Resource, log: RequestLog) -> None:
        self._app = app
        self._resource = resource
        self._faults = resource.faults
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
            await self._app(scope, receive, with_headers(send, lambda: SIMULATED))
            return
        headers = Headers(scope=scope)
        entry = SeenRequest(
            protocol=scope["type"],
            method=scope.get("method", "GET"),
            path=scope["path"],
            query=self._log.scrub(unquote(scope["query_string"].decode("latin-1"))),
            header_names=sorted(set(headers.keys())),
            auth=self._resource.credential_of(headers),
            body=None,
            at=self._resource.clock.now(),
        )
        send = with_headers(send, lambda: common_headers(self._resource.clock.now), entry)
        if entry.method == "OPTIONS" and "access-control-request-method" in headers:
            # A browser's own question: neither logged nor met by a fault that is meant for the request after it.
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
            # `stop` cancelled it: break the connection, then let the server notice, or it would answer 500.
            task.uncancel()
            wire_of(scope).abort()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(client_left(receive), _DISCONNECT_S)
        finally:
            self._running.discard(task)
            self._changed.set()
            entry.ended = True

    async def _serve(self, scope: Scope, receive: Receive, send: Send, entry: SeenRequest) -> None:
        protocol: Protocol = scope["type"]
        full = self._faults.over_quota(protocol, entry.method, entry.path, entry.auth)
        if full is not None:
            entry.fault = full.fault.fault
            if protocol == "websocket":
                # An ASGI server wants the connect event read before it takes an answer.
                await receive()
            await respond_error(scope, send, full.refusal())
            return
        if protocol == "websocket":
            fault = self._faults.take(protocol, entry.method, entry.path, entry.auth)
            entry.fault = fault.fault if fault is not None else None
            await socket_faults.serve(fault, SocketExchange(self._app, scope, receive, send, entry))
            return
        body = bytearray()
        # A client that leaves before the body's end has sent what it has sent: the log shows that much.
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if len(body) > self._resource.config.max_body_bytes:
                # The gateway in front refuses it, so it is a page of HTML and no JSON.
                await respond_error(scope, send, azure_errors.page(413))
                return
            if not message.get("more_body", False):
                break
        entry.body = self._log.readable(bytes(body))
        text = body.decode(errors="replace")
        fault = self._faults.take(protocol, entry.method, entry.path, entry.auth, text)
        entry.fault = fault.fault if fault is not None else None
        # The body is read before the fault, so that the log shows what a request asked that met one.
        exchange = Exchange(
            self._app, scope, bytes(body), receive, send, entry, self._resource.secrets, self._resource.clock.now
        )
        if fault is None:
            await exchange.answer_honestly()
        else:
            await http_faults.meet(fault, exchange)
