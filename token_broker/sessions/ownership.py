"""Who asks, and which session is theirs: opens new ones, and resumes known ones for their owner alone.

Every route resolves its caller by `Callers`: by a sign-in, or by a session token of the broker's own.

The stored principal decides. A session token names its owner too, so it is proof enough while the store is down. A
caller who names a session without its token has to wait for the store.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from token_broker.memory.store_errors import StoreError
from token_broker.memory.types import Blocklist, SessionRecord, SessionRepository
from token_broker.security.authentication import Authenticator, Caller, Principal, caller_of
from token_broker.security.limits import RateLimiter
from token_broker.security.tokens import (
    RESUME_GRACE_S,
    TICKET_TTL_S,
    ClientSecretClaims,
    Narrowing,
    Owner,
    SessionClaims,
    TokenError,
    TokenSigner,
)
from token_broker.server.drain import Drain
from token_broker.sessions.schemas import NarrowedRequest
from token_broker.sessions.talk_level import LOST_KEPT_S, TalkLevelCounters
from token_broker.settings import Settings
from token_broker.web.requests import SESSION_TOKEN_HEADER, Problem, session_tokens, uuid7

__all__ = [
    "Callers",
    "OpenedSession",
    "blocklist_unread",
    "confirm_owner",
    "ensure_not_blocked",
    "open_session",
    "session_erased",
]

_DRAINING_RETRY_AFTER_S = 1

_RETRY_AFTER_S = 2
# A talk of which nothing was seen: its last connection may begin as late as the ticket allows, and be lost at once.
_UNSEEN_KEPT_S = TICKET_TTL_S + LOST_KEPT_S
_FOREIGN = (
    "This session belongs to somebody else, or its proof is missing: send its last session_token in X-Session-Token, "
    "or leave session_id out to begin a new session."
)


@dataclass(frozen=True, slots=True)
class OpenedSession:
    """A session that a credential is made for. `keep` has to be called before the credential leaves."""

    owner: Owner
    # The caller chose an unused id. It is claimed before the answer, or two callers could both get it.
    is_new_name: bool

    def narrowed(self, wanted: NarrowedRequest) -> "OpenedSession":
        """The same for a credential that is narrowed so, within what the caller's own one permits.

        Raises Problem 422 where that is nothing.
        """
        transports = None if wanted.transports is None else tuple(wanted.transports)
        try:
            narrowed = self.owner.narrowed.within(Narrowing(wanted.max_session_s, transports, wanted.origin))
        except ValueError as error:
            raise Problem(422, "invalid_request", f"{error}.") from None
        return dataclasses.replace(self, owner=dataclasses.replace(self.owner, narrowed=narrowed))

    async def keep(self, sessions: SessionRepository, agent_id: str) -> None:
        """Writes the session: before the answer where the caller chose its id, else beside it.

        Raises Problem 403 where somebody else got the id meanwhile, and 503 where the store is silent.
        """
        if not self.is_new_name:
            sessions.record(self.owner, agent_id)
            return
        try:
            is_owners = await sessions.claim(self.owner, agent_id)
        except StoreError:
            raise _owner_unknown() from None
        if not is_owners:
            raise Problem(403, "foreign_session", _FOREIGN)


@dataclass(frozen=True, slots=True)
class Callers:
    """What it takes to tell who asks, whose session they may have, and whether they ask too often."""

    settings: Settings
    signer: TokenSigner
    authenticator: Authenticator
    sessions: SessionRepository
    blocklist: Blocklist
    rate: RateLimiter
    hang_ups: RateLimiter  # a limiter of its own: a caller who has used up the rate can still hang up
    event_streams: RateLimiter
    drain: Drain = field(default_factory=Drain)
    talks: TalkLevelCounters = field(default_factory=TalkLevelCounters)

    def ensure_staying(self) -> None:
        """Raises Problem 503 where this process shuts down: it mints no more, since it will not carry the talk.

        Readiness has ended by then, so another replica takes the next attempt; this connection would not lead to it.
        """
        if self.drain.draining:
            headers = {"Retry-After": str(_DRAINING_RETRY_AFTER_S), "Connection": "close"}
            detail = "This broker is going away: ask again, another one answers."
            raise Problem(503, "draining", detail, headers=headers)

    async def sign_in(self, request: Request[Any]) -> Principal:
        """The caller's principal, counted against their rate. Raises Problem 401, 403, 429 or 503."""
        principal = await self.authenticator.authenticate(request.scope)
        await self.rate.admit(principal.limit_key)
        return principal

    def by_session_token(self, request: Request[Any], refusal: Callable[[str], Problem]) -> Caller:
        """The owner of the session whose token is the request's Bearer, or else stands in X-Session-Token.

        Raises the `refusal` with its detail.
        """
        expired = False
        for token in session_tokens(request.scope):
            try:
                claims = self.signer.read_session_token(token)
            except TokenError as error:
                expired = expired or error.expired
            else:
                return caller_of(request.scope, claims, self.settings.trusted_proxies)
        what = "has expired" if expired else "is missing or not valid"
        raise refusal(
            f"The session token {what}: ask POST /realtime/token, and send its session_token as Bearer, or in "
            f"{SESSION_TOKEN_HEADER} where something in front of the broker takes Authorization."
        )

    async def open_session(
        self, request: Request[Any], principal: Principal, *, session_id: str | None, user_id: str | None
    ) -> OpenedSession:
        """The session that the principal asks for, new or resumed. Raises Problem 403 or 503."""
        opened = await open_session(
            self.sessions,
            self.signer,
            self.blocklist,
            principal=principal,
            session_id=session_id,
            session_token=request.headers.get(SESSION_TOKEN_HEADER),
            user_id=user_id,
            talks=self.talks,
        )
        ensure_not_blocked(self.blocklist, opened.owner.principal, opened.owner.session_id)
        return opened

    async def reopen_session(self, claims: ClientSecretClaims | SessionClaims) -> OpenedSession:
        """The session of a credential that asks for another credential. Raises Problem 403 or 503."""
        opened = await confirm_owner(self.sessions, self.blocklist, claims)
        ensure_not_blocked(self.blocklist, opened.owner.principal, opened.owner.session_id)
        return opened


