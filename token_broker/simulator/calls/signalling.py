"""A WebSocket that signals one WebRTC call, and carries a part of its events: the control socket.

    client                                     server
    rtc.call.sdp.create {sdp_offer, session?}
                                               session.created {session}
                                               rtc.call.sdp.created {rtc_call_id, sdp_answer}, or rtc.call.error
    any client event                           what `channels.on_control` lets through

docs/azure.md §12.1. The close of the socket ends the call.
"""

import asyncio
import secrets
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from starlette.websockets import WebSocket

from token_broker.simulator import azure_errors
from token_broker.simulator.calls.channels import on_control, on_data_channel
from token_broker.simulator.calls.ongoing import OfferRefused, OngoingCalls, load_webrtc, new_call_id
from token_broker.simulator.faults.call_faults import (
    CallOutlivesSocketFault,
    DataChannelFault,
    DataChannelIgnoredFault,
    DieAfterFault,
    IceNeverFault,
    LateControlFault,
    WebrtcOrderFault,
)
from token_broker.simulator.faults.interruptions import Interruptions, Outgoing
from token_broker.simulator.realtime.received_events import ClientEvent
from token_broker.simulator.realtime.talk_socket import payload, send_out
from token_broker.simulator.resource import Resource
from token_broker.simulator.session_bodies.check import InvalidRequest, check, parse_json

if TYPE_CHECKING:
    from token_broker.simulator.realtime.call import Call, HeldTalk

Event = dict[str, Any]

_CREATE = "rtc.call.sdp.create"
_NORMAL = 1000
# A client that reads nothing loses the call, not the simulator its memory.
_MOST_UNREAD = 1000


class SdpCreate(ClientEvent):
    """Asks for a call."""

    type: Literal["rtc.call.sdp.create"]
    sdp_offer: str | None = None
    session: dict[str, Any] | None = None


class OpensTalk(Protocol):
    """Makes the talk of an offer from the session that came with it.

    Raises:
        InvalidRequest: that session is refused.

    """

    def __call__(self, session: dict[str, Any] | None) -> "OpenedTalk": ...


@dataclass(frozen=True, slots=True)
class OpenedTalk:
    """A talk that has not begun, and what was wrong with its session, where the call goes on in spite of it."""

    talk: "HeldTalk"
    refused: InvalidRequest | None = None


@dataclass(frozen=True, slots=True)
class _Due:
    """What is sent at a time of the loop's: an event, the close of the socket, or nothing but what interrupts it."""

    at_s: float
    event: Event | None = None
    close: tuple[int, str] | None = None


