"""The SDP relay: `POST /realtime/calls` and `DELETE /realtime/calls/{call_id}`, opened by a plan's session token."""

import time
from typing import Any, TypedDict

from starlette.requests import Request
from starlette.responses import Response

from token_broker.api.offers import (
    HANG_UP_PROBLEMS,
    OFFER_PROBLEMS,
    OFFER_SCHEMA,
    SDP_ANSWER,
    SDP_EXAMPLE,
    CallRelay,
    check_offer,
)
from token_broker.api.token import ASKING_SHARE
from token_broker.observability.logging import bind_ids
from token_broker.relay.admission import check_origin
from token_broker.security.authentication import Caller
from token_broker.security.limits import too_many_sessions
from token_broker.sessions.ownership import Callers, ensure_not_blocked
from token_broker.web.openapi_document import Body, Operation, Parameter, ResponseSpec
from token_broker.web.requests import Problem, read_body

__all__ = [
    "CALL_OPERATIONS",
    "SESSION_PARAMETER",
    "CallState",
    "caller_of_session",
    "create_call",
    "foreign_session",
    "hang_up",
]


class CallState(TypedDict):
    """What these routes use of the lifespan's state."""

    callers: Callers
    calls: CallRelay


async def create_call(request: Request[CallState]) -> Response:
    """Answers 201 with the SDP answer and our `Location`; problems: 400, 401, 403, 404, 413, 415, 429, 502 to 504."""
    callers, calls = request.state["callers"], request.state["calls"]
    callers.ensure_staying()
    settings = callers.settings
    deadline_s = time.monotonic() + settings.token_budget_s * ASKING_SHARE
    caller = caller_of_session(request)
    await callers.rate.admit(caller.limit_key)
    ensure_not_blocked(callers.blocklist, caller.owner.principal, caller.owner.session_id)
    check_origin(request.scope, caller.owner)
    if not caller.owner.narrowed.permits("webrtc_relay"):
        raise Problem(403, "transport_refused", "The session token is not for this transport: see the plan's own.")
    if calls.minting.budgets is not None:
        await calls.minting.budgets.ensure_left(caller.limit_key)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/sdp":
        raise Problem(415, "not_sdp", "Send the offer raw, as application/sdp.")
    offer = await read_body(request, limit_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s)
    check_offer(offer)
    agent = calls.minting.find_agent(request.query_params.get("agent_id") or caller.agent_id)
    if (lease := calls.talks.acquire(caller.limit_key)) is None:
        raise too_many_sessions()
    with lease:
        call = await calls.place(
            request,
            offer,
            owner=caller.owner,
            agent=agent,
            lease=lease,
            deadline_s=deadline_s,
            filtered=settings.webrtc_filter == "on" and not agent.asks_page,
        )
    headers = {"Cache-Control": "no-store"}
    if call.token is not None:
        headers["Location"] = f"{request.scope['path']}/{call.token}"
    return calls.answer(call, headers)


async def hang_up(request: Request[CallState]) -> Response:
    """Answers 204 when the call is over; problems: 401, 403, 404, 429, 502 to 504."""
    caller = caller_of_session(request)
    await request.state["callers"].hang_ups.admit(caller.limit_key)
    await request.state["calls"].end(request.path_params["call_id"], owner=caller.owner)
    return Response(status_code=204, headers={"Cache-Control": "no-store"})


def caller_of_session(request: Request[Any]) -> Caller:
    """The session token's caller. Raises Problem 401, and 403 where the query names another session."""
    callers: Callers = request.state["callers"]
    caller = callers.by_session_token(request, lambda detail: Problem(401, "session_token_refused", detail))
    session_id = caller.owner.session_id
    if request.query_params.get("session_id", session_id) != session_id:
        raise foreign_session()
    bind_ids(session_id=session_id)
    return caller


def foreign_session() -> Problem:
    """The 403 of a session token that is not the named session's."""
    return Problem(403, "foreign_session", "The session token is another session's: send this session's own.")


SESSION_PARAMETER = Parameter("session_id", "query", "The session; the token's own, where it is named.")

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
            "media flows between the browser and Azure, and the broker listens over Azure's sideband. `Location` is "
            "what to DELETE to hang up. Counts as a token request, and as an open talk until the call ends. A newer "
            "call of the same talk replaces the older. 403 `sockets_only`: this agent takes no calls."
        ),
        parameters=(
            SESSION_PARAMETER,
            Parameter("agent_id", "query", "Who speaks; the default agent where it is left out."),
        ),
        body=Body(media_type="application/sdp", json_schema=OFFER_SCHEMA, example=SDP_EXAMPLE),
        answers=(SDP_ANSWER,),
        problems={
            **OFFER_PROBLEMS,
            401: ("session_token_refused",),
            403: ("foreign_session", "blocked", "sockets_only", "transport_refused"),
            404: ("unknown_agent",),
            503: ("nothing_minted", "draining", "blocklist_unread"),
        },
        security=("sessionToken", "sessionTokenHeader"),
    ),
    Operation(
        name="hang_up",
        method="delete",
        path="/api/v1/voice/realtime/calls/{call_id}",
        aliases=("/realtime/calls/{call_id}",),
        tag="Talking",
        summary="Hang up a call",
        description=(
            "Ends a call that this session set up through the broker, or had it attach, at any replica. Counted apart "
            "from token requests, at the same rate."
        ),
        parameters=(Parameter("call_id", "path", "The end of the call's `Location`."), SESSION_PARAMETER),
        answers=(ResponseSpec(204, "The call is over."),),
        problems={**HANG_UP_PROBLEMS, 401: ("session_token_refused",), 403: ("foreign_session",)},
        security=("sessionToken", "sessionTokenHeader"),
    ),
)
