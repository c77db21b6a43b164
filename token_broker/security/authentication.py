"""The principal of a request. Sessions, tickets, limits and the memory are bound to it; a body never sets it.

`make_authenticator` chooses by BROKER_AUTH: no authentication, the platform's header, or an Entra token.
"""

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Protocol

import httpx
from starlette.datastructures import Headers
from starlette.types import Scope

from token_broker.security.entra_jwt import (
    FAILURE_PAUSE_S,
    EntraTokenVerifier,
    JwksCache,
    JwksUnavailableError,
    TokenRefusedError,
)
from token_broker.security.tokens import (
    ANONYMOUS,
    ClientSecretClaims,
    MintedSession,
    Owner,
    SessionClaims,
    TicketClaims,
)
from token_broker.settings import Settings
from token_broker.web.requests import Problem, address_key, client_address

__all__ = [
    "AnonymousAuthenticator",
    "Authenticator",
    "Caller",
    "EasyAuthAuthenticator",
    "EntraAuthenticator",
    "Principal",
    "caller_of",
    "limit_key",
    "make_authenticator",
]

EASYAUTH_HEADER = "X-MS-CLIENT-PRINCIPAL"
MAX_EASYAUTH_CHARS = 32_768  # checked before base64 and JSON are decoded
MAX_ID_CHARS = 255

# Entra's object id where the platform has it, else the identity provider's own id. The first that is present counts.
_OBJECT_ID_CLAIMS = ("http://schemas.microsoft.com/identity/claims/objectidentifier", "oid")
_NAME_ID_CLAIMS = ("http://schemas.xmlsoap.org/ws/2005/05/identity/claims/nameidentifier", "sub")


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated user, or the anonymous one.

    `id` is stable: `anonymous`, or the identity provider's id of the user behind a prefix. Rates are counted by
    `limit_key`: the id, or an anonymous caller's address.
    """

    id: str
    limit_key: str

    @property
    def subject(self) -> str:
        """The identity provider's id of the user, without our two prefixes."""
        return self.id.split(":", 2)[-1]

    @property
    def authenticated(self) -> bool:
        """Whether the caller signed in."""
        return self.id != ANONYMOUS


class Authenticator(Protocol):
    """Finds the principal of a request."""

    async def authenticate(self, scope: Scope) -> Principal:
        """The principal behind an HTTP or WebSocket scope. Raises Problem: 401, 403 for a missing scope, or 503."""
        ...

    async def aclose(self) -> None:
        """Releases what the authenticator holds."""
        ...


@dataclass(frozen=True, slots=True)
class Caller:
    """The holder of one of the broker's own credentials.

    `limit_key` is what their requests count by, `agent_id` the agent that the credential names, if it names one, and
    `minted` what the plan's ephemeral token opens.
    """

    owner: Owner
    limit_key: str
    agent_id: str | None
    minted: MintedSession | None = None


def caller_of(
    scope: Scope, claims: SessionClaims | TicketClaims | ClientSecretClaims, trusted_proxies: tuple[str, ...]
) -> Caller:
    """The caller who sends a credential with these claims."""
    minted = claims.minted if isinstance(claims, SessionClaims) else None
    return Caller(claims.owner, limit_key(scope, claims.owner.principal, trusted_proxies), claims.agent_id, minted)


def limit_key(scope: Scope, principal_id: str, trusted_proxies: tuple[str, ...]) -> str:
    """The key of rate limits: the principal's id, or an anonymous caller's address."""
    if principal_id != ANONYMOUS:
        return principal_id
    return address_key(client_address(scope, trusted_proxies))


class AnonymousAuthenticator:
    """BROKER_AUTH=none: every caller is the same principal, and rates are counted by address."""

    def __init__(self, trusted_proxies: tuple[str, ...]) -> None:
        self._trusted_proxies = trusted_proxies

    async def authenticate(self, scope: Scope) -> Principal:
        return Principal(ANONYMOUS, limit_key(scope, ANONYMOUS, self._trusted_proxies))

    async def aclose(self) -> None:
        """Nothing to close."""


class EasyAuthAuthenticator:
    """BROKER_AUTH=easyauth: the platform's `X-MS-CLIENT-PRINCIPAL`, base64 of JSON.

    The header is trustworthy only because the platform removes those that callers send. Where platform authentication
    is off, any caller may claim to be any user: `token-broker doctor --url` tests for that.
    """

    async def authenticate(self, scope: Scope) -> Principal:
        values = Headers(scope=scope).getlist(EASYAUTH_HEADER)
        if not values:
            raise _unauthorized("not_signed_in", "Sign in with the platform in front of this broker.")
        principal_id = _easyauth_id(values[0]) if len(values) == 1 else None
        if principal_id is None:
            raise _unauthorized("bad_principal", f"{EASYAUTH_HEADER} is not what the platform sends.")
        return Principal(principal_id, principal_id)

    async def aclose(self) -> None:
        """Nothing to close."""


