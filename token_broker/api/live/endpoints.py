"""GPT-Live under the official clients' paths (docs/api.md §6.7): a socket, sessions over WebRTC, and their sideband."""

import asyncio
import time
from typing import TypedDict

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import Receive, Scope, Send

from strategies.endpoint import is_live_endpoint
from token_broker.api.live.operations import LIVE_ATTACH_PATHS, LIVE_PATHS, LiveSessionRequest
from token_broker.api.offers import CallRelay, check_offer
from token_broker.api.token import ASKING_SHARE
from token_broker.calls.leases import EngagedElsewhereError
from token_broker.calls.live_listener import LiveListener, SidebandObserver
from token_broker.calls.watched_calls import WatchedCalls
from token_broker.memory.store_errors import StoreError
from token_broker.observability.logging import bind_ids
from token_broker.relay.admission import Admission
from token_broker.relay.event_text import compact
from token_broker.relay.policy.allowlist import Broken
from token_broker.relay.voice_relay import SUBPROTOCOL, VoiceRelay
from token_broker.security.tokens import TokenError
from token_broker.server.close_codes import BAD_REQUEST, CLIENT_STALLED, DONE, TOO_LARGE
from token_broker.sessions.ownership import Callers
from token_broker.web.requests import Problem, parse_json, read_body, refuse_socket

__all__ = ["LiveState", "live_routes"]

_OBSERVERS_AT_MOST = 4  # of one session


class LiveState(TypedDict):
    """What these routes use of the lifespan's state."""

    callers: Callers
    calls: CallRelay
    admission: Admission
    relay: VoiceRelay
    watched: WatchedCalls


class _LiveSocket:
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        relay: VoiceRelay = scope["state"]["relay"]
        await relay.live(scope, receive, send)


class _LiveSideband:
    """`WS …/{call_id}/attach`: the events of a session that this credential's session set up."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            listener = await self._admit(scope)
        except StoreError:
            detail = "Whether another replica has this session can't be told just now: try again."
            problem = Problem(503, "store_away", detail, headers={"Retry-After": "2"})
            await refuse_socket(problem, scope, receive, send)
            return
        except EngagedElsewhereError:
            detail = "Another replica has this session, and a client of it: end that sideband, or connect where it is."
            problem = Problem(409, "sideband_elsewhere", detail, headers={"Retry-After": "2"})
            await refuse_socket(problem, scope, receive, send)
            return
        except Problem as problem:
            await refuse_socket(problem, scope, receive, send)
            return
        await receive()
        chosen = SUBPROTOCOL if SUBPROTOCOL in scope["subprotocols"] else None
        await send({"type": "websocket.accept", "subprotocol": chosen})
        observer = SidebandObserver()
        listener.observe(observer)
        tasks = [
            asyncio.create_task(_to_client(observer, send), name="live-observer"),
            asyncio.create_task(_from_client(scope, listener, observer, receive), name="live-observer-client"),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            code = next(iter(done)).result()
        finally:
            listener.leave(observer)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if code:
            await send({"type": "websocket.close", "code": code})

    async def _admit(self, scope: Scope) -> LiveListener:
        """The session's listener; another replica's session moves here.

        Raises Problem 401, 403, 404, 429, EngagedElsewhereError, and StoreError.
        """
        state: LiveState = scope["state"]
        admitted = state["admission"].by_any(scope, joins=True)
        bind_ids(session_id=admitted.owner.session_id)
        await state["callers"].hang_ups.admit(admitted.limit_key)
        unknown = Problem(404, "unknown_call", "This session has no such GPT-Live session.")
        try:
            call = state["callers"].signer.read_call_token(scope["path_params"]["call_id"])
        except TokenError:
            raise unknown from None
        if call.session_id != admitted.owner.session_id or not is_live_endpoint(call.endpoint):
            raise unknown
        listener = await state["watched"].fetch_live_call(call.call_id, admitted.owner)
        if listener is None:
            raise unknown
        if listener.observers >= _OBSERVERS_AT_MOST:
            raise Problem(429, "too_many_sessions", "This session is observed by too many already.")
        return listener


async def _to_client(observer: SidebandObserver, send: Send) -> int:
    """Sends what the observer gets; the close code at the end."""
    while True:
        while observer.waiting:
            await send({"type": "websocket.send", "text": observer.waiting.popleft()})
        if observer.is_slow:
            return CLIENT_STALLED
        if observer.is_over:
            return DONE
        observer.changed.clear()
        await observer.changed.wait()


async def _from_client(scope: Scope, listener: LiveListener, observer: SidebandObserver, receive: Receive) -> int:
    """Hands the client's events on; the close code, or 0 where the client is gone."""
    longest = scope["state"]["callers"].settings.client_message_bytes
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return 0
        text = message.get("text")
        if text is None or len(text) > longest:
            return BAD_REQUEST if text is None else TOO_LARGE
        answer = listener.from_observer(text, observer)
        if isinstance(answer, Broken):
            return BAD_REQUEST
        if answer is not None:
            observer.put(answer)


async def create_live_session(request: Request[LiveState]) -> Response:
    """Answers 201 with the session's id and the SDP answer; problems: 400, 401, 403, 408, 413, 422, 429, 502 to 504."""
    admission, calls = request.state["admission"], request.state["calls"]
    settings = calls.minting.settings
    deadline_s = time.monotonic() + settings.token_budget_s * ASKING_SHARE
    admitted = admission.by_any(request.scope)
    if admitted.agent.id not in calls.minting.live_agents:
        detail = "This agent does not talk by GPT-Live: post the offer to /v1/realtime/calls."
        raise Problem(409, "speaks_realtime", detail)
    await admission.ensure_budget(admitted)
    bind_ids(session_id=admitted.owner.session_id)
    body = await read_body(request, limit_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s)
    wanted = parse_json(body, LiveSessionRequest)
    offer = wanted.transport.sdp.encode()
    check_offer(offer)
    with await admission.enter(admitted, counted=True) as lease:
        call = await calls.place(
            request,
            offer,
            owner=admitted.owner,
            agent=admitted.agent,
            lease=lease,
            deadline_s=deadline_s,
            filtered=False,
            transport="compat",
        )
    headers = {"Cache-Control": "no-store"}
    if call.token is not None:
        headers["Location"] = f"{LIVE_PATHS[0]}/{call.token}"
    answer = {"session": {"id": call.token or ""}, "transport": {"type": "webrtc", "sdp": call.answer.decode()}}
    return calls.answer(call, headers, shown=(compact(answer).encode(), "application/json"))


def live_routes() -> list[BaseRoute]:
    """GPT-Live's compatible endpoints."""
    return [
        *[Route(path, create_live_session, methods=["POST"]) for path in LIVE_PATHS],
        *[WebSocketRoute(path, _LiveSocket()) for path in LIVE_PATHS],
        *[WebSocketRoute(path, _LiveSideband()) for path in LIVE_ATTACH_PATHS],
    ]