class ControlSocket:
    """One control socket that was accepted, until either side, or a fault, ends it."""

    def __init__(
        self,
        websocket: WebSocket,
        resource: Resource,
        calls: OngoingCalls,
        open_talk: OpensTalk,
        stated: "HeldTalk | None" = None,
    ) -> None:
        """`stated` is the talk to come, where its `session.created` is sent before any offer."""
        self._websocket = websocket
        self._path = websocket.scope["path"]
        self._faults = resource.faults
        self._calls = calls
        self._open_talk = open_talk
        self._stated = stated
        self._call: Call | None = None
        self._watching: asyncio.Task[None] | None = None
        self._leave_call: Callable[[], None] = lambda: None
        self._outbox: asyncio.Queue[_Due] = asyncio.Queue(_MOST_UNREAD)
        self._interruptions = Interruptions(resource.faults, self._path)
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    async def run(self) -> None:
        """Serves it.

        Raises:
            WebSocketDisconnect: the client vanished while it was sent to, or a fault cut the socket.

        """
        if self._stated is not None:
            self._put(self._stated.describe())
        stop_listening = self._faults.listen(self.look_again)
        work = [asyncio.create_task(part) for part in (self.listen(), self.tell())]
        try:
            done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            stop_listening()
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            if self._watching is not None:
                self._watching.cancel()
            self._leave_call()
            if self._call is not None and not self._faults.switched(CallOutlivesSocketFault, self._path):
                self._call.end("fault" if self._interruptions.cut else "client")

    def look_again(self) -> None:
        """Faults were set: what they mean for this socket is looked at soon. Any thread may call it."""
        if threading.get_ident() == self._thread:
            self._put(None)
        else:
            self._loop.call_soon_threadsafe(self._put, None)

    # --- What comes in ----------------------------------------------------------------------------------------------

    async def listen(self) -> None:
        """Takes what the client sends, until it has gone."""
        while (message := await self._websocket.receive())["type"] != "websocket.disconnect":
            await self._take(payload(message))

    async def _take(self, text: str | bytes) -> None:
        try:
            value = None if isinstance(text, bytes) else parse_json(text)
        except InvalidRequest:
            value = None
        if isinstance(value, dict) and value.get("type") == _CREATE:
            try:
                await self.create_call(check(SdpCreate, value))
            except InvalidRequest as refused:
                self._put(_event("rtc.call.error", operation=_CREATE, error=_stated(refused)))
        elif self._call is not None:
            self._call.receive(text)
        else:
            early = InvalidRequest("invalid_event", f"The first event of a control socket is '{_CREATE}'.", "type")
            self._put(_event("error", error=_stated(early) | {"event_id": None}))

    async def create_call(self, asked: SdpCreate) -> None:
        """Answers an offer.

        Raises:
            InvalidRequest: it, or the session that came with it, is refused.

        """
        if not asked.sdp_offer:
            raise InvalidRequest("missing_sdp", "SDP offer is required")
        if self._call is not None:
            raise InvalidRequest("call_already_exists", "This connection has a call already.")
        opened = self._open_talk(asked.session)
        call, answer = await self._answer(opened.talk, asked.sdp_offer)
        if opened.refused is not None:
            self._put(_event("error", error=_stated(opened.refused) | {"event_id": asked.event_id}))
        call_id = new_call_id()
        answered = _event("rtc.call.sdp.created", rtc_call_id=call_id, sdp_answer=answer)
        swapped = self._faults.switched(WebrtcOrderFault, self._path)
        if swapped:
            self._put(answered)
        self._call, self._leave_call = call, call.observe(self._tell_of)
        self._calls.start(call, call_id, self._faults.switched(DieAfterFault, self._path))
        self._watching = asyncio.create_task(self.close_after(call))
        await call.begun.wait()
        if not swapped:
            self._put(answered)

    async def close_after(self, call: "Call") -> None:
        """Closes the socket once the call has ended, and what came before has been sent."""
        await call.ended.wait()
        ending = call.ending
        closed = (_NORMAL, "the call has ended") if ending is None else (ending.code, ending.reason)
        await self._outbox.put(_Due(self._loop.time(), close=closed))

    async def _answer(self, talk: "HeldTalk", offer: str) -> "tuple[Call, str]":
        try:
            await load_webrtc()
            from token_broker.simulator.realtime.call import Lines, unusable

            lines = Lines(
                page=on_data_channel,
                observers=on_control,
                heeds_page=lambda _text: self._faults.switched(DataChannelIgnoredFault, self._path) is None,
                one_sound=True,
                channel=self._faults.switched(DataChannelFault, self._path),
            )
            call, answer = await self._calls.answer(talk, offer, self._path, lines)
        except OfferRefused as refused:
            raise InvalidRequest("bad_sdp_offer", f"The offer can't be answered: {refused}") from refused
        except azure_errors.AzureError as error:
            failed = InvalidRequest("server_error", str(error))
            failed.type = "server_error"
            raise failed from error
        return call, unusable(answer) if self._faults.switched(IceNeverFault, self._path) else answer

    # --- What goes out ----------------------------------------------------------------------------------------------

    def _put(self, event: Event | None, late_s: float = 0.0) -> None:
        if not self._outbox.full():
            self._outbox.put_nowait(_Due(self._loop.time() + late_s, event))

    def _tell_of(self, event: Event) -> None:
        begins = event["type"] == "session.created"
        if self._stated is not None and begins:
            return
        # The start is in time: an answer that waits behind it would be a slow answer, which is another fault.
        late = None if begins else self._faults.switched(LateControlFault, self._path)
        self._put(event, late.seconds if late else 0.0)

    async def tell(self) -> None:
        """Sends what is to be sent, until the call ends."""
        now_s = self._loop.time
        await self._send(self._interruptions.open(now_s()))
        while True:
            try:
                async with asyncio.timeout_at(self._interruptions.due_s):
                    due = await self._outbox.get()
            except TimeoutError:
                due = _Due(now_s())
            await asyncio.sleep(due.at_s - now_s())
            await self._send(self._interruptions.advance(now_s()))
            if due.event is not None:
                await self._send(self._interruptions.pass_on([due.event], now_s()))
            if due.close is not None:
                await self._websocket.close(*due.close)
                return

    async def _send(self, outgoing: Iterable[Outgoing]) -> None:
        async for _ in send_out(self._websocket, outgoing):
            pass


def _event(name: str, **fields: Any) -> Event:
    return {"event_id": f"event_{secrets.token_hex(11)}", "type": name, **fields}


def _stated(refused: InvalidRequest) -> dict[str, Any]:
    return {"type": refused.type, "code": refused.code, "message": refused.message, "param": refused.param}
