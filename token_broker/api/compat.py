"""The compatible endpoints (docs/api.md §6): a mint, WebSockets and WebRTC calls under the official clients' paths.

`Admission` decides who may come, the relay holds the talks, and `offers` places the calls. The client secret alone is
made here.
"""

import math
import re
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypedDict

from pydantic import SecretStr
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import Receive, Scope, Send

from strategies.base import SessionSpec
from strategies.session_model.session_fields import flat_session, ga_realtime_session
from token_broker.api.compat_operations import CALL_PATHS, HANG_UP_PATHS, MAX_FORM_FIELDS, MINT_PATHS, SESSION_PATHS
from token_broker.api.offers import CallRelay, check_offer
from token_broker.api.token import ASKING_SHARE, Minting
from token_broker.observability.logging import AuditEntry, bind_ids, write_audit
from token_broker.relay.adapters import COMPAT_ENDPOINTS, CompatEndpoint
from token_broker.relay.admission import Admission
from token_broker.relay.dialects.session_settings import shown_session
from token_broker.relay.voice_relay import VoiceRelay
from token_broker.security.authentication import Principal, caller_of
from token_broker.security.credential_extraction import SeveralCredentialsError, extract_credential
from token_broker.security.tokens import ClientSecretClaims, SessionClaims, TokenError, is_ours
from token_broker.sessions.ownership import Callers, OpenedSession
from token_broker.sessions.plans import session_spec
from token_broker.sessions.schemas import (
    BetaClientSecret,
    BetaSession,
    BetaSessionRequest,
    ClientSecret,
    ClientSecretRequest,
    SecretMetadata,
)
from token_broker.settings import Settings
from token_broker.web.requests import Problem, correlation_id, parse_json, read_body

__all__ = ["CompatState", "compat_routes"]

_NO_STORE = {"Cache-Control": "no-store"}
_BOUNDARY = re.compile(r'\bboundary=("[^"]*"|[^";,\s]+)', re.IGNORECASE)


class CompatState(TypedDict):
    """What these routes use of the lifespan's state."""

    callers: Callers
    minting: Minting
    calls: CallRelay
    admission: Admission
    relay: VoiceRelay


class CompatSocket:
    """WebSockets of one compatible endpoint. A class: Starlette takes no function for an ASGI application."""

    def __init__(self, compat: CompatEndpoint) -> None:
        self._compat = compat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        relay: VoiceRelay = scope["state"]["relay"]
        await relay.compat(self._compat, scope, receive, send)


def compat_routes() -> list[BaseRoute]:
    """All compatible endpoints, under the paths that each client makes of its base URL."""
    sockets = [(path, CompatSocket(compat)) for compat in COMPAT_ENDPOINTS for path in compat.paths]
    return [
        *[Route(path, create_client_secret, methods=["POST"]) for path in MINT_PATHS],
        *[Route(path, create_beta_session, methods=["POST"]) for path in SESSION_PATHS],
        *[Route(path, create_compat_call, methods=["POST"]) for path in CALL_PATHS],
        *[Route(path, hang_up_compat_call, methods=["POST"]) for path in HANG_UP_PATHS],
        *[WebSocketRoute(path, socket) for path, socket in sockets],
        *[Route(path, socket) for path, socket in sockets],  # after the offers, which share some of these paths
    ]


async def create_client_secret(request: Request[CompatState]) -> Response:
    """Answers 200 with a `ClientSecret`; problems: 400, 401, 403, 404, 408, 413, 422, 429, 503."""
    minted = await _mint(request, ClientSecretRequest)
    # As GA's mint shows a session, without what the agent keeps to itself.
    session = minted.shown(ga_realtime_session(minted.spec))
    answer = ClientSecret(value=minted.secret, expires_at=minted.expires_at_s, session=session)
    return JSONResponse(answer.model_dump(), headers=_NO_STORE)


async def create_beta_session(request: Request[CompatState]) -> Response:
    """Answers 200 with a `BetaSession`, the mint's answer before GA; problems as for a client secret."""
    minted = await _mint(request, BetaSessionRequest)
    secret = BetaClientSecret(value=minted.secret, expires_at=minted.expires_at_s)
    formats = {"input_audio_format": "pcm16", "output_audio_format": "pcm16"}
    answer = BetaSession(**minted.shown(flat_session(minted.spec) | formats), client_secret=secret)
    return JSONResponse(answer.model_dump(), headers=_NO_STORE)


