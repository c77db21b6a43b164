"""Entra access tokens: the tenant's signing keys, and the checks that a token has to pass.

`JwksCache` fetches the keys, one fetch at a time for all who wait. It renews them hourly in the background, and at once
(but at most once a minute) for an unknown key id. It keeps the old keys for a day while the identity provider is
silent. `EntraTokenVerifier` pins RS256, issuer, audience, tenant and times.
"""

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import jwt
import structlog
from jwt.exceptions import PyJWTError

from strategies.outbound_proxy import ProxyFailedError
from strategies.single_flight import SingleFlight

__all__ = [
    "EntraIdentity",
    "EntraTokenVerifier",
    "JwksCache",
    "JwksUnavailableError",
    "TokenRefusedError",
    "audience_forms",
]

log = structlog.get_logger("token_broker.entra")

LEEWAY_S = 60
MAX_TOKEN_CHARS = 16_384
MAX_JWKS_BYTES = 524_288
MAX_JWKS_KEYS = 100  # many times what a tenant publishes
MIN_RSA_BITS = 2048  # RFC 7518 §3.3
RENEW_AFTER_S = 3600
STALE_AFTER_S = 86_400
UNKNOWN_KID_PAUSE_S = 60
FAILURE_PAUSE_S = 5
FETCH_TIMEOUT_S = 5
_APPLICATION_ID = re.compile(r"(?:api://)?([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/?", re.IGNORECASE)
_MAX_AUDIENCE_CHARS = 256
WAIT_S = 2  # for one request: its own budget is a few seconds, and the fetch goes on for later ones


_REASONS: tuple[tuple[type[PyJWTError], str], ...] = (
    (jwt.ExpiredSignatureError, "the token has expired"),
    (jwt.ImmatureSignatureError, "the token is not valid yet"),
    (jwt.InvalidIssuerError, "the token is of another issuer"),
    (jwt.MissingRequiredClaimError, "the token lacks a claim"),
)


class JwksUnavailableError(Exception):
    """The tenant's keys are not available, so no token can be checked."""


class TokenRefusedError(Exception):
    """A token that fails a check. The message is safe to show, and fits into a quoted header parameter."""


@dataclass(frozen=True, slots=True)
class EntraIdentity:
    """The user of a token. `scopes` are its delegated scopes and app roles."""

    tenant_id: str
    object_id: str
    scopes: frozenset[str]


