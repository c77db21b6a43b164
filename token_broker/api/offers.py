"""WebRTC offers to Azure and its answers: what the plan's relay and the compatible endpoints have in common.

The broker mints and posts the offer, the browser never sees a secret, and media flows from the browser to Azure. A
relayed call is counted as an open talk until it is hung up here, or can no longer be running.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog
from starlette.requests import Request
from starlette.types import Scope

from strategies.base import EphemeralGrant
from strategies.chain import ChainResult
from strategies.errors import MintError, RateLimitedError, TimedOutError
from token_broker.api.call_answers import PlacedCall, hung_up_unless_delivered
from token_broker.api.token import recalled_spec
from token_broker.broker import Broker
from token_broker.memory.types import Owner
from token_broker.observability.events import CallPlaced
from token_broker.observability.logging import AuditEntry, write_audit
from token_broker.security.rate_limits import SessionLease
from token_broker.security.tokens import TokenError
from token_broker.sessions.agents import Agent
from token_broker.sessions.ownership import ensure_not_blocked
from token_broker.web.ids import correlation_id
from token_broker.web.openapi_document import ResponseSpec
from token_broker.web.problems import Problem

__all__ = [
    "HANG_UP_PROBLEMS",
    "OFFER_PROBLEMS",
    "OFFER_SCHEMA",
    "SDP_ANSWER",
    "SDP_EXAMPLE",
    "check_offer",
    "end_call",
    "place_call",
]

log = structlog.get_logger("token_broker.sessions.calls")

# What the mint may use of the budget: the offer that follows has to fit into it as well.
_MINT_SHARE = 2 / 3
_RETRY_AFTER_S = 5
_SDP_LINE = re.compile(rb"[a-z]=[^\x00-\x08\x0a-\x1f]*")


@dataclass(slots=True)
class _Watch:
    """How far an offer has come, for those who watch."""

    scope: Scope
    broker: Broker
    owner: Owner
    agent: Agent
    began_s: float = field(default_factory=time.monotonic)
    minted: ChainResult | None = None
    offered_s: float | None = None  # when it went to Azure

    @contextmanager
    def observed(self) -> "Iterator[_Watch]":
        """Tells what became of the offer within the block, which ends with Azure's answer."""
        told: tuple[int, str | None] = 500, "internal_error"
        try:
            yield self
            told = 201, None
        except Problem as problem:
            told = problem.status, problem.code
            raise
        finally:
            self.broker.observe(self._told(*told))

    def _told(self, status: int, code: str | None) -> CallPlaced:
        duration_s = time.monotonic() - self.began_s
        grant = self.minted.grant if self.minted else None
        return CallPlaced(
            route=self.scope["route"].path,
            status=status,
            code=code,
            duration_s=duration_s,
            correlation_id=correlation_id(self.scope),
            model=self.broker.settings.model,
            agent_id=self.agent.id,
            session_id=self.owner.session_id,
            strategy=grant.strategy if grant else None,
            attempts=self.minted.attempts if self.minted else (),
            offer_s=None if self.offered_s is None else (self.offered_s - self.began_s, duration_s),
            trace=self.scope["state"].get("trace"),
        )


def check_offer(offer: bytes) -> None:
    """Raises Problem 400 where it is no SDP that offers audio."""
    lines = offer.replace(b"\r\n", b"\n").rstrip(b"\n").split(b"\n")
    well_formed = lines[0] == b"v=0" and all(_SDP_LINE.fullmatch(line) for line in lines)
    if not well_formed or not any(line.startswith(b"m=audio ") for line in lines):
        raise Problem(400, "bad_sdp", "The offer is no SDP with an audio line: send createOffer()'s sdp as it is.")


