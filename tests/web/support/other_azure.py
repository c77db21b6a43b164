"""Another Azure for Voice Live by WebRTC, of which nothing is the simulator's: its control socket, and its calls."""

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from tests.support.serving import serve_app
from tests.web.support.partner import Partner
from tests.web.support.webrtc import VoiceLiveCall

__all__ = ["OtherAzure", "run_other_azure"]

_VERSION = "2026-01-01-preview"


@dataclass
class OtherAzure:
    """What it was asked, and its partners in talks; `function` is what the next answer calls, by name and arguments."""

    base_url: str = ""
    function: tuple[str, str] | None = None
    sessions: list[dict[str, Any]] = field(default_factory=list)
    partners: list[Partner] = field(default_factory=list)
    sockets: list[WebSocket] = field(default_factory=list)
    open: int = 0

    async def control(self, websocket: WebSocket) -> None:
        """A control socket, from its offer on. A broker that only looks whether there is one sends none."""
        assert websocket.query_params["api-version"] == _VERSION
        assert websocket.headers["api-key"]
        await websocket.accept("realtime" if "realtime" in websocket.scope["subprotocols"] else None)
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            offered = json.loads(await websocket.receive_text())
            await self._hold(websocket, offered)

    async def _hold(self, websocket: WebSocket, offered: dict[str, Any]) -> None:
        assert offered["type"] == "rtc.call.sdp.create"
        session = {"id": f"sess_other_{len(self.sessions)}", **offered["session"]}
        self.sessions.append(session)
        call = VoiceLiveCall(websocket.send_json, "client's")
        self.partners.append(call.partner)
        self.sockets.append(websocket)
        self.open += 1
        try:
            answer = await call.answer(offered["sdp_offer"])
            created = {"rtc_call_id": f"rtc_other_{len(self.sessions)}", "sdp_answer": answer.rstrip("\r\n")}
            await websocket.send_json({"type": "rtc.call.sdp.created", "event_id": "event_a", **created})
            await websocket.send_json({"type": "session.created", "event_id": "event_b", "session": session})
            while True:
                event = json.loads(await websocket.receive_text())
                if event["type"] == "session.update":
                    session |= event["session"]
                    await websocket.send_json({"type": "session.updated", "event_id": "event_c", "session": session})
                elif event["type"] == "response.create" and self.function is not None:
                    function, self.function = self.function, None
                    await call.partner.call_function(*function)
                else:
                    await call.partner.take(event)
        finally:
            self.open -= 1
            await call.close()


@contextlib.asynccontextmanager
async def run_other_azure() -> AsyncIterator[OtherAzure]:
    """Serves it until the block ends."""
    azure = OtherAzure()
    app = Starlette(routes=[WebSocketRoute("/voice-live/realtime/calls", azure.control)])
    async with serve_app(app, timeout_graceful_shutdown=0) as azure.base_url:
        yield azure