class EntraAuthenticator:
    """BROKER_AUTH=entra: an Entra access token as Bearer. It must carry `required_scope`, a scope or an app role."""

    def __init__(self, verifier: EntraTokenVerifier, jwks: JwksCache, *, required_scope: str | None = None) -> None:
        self._verifier = verifier
        self._jwks = jwks
        self._required_scope = required_scope

    async def authenticate(self, scope: Scope) -> Principal:
        values = Headers(scope=scope).getlist("authorization")
        if len(values) > 1:  # something in front may have checked the other one
            raise _unauthorized("invalid_token", "Send one Authorization header.", error="invalid_request")
        scheme, _, token = (values[0] if values else "").strip().partition(" ")
        if scheme.lower() != "bearer":  # without an error code: RFC 6750 §3.1 has none for a request without a token
            raise _unauthorized("not_signed_in", "Send an Entra access token as Authorization: Bearer.")
        try:
            identity = await self._verifier.verify(token.strip())
        except TokenRefusedError as error:
            raise _unauthorized("invalid_token", f"Get a new access token: {error}.", error="invalid_token") from None
        except JwksUnavailableError:
            raise Problem(
                503,
                "identity_provider_unreachable",
                "Access tokens can't be checked at the moment; try again.",
                headers={"Retry-After": str(FAILURE_PAUSE_S)},
            ) from None
        if self._required_scope is not None and self._required_scope not in identity.scopes:
            raise Problem(
                403,
                "insufficient_scope",
                "The access token lacks the scope or app role that this broker asks for.",
                headers={"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{self._required_scope}"'},
            )
        principal_id = f"entra:{identity.tenant_id}:{identity.object_id}"
        return Principal(principal_id, principal_id)

    async def aclose(self) -> None:
        """Stops a running fetch of keys."""
        await self._jwks.aclose()


def make_authenticator(settings: Settings, http_client: httpx.AsyncClient) -> Authenticator:
    """The authenticator of BROKER_AUTH. `http_client` fetches the tenant's keys; the caller closes it."""
    if settings.auth == "easyauth":
        return EasyAuthAuthenticator()
    if settings.auth != "entra":
        return AnonymousAuthenticator(settings.trusted_proxies)
    if settings.entra_tenant_id is None or not settings.entra_audience:
        raise ValueError("BROKER_AUTH=entra needs a tenant and an audience")
    authority = settings.callers_authority
    jwks = JwksCache(http_client, f"{authority}/{settings.entra_tenant_id}/discovery/v2.0/keys")
    verifier = EntraTokenVerifier(
        jwks, authority=authority, tenant_id=settings.entra_tenant_id, audiences=settings.entra_audience
    )
    return EntraAuthenticator(verifier, jwks, required_scope=settings.entra_required_scope)


def _unauthorized(code: str, detail: str, *, error: str | None = None) -> Problem:
    challenge = f'Bearer error="{error}", error_description="{detail}"' if error else "Bearer"
    return Problem(401, code, detail, headers={"WWW-Authenticate": challenge})


def _easyauth_id(value: str) -> str | None:
    """`easyauth:<identity provider>:<id>`, or None where the header is invalid or names two users or nobody.

    App Service and Container Apps send `auth_typ` and claims; Static Web Apps send `identityProvider`, `userId` and
    `userRoles`.
    """
    if len(value) > MAX_EASYAUTH_CHARS:
        return None
    try:
        document = json.loads(base64.b64decode(value, validate=True))
    except (binascii.Error, ValueError, RecursionError):  # the last one for deeply nested JSON
        return None
    if not isinstance(document, dict):
        return None
    of_static_web_apps = "auth_typ" not in document
    provider = document.get("identityProvider" if of_static_web_apps else "auth_typ")
    # A colon in the provider's name would let one provider's user have the id of another's.
    if not isinstance(provider, str) or not _usable(provider) or ":" in provider:
        return None
    if of_static_web_apps:
        user_id, roles = document.get("userId"), document.get("userRoles")
        # Everybody has the role `anonymous`; who signed in has `authenticated` as well.
        signed_in = isinstance(roles, list) and "authenticated" in roles
        usable = signed_in and isinstance(user_id, str) and _usable(user_id)
        return f"easyauth:{provider}:{user_id}" if usable else None
    claims = document.get("claims")
    if not isinstance(claims, list):
        return None
    for names in (_OBJECT_ID_CLAIMS, _NAME_ID_CLAIMS):
        ids = {
            claim.get("val") if isinstance(claim.get("val"), str) else None
            for claim in claims
            if isinstance(claim, dict) and claim.get("typ") in names
        }
        if ids:
            user_id = ids.pop()  # more than one left: nothing says which user is meant
            return f"easyauth:{provider}:{user_id}" if not ids and user_id is not None and _usable(user_id) else None
    return None


def _usable(text: str) -> bool:
    return 0 < len(text) <= MAX_ID_CHARS and text.isprintable() and text == text.strip()
