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

from token_broker.simulator import errors
from token_broker.simulator.answering import client_left, marks, respond, respond_error
from token_broker.simulator.ephemeral import EphemeralSecrets
from token_broker.simulator.faults.rules import (
    DieAfter,
    Expired,
    ExpiresAt,
    Fault,
    Hang,
    HugeBody,
    IceNever,
    MalformedJson,
    MissingValue,
    Redirect,
    Reset,
    Slow,
    Status,
)
from token_broker.simulator.seen import SeenRequest
from token_broker.simulator.wire import wire_of

_CHUNK = b"0123456789abcdef" * 4096
_DRIP_TICK_S = 0.02
_USELESS_VALUES: dict[str, Any] = {"null": None, "empty": "", "blank": "   ", "number": 42, "object": {"token": "ek_x"}}

CALL_FAULT = "simulator.call_fault"
"""Where a call's route finds the fault that is its own to carry out."""
JSON_HEADERS = [("content-type", "application/json")]


@dataclass(frozen=True, slots=True)
class Exchange:
    """One HTTP request on its way: what ASGI gave, and the application that would answer it honestly.

    `body` has been read already; all that `receive` still has to say is that the client has gone.
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

    async def honest_answer(self) -> "Answer":
        """What the application would have answered, held back."""
        sent: list[Message] = []

        async def hold(message: Message) -> None:
            sent.append(message)

        await self.app(self.scope, self._replayed(), hold)
        body = b"".join(message.get("body", b"") for message in sent[1:])
        return Answer(sent[0]["status"], list(sent[0].get("headers", [])), body)

    def _replayed(self) -> Receive:
        pending: list[Message] = [{"type": "http.request", "body": self.body, "more_body": False}]

        async def replayed() -> Message:
            return pending.pop() if pending else await self.receive()

        return replayed


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole HTTP answer."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def with_body(self, body: bytes) -> "Answer":
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
        case Status():
            await answer_status(fault, exchange.scope, exchange.send)
        case Redirect():
            await exchange.answer(fault.code, [("location", fault.location)], b"")
        case Hang():
            await _for_ever()
        case Slow():
            await _slow(fault, exchange)
        case Reset():
            await _reset(fault, exchange)
        case MalformedJson():
            await _malformed(fault, exchange)
        case MissingValue() | Expired() | ExpiresAt():
            answer = _spoilt(fault, await exchange.honest_answer(), exchange)
            await exchange.send(answer.start())
            await exchange.send({"type": "http.response.body", "body": answer.body})
        case IceNever() | DieAfter():
            exchange.scope["extensions"][CALL_FAULT] = fault
            await exchange.answer_honestly()
        case HugeBody():
            await _huge(fault.bytes, exchange)
        case _:  # pragma: no cover - the table gives out no WebSocket fault here
            raise AssertionError(fault)


async def answer_status(fault: Status, scope: Scope, send: Send) -> None:
    """Answers a request, or a handshake, with the fault's status."""
    if fault.body is None:
        error = _usual_error(fault.code)
        error.headers |= fault.headers
        await respond_error(scope, send, error)
    elif isinstance(fault.body, str):
        headers = {"content-type": "text/plain; charset=utf-8"} | _lowered(fault.headers)
        await respond(scope, send, fault.code, list(headers.items()), fault.body.encode())
    else:
        headers = {"content-type": "application/json"} | _lowered(fault.headers)
        await respond(scope, send, fault.code, list(headers.items()), json.dumps(fault.body).encode())


def _usual_error(code: int) -> errors.AzureError:
    """What Azure would say with a status, as far as it is known."""
    match code:
        case 401:
            return errors.key_wrong()
        case 403:
            return errors.keys_disabled()
        case 404:
            return errors.resource_not_found()
        case 429:
            return errors.structured(
                429, "RateLimitReached", "Requests have exceeded the call rate limit. Retry later."
            )
        case _:
            phrase = HTTPStatus(code).phrase if code in set(HTTPStatus) else "Simulated fault"
            return errors.structured(code, str(code), phrase)


