"""Who is asking, from where, and whether not too often: what every request for a credential passes first."""

from dataclasses import dataclass

from starlette.requests import Request

from token_broker.broker import Broker
from token_broker.security.authentication import Principal
from token_broker.web.forwarded import public_base

__all__ = ["Caller", "admit"]


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody admitted; `public_base` is the broker as they see it (scheme, host, port)."""

    principal: Principal
    public_base: str


async def admit(request: Request, broker: Broker) -> Caller:
    """The caller, counted against their rate. Raises Problem 401 (not authenticated) or 429 (too often)."""
    principal = await broker.authenticator.authenticate(request.scope)
    await broker.rate.admit(principal.limit_key)
    return Caller(principal, public_base(request.scope, broker.settings))