@dataclass(frozen=True, slots=True)
class _MintedSecret:
    secret: str
    expires_at_s: int
    session_id: str
    spec: SessionSpec

    def shown(self, session: dict[str, Any]) -> dict[str, Any]:
        """The session as a mint shows it: without what the agent keeps to itself."""
        return {"id": self.session_id, "object": "realtime.session", **shown_session(session), "model": self.spec.model}


async def _mint(
    request: Request[CompatState], wanted_as: type[ClientSecretRequest] | type[BetaSessionRequest]
) -> _MintedSecret:
    """Mints and audits a client secret for who asks. Raises Problem."""
    callers, minting = request.state["callers"], request.state["minting"]
    callers.ensure_staying()
    settings = callers.settings
    principal, claims = await _caller(request)
    await callers.rate.admit(principal.limit_key)
    minting.ensure_configured()
    body = await read_body(request, limit_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s)
    wanted = parse_json(body, wanted_as)
    agent = minting.find_agent(wanted.metadata.agent_id or (claims.agent_id if claims else None))
    if minting.budgets is not None:
        await minting.budgets.ensure_left(principal.limit_key)
    session = (await _session(request, principal, claims, wanted.metadata)).narrowed(wanted.metadata)
    owner = session.owner
    bind_ids(session_id=owner.session_id)
    ttl_s = _ttl_s(wanted.expires_after.seconds, claims)
    expires_at_s = int(time.time()) + ttl_s
    minted_with = claims if isinstance(claims, ClientSecretClaims) else None
    try:
        secret = callers.signer.client_secret(
            owner, agent_id=agent.id, ttl_s=ttl_s, minted_with=minted_with, uses=wanted.metadata.uses
        )
    except ValueError as error:
        raise Problem(422, "invalid_request", f"{error}.") from None
    await session.keep(callers.sessions, agent.id)
    entry = AuditEntry(
        correlation_id=correlation_id(request.scope),
        principal=owner.principal,
        session_id=owner.session_id,
        agent_id=agent.id,
        strategy="client_secret",
        minted=False,
        secret=SecretStr(secret),
        expires_at=datetime.fromtimestamp(expires_at_s, UTC),
    )
    write_audit(entry, minting.observe)
    spec = replace(session_spec(agent, settings), model=minting.model_of(agent, None, owner.session_id))
    return _MintedSecret(secret, expires_at_s, owner.session_id, spec)


async def create_compat_call(request: Request[CompatState]) -> Response:
    """Answers 201 with the SDP answer and `Location`; problems: 400, 401, 403, 408, 413, 415, 429, 502 to 504."""
    admission, calls = request.state["admission"], request.state["calls"]
    settings = calls.minting.settings
    deadline_s = time.monotonic() + settings.token_budget_s * ASKING_SHARE
    admitted = admission.by_any(request.scope)
    await admission.ensure_budget(admitted)
    bind_ids(session_id=admitted.owner.session_id)
    offer = await _read_offer(request, settings)
    with await admission.enter(admitted, counted=True) as lease:
        call = await calls.place(
            request,
            offer,
            owner=admitted.owner,
            agent=admitted.agent,
            lease=lease,
            deadline_s=deadline_s,
            filtered=settings.compat_webrtc_filter == "on",
            transport="compat",
        )
    headers = dict(_NO_STORE)
    if call.call_id is not None:
        path = request.scope["path"]  # or an earlier one, below which nothing hangs up
        headers["Location"] = f"{path if path.endswith('/calls') else CALL_PATHS[0]}/{call.token}"
    return calls.answer(call, headers)


async def hang_up_compat_call(request: Request[CompatState]) -> Response:
    """Answers 200, as OpenAI does, when the call is over; problems: 401, 404, 429, 502, 504."""
    caller = request.state["admission"].leaver(request.scope)
    bind_ids(session_id=caller.owner.session_id)
    await request.state["callers"].hang_ups.admit(caller.limit_key)
    await request.state["calls"].end(request.path_params["call_id"], owner=caller.owner)
    return Response(status_code=200, headers=_NO_STORE)


