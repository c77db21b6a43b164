"""WebRTC offers to Azure and its answers: what the plan's relay and the compatible endpoints have in common.

The broker mints and posts the offer, the browser never sees a secret, and media flows from the browser to Azure. A
relayed call is counted as an open talk until it is hung up here, or can no longer be running.
"""

import contextlib
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from strategies.azure_calls import AcceptedCall
from strategies.base import EphemeralGrant, SessionSpec, SpecSupplier
from strategies.chain import ChainResult
from strategies.endpoint import LIVE_PATH
from strategies.errors import MintError, RateLimitedError, RejectedError, TimedOutError
from strategies.live_calls import LiveOffer, SessionFieldError
from strategies.resources import Resource, Wanted
from strategies.session_model.live_session import LIVE_CALLS_ROUTE, live_session, web_session
from strategies.session_model.refused_field import field_to_leave_out, shown_path, without
from token_broker.api.token import LIVE_GRANTED, RETRY_AFTER_S, Minting, RequestTrace
from token_broker.calls.attach_claims import AttachClaims
from token_broker.calls.page_events import CallStreams
from token_broker.calls.running_calls import Calls
from token_broker.memory.store_errors import StoreError
from token_broker.memory.types import Blocklist
from token_broker.observability.events import CallPlaced
from token_broker.observability.logging import AuditEntry, write_audit
from token_broker.relay.live.azure_session import left_out_of
from token_broker.relay.media.call_offers import offers_audio
from token_broker.security.authentication import limit_key
from token_broker.security.limits import SessionLease, SessionLimits
from token_broker.security.tokens import Owner, TokenError, TokenSigner
from token_broker.sessions.agents import Agent
from token_broker.sessions.ownership import ensure_not_blocked
from token_broker.sessions.plans import TalkSpecs
from token_broker.sessions.talk_level import TalkLevelCounters
from token_broker.web.openapi_document import ResponseSpec
from token_broker.web.requests import Problem, correlation_id

__all__ = [
    "COMPAT_CLOSE_CODES",
    "COMPAT_SUBPROTOCOLS",
    "COMPAT_TAG",
    "HANG_UP_PROBLEMS",
    "OFFER_PROBLEMS",
    "OFFER_SCHEMA",
    "SDP_ANSWER",
    "SDP_EXAMPLE",
    "CallRelay",
    "PlacedCall",
    "check_offer",
    "store_away",
]

log = structlog.get_logger("token_broker.calls.running_calls")

# The mint's share of the budget: the offer that follows has to fit into it as well.
_MINT_SHARE = 2 / 3
# How long a resource may be silent on an offer while another one is left.
_OFFER_SHARE_S = 1.0
_LEAVE_RIGHTS_OUT = "AZURE_GPT_LIVE_DATA_CHANNEL=open asks for no bounds: then a page sees the agent's instructions"
CALLS_ROUTE = "calls"
_PARAM = re.compile(r"[A-Za-z0-9_.\[\]]{1,128}")


@dataclass(frozen=True, slots=True)
class PlacedCall:
    """A call that Azure took.

    `token` is its id for the client that may hang it up; None where Azure named no id. `spec` is the session as it was
    minted, `owner` the owner of the talk that the call belongs to, `limit_key` what its budget counts by.
    """

    answer: bytes
    endpoint: str
    call_id: str | None
    token: str | None
    spec: SessionSpec
    owner: Owner
    agent: Agent
    resource: str = ""
    limit_key: str = ""
    transport: str = "webrtc_relay"


def check_offer(offer: bytes) -> None:
    """Raises Problem 400 where `offer` is not an SDP that offers audio."""
    if not offers_audio(offer):
        raise Problem(400, "bad_sdp", "The offer is no SDP with an audio line: send createOffer()'s sdp as it is.")