async def _slow(fault: Slow, exchange: Exchange) -> None:
    if fault.part == "start":
        await asyncio.sleep(fault.seconds)
        await exchange.answer_honestly()
    elif fault.part == "headers":
        await _drip_headers(await exchange.honest_answer(), fault.seconds, exchange)
    else:
        await _drip_body(await exchange.honest_answer(), fault.seconds, exchange)


async def _drip_headers(answer: Answer, seconds: float, exchange: Exchange) -> None:
    """Writes the head itself, past uvicorn, which would send it whole."""
    wire = wire_of(exchange.scope)
    exchange.entry.status = answer.status
    head = _head(answer, [*marks(exchange.now), (b"connection", b"close")])
    await _drip(head, seconds, wire.write)
    await wire.write(answer.body)
    wire.close()
    await _for_ever()


async def _drip_body(answer: Answer, seconds: float, exchange: Exchange) -> None:
    async def send_part(part: bytes) -> None:
        await exchange.send({"type": "http.response.body", "body": part, "more_body": True})

    await exchange.send(answer.start())
    await _drip(answer.body, seconds, send_part)
    await exchange.send({"type": "http.response.body", "body": b""})


async def _drip(data: bytes, seconds: float, write: Callable[[bytes], Awaitable[None]]) -> None:
    """Writes `data` in even parts over `seconds`."""
    parts = max(1, min(len(data), int(seconds / _DRIP_TICK_S)))
    size = math.ceil(len(data) / parts)
    for begin in range(0, len(data), size):
        await write(data[begin : begin + size])
        await asyncio.sleep(seconds / parts)


async def _reset(fault: Reset, exchange: Exchange) -> None:
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
    """Until the server has noticed that the connection is gone, and `meet` ends it."""
    await asyncio.get_running_loop().create_future()


async def _malformed(fault: MalformedJson, exchange: Exchange) -> None:
    match fault.form:
        case "truncated":
            await exchange.answer(200, JSON_HEADERS, b'{"value": "ek_simulated_trunc')
        case "html":
            await exchange.answer(200, [("content-type", "text/html")], b"<html><body>Service</body></html>")
        case "text":
            await exchange.answer(200, JSON_HEADERS, b"upstream connect error")
        case "empty":
            await exchange.answer(200, JSON_HEADERS, b"")


def _spoilt(fault: MissingValue | Expired | ExpiresAt, answer: Answer, exchange: Exchange) -> Answer:
    """The honest answer with the fault in it; one that is no mint's success stays as it is."""
    if answer.status != HTTPStatus.OK:
        return answer
    grant: dict[str, Any] = json.loads(answer.body)
    if isinstance(fault, MissingValue):
        grant.pop("value")
        if fault.form != "missing":
            grant["value"] = _USELESS_VALUES[fault.form]
    elif isinstance(fault, ExpiresAt):
        grant.pop("expires_at")
        if "value" in fault.model_fields_set:
            grant["expires_at"] = fault.value
    else:
        exchange.secrets.expire(grant["value"])
        past = int(exchange.now() - fault.seconds_ago)
        unix = isinstance(grant["expires_at"], int)
        grant["expires_at"] = past if unix else datetime.fromtimestamp(past, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return answer.with_body(json.dumps(grant).encode())


async def _huge(size_bytes: int, exchange: Exchange) -> None:
    length = (b"content-length", str(size_bytes).encode())
    headers = [(b"content-type", b"application/json"), length]
    await exchange.send({"type": "http.response.start", "status": 200, "headers": headers})
    for begin in range(0, size_bytes, len(_CHUNK)):
        part = _CHUNK[: size_bytes - begin]
        more = begin + len(part) < size_bytes
        await exchange.send({"type": "http.response.body", "body": part, "more_body": more})
        await asyncio.sleep(0)  # a client that reads fast enough would keep everything else from running


def _head(answer: Answer, more: list[tuple[bytes, bytes]]) -> bytes:
    lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}".encode()]
    lines += [name + b": " + value for name, value in [*answer.headers, *more]]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _lowered(headers: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
