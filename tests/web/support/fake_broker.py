"""A fake of broker and Azure in one, on loopback, whose failures a test chooses.

`test_with_broker.py` tests the page against the real broker. This fake fails exactly when a test says so.
"""

import asyncio
import contextlib
import json
import mimetypes
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from tests.support.serving import serve_app
from tests.web.support.partner import Partner
from tests.web.support.webrtc import Call, VoiceLiveCall
from token_broker.api.static import client_routes

__all__ = ["FakeBroker", "run_fake"]

_HANG_S = 60
DIRECT, RELAY, PROXY, WEBSOCKET = "webrtc", "webrtc_relay", "websocket_proxy", "websocket"
VOICE_LIVE = "webrtc_websocket"


@dataclass
class FakeBroker:
    """The fake's settings and its records. A list of answers is used up from its front; after that, all succeeds."""

    base_url: str = ""
    transports: tuple[str, ...] = (DIRECT, RELAY, PROXY)
    azure_url: str = ""  # of direct calls, where it is another than the fake's own
    ephemeral_token: str = "ek_fake"
    webrtc_expires_in_s: int = 59
    # Statuses, "hang", "poor", or a sign-in as "redirect" or "page"; then a good plan.
    token_answers: list[int | str] = field(default_factory=list)
    sdp_answers: list[int | str] = field(default_factory=list)  # statuses, "hang", "blocked" or "nonsense"; then 201
    relay_answers: list[int | str] = field(default_factory=list)
    socket_closes: list[int | str] = field(default_factory=list)  # close codes before ready, or "hang"; then ready
    turn_answers: list[int | str] = field(default_factory=list)
    frozen: bool = False  # sockets stay open, and nobody reads what they bring
    ready: asyncio.Event | None = None  # a socket's talk is ready only when this is set
    call_channel: Literal["client's", "own", "none"] = "client's"  # of Voice Live's calls
    dialect: str = "preview"
    extra_page: str = ""
    extra_headers: dict[str, str] = field(default_factory=dict)  # the extra page's
    extra_files: dict[str, str] = field(default_factory=dict)  # scripts, by their paths
    built: Path | None = None  # a built page's folder, which is at /built/
    policy: str = ""  # the built page's; BROKER stands for the fake's address without its scheme
    health: dict[str, Any] | None = field(default_factory=lambda: {"agents": {"elena": {}, "marcus": {}}})

    plans: list[dict[str, Any]] = field(default_factory=list)
    plan_requests: list[dict[str, Any]] = field(default_factory=list)
    turns: list[dict[str, Any]] = field(default_factory=list)
    enriched: list[dict[str, Any]] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)
    sdp_offers: list[str] = field(default_factory=list)
    hang_ups: int = 0
    attached: list[dict[str, Any]] = field(default_factory=list)
    call_events: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)  # what the page of a call is told
    calls: list[Call] = field(default_factory=list)
    sockets: list[WebSocket] = field(default_factory=list)
    partners: list[Partner] = field(default_factory=list)

    async def until(self, condition: Callable[[], bool], timeout_s: float = 10) -> None:
        """Waits until the page has done what `condition` checks."""
        async with asyncio.timeout(timeout_s):
            while not condition():  # noqa: ASYNC110  # any of a dozen lists may be meant
                await asyncio.sleep(0.01)

    async def token(self, request: Request) -> Response:
        body = await request.json()
        self.plan_requests.append({**body, "session_token": request.headers.get("x-session-token")})
        poor = self.token_answers[:1] == ["poor"]
        if poor:
            self.token_answers.pop(0)
        elif refusal := await _next(self.token_answers):
            return refusal
        number = len(self.plans) + 1
        host, azure = self.base_url.removeprefix("http"), self.azure_url or self.base_url
        known: dict[str, tuple[str, dict[str, Any], int]] = {
            DIRECT: (
                f"{azure}/azure/calls",
                {"token": self.ephemeral_token},
                self.webrtc_expires_in_s,
            ),
            RELAY: (f"{self.base_url}/relay/calls", {"token": f"session-{number}"}, 7_200),
            WEBSOCKET: (f"ws{host}/azure/realtime", {"protocols": ["realtime", "openai-insecure-api-key.ek_1"]}, 59),
            PROXY: (f"ws{host}/proxy", {"protocols": ["realtime", f"ticket.{number}"]}, 180),
            VOICE_LIVE: (f"ws{host}/proxy?media=webrtc", {"protocols": ["realtime", f"ticket.{number}"]}, 180),
        }
        plan = {
            "session_id": body.get("session_id") or "fake-session-000001",
            "agent_id": body.get("agent_id") or "elena",
            "degraded": self.transports == (PROXY,),
            **({"outlook": "poor", "retry_after_s": 1} if poor else {"outlook": "good"}),
            "session_token": f"session-{number}",
            "connections": [
                {"transport": name, "url": url, **credential, "expires_in_s": expires_in_s, "dialect": "ga"}
                | {"resource": "eastus2"}
                for name, (url, credential, expires_in_s) in ((name, known[name]) for name in self.transports)
            ],
        }
        self.plans.append(plan)
        return JSONResponse(plan)

    async def azure_call(self, request: Request) -> Response:
        return await self._call(request, self.sdp_answers, f"Bearer {self.ephemeral_token}")

    async def relay_call(self, request: Request) -> Response:
        return await self._call(request, self.relay_answers, "Bearer session-")

    async def _call(self, request: Request, answers: list[int | str], credential: str) -> Response:
        assert request.headers["authorization"].startswith(credential)
        assert request.headers["content-type"] == "application/sdp"
        offer = (await request.body()).decode()
        self.sdp_offers.append(offer)
        how = answers[0] if answers else None
        if how in {"blocked", "nonsense"}:
            answers.pop(0)
        elif refusal := await _next(answers):
            return refusal
        call = Call(blocked=how == "blocked")
        self.calls.append(call)
        self.partners.append(call.partner)
        answer = "v=0\r\nnonsense" if how == "nonsense" else await call.answer(offer)
        location = f"/relay/calls/{len(self.calls)}"
        headers = {"Location": location, "Access-Control-Allow-Origin": "*"}
        return Response(answer, 201, headers, media_type="application/sdp")

    async def attach(self, request: Request) -> Response:
        self.attached.append(await request.json())
        return JSONResponse({"call_id": "attached-1"}, 202)

    async def events(self, request: Request) -> Response:
        async def told() -> AsyncIterator[str]:
            yield "retry: 100\n\n"
            while True:
                yield f"data: {json.dumps(await self.call_events.get())}\n\n"

        return StreamingResponse(told(), media_type="text/event-stream")

    async def hang_up(self, request: Request) -> Response:
        self.hang_ups += 1
        return Response(status_code=204)

    async def turn(self, request: Request) -> Response:
        body = await request.json()
        if refusal := await _next(self.turn_answers):
            return refusal
        self.turns.append({**body, "authorization": request.headers["authorization"]})
        return JSONResponse({"status": "success", "turn_id": body["turn_id"], "duplicate": False})

    async def enrich(self, request: Request) -> Response:
        self.enriched += (await request.json())["transcripts"]
        return JSONResponse({"success": True}, 202)

    async def report(self, request: Request) -> Response:
        self.reports.append({**await request.json(), "authorization": request.headers["authorization"]})
        return Response(status_code=204)

    async def status(self, request: Request) -> Response:
        return JSONResponse(self.health, 200 if self.health else 500)

    async def extra(self, request: Request) -> Response:
        return HTMLResponse(self.extra_page, headers=self.extra_headers)

    async def extra_file(self, request: Request) -> Response:
        found = self.extra_files.get(request.url.path)
        return Response(status_code=404) if found is None else Response(found, media_type="text/javascript")

    async def built_file(self, request: Request) -> Response:
        assert self.built
        file = self.built / (request.path_params["path"] or "index.html")
        policy = self.policy.replace("BROKER", self.base_url.removeprefix("http://"))
        headers = {"Content-Security-Policy": policy} if policy else None
        return Response(file.read_bytes(), headers=headers, media_type=mimetypes.guess_type(file)[0])

    async def proxy(self, websocket: WebSocket) -> None:
        await self._talk(websocket, "broker.ready", self.dialect)

    async def _call_over(self, websocket: WebSocket) -> None:
        """Voice Live by WebRTC: the socket carries the offer and the page's events."""
        offered = await websocket.receive_json()
        assert offered["type"] == "rtc.call.sdp.create"
        self.sdp_offers.append(offered["sdp_offer"])
        call = VoiceLiveCall(websocket.send_json, self.call_channel)
        self.calls.append(call)
        self.partners.append(call.partner)
        answer = (await call.answer(offered["sdp_offer"])).replace("\r\n", "\n").rstrip("\n")  # some answers are so
        created = {"type": "rtc.call.sdp.created", "rtc_call_id": f"rtc_{len(self.calls)}", "sdp_answer": answer}
        await websocket.send_json({"event_id": "event_created", **created})

    async def azure_socket(self, websocket: WebSocket) -> None:
        await self._talk(websocket, "session.created", "ga")

    async def _talk(self, websocket: WebSocket, ready: str, dialect: str) -> None:
        await websocket.accept("realtime")
        if self.socket_closes:
            how = self.socket_closes.pop(0)
            await (asyncio.sleep(_HANG_S) if how == "hang" else websocket.close(int(how)))
            return

        async def tell(event: dict[str, Any]) -> None:
            await websocket.send_text(json.dumps(event))

        self.sockets.append(websocket)
        if websocket.query_params.get("media") == "webrtc":
            await self._call_over(websocket)
            partner = self.partners[-1]
        else:
            partner = Partner(tell, dialect=dialect)
            self.partners.append(partner)
        if self.ready:
            await self.ready.wait()
        await tell({"type": ready, "dialect": dialect, "upstream": "fake", "agent_id": "elena"})
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            while True:
                event = json.loads(await websocket.receive_text())
                if self.frozen:
                    continue
                if event["type"] == "broker.agent.switch":
                    await tell({"type": "broker.agent.switched", "agent_id": event["agent_id"]})
                await partner.take(event)