class ListensToCalls(Protocol):
    """`WatchedCalls`, as far as it is needed here."""

    @property
    def streams(self) -> CallStreams: ...
    def watch(
        self,
        owner: Owner,
        agent: Agent,
        *,
        endpoint: str,
        call_id: str,
        spec: SessionSpec,
        resource: str,
        transport: str = "webrtc_relay",
        limit_key: str = "",
    ) -> None: ...
    def delivered(self, call: tuple[str, str]) -> None: ...
    def leaving(self, call_id: str) -> None: ...
    def hung_up(self, call_id: str) -> None: ...
    def endpoint_of(self, call_id: str, owner: Owner) -> str | None: ...


class _PageRightsError(RejectedError):
    """Azure refuses what a page may send and see in a call. That is never left out by itself (docs/azure.md §12.3)."""


@dataclass(frozen=True, slots=True)
class CallRelay:
    """Sets calls up at Azure, and hangs them up."""

    minting: Minting
    signer: TokenSigner
    blocklist: Blocklist
    talks: SessionLimits
    calls: Calls
    level: TalkLevelCounters
    watched: ListensToCalls
    claims: AttachClaims

    async def place(
        self,
        request: Request[Any],
        offer: bytes,
        *,
        owner: Owner,
        agent: Agent,
        lease: SessionLease,
        deadline_s: float,
        filtered: bool,
        transport: str = "webrtc_relay",
    ) -> PlacedCall:
        """Mints, and takes the offer to the host that minted; `lease` is kept for the call.

        One resource at a time: an offer makes a call. One that is silent for its share is followed by the next.

        Raises Problem 403 where the agent takes no calls or its caller was blocked meanwhile, 400 where the caller
        left, 502 to 504. A call that Azure made all the same is hung up.
        """
        if agent.unminted:
            detail = f"This agent takes no such calls, since {agent.unminted}: use the plan's other connections."
            raise Problem(403, "sockets_only", detail)
        minting = self.minting
        is_live = agent.id in minting.live_agents
        if is_live and not minting.plans.unseen.permits_live_calls(agent, owner, knows_blocked=self.blocklist.was_read):
            detail = "The limits of this talk hold over WebSockets alone: go on to the plan's next connection."
            raise Problem(403, "transport_refused", detail)
        route = LIVE_CALLS_ROUTE if is_live else CALLS_ROUTE
        model = minting.model_of(agent, None, owner.session_id)
        trace = RequestTrace(request.scope, model, owner=owner, agent=agent)
        offered_s: float | None = None

        def tell(status: int, code: str | None) -> None:
            facts = trace.facts(status, code)
            offer_s = None if offered_s is None else (offered_s - trace.began_s, facts["duration_s"])
            minting.observe(CallPlaced(**facts, route=request.scope["route"].path, offer_s=offer_s))

        # Other calls are told over their sideband what is recalled.
        supply = TalkSpecs(minting.settings, owner, minting.recall if is_live else None).of(agent)
        # The call's media is not seen: its talk counts as lost from its answer on.
        owner = self.level.of(owner)
        with self.level.connection(owner), trace.answered(201, tell):
            wanted = agent.wanted(owner.session_id)
            left = permitted = minting.pool.order(wanted)
            # Those that are known to take no calls are asked only where no other is left.
            refusal_of = partial(minting.pool.why_not, route_name=route, agent_id=agent.id, model=wanted.model)
            fit = [each for each in left if not refusal_of(each).why]
            if 0 < len(fit) < len(left):
                left, wanted = tuple(fit), replace(wanted, resources=tuple(each.name for each in fit))
            refusal, tried = None, ""
            while True:
                grant: EphemeralGrant | LiveOffer | None
                if is_live:
                    trace.minted = LIVE_GRANTED
                    grant = await self._live_offer(left, supply)
                else:
                    trace.minted, grant = await self._mint(supply, wanted, trace, deadline_s)
                if grant is None:
                    break
                left = tuple(each for each in left if each.name != grant.resource)
                if isinstance(grant, EphemeralGrant):
                    write_audit(_audit_entry(request, grant, owner, agent.id), minting.observe)
                offered_s = offered_s or time.monotonic()
                try:
                    accepted = await self._offer(
                        grant, offer, wanted=wanted, filtered=filtered, owner=owner, lease=lease, transport=transport,
                        timeout_s=max(0.1, deadline_s - time.monotonic()), share_s=_OFFER_SHARE_S if left else None,
                        lasts_s=self.level.left_s(owner, minting.settings.max_talk_s),
                    )  # fmt: skip
                except MintError as error:
                    refusal, tried = error, grant.resource
                    if isinstance(error, RejectedError) or not left or time.monotonic() >= deadline_s:
                        break
                    log.warning("call_goes_on", resource=grant.resource, outcome=error.outcome, why=str(error))
                    wanted = replace(wanted, resources=tuple(each.name for each in left))
                    continue
                placed = await self._placed(request, accepted, grant, owner=owner, agent=agent, supply=supply)
                self.level.went_live(owner.talk_id, grant.resource)
                return replace(placed, transport=transport)
            if refusal is not None:
                log.warning("call_given_up", session_id=owner.session_id, resource=tried)
                raise _refused(refusal, "offer", self._wait_s(permitted, wanted, route)) from None
            detail = "No token could be minted just now: go on to the plan's next connection, or to a WebSocket."
            wait_s = self._wait_s(permitted, wanted, route) or RETRY_AFTER_S
            raise Problem(503, "nothing_minted", detail, headers={"Retry-After": str(math.ceil(wait_s))})

    async def _live_offer(self, left: Sequence[Resource], supply: SpecSupplier) -> LiveOffer | None:
        """What the first of the resources is asked for: GPT-Live has no mint, and takes the session with the offer."""
        if not left:
            return None
        session = live_session(await supply(left[0]))
        if self.minting.settings.gpt_live_data_channel == "restricted":
            session = web_session(session)
        return LiveOffer(f"{left[0].target.openai_base}{LIVE_PATH}", left[0].name, session)

    def _wait_s(self, resources: Sequence[Resource], wanted: Wanted, route: str) -> float:
        """After how long one of the resources may take a call; 0 is unknown. Both of its steps have to be admitted."""
        pool, chain = self.minting.pool, self.minting.chain

        def mints_of(resource: Resource) -> Sequence[str]:
            """The mints that come before the offer; GPT-Live's has none."""
            return () if route == LIVE_CALLS_ROUTE else chain.routes_of(resource)

        def of(resource: Resource, route: str) -> float:
            return pool.why_not(resource, route, agent_id=wanted.agent_id, model=wanted.model).retry_after_s

        return min(
            (
                max(of(each, route), min((of(each, name) for name in mints_of(each)), default=0.0))
                for each in resources
                if route == LIVE_CALLS_ROUTE or chain.routes_of(each)
            ),
            default=0.0,
        )

    async def _mint(
        self, supply: SpecSupplier, wanted: Wanted, trace: RequestTrace, deadline_s: float
    ) -> tuple[ChainResult, EphemeralGrant | None]:
        """What the chain did for this request so far, and the token that it granted now."""
        now_s = time.monotonic()
        before = trace.minted.attempts if trace.minted else ()
        minted = await self.minting.chain.mint(
            supply, wanted=wanted, deadline_s=now_s + (deadline_s - now_s) * _MINT_SHARE, needs_token=True
        )
        grant = minted.grant if isinstance(minted.grant, EphemeralGrant) else None
        return ChainResult(minted.grant, (*before, *minted.attempts)), grant

    async def _offer(
        self, grant: EphemeralGrant | LiveOffer, offer: bytes, *, wanted: Wanted, **options: Any
    ) -> AcceptedCall:
        """Takes the offer to Azure; the pool hears what came of it. Raises MintError.

        A field of a session that Azure refuses by name is left out, once.
        """
        pool = self.minting.pool
        resource = pool.by_name[grant.resource]
        route = LIVE_CALLS_ROUTE if isinstance(grant, LiveOffer) else CALLS_ROUTE
        # The resource that is left last is asked in any case.
        permit = pool.admit(resource, route, agent_id=wanted.agent_id, model=wanted.model, early=True)
        with pool.settle(permit) if permit else contextlib.nullcontext():
            try:
                return await self.calls.offer(grant, offer, agent_id=wanted.agent_id, **options)
            except SessionFieldError as refused:
                path = left_out_of(refused.error, grant.session) if isinstance(grant, LiveOffer) else None
                about = {"resource": grant.resource, "agent_id": wanted.agent_id}
                if path is None or not isinstance(grant, LiveOffer):
                    named = field_to_leave_out(refused.error, grant.session) if isinstance(grant, LiveOffer) else None
                    is_about_page = named is not None and named[0] == "client"
                    hint = {"do": _LEAVE_RIGHTS_OUT} if is_about_page else {}
                    log.error("live_session_refused", **about, param=shown_param(refused.error), **hint)
                    if is_about_page:
                        raise _PageRightsError(str(refused), status=refused.status, code=refused.code) from None
                    raise
                log.error("setting_refused", **about, field=shown_path(path))
                again = replace(grant, session=without(grant.session, path))
                return await self.calls.offer(again, offer, agent_id=wanted.agent_id, **options)

    async def _placed(
        self,
        request: Request[Any],
        accepted: AcceptedCall,
        grant: EphemeralGrant | LiveOffer,
        *,
        owner: Owner,
        agent: Agent,
        supply: SpecSupplier,
    ) -> PlacedCall:
        """The call for its client, which may have left or been blocked meanwhile: then it is hung up."""
        resource = self.minting.pool.by_name[grant.resource]
        if accepted.call_id is None:
            log.warning("call_without_location", session_id=owner.session_id)
            spec = await supply(resource)
            return PlacedCall(accepted.answer, grant.endpoint, None, None, spec, owner, agent, resource.name)
        # From here on Azure has a call that runs, whether its client hears of it or not.
        with self.hung_up_unless_delivered(grant.endpoint, accepted.call_id, owner):
            ensure_not_blocked(self.blocklist, owner.principal, owner.session_id)
            if await request.is_disconnected():
                raise Problem(400, "client_left", "The client left before it was answered.")
            token = self.signer.call_token(
                session_id=owner.session_id,
                call_id=accepted.call_id,
                endpoint=grant.endpoint,
                ttl_s=self.minting.settings.session_token_ttl_s,
            )
            spec = await supply(resource)
            key = limit_key(request.scope, owner.principal, self.minting.settings.trusted_proxies)
            return PlacedCall(
                accepted.answer, grant.endpoint, accepted.call_id, token, spec, owner, agent, resource.name, key
            )

    def answer(
        self, call: PlacedCall, headers: Mapping[str, str], *, shown: tuple[bytes, str] | None = None
    ) -> Response:
        """The 201 of a placed call, which is listened to from now on; the answer does not wait for that.

        `shown` is its body and the body's type, where that is not the SDP alone.
        """
        if call.call_id is not None:
            self.watched.watch(
                call.owner,
                call.agent,
                endpoint=call.endpoint,
                call_id=call.call_id,
                spec=call.spec,
                resource=call.resource,
                limit_key=call.limit_key,
                transport=call.transport,
            )
        return _CallAnswer(self, call, headers, shown or (call.answer, "application/sdp"))

    async def end(self, token: str, *, owner: Owner) -> None:
        """Hangs up the call of that id, of the owner's session. Raises Problem 404, 502, 503, 504."""
        try:
            call = self.signer.read_call_token(token)
        except TokenError:
            raise _unknown_call() from None
        if call.session_id != owner.session_id:
            raise _unknown_call()
        # The id of an attached call names no host: it ends nothing before the call is known as the session's.
        endpoint = call.endpoint or self.watched.endpoint_of(call.call_id, owner)
        if endpoint is None:  # another replica may hold it
            try:
                endpoint = await self.claims.endpoint_of(call.call_id, owner)
            except (StoreError, TimeoutError):
                raise store_away() from None
        if endpoint is None:
            raise _unknown_call()
        self.watched.leaving(call.call_id)
        try:
            await self.calls.hang_up(endpoint, call.call_id)
            self.watched.hung_up(call.call_id)
        except MintError as error:
            wait_s = error.retry_after_s if isinstance(error, RateLimitedError) else None
            raise _refused(error, "hang-up", wait_s or 0.0) from None

    @contextmanager
    def hung_up_unless_delivered(self, endpoint: str, call_id: str | None, owner: Owner) -> Iterator[None]:
        """Hangs up the call if the block, which completes its answer, fails or is cancelled."""
        try:
            yield
        except BaseException:
            if call_id is not None:
                self.talks.end(call_id)
                self.calls.end(endpoint, call_id, owner, why="its answer could not be delivered")
            raise