class JwksCache:
    """The signing keys published at `url`, by key id."""

    def __init__(self, client: httpx.AsyncClient, url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._url = url
        self._clock = clock
        self._keys: Mapping[str, jwt.PyJWK] = {}
        self._fetched_at_s = -float("inf")
        self._tried_at_s = -float("inf")
        self._fetches: SingleFlight[None, None] = SingleFlight("jwks")

    async def key(self, key_id: str) -> jwt.PyJWK | None:
        """The key, or None where the tenant has no such key. Raises JwksUnavailableError."""
        now_s = self._clock()
        fresh = now_s - self._fetched_at_s < STALE_AFTER_S
        if fresh and (key := self._keys.get(key_id)) is not None:
            if now_s - self._fetched_at_s > RENEW_AFTER_S and now_s - self._tried_at_s > UNKNOWN_KID_PAUSE_S:
                self._fetches.start(None, self._renew)  # in the background: this request has a usable key
            return key
        # The caller chooses the key id, so an unknown one must not cause a fetch each time.
        pause_s = UNKNOWN_KID_PAUSE_S if fresh else FAILURE_PAUSE_S
        if None in self._fetches or now_s - self._tried_at_s >= pause_s:
            await asyncio.wait({self._fetches.start(None, self._renew)}, timeout=WAIT_S)
        if self._clock() - self._fetched_at_s >= STALE_AFTER_S:
            raise JwksUnavailableError
        return self._keys.get(key_id)

    async def aclose(self) -> None:
        """Stops a running fetch."""
        await self._fetches.aclose()

    async def _renew(self) -> None:
        self._tried_at_s = self._clock()
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                # Not compressed, so that MAX_JWKS_BYTES bounds what is read; a redirect could name any host.
                options: dict[str, Any] = {"headers": {"Accept-Encoding": "identity"}, "follow_redirects": False}
                async with self._client.stream("GET", self._url, **options) as answer:
                    if answer.status_code != httpx.codes.OK:
                        raise ValueError(f"status {answer.status_code}")
                    body = bytearray()
                    async for chunk in answer.aiter_bytes():
                        body += chunk
                        if len(body) > MAX_JWKS_BYTES:
                            raise ValueError("too large")
                self._keys = _signing_keys(bytes(body))
            self._fetched_at_s = self._clock()
        except Exception as error:  # noqa: BLE001  # httpx's errors, its transport's, or an invalid document
            log.error(
                "no_signing_keys",
                error=str(error) if isinstance(error, ProxyFailedError) else type(error).__name__,
                keys_kept=len(self._keys),
                do="check that the broker reaches Entra, BROKER_ENTRA_TENANT_ID and BROKER_ENTRA_AUTHORITY",
            )


class EntraTokenVerifier:
    """Checks access tokens of one tenant for the `audiences`, each in all of its `audience_forms`.

    `authority` is Entra's base, `https://login.microsoftonline.com` for most. It issues v2 tokens; `sts.windows.net`
    issues v1 tokens. Both are accepted, because the application's manifest chooses the version.
    """

    def __init__(self, jwks: JwksCache, *, authority: str, tenant_id: str, audiences: Sequence[str]) -> None:
        self._jwks = jwks
        self._tenant_id = tenant_id.lower()
        self._audiences = [form for audience in audiences for form in audience_forms(audience)]
        v1_host = "sts.chinacloudapi.cn" if authority.endswith(".cn") else "sts.windows.net"
        self._issuers = [f"{authority}/{self._tenant_id}/v2.0", f"https://{v1_host}/{self._tenant_id}/"]

    async def verify(self, token: str) -> EntraIdentity:
        """The identity of a valid token. Raises TokenRefusedError or JwksUnavailableError."""
        key = await self._jwks.key(_key_id(token))
        if key is None:
            raise TokenRefusedError("the token was signed with a key that this tenant does not have")
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=["RS256"],
                issuer=self._issuers,
                leeway=LEEWAY_S,
                options={
                    "require": ["exp", "nbf", "iss", "aud"],
                    "verify_aud": False,  # below
                    "verify_sub": False,
                    "verify_jti": False,
                },
            )
        except PyJWTError as error:
            reason = next((text for kind, text in _REASONS if isinstance(error, kind)), "")
            raise TokenRefusedError(reason or "the token's signature or form is wrong") from None
        self._check_audience(claims["aud"])
        tenant_id, object_id = claims.get("tid"), claims.get("oid")
        if not isinstance(tenant_id, str) or tenant_id.lower() != self._tenant_id:
            raise TokenRefusedError("the token is of another tenant")
        if not isinstance(object_id, str) or not object_id.isprintable() or not 0 < len(object_id) <= 128:  # noqa: PLR2004
            raise TokenRefusedError("the token names no object id")
        delegated, roles = claims.get("scp"), claims.get("roles")
        scopes = delegated.split() if isinstance(delegated, str) else []
        scopes += [role for role in roles if isinstance(role, str)] if isinstance(roles, list) else []
        return EntraIdentity(self._tenant_id, object_id.lower(), frozenset(scopes))

    def _check_audience(self, audience: object) -> None:
        """Raises TokenRefusedError. PyJWT's own check knows one form of an audience, and does not say which came."""
        named = audience if isinstance(audience, list) else [audience]
        if any(isinstance(name, str) and not {*audience_forms(name)}.isdisjoint(self._audiences) for name in named):
            return
        # The token's signature is good by now, so it names an application of this tenant's, and is no stranger's text.
        log.warning(
            "token_for_another_audience",
            audience=str(audience)[:_MAX_AUDIENCE_CHARS],
            accepted=self._audiences,
            do="let the client ask for a scope of this broker's application, or list the audience in "
            "BROKER_ENTRA_AUDIENCE",
        )
        raise TokenRefusedError("the token is for another audience, which the broker's log names")


def audience_forms(audience: str) -> tuple[str, ...]:
    """The forms in which Entra writes an audience.

    For an application without an URI of its own they are its id, in v2 tokens, and `api://<id>`, in v1 tokens: which
    one comes is set in the application's manifest.
    """
    match = _APPLICATION_ID.fullmatch(audience)
    return (audience,) if match is None else (match[1].lower(), f"api://{match[1].lower()}")


def _key_id(token: str) -> str:
    """The key id in the header of a token that is signed with RS256. Raises TokenRefusedError."""
    if len(token) > MAX_TOKEN_CHARS:
        raise TokenRefusedError("the token is too long")
    try:
        header = jwt.get_unverified_header(token)
    except PyJWTError:
        raise TokenRefusedError("the token is not a JWT") from None
    # Whoever does not implement the extensions that `crit` names has to refuse the token (RFC 7515 §4.1.11).
    if header.get("alg") != "RS256" or "crit" in header:
        raise TokenRefusedError("the token is not signed with RS256")
    key_id = header.get("kid")
    if not isinstance(key_id, str) or not key_id:
        raise TokenRefusedError("the token names no key")
    return key_id


def _signing_keys(body: bytes) -> Mapping[str, jwt.PyJWK]:
    """The RSA signing keys of a JWKS document, by key id. Others are ignored. Raises ValueError where there is none."""
    document = json.loads(body)
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list) or len(entries) > MAX_JWKS_KEYS:
        raise ValueError("no JWKS")
    keys = {}
    for entry in entries:
        if not isinstance(entry, dict) or entry.get("kty") != "RSA" or entry.get("use", "sig") != "sig":
            continue
        try:
            key = jwt.PyJWK(entry, algorithm="RS256")
        except PyJWTError:
            continue
        if isinstance(entry.get("kid"), str) and key.key.key_size >= MIN_RSA_BITS:
            keys[entry["kid"]] = key
    if not keys:
        raise ValueError("no RSA key in it")
    return keys
