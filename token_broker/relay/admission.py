"""Admission to the relay: a credential becomes an admitted client, and an admitted client gets a place for its talk.

The plan's proxy and the compatible endpoints share these checks. They accept different credentials, and report a
refusal differently: the proxy with a close code, a compatible endpoint with an HTTP status. So a refusal has both.
"""

import dataclasses
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from starlette.types import Scope

from token_broker.memory.types import Blocklist, TicketRepository
from token_broker.security.authentication import Caller, caller_of
from token_broker.security.credential_extraction import SeveralCredentialsError, extract_credential
from token_broker.security.limits import RateLimiter, SessionLease, SessionLimits
from token_broker.security.tokens import ClientSecretClaims, Owner, SessionClaims, TicketClaims, TokenError, TokenSigner
from token_broker.server.close_codes import BAD_REQUEST, DRAINING, FOREIGN_ORIGIN, TICKET_REFUSED, TOO_MANY, Ending
from token_broker.server.drain import GOING_AWAY, Drain
from token_broker.sessions.agents import Agent, AgentRegistry
from token_broker.sessions.plans import UnseenRule
from token_broker.settings import Settings
from token_broker.usage.budgets import Budgets
from token_broker.web.requests import Problem, uuid7

__all__ = ["BLOCKED", "SESSION_GONE", "Admission", "AdmittedClient", "RefusedError", "check_origin"]

log = structlog.get_logger("token_broker.relay")

TICKET_PREFIX = "ticket."
BLOCKED = Ending(TICKET_REFUSED, "the operator has blocked this session or its user", ends_talk=True, outcome="blocked")
SESSION_GONE = Ending(TICKET_REFUSED, "this session was erased: begin a new one", ends_talk=True, outcome="erased")
_BLOCKLIST_UNREAD = "this broker does not know yet who is blocked: try again"
_RETRY_AFTER_S = 5

OriginRefusal = Callable[[Scope], Problem | None]


class RefusedError(Problem):
    """A client is not admitted. `ending` is for a client whose WebSocket is accepted already."""

    def __init__(self, ending: Ending, problem: Problem) -> None:
        super().__init__(problem.status, problem.code, problem.detail, headers=problem.headers, extra=problem.extra)
        self.ending = ending


@dataclass(frozen=True, slots=True)
class AdmittedClient:
    """A client with a valid credential, which is not spent yet. Its open talks are counted under `limit_key`."""

    owner: Owner
    agent: Agent
    limit_key: str
    credential_id: str | None  # None: the credential may be used without limit
    counted_until_s: float
    uses: int = 1
    own_uses: tuple[tuple[str, int], ...] = ()  # counted besides, by these ids


