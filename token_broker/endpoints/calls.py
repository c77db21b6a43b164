"""The SDP relay: the browser's WebRTC offer goes to Azure through us, and the browser never sees a secret.

Media still flows from the browser to Azure. A relayed call is counted as an open talk until it is hung up here, or can
no longer be running.
"""

import re
import time

import structlog
from starlette.requests import Request
from starlette.responses import Response

from strategies.base import EphemeralGrant
from strategies.calls import AzureCalls
from strategies.errors import MintError, RateLimitedError, TimedOutError
from token_broker.auth import limit_key
from token_broker.broker import Broker, broker_of
from token_broker.endpoints.token import find_agent, recalled_spec
from token_broker.http import bearer_token, correlation_id, read_body
from token_broker.limits import too_many_sessions
from token_broker.memory.base import Owner
from token_broker.openapi import Answer, Body, Operation, Parameter
from token_broker.problems import Problem
from token_broker.sessions import ensure_not_cut_off
from token_broker.telemetry import AuditEntry, bind_ids, write_audit
from token_broker.tokens import SessionClaims, TokenError

__all__ = ["CALL_OPERATIONS", "create_call", "hang_up"]

log = structlog.get_logger("token_broker.calls")

# What the mint may use of the budget: the offer that follows has to fit into it as well.
_MINT_SHARE = 2 / 3
_RETRY_AFTER_S = 5
_SDP_LINE = re.compile(rb"[a-z]=[^\x00-\x08\x0a-\x1f]*")


async def create_call(request: Request) -> Response:
    """Answers 201 with the SDP answer and our `Location`; problems: 400, 401, 403, 404, 413, 415, 429, 502 to 504."""
    broker = broker_of(request)
    settings = broker.settings
    deadline_s = time.monotonic() + settings.token_budget_s
    claims = _session_of(request, broker)
    key = limit_key(request.scope, claims.principal, settings.trusted_proxies)
    await broker.rate.admit(key)
    ensure_not_cut_off(broker.memory.cutoffs, claims.principal, claims.session_id)
    offer = await _read_offer(request, broker)
    agent = find_agent(broker, request.query_params.get("agent_id") or claims.agent_id)
    owner = Owner(claims.session_id, claims.principal, claims.epoch, claims.user_id)
    if (lease := broker.talks.acquire(key)) is None:
        raise too_many_sessions()
    with lease:
        mint_until_s = time.monotonic() + (deadline_s - time.monotonic()) * _MINT_SHARE
        grant = (await broker.chain.mint(recalled_spec(broker, agent, owner), deadline_s=mint_until_s)).grant
        if not isinstance(grant, EphemeralGrant) or broker.credentials is None:
            raise Problem(
                503,
                "nothing_minted",
                "No token could be minted just now: go on to the plan's next connection.",
                headers={"Retry-After": str(_RETRY_AFTER_S)},
            )
        write_audit(_audit_entry(request, grant, owner, agent.id), broker.observe)
        try:
            accepted = await AzureCalls(broker.http, broker.credentials).offer(
                grant, offer, filtered=settings.webrtc_filter == "on", timeout_s=max(0.1, deadline_s - time.monotonic())
            )
        except MintError as error:
            raise _refused(error, "offer") from None
        headers = {"Cache-Control": "no-store"}
        if accepted.call_id is None:
            log.warning("call_without_location", session_id=owner.session_id)
        else:
            lease.keep(accepted.call_id, for_s=settings.max_talk_s)
            token = broker.signer.call_token(
                session_id=owner.session_id,
                call_id=accepted.call_id,
                endpoint=grant.endpoint,
                ttl_s=settings.session_token_ttl_s,
            )
            headers["Location"] = f"{request.scope['path']}/{token}"
    return Response(accepted.answer, 201, headers, media_type="application/sdp")


async def hang_up(request: Request) -> Response:
    """Answers 204 when the call is over; problems: 401, 404, 502, 504."""
    broker = broker_of(request)
    claims = _session_of(request, broker)
    try:
        call = broker.signer.read_call_token(request.path_params["call_id"])
    except TokenError:
        raise _unknown_call() from None
    if call.session_id != claims.session_id or broker.credentials is None:
        raise _unknown_call()
    try:
        await AzureCalls(broker.http, broker.credentials).hang_up(
            call.endpoint, call.call_id, timeout_s=broker.settings.token_budget_s
        )
    except MintError as error:
        raise _refused(error, "hang-up") from None
    broker.talks.end(call.call_id)
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