async def place_call(
    request: Request,
    broker: Broker,
    offer: bytes,
    *,
    owner: Owner,
    agent: Agent,
    lease: SessionLease,
    deadline_s: float,
    filtered: bool,
) -> PlacedCall:
    """Mints, and takes the offer to the host that minted; `lease` is kept for the call.

    Raises Problem 403 where the agent takes no calls or its caller was blocked meanwhile, 400 where the caller left,
    502 to 504. A call that Azure made all the same is hung up.
    """
    if agent.sockets_only:
        raise _sockets_only()
    supply = recalled_spec(broker, agent, owner)
    with _Watch(request.scope, broker, owner, agent).observed() as watch:
        mint_until_s = time.monotonic() + (deadline_s - time.monotonic()) * _MINT_SHARE
        watch.minted = await broker.chain.mint(supply, deadline_s=mint_until_s)
        grant = watch.minted.grant
        if not isinstance(grant, EphemeralGrant) or broker.calls is None:
            raise Problem(
                503,
                "nothing_minted",
                "No token could be minted just now: go on to the plan's next connection, or to a WebSocket.",
                headers={"Retry-After": str(_RETRY_AFTER_S)},
            )
        write_audit(_audit_entry(request, grant, owner, agent.id), broker.observe)
        watch.offered_s = time.monotonic()
        try:
            accepted = await broker.calls.offer(
                grant,
                offer,
                filtered=filtered,
                owner=owner,
                lease=lease,
                timeout_s=max(0.1, deadline_s - time.monotonic()),
            )
        except MintError as error:
            raise _refused(error, "offer") from None
        if accepted.call_id is None:
            log.warning("call_without_location", session_id=owner.session_id)
            return PlacedCall(accepted.answer, grant.endpoint, None, None, await supply())
        with hung_up_unless_delivered(broker, grant.endpoint, accepted.call_id, owner):
            ensure_not_blocked(broker.memory.blocklist, owner.principal, owner.session_id)
            if await request.is_disconnected():
                raise Problem(400, "client_left", "The client left before it was answered.")
            token = broker.signer.call_token(
                session_id=owner.session_id,
                call_id=accepted.call_id,
                endpoint=grant.endpoint,
                ttl_s=broker.settings.session_token_ttl_s,
            )
            return PlacedCall(accepted.answer, grant.endpoint, accepted.call_id, token, await supply())


async def end_call(broker: Broker, token: str, *, session_id: str) -> None:
    """Hangs up the session's call of that id. Raises Problem 404, 502, 504."""
    try:
        call = broker.signer.read_call_token(token)
    except TokenError:
        raise _unknown_call() from None
    if call.session_id != session_id or broker.calls is None:
        raise _unknown_call()
    try:
        await broker.calls.hang_up(call.endpoint, call.call_id)
    except MintError as error:
        raise _refused(error, "hang-up") from None


def _audit_entry(request: Request, grant: EphemeralGrant, owner: Owner, agent_id: str) -> AuditEntry:
    return AuditEntry(
        correlation_id=correlation_id(request.scope),
        principal=owner.principal,
        session_id=owner.session_id,
        agent_id=agent_id,
        strategy=grant.strategy,
        holder="broker",
        minted=True,
        secret=grant.token,
        expires_at=grant.expires_at,
    )


def _refused(error: MintError, what: str) -> Problem:
    """Azure's refusal as the caller hears it; why stands in the log."""
    log.warning("call_refused", what=what, outcome=error.outcome, status=error.status, code=error.code, why=str(error))
    if isinstance(error, TimedOutError):
        return Problem(504, "azure_timed_out", f"Azure did not answer the {what} in time: try the next connection.")
    wait_s = error.retry_after_s if isinstance(error, RateLimitedError) else None
    headers = {} if wait_s is None else {"Retry-After": str(max(1, round(wait_s)))}
    return Problem(502, "azure_refused", f"Azure refused the {what}: try the next connection.", headers=headers)


def _sockets_only() -> Problem:
    detail = "This agent talks over WebSockets only, since a tool of its has a credential: use the plan's proxy."
    return Problem(403, "sockets_only", detail)


def _unknown_call() -> Problem:
    return Problem(
        404, "unknown_call", "This session has no such call: use the Location that its offer was answered with."
    )


# As /openapi.json shows it.
SDP_EXAMPLE = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\n"
OFFER_SCHEMA = {
    "type": "string",
    "pattern": (  # what `check_offer` takes
        r"^v=0(\r?\n[a-z]=[^\x00-\x08\x0a-\x1f]*)*\r?\nm=audio [^\x00-\x08\x0a-\x1f]*"
        r"(\r?\n[a-z]=[^\x00-\x08\x0a-\x1f]*)*(\r?\n)*$"
    ),
}
SDP_ANSWER = ResponseSpec(
    201, "Azure's answer.", media_type="application/sdp", example=SDP_EXAMPLE, headers=("Cache-Control", "Location")
)
OFFER_PROBLEMS = {
    400: ("bad_sdp", "client_left"),
    403: ("blocked", "sockets_only"),
    408: ("body_timeout",),
    413: ("body_too_large",),
    415: ("not_sdp",),
    429: ("rate_limited", "too_many_sessions"),
    502: ("azure_refused",),
    503: ("nothing_minted",),
    504: ("azure_timed_out",),
}
HANG_UP_PROBLEMS = {
    404: ("unknown_call",),
    429: ("rate_limited",),
    502: ("azure_refused",),
    504: ("azure_timed_out",),
}