async def _next(answers: list[int | str]) -> Response | None:
    """The next answer where it is a refusal, else None."""
    if not answers:
        return None
    answer = answers.pop(0)
    if answer == "hang":
        await asyncio.sleep(_HANG_S)
        return Response(status_code=504)
    if answer == "redirect":
        return RedirectResponse("https://login.example/authorize")
    if answer == "page":
        return HTMLResponse("<!doctype html><title>Sign in</title>")
    problem = {"code": f"fake_{answer}", "detail": f"The fake was told to answer {answer}."}
    return JSONResponse(problem, int(answer), {"Access-Control-Allow-Origin": "*"}) if int(answer) >= 300 else None


@contextlib.asynccontextmanager
async def run_fake(**knobs: Any) -> AsyncIterator[FakeBroker]:
    """Serves the fake and the page until the end of the block; `knobs` are fields of `FakeBroker`."""
    fake = FakeBroker(**knobs)
    api = "/api/v1/voice"
    app = Starlette(
        routes=[
            *client_routes(("http://127.0.0.1:*", "ws://127.0.0.1:*")),
            Route(f"{api}/realtime/token", fake.token, methods=["POST"]),
            Route(f"{api}/realtime/calls/attach", fake.attach, methods=["POST"]),
            Route(f"{api}/realtime/calls/{{call_id}}/events", fake.events),
            Route(f"{api}/conversation/turn", fake.turn, methods=["POST"]),
            Route(f"{api}/realtime/report", fake.report, methods=["POST"]),
            Route(f"{api}/status", fake.status),
            Route("/api/v1/memory/enrich", fake.enrich, methods=["POST"]),
            Route("/extra", fake.extra),
            Route("/built/{path:path}", fake.built_file),
            Route("/{name}.js", fake.extra_file),
            Route("/azure/calls", fake.azure_call, methods=["POST"]),
            Route("/relay/calls", fake.relay_call, methods=["POST"]),
            Route("/relay/calls/{number}", fake.hang_up, methods=["DELETE"]),
            WebSocketRoute("/proxy", fake.proxy),
            WebSocketRoute("/azure/realtime", fake.azure_socket),
        ]
    )
    # A handler that was told to hang is cancelled at once, instead of being waited for.
    async with serve_app(app, timeout_graceful_shutdown=0) as fake.base_url:
        try:
            yield fake
        finally:
            for call in fake.calls:
                await call.close()
