"""The compatible endpoints (docs/api.md §6): a mint, WebSockets and WebRTC calls under the official clients' paths.

Thin: who comes is `Admission`'s to say, a talk is the relay's, a call is `offers`'. What is the compatible endpoints'
own is the client secret.
"""

import math
import re
import time
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any

from pydantic import SecretStr
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import Receive, Scope, Send

from strategies.session_body import ga_realtime_session
from token_broker.api.call_answers import CallAnswer
from token_broker.api.offers import check_offer, end_call, place_call
from token_broker.api.token import ensure_configured, find_agent
from token_broker.broker import Broker, broker_of
from token_broker.memory.types import Owner
from token_broker.observability.logging import AuditEntry, bind_ids, write_audit
from token_broker.relay.adapters import COMPAT_ENDPOINTS, CompatEndpoint
from token_broker.relay.dialects.session_settings import shown_session
from token_broker.security.authentication import Principal, limit_key
from token_broker.security.credentials import SeveralCredentialsError, extract_credential
from token_broker.security.tokens import ClientSecretClaims, SessionClaims, TokenError, is_ours
from token_broker.sessions.agents import Agent, session_spec
from token_broker.sessions.ownership import OpenedSession, confirm_owner, ensure_not_blocked, open_session
from token_broker.sessions.schemas import ClientSecret, ClientSecretRequest
from token_broker.web.ids import correlation_id
from token_broker.web.problems import Problem
from token_broker.web.requests import parse_json, read_body

__all__ = ["compat_routes"]

_NO_STORE = {"Cache-Control": "no-store"}
_MAX_FORM_FIELDS = 8
# All that a form's type has to say: an offer is ASCII, and some of the charsets that Python knows fail, or take long.
_BOUNDARY = re.compile(r'\bboundary=("[^"]*"|[^";,\s]+)', re.IGNORECASE)

MINT_PREFIXES: tuple[str, ...] = ("/v1", "/openai/v1", "/openai")
CALL_PREFIXES: tuple[str, ...] = ("/v1", "/openai/v1")


class CompatSocket:
    """One compatible endpoint's WebSockets; a class, since Starlette takes functions for something less than ASGI."""

    def __init__(self, compat: CompatEndpoint) -> None:
        self._compat = compat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        broker: Broker = scope["app"].state.broker
        await broker.relay.compat(self._compat, scope, receive, send)


def compat_routes() -> list[BaseRoute]:
    """All compatible endpoints, by the paths that each client makes of its base URL."""
    sockets = [(path, CompatSocket(compat)) for compat in COMPAT_ENDPOINTS for path in compat.paths]
    return [
        *[
            Route(f"{prefix}/realtime/client_secrets", create_client_secret, methods=["POST"])
            for prefix in MINT_PREFIXES
        ],
        *[Route(f"{prefix}/realtime/calls", create_compat_call, methods=["POST"]) for prefix in CALL_PREFIXES],
        *[
            Route(f"{prefix}/realtime/calls/{{call_id}}/hangup", hang_up_compat_call, methods=["POST"])
            for prefix in CALL_PREFIXES
        ],
        *[WebSocketRoute(path, socket) for path, socket in sockets],
        *[Route(path, socket) for path, socket in sockets],
    ]


async def create_client_secret(request: Request) -> Response:
    """Answers 200 with a `ClientSecret`; problems: 400, 401, 403, 404, 408, 413, 422, 429, 503."""
    broker = broker_of(request)
    settings = broker.settings
    principal, claims = await _caller(request, broker)
    await broker.rate.admit(principal.limit_key)
    ensure_configured(broker)
    body = await read_body(request, limit_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s)
    wanted = parse_json(body, ClientSecretRequest)
    agent = find_agent(broker, wanted.metadata.agent_id or (claims.agent_id if claims else None))
    session = await _session(request, broker, principal, claims, wanted)
    owner = session.owner
    bind_ids(session_id=owner.session_id)
    ensure_not_blocked(broker.memory.blocklist, owner.principal, owner.session_id)
    ttl_s = _ttl_s(wanted, claims)
    expires_at_s = int(time.time()) + ttl_s
    secret = broker.signer.client_secret(
        session_id=owner.session_id,
        agent_id=agent.id,
        principal=owner.principal,
        epoch=owner.epoch,
        user_id=owner.user_id,
        ttl_s=ttl_s,
        minted_with=claims if isinstance(claims, ClientSecretClaims) else None,
    )
    answer = ClientSecret(value=secret, expires_at=expires_at_s, session=_shown_session(broker, agent, owner))
    await session.keep(broker.memory.sessions, agent.id)
    write_audit(
        AuditEntry(
            correlation_id=correlation_id(request.scope),
            principal=owner.principal,
            session_id=owner.session_id,
            agent_id=agent.id,
            strategy="client_secret",
            minted=False,
            secret=SecretStr(secret),
            expires_at=datetime.fromtimestamp(expires_at_s, UTC),
        ),
        broker.observe,
    )
    return JSONResponse(answer.model_dump(), headers=_NO_STORE)


async def create_compat_call(request: Request) -> Response:
    """Answers 201 with the SDP answer and `Location`; problems: 400, 401, 403, 408, 413, 415, 429, 502 to 504."""
    broker = broker_of(request)
    deadline_s = time.monotonic() + broker.settings.token_budget_s
    admitted = broker.admission.by_any(request.scope)
    bind_ids(session_id=admitted.owner.session_id)
    offer = await _read_offer(request, broker)
    with await broker.admission.enter(admitted, counted=True) as lease:
        call = await place_call(
            request,
            broker,
            offer,
            owner=admitted.owner,
            agent=admitted.agent,
            lease=lease,
            deadline_s=deadline_s,
            filtered=broker.settings.compat_webrtc_filter == "on",
        )
    headers = dict(_NO_STORE)
    if call.call_id is not None:
        broker.relay.listen(admitted, endpoint=call.endpoint, call_id=call.call_id, spec=call.spec)
        headers["Location"] = f"{request.scope['path']}/{call.token}"
    return CallAnswer(broker, call, admitted.owner, headers)