async def open_session(
    sessions: SessionRepository,
    signer: TokenSigner,
    blocklist: Blocklist,
    *,
    principal: Principal,
    session_id: str | None,
    session_token: str | None,
    user_id: str | None,
    talks: TalkLevelCounters,
) -> OpenedSession:
    """The session that a plan is made for, with the next epoch (docs/api.md §3.4), and the talk that goes on or begins.

    Raises Problem 403 where the session is another's or was erased, or `user_id` is not the principal's own, and 503
    where that is unknown: the store is down and no token proves it, or the blocklist was never read.
    """
    if principal.authenticated and user_id is not None and user_id not in {principal.id, principal.subject}:
        raise Problem(403, "foreign_user", "Leave user_id out, or send your own.")
    label = None if principal.authenticated else user_id
    if session_id is None:
        owner = Owner(signer.new_session_id(), principal.id, _now_ms(), label, uuid7())
        return OpenedSession(owner, is_new_name=False)
    if not blocklist.was_read:  # the session may be blocked, and an unread list says nothing
        raise _owner_unknown()
    claims = _claims(signer, session_token, session_id)
    if claims is not None and claims.owner.principal != principal.id:
        raise Problem(403, "foreign_session", _FOREIGN)
    record = await _find(sessions, session_id, proven=claims is not None)
    if record is not None:
        _ensure_owner(record, principal.id)
    if claims is None and (signer.made(session_id) if record is None else not principal.authenticated):
        # One of our own ids that is not stored belongs to a session whose row was lost, or is not written yet.
        raise Problem(403, "foreign_session", _FOREIGN)
    last_epoch = max(claims.owner.epoch if claims else 0, record.epoch if record else 0)
    if label is None and claims is not None:
        label = claims.owner.user_id
    talk_id = uuid7()
    if claims is not None and _goes_on(claims, record, talks):
        talk_id = claims.owner.talk_id
        talks.seen(talk_id, elsewhere=record is not None and record.talk_id == talk_id)
    narrowed = Narrowing() if claims is None else claims.owner.narrowed
    owner = Owner(session_id, principal.id, max(last_epoch + 1, _now_ms()), label, talk_id, narrowed)
    return OpenedSession(owner, is_new_name=record is None and claims is None)