async def _caller(request: Request[CompatState]) -> tuple[Principal, ClientSecretClaims | SessionClaims | None]:
    """Who asks for a client secret: a caller who may ask for a plan, or who has a credential of the broker's already.

    Raises Problem 401, 403, 503. Where nobody has to authenticate, a key is what the client's library insists on, and
    means nothing; but one that is Azure's, or was ours and is no longer good, is refused.
    """
    callers = request.state["callers"]
    try:
        # X-Session-Token proves here whose the session is that `metadata` names, as for a plan.
        credential = extract_credential(request.scope, header=False)
    except SeveralCredentialsError:
        raise _refused("Several credentials came, which differ: send one.") from None
    if credential is not None:
        if request.state["admission"].warn_of_resource_key(credential):
            raise _refused("This credential is not valid here.")
        try:
            claims = callers.signer.read_any(credential)
        except TokenError:
            if is_ours(credential):
                raise _refused(
                    "The client secret has expired, or is not valid here: leave it out, or send a good one."
                ) from None
        else:
            if not isinstance(claims, (ClientSecretClaims, SessionClaims)):
                raise _refused("A ticket opens one talk and mints nothing: leave it out.")
            caller = caller_of(request.scope, claims, callers.settings.trusted_proxies)
            return Principal(caller.owner.principal, caller.limit_key), claims
    scope = request.scope
    if callers.settings.auth == "entra" and credential is not None:
        others = [(name, value) for name, value in scope["headers"] if name != b"authorization"]
        scope = {**scope, "headers": [*others, (b"authorization", f"Bearer {credential}".encode())]}
    return await callers.authenticator.authenticate(scope), None


async def _session(
    request: Request[CompatState],
    principal: Principal,
    claims: ClientSecretClaims | SessionClaims | None,
    metadata: SecretMetadata,
) -> OpenedSession:
    """The session that the secret is for: the credential's own, or as `POST /realtime/token` finds it."""
    callers = request.state["callers"]
    if claims is None:
        return await callers.open_session(request, principal, session_id=metadata.session_id, user_id=metadata.user_id)
    if metadata.session_id not in {None, claims.owner.session_id}:
        raise Problem(403, "foreign_session", "The credential is another session's: leave session_id out.")
    own_names = {None, claims.owner.user_id, *((principal.id, principal.subject) if principal.authenticated else ())}
    if metadata.user_id not in own_names:
        raise Problem(403, "foreign_user", "The credential is another user's: leave user_id out.")
    return await callers.reopen_session(claims)


def _ttl_s(wanted_s: int, claims: ClientSecretClaims | SessionClaims | None) -> int:
    """The wanted lifetime, but no longer than the credential's own. Raises Problem 401.

    The leeway for clocks is not added: with it each secret could mint the next one, without end.
    """
    if claims is None:
        return wanted_s
    if (left_s := math.floor(claims.expires_at_s - time.time())) < 1:
        raise _refused("The credential has expired: leave it out, or send a good one.")
    return min(wanted_s, left_s)


async def _read_offer(request: Request[CompatState], settings: Settings) -> bytes:
    """The offer, raw or as the `sdp` of a form; the form's `session` is the agent's to say. Raises Problem."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in {"application/sdp", "multipart/form-data"}:
        raise Problem(
            415, "not_sdp", "Send the offer raw, as application/sdp, or as the sdp field of multipart/form-data."
        )
    offer = await read_body(request, limit_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s)
    if kind == "multipart/form-data":
        offer = await _sdp_field(request, offer, settings.max_body_bytes)
    check_offer(offer)
    return offer


async def _sdp_field(request: Request[CompatState], body: bytes, limit_bytes: int) -> bytes:
    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    # The parser is told no more than the boundary: an offer is ASCII, and some of the charsets that Python knows fail,
    # or take long.
    boundary = _BOUNDARY.search(request.headers["content-type"])
    headers = Headers({"content-type": f"multipart/form-data; {boundary[0]}" if boundary else ""})
    parser = MultiPartParser(
        headers, whole(), max_files=MAX_FORM_FIELDS, max_fields=MAX_FORM_FIELDS, max_part_size=limit_bytes
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
