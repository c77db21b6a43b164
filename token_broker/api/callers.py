"""Who asks: every route resolves its caller here, by a sign-in or by a session token of the broker's own."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from token_broker.memory.types import Blocklist, SessionRepository
from token_broker.security.authentication import Authenticator, Caller, Principal, caller_of
from token_broker.security.credential_extraction import SESSION_TOKEN_HEADER, session_tokens
from token_broker.security.rate_limits import RateLimiter
from token_broker.security.tokens import ClientSecretClaims, SessionClaims, TokenError, TokenSigner
from token_broker.server.drain import Drain
from token_broker.sessions.ownership import OpenedSession, confirm_owner, ensure_not_blocked, open_session
from token_broker.settings import Settings
from token_broker.web.problems import Problem

__all__ = ["Callers"]

_DRAINING_RETRY_AFTER_S = 1


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
    drain: Drain = field(default_factory=Drain)

    def ensure_staying(self) -> None:
        """Raises Problem 503 where this process shuts down: it mints no more, since it will not carry the talk.

        Readiness has ended by then, so another replica takes the next attempt; this connection would not lead to it.
        """
        if self.drain.draining:
            headers = {"Retry-After": str(_DRAINING_RETRY_AFTER_S), "Connection": "close"}
            raise Problem(
                503, "draining", "This broker is going away: ask again, another one answers.", headers=headers
            )

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
        )
        ensure_not_blocked(self.blocklist, opened.owner.principal, opened.owner.session_id)
        return opened

    async def reopen_session(self, claims: ClientSecretClaims | SessionClaims) -> OpenedSession:
        """The session of a credential that asks for another credential. Raises Problem 403 or 503."""
        opened = await confirm_owner(self.sessions, self.blocklist, claims)
        ensure_not_blocked(self.blocklist, opened.owner.principal, opened.owner.session_id)
        return opened