async def confirm_owner(
    sessions: SessionRepository, blocklist: Blocklist, claims: ClientSecretClaims | SessionClaims
) -> OpenedSession:
    """The session of a credential that makes another one, with the next epoch; the credential is good.

    Raises Problem 403 where the store says that the session is another's or was erased, and 503 where the blocklist was
    never read.
    """
    if not blocklist.was_read:
        raise _owner_unknown()
    record = await _find(sessions, claims.owner.session_id, proven=True)
    if record is not None:
        _ensure_owner(record, claims.owner.principal)
    epoch = max(claims.owner.epoch + 1, record.epoch + 1 if record else 0, _now_ms())
    return OpenedSession(dataclasses.replace(claims.owner, epoch=epoch), is_new_name=False)


def ensure_not_blocked(blocklist: Blocklist, principal: str, session_id: str) -> None:
    """Raises Problem 403 where the operator has blocked the principal or the session: their tokens open nothing.

    Raises Problem 503 where BROKER_REQUIRE_BLOCKLIST wants the list read first, and it was not.
    """
    if blocklist.is_missed:
        raise blocklist_unread()
    if blocklist.refused(principal, session_id):
        detail = "This session, or its user, was blocked by the operator: ask them; asking again here is of no use."
        raise Problem(403, "blocked", detail)


def blocklist_unread() -> Problem:
    """The 503 of a broker that serves no client before it has read the blocklist."""
    detail = "This broker does not know yet who is blocked, and serves nobody until it does: try again."
    return Problem(503, "blocklist_unread", detail, headers={"Retry-After": str(_RETRY_AFTER_S)})


def session_erased() -> Problem:
    """The 403 for an erased session, for its former owner too."""
    return Problem(403, "session_erased", "This session was erased: leave session_id out to begin a new one.")


async def _find(sessions: SessionRepository, session_id: str, *, proven: bool) -> SessionRecord | None:
    """The stored session; None where there is none, or where the store is down and the caller has proof."""
    try:
        return await sessions.find(session_id)
    except StoreError:
        if proven:
            return None
        raise _owner_unknown() from None


def _ensure_owner(record: SessionRecord, principal: str) -> None:
    if record.erased:
        raise session_erased()
    if record.principal != principal:
        raise Problem(403, "foreign_session", _FOREIGN)


def _goes_on(claims: SessionClaims, record: SessionRecord | None, talks: TalkLevelCounters) -> bool:
    """Whether the talk of a session token goes on with the plan that it asks for.

    What this process sees counts first: that the talk is live, or was ended. Then what any replica wrote of it.
    """
    talk, now_s = claims.owner.talk_id, time.time()
    if talks.is_settled(talk):
        return bool(talks.goes_on(talk))
    known = talks.goes_on(talk)
    if record is None:  # the store is silent
        return known is not False
    if record.talk_id == talk:
        return now_s < record.talk_over_at_s
    return now_s < claims.issued_at_s + _UNSEEN_KEPT_S if known is None else known


def _owner_unknown() -> Problem:
    detail = (
        "Whose session this is can't be told just now: try again, or leave session_id out to begin a new session. Its "
        "last session_token in X-Session-Token proves that it is yours."
    )
    return Problem(503, "store_away", detail, headers={"Retry-After": str(_RETRY_AFTER_S)})


def _claims(signer: TokenSigner, session_token: str | None, session_id: str) -> SessionClaims | None:
    if session_token is None:
        return None
    try:
        claims = signer.read_session_token(session_token, grace_s=RESUME_GRACE_S)
    except TokenError:
        raise Problem(403, "foreign_session", _FOREIGN) from None
    if claims.owner.session_id != session_id:
        raise Problem(403, "foreign_session", _FOREIGN)
    return claims


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
