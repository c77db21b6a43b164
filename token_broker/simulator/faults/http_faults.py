"""Carries out faults on HTTP requests."""

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from token_broker.simulator import azure_errors
from token_broker.simulator.asgi_answers import client_left, common_headers, respond, respond_error
from token_broker.simulator.ephemeral import EphemeralSecrets
from token_broker.simulator.faults.call_faults import DieAfterFault, IceNeverFault
from token_broker.simulator.faults.fault_table import (
    ExpiredFault,
    ExpiresAtFault,
    Fault,
    HangFault,
    HugeBodyFault,
    MalformedJsonFault,
    MissingValueFault,
    RedirectFault,
    RefuseFault,
    ResetFault,
    SlowFault,
    StatusFault,
)
from token_broker.simulator.raw_wire import wire_of
from token_broker.simulator.records.request_log import SeenRequest

_CHUNK = b"0123456789abcdef" * 4096
# Finer than this the event loop sets the pace, not the fault.
_DRIP_TICK_S = 0.02
_USELESS_VALUES: dict[str, Any] = {"null": None, "empty": "", "blank": "   ", "number": 42, "object": {"token": "ek_x"}}

CALL_FAULT = "simulator.call_fault"
"""The scope's extension in which a call's route finds the fault that it carries out itself."""
JSON_HEADERS = [("content-type", "application/json")]
_MALFORMED = {
    "truncated": (JSON_HEADERS, b'{"value": "ek_simulated_trunc'),
    "html": ([("content-type", "text/html")], b"<html><body>Service</body></html>"),
    "text": (JSON_HEADERS, b"upstream connect error"),
    "empty": (JSON_HEADERS, b""),
}


@dataclass(frozen=True, slots=True)
class Exchange:
    """One HTTP request: what ASGI gave, and the application that would answer it honestly.

    `body` has been read already, so that `receive` only tells when the client has gone.
    """

    app: ASGIApp
    scope: Scope
    body: bytes
    receive: Receive
    send: Send
    entry: SeenRequest
    secrets: EphemeralSecrets
    now: Callable[[], float]

    async def answer_honestly(self) -> None:
        await self.app(self.scope, self._replayed(), self.send)

    async def answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        await respond(self.scope, self.send, status, headers, body)

    async def honest_answer(self) -> "HttpAnswer":
        """What the application would have answered, held back."""
        sent: list[Message] = []

        async def hold(message: Message) -> None:
            sent.append(message)

        await self.app(self.scope, self._replayed(), hold)
        body = b"".join(message.get("body", b"") for message in sent[1:])
        return HttpAnswer(sent[0]["status"], list(sent[0].get("headers", [])), body)

    def _replayed(self) -> Receive:
        pending: list[Message] = [{"type": "http.request", "body": self.body, "more_body": False}]

        async def replayed() -> Message:
            return pending.pop() if pending else await self.receive()

        return replayed


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """A whole HTTP answer."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def with_body(self, body: bytes) -> "HttpAnswer":
        headers = [header for header in self.headers if header[0] != b"content-length"]
        return replace(self, headers=[*headers, (b"content-length", str(len(body)).encode())], body=body)

    def start(self) -> Message:
        return {"type": "http.response.start", "status": self.status, "headers": self.headers}


async def meet(fault: Fault, exchange: Exchange) -> None:
    """Answers the request as the fault says, for as long as the client is there."""
    work = asyncio.create_task(_carry_out(fault, exchange))
    left = asyncio.create_task(client_left(exchange.receive))
    try:
        await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        work.cancel()
        left.cancel()
        _, outcome = await asyncio.gather(left, work, return_exceptions=True)
    if isinstance(outcome, Exception):
        raise outcome


async def _carry_out(fault: Fault, exchange: Exchange) -> None:
    match fault:
        case StatusFault():
            await answer_status(fault, exchange.scope, exchange.send)
        case RedirectFault():
            await exchange.answer(fault.code, [("location", fault.location)], b"")
        case HangFault():
            await _for_ever()
        case SlowFault():
            await _slow(fault, exchange)
        case ResetFault():
            await _reset(fault, exchange)
        case RefuseFault():
            wire_of(exchange.scope).reset()
            await _for_ever()
        case MalformedJsonFault():
            headers, body = _MALFORMED[fault.form]
            await exchange.answer(200, headers, body)
        case MissingValueFault() | ExpiredFault() | ExpiresAtFault():
            answer = _with_fault(fault, await exchange.honest_answer(), exchange)
            await exchange.send(answer.start())
            await exchange.send({"type": "http.response.body", "body": answer.body})
        case IceNeverFault() | DieAfterFault():
            exchange.scope["extensions"][CALL_FAULT] = fault
            await exchange.answer_honestly()
        case HugeBodyFault():
            length = (b"content-length", str(fault.bytes).encode())
            raw_headers = [(b"content-type", b"application/json"), length]
            await exchange.send({"type": "http.response.start", "status": 200, "headers": raw_headers})
            for begin in range(0, fault.bytes, len(_CHUNK)):
                part = _CHUNK[: fault.bytes - begin]
                more = begin + len(part) < fault.bytes
                await exchange.send({"type": "http.response.body", "body": part, "more_body": more})
                # A client that reads fast enough would keep everything else from running.
                await asyncio.sleep(0)
        case _:  # pragma: no cover - the table gives out no WebSocket fault here
            raise AssertionError(fault)


async def answer_status(fault: StatusFault, scope: Scope, send: Send) -> None:
    """Answers a request, or a handshake, with the fault's status; without a body, as Azure would."""
    if fault.body is None:
        match fault.code:
            case 401:
                error = azure_errors.key_wrong()
            case 403:
                error = azure_errors.keys_disabled()
            case 404:
                error = azure_errors.resource_not_found()
            case 429:
                message = "Requests have exceeded the call rate limit. Retry later."
                error = azure_errors.structured(429, "RateLimitReached", message)
            case code:
                phrase = HTTPStatus(code).phrase if code in set(HTTPStatus) else "Simulated fault"
                error = azure_errors.structured(code, str(code), phrase)
        error.headers |= fault.headers
        await respond_error(scope, send, error)
        return
    plain = isinstance(fault.body, str)
    body = str(fault.body) if plain else json.dumps(fault.body)
    headers = {"content-type": "text/plain; charset=utf-8" if plain else "application/json"}
    # Lower case, so that a fault's own content type replaces this one.
    headers |= {name.lower(): value for name, value in fault.headers.items()}
    await respond(scope, send, fault.code, list(headers.items()), body.encode())


