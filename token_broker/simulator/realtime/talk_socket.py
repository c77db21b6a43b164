"""Holds a talk on an accepted WebSocket, with what interrupts it: one task reads, advances and sends in turn."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any

from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect

from token_broker.simulator.faults.interruptions import Cut, Interruptions, Outgoing, Pongs
from token_broker.simulator.raw_wire import wire_of

if TYPE_CHECKING:
    from token_broker.simulator.realtime.call import HeldTalk

_ABNORMAL = 1006


async def hold(websocket: WebSocket, talk: "HeldTalk", interruptions: Interruptions) -> None:
    """Holds a talk until either side, or a fault, ends it, and writes down who did.

    Raises:
        WebSocketDisconnect: the client vanished while it was sent to, or a fault cut the socket.

    """
    line = _Line(websocket, talk, interruptions)
    stop_listening = interruptions.table.listen(line.look_again)
    try:
        await line.run()
    finally:
        stop_listening()
        talk.record.closed("fault" if interruptions.cut else "server" if talk.ending else "client")


class _Line:
    """A talk, its socket, and the interruptions between them."""

    def __init__(self, websocket: WebSocket, talk: "HeldTalk", interruptions: Interruptions) -> None:
        self._websocket = websocket
        self._talk = talk
        self._interruptions = interruptions
        # The loop's clock: it never jumps, as the wall clock may.
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._waiting: asyncio.Timeout | None = None
        self._changed = False

    async def run(self) -> None:
        talk, interruptions, now_s = self._talk, self._interruptions, self._loop.time
        # Opened first, so that a talk that is cut before any event is written down as well.
        events = talk.open(now_s())
        await self._send(interruptions.open(now_s()))
        await self._pass_on(events)
        while talk.ending is None or interruptions.silent:
            message = await self.next_message()
            if message is not None and message["type"] == "websocket.disconnect":
                return
            if message is not None:
                await self._pass_on(talk.receive(payload(message), now_s()))
            # After each message too: a client that sends without a pause would keep the answer from coming.
            await self._send(interruptions.advance(now_s()))
            await self._pass_on(talk.advance(now_s()))
        await self._websocket.close(talk.ending.code, talk.ending.reason)

    def look_again(self) -> None:
        """Faults were set: what they mean for this talk is looked at soon. Any thread may call it."""
        if threading.get_ident() == self._thread:
            self._end_waiting()
        else:
            self._loop.call_soon_threadsafe(self._end_waiting)

    def _end_waiting(self) -> None:
        self._changed = True
        # It may have ended by itself just now.
        with contextlib.suppress(RuntimeError):
            if self._waiting is not None:
                self._waiting.reschedule(self._loop.time())

    async def next_message(self) -> Message | None:
        """What came next; None if something is due before."""
        if self._changed:
            self._changed = False
            return None
        due_s = min(self._talk.due_s, self._interruptions.due_s)
        try:
            async with asyncio.timeout_at(due_s) as self._waiting:
                return await self._websocket.receive()
        except TimeoutError:
            return None
        finally:
            self._waiting = None

    async def _pass_on(self, events: list[dict[str, Any]]) -> None:
        await self._send(self._interruptions.pass_on(events, self._loop.time()))

    async def _send(self, outgoing: Iterable[Outgoing]) -> None:
        async for event in send_out(self._websocket, outgoing):
            self._talk.record.sent(event)


async def send_out(websocket: WebSocket, outgoing: Iterable[Outgoing]) -> AsyncIterator[dict[str, Any]]:
    """Sends the events, each of which it gives then, and carries out what interrupts them.

    Raises:
        WebSocketDisconnect: the client vanished, or a fault cut the socket.

    """
    wire = wire_of(websocket.scope)
    for item in outgoing:
        match item:
            case Cut(how="close"):
                await websocket.close(item.code, item.reason)
                raise WebSocketDisconnect(item.code)
            case Cut(how="eof"):
                wire.close()
                raise WebSocketDisconnect(_ABNORMAL)
            case Cut():
                await wire.hand_over()
                wire.reset()
                raise WebSocketDisconnect(_ABNORMAL)
            case Pongs():
                wire.answers_pings = item.on
            case _:
                await websocket.send_text(json.dumps(item, separators=(",", ":")))
                yield item


def payload(message: Message) -> str | bytes:
    """What was sent: text, or what should have been."""
    text: str | None = message.get("text")
    return message["bytes"] if text is None else text