class _CallAnswer(Response):
    """The 201 of a call. If it can't be sent, the call is hung up and its place given back."""

    def __init__(
        self, relay: CallRelay, call: PlacedCall, headers: Mapping[str, str], shown: tuple[bytes, str]
    ) -> None:
        super().__init__(shown[0], 201, headers, media_type=shown[1])
        self._relay = relay
        self._call = call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._relay.hung_up_unless_delivered(self._call.endpoint, self._call.call_id, self._call.owner):
            await super().__call__(scope, receive, send)
        if self._call.call_id is not None:
            self._relay.watched.delivered((self._call.endpoint, self._call.call_id))


def shown_param(error: Mapping[str, Any]) -> str:
    """What a refusal names, for the log: a path, and nothing else."""
    param = error.get("param")
    return param if isinstance(param, str) and _PARAM.fullmatch(param) else ""


def _audit_entry(request: Request[Any], grant: EphemeralGrant, owner: Owner, agent_id: str) -> AuditEntry:
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
        resource=grant.resource,
    )


def _refused(error: MintError, what: str, wait_s: float) -> Problem:
    """The problem that the caller gets for Azure's refusal; the log has the reason. A `wait_s` of 0 is unknown."""
    log.warning("call_refused", what=what, outcome=error.outcome, status=error.status, code=error.code, why=str(error))
    if isinstance(error, TimedOutError):
        return Problem(504, "azure_timed_out", f"Azure did not answer the {what} in time: try the next connection.")
    headers = {"Retry-After": str(math.ceil(wait_s))} if wait_s > 0 else {}
    why = f"Azure refused the {what}"
    if isinstance(error, _PageRightsError):
        why = "Azure does not take what bounds a page in a GPT-Live call by WebRTC, so none is made; a WebSocket works"
    return Problem(502, "azure_refused", f"{why}: try the next connection.", headers=headers)