class Admission:
    """The checks that a client passes before its talk begins."""

    def __init__(
        self,
        *,
        settings: Settings,
        agents: AgentRegistry,
        signer: TokenSigner,
        tickets: TicketRepository,
        limits: SessionLimits,
        rate: RateLimiter,
        drain: Drain,
        origin_refusal: OriginRefusal,
        blocklist: Blocklist,
        budgets: Budgets | None = None,
    ) -> None:
        self._settings = settings
        self._unseen = UnseenRule(settings)
        self._agents = agents
        self._signer = signer
        self._tickets = tickets
        self._limits = limits
        self._rate = rate
        self._drain = drain
        self._origin_refusal = origin_refusal
        self._blocklist = blocklist
        self._budgets = budgets

    async def ensure_budget(self, admitted: AdmittedClient) -> None:
        """Raises Problem 429 where the client's budget is used up, and 503 where that is unknown."""
        if self._budgets is not None:
            await self._budgets.ensure_left(admitted.limit_key)

    def by_ticket(self, scope: Scope) -> AdmittedClient:
        """The client with a plan's ticket, to that plan's session. Raises RefusedError."""
        self._check_entry(scope)
        tickets = [name for name in scope.get("subprotocols", []) if name.startswith(TICKET_PREFIX)]
        if len(tickets) != 1:
            raise _no_entry("no ticket: ask POST /realtime/token first")
        try:
            claims = self._signer.read_ticket(tickets[0].removeprefix(TICKET_PREFIX))
        except TokenError as error:
            what = "has expired" if error.expired else "is not valid"
            raise _no_entry(f"the ticket {what}: ask for a new plan") from None
        if claims.owner.session_id != scope.get("path_params", {}).get("session_id"):
            raise _no_entry("the ticket is another session's: ask for a new plan")
        return self._admitted(scope, claims)

    def ensure_transport(self, admitted: AdmittedClient, transport: str) -> None:
        """Raises RefusedError where the talk may not go by this transport of the proxy's path: the rule of plans."""
        owner, is_permitted = admitted.owner, admitted.owner.narrowed.permits(transport)
        if is_permitted and transport == "webrtc_websocket":
            knows_blocked = self._blocklist.was_read
            is_permitted = self._unseen.permits_signalling(admitted.agent, owner, knows_blocked=knows_blocked)
        if not is_permitted:
            way = "by WebRTC" if transport == "webrtc_websocket" else "over the proxy"
            reason = f"this talk may not go {way}: go on to the plan's next connection"
            raise _refused(BAD_REQUEST, reason, 403, "transport_refused")

    def by_any(self, scope: Scope, *, joins: bool = False) -> AdmittedClient:
        """The client of a compatible endpoint, with any credential of the broker's. Raises RefusedError.

        `joins`: it opens a sideband of a call by WebRTC.
        """
        self._check_entry(scope)
        admitted = self._admitted(scope, self._claims_of_any(scope))
        is_call = joins or scope["type"] != "websocket"
        ways = ("webrtc", "webrtc_relay") if is_call else ("websocket", "websocket_proxy")
        if not admitted.owner.narrowed.permits(*ways):
            raise _refused(TICKET_REFUSED, "the credential is not for this transport", 403, "transport_refused")
        return admitted

    def leaver(self, scope: Scope) -> Caller:
        """The caller of a credential that wants to end a call. Raises RefusedError.

        It ignores drain, origin and blocklist: a client may always end its own session.
        """
        return self._caller(scope, self._claims_of_any(scope))

    def warn_of_resource_key(self, credential: str) -> bool:
        """Whether a client holds Azure's own key: logged for the operator, while the client must not learn of it."""
        keys = [self._settings.key, *(each.settings.key for each in self._settings.resources)]
        # In constant time: a guess at the key must not be confirmed character by character.
        if not any(key and hmac.compare_digest(credential.encode(), key.get_secret_value().encode()) for key in keys):
            return False
        log.error("resource_key_presented", do="a client holds a resource's key: renew the key, mint client secrets")
        return True

    async def enter(self, admitted: AdmittedClient, *, counted: bool = False) -> SessionLease:
        """A place for the client's talk. Spends one use of the credential; with `counted`, one of the rate limit too.

        Raises RefusedError, and Problem 429 for the rate limit.
        """
        if counted:
            await self._rate.admit(admitted.limit_key)
        # The place first: a credential must not be spent on a client that is turned away for want of one.
        lease = self._limits.acquire(admitted.limit_key)
        if lease is None:
            reason = "too many talks are open: end one, or try again later"
            raise _refused(TOO_MANY, reason, 429, "too_many_sessions", retry=True)
        try:
            if not await self._spend(admitted):
                if admitted.uses > 1 or admitted.own_uses:
                    uses = min([admitted.uses, *(count for _, count in admitted.own_uses)])
                    raise _no_entry(f"the client secret was used {uses} times: mint a new one")
                raise _no_entry("the ticket was used: ask for a new plan")
        except BaseException:  # a cancelled client must give its place back too
            lease.release()
            raise
        return lease

    def _check_entry(self, scope: Scope) -> None:
        if self._drain.draining:
            raise _refused(GOING_AWAY.code, GOING_AWAY.reason, 503, "draining", retry=True)
        if (problem := self._origin_refusal(scope)) is not None:
            reason = "this page's origin may not talk here: see BROKER_ALLOWED_ORIGINS"
            raise RefusedError(Ending(FOREIGN_ORIGIN, reason), problem)

    def _claims_of_any(self, scope: Scope) -> ClientSecretClaims | TicketClaims | SessionClaims:
        try:
            credential = extract_credential(scope)
        except SeveralCredentialsError:
            raise _no_entry("several credentials came, which differ: send one") from None
        if credential is None:
            raise _no_entry("no credential: mint one with POST /v1/realtime/client_secrets")
        try:
            return self._signer.read_any(credential)
        except TokenError as error:
            self.warn_of_resource_key(credential)
            what = "has expired" if error.expired else "is not valid here"
            raise _no_entry(f"the client secret {what}: mint a new one") from None

    def _admitted(self, scope: Scope, claims: ClientSecretClaims | TicketClaims | SessionClaims) -> AdmittedClient:
        agent = self._agents.get(claims.agent_id or self._agents.default)
        if agent is None:
            raise _refused(BAD_REQUEST, "the ticket's agent is gone: ask for a new plan", 401, "agent_gone")
        check_origin(scope, claims.owner)
        if self._blocklist.is_missed:  # fails closed: docs/decisions/0023-no-secret-before-the-blocklist.md
            raise _refused(DRAINING, _BLOCKLIST_UNREAD, 503, "blocklist_unread", retry=True)
        if self._blocklist.refused(claims.owner.principal, claims.owner.session_id):
            raise _refused(BLOCKED.code, BLOCKED.reason, 403, "blocked")
        owner, credential_id, uses, counted_until_s = claims.owner, None, 1, claims.expires_at_s
        own_uses: tuple[tuple[str, int], ...] = ()
        if isinstance(claims, TicketClaims):
            credential_id = claims.ticket_id
        else:
            # Turns sort by epoch first: those of each further connection have to come after the previous one's.
            owner = dataclasses.replace(owner, epoch=max(owner.epoch + 1, time.time_ns() // 1_000_000))
            if isinstance(claims, ClientSecretClaims):
                owner = dataclasses.replace(owner, talk_id=uuid7())  # each use is a talk of its own
                own_uses = claims.own_uses
                if self._settings.client_secret_uses:
                    credential_id, uses = claims.secret_id, self._settings.client_secret_uses
                    counted_until_s = claims.counted_until_s
        return AdmittedClient(
            owner=owner,
            agent=agent,
            limit_key=self._caller(scope, claims).limit_key,
            credential_id=credential_id,
            counted_until_s=counted_until_s,
            uses=uses,
            own_uses=own_uses,
        )

    def _caller(self, scope: Scope, claims: ClientSecretClaims | TicketClaims | SessionClaims) -> Caller:
        return caller_of(scope, claims, self._settings.trusted_proxies)

    async def _spend(self, admitted: AdmittedClient) -> bool:
        """Uses the credential once. A credential with several uses is as many tickets, spent one after the other."""
        if admitted.credential_id is not None and admitted.uses == 1 and not admitted.own_uses:
            return await self._tickets.spend(admitted.credential_id, admitted.counted_until_s)
        shared = [] if admitted.credential_id is None else [(admitted.credential_id, admitted.uses)]
        for credential_id, uses in reversed([*shared, *admitted.own_uses]):
            for use in range(uses):
                if await self._tickets.spend(f"{credential_id}.{use}", admitted.counted_until_s):
                    break
            else:
                return False
        return True


def check_origin(scope: Scope, owner: Owner) -> None:
    """Raises RefusedError where the owner's credential is for the pages of another origin."""
    wanted = owner.narrowed.origin
    if wanted is not None and [value for name, value in scope["headers"] if name == b"origin"] != [wanted.encode()]:
        reason = "this credential is for the pages of another origin"
        raise _refused(FOREIGN_ORIGIN, reason, 403, "origin_not_allowed")


def _no_entry(reason: str) -> RefusedError:
    return _refused(TICKET_REFUSED, reason, 401, "credential_refused")


def _refused(close_code: int, reason: str, status: int, code: str, *, retry: bool = False) -> RefusedError:
    headers = {"Retry-After": str(_RETRY_AFTER_S)} if retry else None
    detail = f"{reason[:1].upper()}{reason[1:]}."
    return RefusedError(Ending(close_code, reason), Problem(status, code, detail, headers=headers))