async def hang_up_compat_call(request: Request) -> Response:
    """Answers 200, as OpenAI does, when the call is over; problems: 401, 404, 429, 502, 504."""
    broker = broker_of(request)
    session_id, key = broker.admission.leaver(request.scope)
    bind_ids(session_id=session_id)
    await broker.hang_ups.admit(key)
    await end_call(broker, request.path_params["call_id"], session_id=session_id)
    return Response(status_code=200, headers=_NO_STORE)


async def _caller(request: Request, broker: Broker) -> tuple[Principal, ClientSecretClaims | SessionClaims | None]:
    """Who asks for a client secret: whoever may ask for a plan, or who has a credential of the broker's already.

    Raises Problem 401, 403, 503. Where nobody has to authenticate, a key is what the client's library insists on, and
    means nothing; but one that is Azure's, or was ours and is no longer good, is told so.
    """
    try:
        credential = extract_credential(request.scope)
    except SeveralCredentialsError:
        raise _refused("Several credentials came, which differ: send one.") from None
    if credential is not None:
        if broker.admission.warn_of_resource_key(credential):
            raise _refused("This credential is not valid here.")
        try:
            claims = broker.signer.read_any(credential)
        except TokenError:
            if is_ours(credential):
                raise _refused(
                    "The client secret has expired, or is not valid here: leave it out, or send a good one."
                ) from None
        else:
            if not isinstance(claims, (ClientSecretClaims, SessionClaims)):
                raise _refused("A ticket opens one talk and mints nothing: leave it out.")
            key = limit_key(request.scope, claims.principal, broker.settings.trusted_proxies)
            return Principal(claims.principal, key), claims
    scope = request.scope
    if broker.settings.auth == "entra" and credential is not None:
        others = [(name, value) for name, value in scope["headers"] if name != b"authorization"]
        scope = {**scope, "headers": [*others, (b"authorization", f"Bearer {credential}".encode())]}
    return await broker.authenticator.authenticate(scope), None


async def _session(
    request: Request,
    broker: Broker,
    principal: Principal,
    claims: ClientSecretClaims | SessionClaims | None,
    wanted: ClientSecretRequest,
) -> OpenedSession:
    """The session that the secret is for: the credential's own, or as `POST /realtime/token` finds it."""
    if claims is None:
        return await open_session(
            broker.memory.sessions,
            broker.signer,
            broker.memory.blocklist,
            principal=principal,
            session_id=wanted.metadata.session_id,
            session_token=request.headers.get("x-session-token"),
            user_id=wanted.metadata.user_id,
        )
    if wanted.metadata.session_id not in {None, claims.session_id}:
        raise Problem(403, "foreign_session", "The credential is another session's: leave session_id out.")
    own_names = {None, claims.user_id, *((principal.id, principal.subject) if principal.authenticated else ())}
    if wanted.metadata.user_id not in own_names:
        raise Problem(403, "foreign_user", "The credential is another user's: leave user_id out.")
    return await confirm_owner(broker.memory.sessions, broker.memory.blocklist, claims)


def _ttl_s(wanted: ClientSecretRequest, claims: ClientSecretClaims | SessionClaims | None) -> int:
    """As long as was asked for, but what a credential opens can't outlive it. Raises Problem 401.

    The leeway that clocks are given is not lent on: each secret would be good for it anew, and mint the next.
    """
    if claims is None:
        return wanted.expires_after.seconds
    if (left_s := math.floor(claims.expires_at_s - time.time())) < 1:
        raise _refused("The credential has expired: leave it out, or send a good one.")
    return min(wanted.expires_after.seconds, left_s)


def _shown_session(broker: Broker, agent: Agent, owner: Owner) -> dict[str, Any]:
    """The session as GA's mint shows it, without what the agent keeps to itself."""
    session = shown_session(ga_realtime_session(session_spec(agent, broker.settings)))
    return {"id": owner.session_id, "object": "realtime.session", "model": broker.settings.model, **session}


async def _read_offer(request: Request, broker: Broker) -> bytes:
    """The offer, raw or as the `sdp` of a form; the form's `session` is the agent's to say. Raises Problem."""
    settings = broker.settings
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in {"application/sdp", "multipart/form-data"}:
        raise Problem(
            415, "not_sdp", "Send the offer raw, as application/sdp, or as the sdp field of multipart/form-data."
        )
    body = await read_body(request, limit_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s)
    offer = body if kind == "application/sdp" else await _sdp_field(request, body, settings.max_body_bytes)
    check_offer(offer)
    return offer


async def _sdp_field(request: Request, body: bytes, limit_bytes: int) -> bytes:
    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    boundary = _BOUNDARY.search(request.headers["content-type"])
    headers = Headers({"content-type": f"multipart/form-data; {boundary[0]}" if boundary else ""})
    parser = MultiPartParser(
        headers, whole(), max_files=_MAX_FORM_FIELDS, max_fields=_MAX_FORM_FIELDS, max_part_size=limit_bytes
    )
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError):
        raise Problem(400, "bad_form", "The form can't be read: send multipart/form-data with an sdp field.") from None
    try:
        field = form.get("sdp")
        if field is None:
            raise Problem(400, "bad_form", "The form has no sdp field.")
        return await field.read() if isinstance(field, UploadFile) else field.encode()
    finally:
        await form.close()


def _refused(detail: str) -> Problem:
    return Problem(401, "credential_refused", detail)