def store_away() -> Problem:
    """The 503 while nobody can tell whose a call is."""
    detail = "Whose this call is can't be told just now: try again."
    return Problem(503, "store_away", detail, headers={"Retry-After": "2"})


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
# What /openapi.json says of every compatible socket.
COMPAT_TAG = "Compatible endpoints for the official clients"
COMPAT_CLOSE_CODES = {
    1000: "done",
    1009: "a message was too large",
    1011: "the broker failed",
    4400: "bad request",
    4401: "the operator has blocked this session or its user",
    4408: "Azure did not answer in time",
    4410: "the client does not read",
    4502: "Azure refused, or dropped the talk",
    4503: "draining: connect again",
}
COMPAT_SUBPROTOCOLS = ("realtime", "openai-insecure-api-key.<client secret>", "ticket.<client secret or ticket>")

OFFER_PROBLEMS = {
    400: ("bad_sdp", "client_left"),
    403: ("blocked", "sockets_only", "transport_refused"),
    408: ("body_timeout",),
    413: ("body_too_large",),
    415: ("not_sdp",),
    429: ("rate_limited", "too_many_sessions", "budget_used"),
    502: ("azure_refused",),
    503: ("nothing_minted",),
    504: ("azure_timed_out",),
}
HANG_UP_PROBLEMS = {
    404: ("unknown_call",),
    429: ("rate_limited",),
    502: ("azure_refused",),
    503: ("store_away",),
    504: ("azure_timed_out",),
}