async def _slow(fault: SlowFault, exchange: Exchange) -> None:
    if fault.part == "start":
        await asyncio.sleep(fault.seconds)
        await exchange.answer_honestly()
        return
    answer = await exchange.honest_answer()
    if fault.part == "body":

        async def send_part(part: bytes) -> None:
            await exchange.send({"type": "http.response.body", "body": part, "more_body": True})

        await exchange.send(answer.start())
        await _drip(answer.body, fault.seconds, send_part)
        await exchange.send({"type": "http.response.body", "body": b""})
        return
    # Headers are written past uvicorn, which would send them at once.
    wire = wire_of(exchange.scope)
    exchange.entry.status = answer.status
    lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}".encode()]
    headers = [*answer.headers, *common_headers(exchange.now), (b"connection", b"close")]
    lines += [name + b": " + value for name, value in headers]
    await _drip(b"\r\n".join(lines) + b"\r\n\r\n", fault.seconds, wire.write)
    await wire.write(answer.body)
    wire.close()
    await _for_ever()


async def _drip(data: bytes, seconds: float, write: Callable[[bytes], Awaitable[None]]) -> None:
    """Writes `data` in even parts over `seconds`."""
    parts = max(1, min(len(data), int(seconds / _DRIP_TICK_S)))
    size = math.ceil(len(data) / parts)
    for begin in range(0, len(data), size):
        await write(data[begin : begin + size])
        await asyncio.sleep(seconds / parts)


async def _reset(fault: ResetFault, exchange: Exchange) -> None:
    wire = wire_of(exchange.scope)
    if fault.at != "start":
        answer = await exchange.honest_answer()
        await exchange.send(answer.start())
        if fault.at == "body":
            half = answer.body[: len(answer.body) // 2]
            await exchange.send({"type": "http.response.body", "body": half, "more_body": True})
        await wire.hand_over()
    wire.reset()
    await _for_ever()


async def _for_ever() -> None:
    """Waits until the server has noticed that the connection is gone, and `meet` cancels this."""
    await asyncio.get_running_loop().create_future()


def _with_fault(
    fault: MissingValueFault | ExpiredFault | ExpiresAtFault, answer: HttpAnswer, exchange: Exchange
) -> HttpAnswer:
    """The honest answer with the fault in it. An answer that grants nothing stays as it is."""
    if answer.status != HTTPStatus.OK:
        return answer
    grant: dict[str, Any] = json.loads(answer.body)
    if isinstance(fault, MissingValueFault):
        grant.pop("value")
        if fault.form != "missing":
            grant["value"] = _USELESS_VALUES[fault.form]
    elif isinstance(fault, ExpiresAtFault):
        grant.pop("expires_at")
        if "value" in fault.model_fields_set:
            grant["expires_at"] = fault.value
    else:
        exchange.secrets.expire(grant["value"])
        past = int(exchange.now() - fault.seconds_ago)
        unix = isinstance(grant["expires_at"], int)
        grant["expires_at"] = past if unix else datetime.fromtimestamp(past, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return answer.with_body(json.dumps(grant).encode())
