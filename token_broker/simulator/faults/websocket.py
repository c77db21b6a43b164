"""Carries out faults on WebSockets: in the handshake, or between the frames of a talk that is otherwise honest."""

import asyncio
import itertools
import json
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect
from websockets.frames import Frame, Opcode

from token_broker.simulator.answering import client_left, respond
from token_broker.simulator.faults.http import answer_status
from token_broker.simulator.faults.rules import (
    DropAfter,
    Fault,
    Flood,
    Garbage,
    Hang,
    OversizedFrame,
    Redirect,
    Reset,
    Slow,
    Stage,
    Status,
)
from token_broker.simulator.seen import SeenRequest
from token_broker.simulator.session_bodies.check import Complaint, parse_json
from token_broker.simulator.wire import Wire, wire_of

_FRAGMENT_BYTES = 64 * 1024
_ABNORMAL = 1006
# Base64 of silence: any length that 4 divides is a whole piece of it.
_SILENCE = "AAAA"
_RESERVED_OPCODE = b"\x8f\x04bad!"
_MISSHAPEN = {
    "text": '{"type": "response.aud',
    "array": '["response.audio.delta"]',
    "untyped": '{"event_id": "event_simulated", "delta": 42}',
}


@dataclass(frozen=True, slots=True)
class Socket:
    """One WebSocket on its way: what ASGI gave, and the application that would serve it honestly."""

    app: ASGIApp
    scope: Scope
    receive: Receive
    send: Send
    entry: SeenRequest


async def serve(fault: Fault | None, socket: Socket) -> None:
    """Runs the application on a socket, or what the fault leaves of it. Notes the client's events in its entry."""
    app, scope, send = socket.app, socket.scope, socket.send
    receive = _noting(socket.receive, socket.entry)
    match fault:
        case None:
            await app(scope, receive, send)
        case Status():
            await _opening(receive)
            await answer_status(fault, scope, send)
        case Redirect():
            await _opening(receive)
            await respond(scope, send, fault.code, [("location", fault.location)], b"")
        case Hang(stage="handshake"):
            await client_left(receive)
        case Reset():
            await _opening(receive)
            wire_of(scope).reset()
            await client_left(receive)
        case Slow(stage="handshake"):
            opening = await _opening(receive)
            if not await _left_within(fault.seconds, receive):
                await app(scope, _after(opening, receive), send)
        case _:
            await app(scope, receive, _Meddling(fault, scope, receive, send))


class _Meddling:
    """A `send` that lets the application's frames pass until it is the fault's turn."""

    def __init__(self, fault: Fault, scope: Scope, receive: Receive, send: Send) -> None:
        self._fault = fault
        self._wire = wire_of(scope)
        self._receive = receive
        self._send = send
        self._delta_type = "response.output_audio.delta" if "/v1/" in scope["path"] else "response.audio.delta"
        self._sent = 0
        self._done = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "websocket.send":
            await self._before(message)
            await self._send(message)
            self._sent += 1
        else:
            await self._send(message)
        if message["type"] in ("websocket.send", "websocket.accept"):
            await self._after()

    async def _before(self, message: Message) -> None:
        match self._fault:
            case Hang(stage=stage) if self._is_stage(stage, message):
                await client_left(self._receive)
                raise WebSocketDisconnect(_ABNORMAL)
            case Slow(stage=stage, seconds=seconds) if self._is_stage(stage, message):
                self._done = True
                await asyncio.sleep(seconds)

    def _is_stage(self, stage: Stage, message: Message) -> bool:
        return not self._done and f'"type":"session.{stage}"' in message.get("text", "")[:80]

    async def _after(self) -> None:
        fault = self._fault
        if self._done or not isinstance(fault, DropAfter | Garbage | OversizedFrame | Flood):
            return
        if self._sent < fault.frames:
            return
        self._done = True
        match fault:
            case DropAfter():
                await self._drop(fault)
            case Garbage(form="binary"):
                await self._send({"type": "websocket.send", "bytes": b"\x00\xff" * 80})
            case Garbage(form="protocol"):
                await self._wire.write(_RESERVED_OPCODE)
            case Garbage():
                await self._send({"type": "websocket.send", "text": _MISSHAPEN[fault.form]})
            case OversizedFrame(fragmented=True):
                await _send_in_fragments(self._wire, self._delta(fault.bytes))
            case OversizedFrame():
                await self._send({"type": "websocket.send", "text": self._delta(fault.bytes)})
            case Flood():
                await self._flood(fault)

    async def _drop(self, fault: DropAfter) -> None:
        if fault.how == "close":
            await self._send({"type": "websocket.close", "code": fault.code, "reason": "simulated"})
        elif fault.how == "eof":
            self._wire.close()
        else:
            await self._wire.hand_over()
            self._wire.reset()
        raise WebSocketDisconnect(fault.code if fault.how == "close" else _ABNORMAL)

    async def _flood(self, fault: Flood) -> None:
        text = self._delta(fault.bytes)
        for _ in itertools.repeat(None) if fault.count is None else itertools.repeat(None, fault.count):
            await self._send({"type": "websocket.send", "text": text})
            await asyncio.sleep(0)  # a client that reads fast enough would keep everything else from running

    def _delta(self, size_bytes: int) -> str:
        """An audio delta of at least so many bytes in all."""
        ids = {"event_id": "event_simulated", "response_id": "resp_simulated", "item_id": "item_simulated"}
        audio = _SILENCE * (size_bytes // len(_SILENCE) + 1)
        return json.dumps({"type": self._delta_type, **ids, "output_index": 0, "content_index": 0, "delta": audio})


async def _send_in_fragments(wire: Wire, text: str) -> None:
    data = text.encode()
    for begin in range(0, len(data), _FRAGMENT_BYTES):
        part = data[begin : begin + _FRAGMENT_BYTES]
        opcode = Opcode.TEXT if begin == 0 else Opcode.CONT
        frame = Frame(opcode, part, fin=begin + len(part) == len(data))
        await wire.write(frame.serialize(mask=False))


def _noting(receive: Receive, entry: SeenRequest) -> Receive:
    """Notes the client's events; audio is only counted."""

    async def noted() -> Message:
        message = await receive()
        if message["type"] == "websocket.receive":
            entry.frames_received += 1
            text = message.get("text")
            if text is not None and '"input_audio_buffer.append"' not in text[:200]:
                entry.note_event(_readable(text))
        return message

    return noted


def _readable(text: str) -> object:
    try:
        return parse_json(text)
    except Complaint:
        return text[:1000]


async def _opening(receive: Receive) -> Message:
    """The message that every WebSocket begins with."""
    return await receive()


def _after(opening: Message, receive: Receive) -> Receive:
    pending = [opening]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed


async def _left_within(seconds: float, receive: Receive) -> bool:
    try:
        await asyncio.wait_for(client_left(receive), seconds)
    except TimeoutError:
        return False
    return True
