"""The SDP relay: `POST /realtime/calls` and `DELETE /realtime/calls/{call_id}`, opened by a plan's session token."""

import time

from starlette.requests import Request
from starlette.responses import Response

from token_broker.api.call_answers import CallAnswer
from token_broker.api.offers import (
    HANG_UP_PROBLEMS,
    OFFER_PROBLEMS,
    OFFER_SCHEMA,
    SDP_ANSWER,
    SDP_EXAMPLE,
    check_offer,
    end_call,
    place_call,
)
from token_broker.api.token import find_agent
from token_broker.broker import Broker, broker_of
from token_broker.memory.types import Owner
from token_broker.observability.logging import bind_ids
from token_broker.security.authentication import limit_key
from token_broker.security.rate_limits import too_many_sessions
from token_broker.security.tokens import SessionClaims, TokenError
from token_broker.sessions.ownership import ensure_not_blocked
from token_broker.web.openapi_document import Body, Operation, Parameter, ResponseSpec
from token_broker.web.problems import Problem
from token_broker.web.requests import bearer_token, read_body

__all__ = ["CALL_OPERATIONS", "create_call", "hang_up"]


async def create_call(request: Request) -> Response:
    """Answers 201 with the SDP answer and our `Location`; problems: 400, 401, 403, 404, 413, 415, 429, 502 to 504."""
    broker = broker_of(request)
    settings = broker.settings
    deadline_s = time.monotonic() + settings.token_budget_s
    claims = _session_of(request, broker)
    key = limit_key(request.scope, claims.principal, settings.trusted_proxies)
    await broker.rate.admit(key)
    ensure_not_blocked(broker.memory.blocklist, claims.principal, claims.session_id)
    offer = await _read_offer(request, broker)
    agent = find_agent(broker, request.query_params.get("agent_id") or claims.agent_id)
    owner = Owner(claims.session_id, claims.principal, claims.epoch, claims.user_id)
    if (lease := broker.talks.acquire(key)) is None:
        raise too_many_sessions()
    with lease:
        call = await place_call(
            request,
            broker,
            offer,
            owner=owner,
            agent=agent,
            lease=lease,
            deadline_s=deadline_s,
            filtered=settings.webrtc_filter == "on",
        )
    headers = {"Cache-Control": "no-store"}
    if call.token is not None:
        headers["Location"] = f"{request.scope['path']}/{call.token}"
    return CallAnswer(broker, call, owner, headers)


async def hang_up(request: Request) -> Response:
    """Answers 204 when the call is over; problems: 401, 403, 404, 429, 502, 504."""
    broker = broker_of(request)
    claims = _session_of(request, broker)
    await broker.hang_ups.admit(limit_key(request.scope, claims.principal, broker.settings.trusted_proxies))
    await end_call(broker, request.path_params["call_id"], session_id=claims.session_id)
    return Response(status_code=204, headers={"Cache-Control": "no-store"})


def _session_of(request: Request, broker: Broker) -> SessionClaims:
    """The claims of the caller's session token. Raises Problem 401, and 403 where the query names another session."""
    try:
        claims = broker.signer.read_session_token(bearer_token(request) or "")
    except TokenError as error:
        what = "has expired" if error.expired else "is missing or not valid"
        detail = f"The session token {what}: ask POST /realtime/token, and send its session_token as Bearer."
        raise Problem(401, "session_token_refused", detail) from None
    if request.query_params.get("session_id", claims.session_id) != claims.session_id:
        raise Problem(403, "foreign_session", "The session token is another session's: send this session's own.")
    bind_ids(session_id=claims.session_id)
    return claims


async def _read_offer(request: Request, broker: Broker) -> bytes:
    """The offer as it came. Raises Problem 400 (no SDP), 413, 415."""
    settings = broker.settings
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/sdp":
        raise Problem(415, "not_sdp", "Send the offer raw, as application/sdp.")
    offer = await read_body(request, limit_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s)
    check_offer(offer)
    return offer


_SESSION = Parameter("session_id", "query", "The session; the token's own, where it is named.")

CALL_OPERATIONS = (
    Operation(
        name="create_call",
        method="post",
        path="/api/v1/voice/realtime/calls",
        aliases=("/realtime/calls",),
        tag="Talking",
        summary="Set up a WebRTC call through the broker",
        description=(
            "Post `createOffer()`'s SDP as it is. The broker mints, hands the offer to Azure, gives back its answer; "
            "media flows between the browser and Azure. `Location` is what to DELETE to hang up. Counts as a token "
            "request, and as an open talk until it is hung up. 403 `sockets_only`: this agent takes no calls."
        ),
        parameters=(_SESSION, Parameter("agent_id", "query", "Who speaks; the default agent where it is left out.")),
        body=Body(media_type="application/sdp", json_schema=OFFER_SCHEMA, example=SDP_EXAMPLE),
        answers=(SDP_ANSWER,),
        problems={
            **OFFER_PROBLEMS,
            401: ("session_token_refused",),
            403: ("foreign_session", "blocked", "sockets_only"),
            404: ("unknown_agent",),
        },
        security=("sessionToken",),
    ),
    Operation(
        name="hang_up",
        method="delete",
        path="/api/v1/voice/realtime/calls/{call_id}",
        aliases=("/realtime/calls/{call_id}",),
        tag="Talking",
        summary="Hang up a call",
        description=(
            "Ends a call that this session set up through the broker. Counted apart from token requests, at the same "
            "rate."
        ),
        parameters=(Parameter("call_id", "path", "The end of the call's `Location`."), _SESSION),
        answers=(ResponseSpec(204, "The call is over."),),
        problems={**HANG_UP_PROBLEMS, 401: ("session_token_refused",), 403: ("foreign_session",)},
        security=("sessionToken",),
    ),
)