def _audit_entry(request: Request, grant: EphemeralGrant, owner: Owner, agent_id: str) -> AuditEntry:
    return AuditEntry(
        correlation_id=correlation_id(request),
        principal=owner.principal,
        session_id=owner.session_id,
        agent_id=agent_id,
        strategy=grant.strategy,
        holder="broker",
        minted=True,
        secret=grant.token,
        expires_at=grant.expires_at,
    )


async def _read_offer(request: Request, broker: Broker) -> bytes:
    """The offer as it came. Raises Problem 400 (no SDP), 413, 415."""
    settings = broker.settings
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/sdp":
        raise Problem(415, "not_sdp", "Send the offer raw, as application/sdp.")
    offer = await read_body(request, limit_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s)
    lines = offer.replace(b"\r\n", b"\n").rstrip(b"\n").split(b"\n")
    well_formed = lines[0] == b"v=0" and all(_SDP_LINE.fullmatch(line) for line in lines)
    if not well_formed or not any(line.startswith(b"m=audio ") for line in lines):
        raise Problem(400, "bad_sdp", "The offer is no SDP with an audio line: send createOffer()'s sdp as it is.")
    return offer


def _refused(error: MintError, what: str) -> Problem:
    """Azure's refusal as the caller hears it; why stands in the log."""
    log.warning("call_refused", what=what, outcome=error.outcome, status=error.status, code=error.code, why=str(error))
    if isinstance(error, TimedOutError):
        return Problem(504, "azure_timed_out", f"Azure did not answer the {what} in time: try the next connection.")
    wait_s = error.retry_after_s if isinstance(error, RateLimitedError) else None
    headers = {} if wait_s is None else {"Retry-After": str(max(1, round(wait_s)))}
    return Problem(502, "azure_refused", f"Azure refused the {what}: try the next connection.", headers=headers)


def _unknown_call() -> Problem:
    return Problem(
        404, "unknown_call", "This session has no such call: use the Location that its offer was answered with."
    )


_SDP = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\n"
_SESSION = Parameter("session_id", "query", "The session; the token's own, where it is named.")

# What `_read_offer` takes, as a JSON Schema can say it.
_OFFER = (
    r"^v=0(\r?\n[a-z]=[^\x00-\x08\x0a-\x1f]*)*\r?\nm=audio [^\x00-\x08\x0a-\x1f]*"
    r"(\r?\n[a-z]=[^\x00-\x08\x0a-\x1f]*)*(\r?\n)*$"
)

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
            "request, and as an open talk until it is hung up."
        ),
        parameters=(_SESSION, Parameter("agent_id", "query", "Who speaks; the default agent where it is left out.")),
        body=Body(media_type="application/sdp", json_schema={"type": "string", "pattern": _OFFER}, example=_SDP),
        answers=(
            Answer(
                201,
                "Azure's answer.",
                media_type="application/sdp",
                example=_SDP,
                headers=("Cache-Control", "Location"),
            ),
        ),
        problems={
            400: ("bad_sdp", "client_left"),
            401: ("session_token_refused",),
            403: ("foreign_session", "cut_off"),
            404: ("unknown_agent",),
            408: ("body_timeout",),
            413: ("body_too_large",),
            415: ("not_sdp",),
            429: ("rate_limited", "too_many_sessions"),
            502: ("azure_refused",),
            503: ("nothing_minted",),
            504: ("azure_timed_out",),
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
        description="Ends a call that this session set up through the broker.",
        parameters=(Parameter("call_id", "path", "The end of the call's `Location`."), _SESSION),
        answers=(Answer(204, "The call is over."),),
        problems={
            401: ("session_token_refused",),
            403: ("foreign_session",),
            404: ("unknown_call",),
            502: ("azure_refused",),
            504: ("azure_timed_out",),
        },
        security=("sessionToken",),
    ),
)
