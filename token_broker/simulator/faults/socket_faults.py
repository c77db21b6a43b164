"""Carries out faults on WebSockets: in the handshake, or between the frames of a talk that is otherwise honest."""

import asyncio
import itertools
import json
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect
from websockets.frames import Frame, Opcode

from token_broker.simulator.asgi_answers import client_left, respond
from token_broker.simulator.faults.fault_table import (
    DropAfterFault,
    Fault,
    FloodFault,
    GarbageFault,
    HangFault,
    OversizedFrameFault,
    RedirectFault,
    RefuseFault,
    ResetFault,
    SlowFault,
    Stage,
    StatusFault,
)
from token_broker.simulator.faults.http_faults import answer_status
from token_broker.simulator.raw_wire import wire_of
from token_broker.simulator.records.request_log import SeenRequest
from token_broker.simulator.session_bodies.check import InvalidRequest, parse_json

_FRAGMENT_BYTES = 64 * 1024
_ABNORMAL = 1006
# Base64 of silence: repeated, it stays valid base64.
_SILENCE = "AAAA"
_RESERVED_OPCODE = b"\x8f\x04bad!"
_MISSHAPEN = {
    "text": '{"type": "response.aud',
    "array": '["response.audio.delta"]',
    "untyped": '{"event_id": "event_simulated", "delta": 42}',
}


@dataclass(frozen=True, slots=True)
class SocketExchange:
    """One WebSocket: what ASGI gave, and the application that would serve it honestly."""

    app: ASGIApp
    scope: Scope
    receive: Receive
    send: Send
    entry: SeenRequest


async def serve(fault: Fault | None, socket: SocketExchange) -> None:
    """Serves a socket, honestly or as the fault says. Notes the client's events in the log entry."""
    app, scope, send = socket.app, socket.scope, socket.send
    receive = _logging(socket.receive, socket.entry)
    match fault:
        case None:
            await app(scope, receive, send)
        case StatusFault():
            # An ASGI server wants the connect event read before it takes an answer.
            await receive()
            await answer_status(fault, scope, send)
        case RedirectFault():
            await receive()
            await respond(scope, send, fault.code, [("location", fault.location)], b"")
        case HangFault(stage="handshake"):
            await client_left(receive)
        case ResetFault() | RefuseFault():
            await receive()
            wire_of(scope).reset()
            await client_left(receive)
        case SlowFault(stage="handshake"):
            connect = await receive()
            try:
                await asyncio.wait_for(client_left(receive), fault.seconds)
            except TimeoutError:
                await app(scope, _with_first(connect, receive), send)
        case _:
            await app(scope, receive, _FaultySend(fault, scope, receive, send))


class _FaultySend:
    """A `send` that passes the application's frames on until the fault is due."""

    # It wraps `send` alone: the application behind it stays honest, and does not know of the fault.
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
            match self._fault:
                case HangFault(stage=stage) if self._is_stage(stage, message):
                    await client_left(self._receive)
                    raise WebSocketDisconnect(_ABNORMAL)
                case SlowFault(stage=stage, seconds=seconds) if self._is_stage(stage, message):
                    self._done = True
                    await asyncio.sleep(seconds)
            await self._send(message)
            self._sent += 1
        else:
            await self._send(message)
        if message["type"] in ("websocket.send", "websocket.accept"):
            await self._after_frame()

    def _is_stage(self, stage: Stage, message: Message) -> bool:
        # Voice Live writes `event_id` before `type`, so the type stands within the first hundred characters.
        return not self._done and f'"type":"session.{stage}"' in message.get("text", "")[:120]

    async def _after_frame(self) -> None:
        fault = self._fault
        if self._done or not isinstance(fault, DropAfterFault | GarbageFault | OversizedFrameFault | FloodFault):
            return
        if self._sent < fault.frames:
            return
        self._done = True
        match fault:
            case DropAfterFault(how="close"):
                await self._send({"type": "websocket.close", "code": fault.code, "reason": "simulated"})
                raise WebSocketDisconnect(fault.code)
            case DropAfterFault(how="eof"):
                self._wire.close()
                raise WebSocketDisconnect(_ABNORMAL)
            case DropAfterFault():
                await self._wire.hand_over()
                self._wire.reset()
                raise WebSocketDisconnect(_ABNORMAL)
            case GarbageFault(form="binary"):
                await self._send({"type": "websocket.send", "bytes": b"\x00\xff" * 80})
            case GarbageFault(form="protocol"):
                await self._wire.write(_RESERVED_OPCODE)
            case GarbageFault():
                await self._send({"type": "websocket.send", "text": _MISSHAPEN[fault.form]})
            case OversizedFrameFault(fragmented=True):
                data = self._delta(fault.bytes).encode()
                for begin in range(0, len(data), _FRAGMENT_BYTES):
                    part = data[begin : begin + _FRAGMENT_BYTES]
                    opcode = Opcode.TEXT if begin == 0 else Opcode.CONT
                    frame = Frame(opcode, part, fin=begin + len(part) == len(data))
                    await self._wire.write(frame.serialize(mask=False))
            case OversizedFrameFault():
                await self._send({"type": "websocket.send", "text": self._delta(fault.bytes)})
            case FloodFault():
                text = self._delta(fault.bytes)
                for _ in itertools.repeat(None) if fault.count is None else itertools.repeat(None, fault.count):
                    await self._send({"type": "websocket.send", "text": text})
                    # A client that reads fast enough would keep everything else from running.
                    await asyncio.sleep(0)

    def _delta(self, size_bytes: int) -> str:
        """An audio delta of at least so many bytes in all."""
        ids = {"event_id": "event_simulated", "response_id": "resp_simulated", "item_id": "item_simulated"}
        audio = _SILENCE * (size_bytes // len(_SILENCE) + 1)
        return json.dumps({"type": self._delta_type, **ids, "output_index": 0, "content_index": 0, "delta": audio})


def _logging(receive: Receive, entry: SeenRequest) -> Receive:
    """Notes the client's events in the log entry; audio is only counted."""

    async def wrapped() -> Message:
        message = await receive()
        if message["type"] == "websocket.receive":
            entry.frames_received += 1
            text = message.get("text")
            if text is not None and '"input_audio_buffer.append"' not in text[:200]:
                try:
                    entry.note_event(parse_json(text))
                except InvalidRequest:
                    entry.note_event(text[:1000])
        return message

    return wrapped


def _with_first(first: Message, receive: Receive) -> Receive:
    """`receive` with a message that was taken already put back."""
    pending = [first]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed
