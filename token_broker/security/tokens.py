"""The broker's signed tokens: session tokens, tickets, client secrets, call ids. They are checked without a store.

They are JWTs (HS256) according to RFC 8725. Each kind has a `typ` header (§3.11), an audience (§3.9) and a subkey of
its own (HKDF, RFC 5869), and all have our issuer (§3.8). So a token of one kind never passes for another, whatever its
header says. The first key signs and all keys verify, so keys rotate without ending a talk. Clocks may differ by 60 s.
"""

import contextlib
import functools
import hmac
import json
import os
import secrets
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jwt
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from jwt.algorithms import HMACAlgorithm
from pydantic import SecretStr
from pydantic_core import to_json

from token_broker.web.requests import uuid7

__all__ = [
    "ANONYMOUS",
    "CLIENT_SECRET_PREFIX",
    "LEEWAY_S",
    "RESUME_GRACE_S",
    "TICKET_TTL_S",
    "CallClaims",
    "ClientSecretClaims",
    "MintedSession",
    "Narrowing",
    "Owner",
    "SessionClaims",
    "TicketClaims",
    "TokenError",
    "TokenSigner",
    "is_ours",
    "load_or_create_key",
]

LEEWAY_S = 60
TICKET_TTL_S = 180  # clients try the proxy last, after every connection before it
RESUME_GRACE_S = 24 * 3600  # for so long after its expiry, a session token still resumes its session
ISSUER = "voice-token-broker"
SESSION_TYPE = "vtb-session+jwt"
TICKET_TYPE = "vtb-ticket+jwt"
CALL_TYPE = "vtb-call+jwt"
CLIENT_SECRET_TYPE = "vtb-client-secret+jwt"  # noqa: S105  # a media type
CLIENT_SECRET_PREFIX = "ek_"  # noqa: S105  # the official clients expect it of an ephemeral key
MAX_TOKEN_CHARS = 4096  # checked before decoding, whose cost grows with the length
_SUBKEY_BYTES = 32
_SESSION_IDS = "vtb-session-id"  # the purpose of the subkey that signs session ids
_UUID_CHARS = 36
_MARK_CHARS = 8  # 32 bits: enough against a guess, and the id stays a valid UUID
_TOKENS_REMEMBERED = 2048
_NARROWED_AT_MOST = 8  # one secret minted with another
# O_EXCL: of two processes that start at once, one creates the file, and both read the same key.
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL
ANONYMOUS = "anonymous"


@dataclass(frozen=True, slots=True)
class Narrowing:
    """What a mint was narrowed to. Credentials carry it, and those that are minted with them, never wider.

    `max_session_s` is the longest talk; `transports` are the only ones; `origin` is the page's that may use it.
    """

    max_session_s: int | None = None
    transports: tuple[str, ...] | None = None
    origin: str | None = None

    def within(self, other: "Narrowing") -> "Narrowing":
        """What both permit. Raises ValueError where that is nothing."""
        lengths = [each for each in (self.max_session_s, other.max_session_s) if each is not None]
        transports = self.transports if other.transports is None else other.transports
        if self.transports is not None and other.transports is not None:
            transports = tuple(name for name in self.transports if name in other.transports)
            if not transports:
                raise ValueError("transports: the credential permits none of these")
        if None not in {self.origin, other.origin} and self.origin != other.origin:
            raise ValueError("origin: the credential is for another one")
        return Narrowing(min(lengths, default=None), transports, self.origin or other.origin)

    def permits(self, *transports: str) -> bool:
        """Whether one of the transports may be used."""
        return self.transports is None or any(name in self.transports for name in transports)


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner of a session: all that a token's claims say, so that a turn can bring its session along.

    `principal` is `ANONYMOUS` without authentication; `user_id` is then only a label. `epoch` grows with every plan
    of the session (milliseconds since 1970 at least), so that turns of a later connection sort behind earlier ones.

    `talk_id` names the talk: it stays over moves, fallbacks, handoffs and reconnects within 60 s, while a session may
    have several talks. Without one it is the session's id.
    `narrowed`: what the credential was narrowed to.
    """

    session_id: str
    principal: str
    epoch: int
    user_id: str | None = None
    talk_id: str = ""
    narrowed: Narrowing = Narrowing()

    def __post_init__(self) -> None:
        if not self.talk_id:
            object.__setattr__(self, "talk_id", self.session_id)


@dataclass(frozen=True, slots=True)
class MintedSession:
    """The session of Azure's that a plan's ephemeral token opens: its id, and where it was minted."""

    azure_id: str
    endpoint: str  # base URL
    resource: str


class TokenError(Exception):
    """A token that is not valid. `expired`: only its time is over."""

    def __init__(self, message: str, *, expired: bool = False) -> None:
        super().__init__(message)
        self.expired = expired


@dataclass(frozen=True, slots=True)
class SessionClaims:
    """What a session token says."""

    owner: Owner
    expires_at_s: float
    agent_id: str | None = None
    issued_at_s: float = 0.0
    minted: MintedSession | None = None


@dataclass(frozen=True, slots=True)
class TicketClaims:
    """The claims of a ticket: one admission to the proxy, with this agent. `ticket_id` is recorded as used."""

    ticket_id: str
    owner: Owner
    agent_id: str
    expires_at_s: float


@dataclass(frozen=True, slots=True)
class ClientSecretClaims:
    """The claims of a client secret: admission to any compatible endpoint, with this agent, several times.

    Uses are counted by `secret_id` until `counted_until_s`. Secrets that were minted with this one share its count.
    `own_uses`: ids under which its uses are counted besides, with their numbers, since it or one before was narrowed.
    """

    secret_id: str
    owner: Owner
    agent_id: str
    expires_at_s: float
    counted_until_s: float
    own_uses: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class CallClaims:
    """The claims of a relayed call's opaque id: its session, and where Azure has the call."""

    session_id: str
    call_id: str
    endpoint: str  # base URL of the resource that minted
    expires_at_s: float


Claims = SessionClaims | TicketClaims | ClientSecretClaims | CallClaims
C = TypeVar("C", SessionClaims, TicketClaims, ClientSecretClaims, CallClaims)


class TokenSigner:
    """Signs and reads the broker's tokens. `keys` are those of BROKER_SIGNING_KEY, at least one."""

    def __init__(self, keys: Sequence[SecretStr], *, clock: Callable[[], float] = time.time) -> None:
        if not keys:
            raise ValueError("a signing key is needed")
        self._first = keys[0]
        self._subkeys = {
            kind: [_subkey(key.get_secret_value().encode(), kind) for key in keys] for kind in (*_CLAIMS, _SESSION_IDS)
        }
        self._heads = {
            kind: urlsafe_b64encode(to_json({"alg": "HS256", "typ": kind})).rstrip(b"=") + b"." for kind in _CLAIMS
        }
        self._jws = jwt.PyJWS(algorithms=[])
        self._hmac = _PreparedHmac()
        self._jws.register_algorithm("HS256", self._hmac)
        self._clock = clock
        # Each turn of a session carries the same token. Its claims never change; its expiry is checked apart.
        self._verified = functools.lru_cache(_TOKENS_REMEMBERED)(self._verify)

    def subkey(self, purpose: str) -> bytes:
        """A key of its own for that purpose, derived from the first key."""
        return _subkey(self._first.get_secret_value().encode(), purpose)

    def new_session_id(self) -> str:
        """A UUID of version 7 whose last 32 bits are a signature, so that `made` recognizes it without a store."""
        name = uuid7()[:-_MARK_CHARS]
        return name + self._mark(name, self._subkeys[_SESSION_IDS][0])

    def made(self, session_id: str) -> bool:
        """Whether `new_session_id` made the id, with any of the keys. A foreign UUID passes once in four billion."""
        name, mark = session_id[:-_MARK_CHARS], session_id[-_MARK_CHARS:]
        # Compared in constant time: response times must not reveal the mark byte by byte.
        return len(session_id) == _UUID_CHARS and any(
            hmac.compare_digest(mark.encode(), self._mark(name, key).encode()) for key in self._subkeys[_SESSION_IDS]
        )

    def _mark(self, name: str, key: bytes) -> str:
        return self._hmac.sign(name.encode(), key).hex()[:_MARK_CHARS]

    def session_token(
        self, owner: Owner, *, ttl_s: int, agent_id: str | None = None, minted: MintedSession | None = None
    ) -> str:
        """A token that proves this session's ownership for `ttl_s` seconds; `agent_id` is whom the plan speaks with.

        `minted` is what the plan's ephemeral token opens: by it a call that the broker did not set up is known.
        """
        claims = {**_claims_of(owner), "tlk": owner.talk_id, "agt": agent_id}
        if minted is not None:
            claims |= {"azs": minted.azure_id, "hst": minted.endpoint, "res": minted.resource}
        return self._sign(claims, SESSION_TYPE, ttl_s)

    def ticket(self, owner: Owner, *, agent_id: str, ttl_s: int) -> str:
        """A single admission to the proxy within `ttl_s` seconds."""
        claims = {"jti": uuid7(), **_claims_of(owner), "tlk": owner.talk_id, "agt": agent_id}
        return self._sign(claims, TICKET_TYPE, ttl_s)

    def client_secret(
        self,
        owner: Owner,
        *,
        agent_id: str,
        ttl_s: int,
        minted_with: ClientSecretClaims | None = None,
        uses: int | None = None,
    ) -> str:
        """A token for the compatible endpoints for `ttl_s` seconds, with the prefix `ek_`.

        A secret that is minted with another one shares its count, so it opens no more talks than that one has left.
        `uses` bounds it further, and what is minted with it as well. Raises ValueError where it was narrowed too often.
        """
        own = minted_with.own_uses if minted_with else ()
        if uses is not None and all(uses < count for _, count in own):
            own = (*own, (uuid7(), uses))
        if len(own) > _NARROWED_AT_MOST:
            raise ValueError("uses: narrowed too often")
        claims = {
            "jti": minted_with.secret_id if minted_with else uuid7(),
            "cnt": minted_with.counted_until_s if minted_with else int(self._clock()) + ttl_s,
            **_claims_of(owner),
            "agt": agent_id,
            **({"use": own} if own else {}),
        }
        return CLIENT_SECRET_PREFIX + self._sign(claims, CLIENT_SECRET_TYPE, ttl_s)

    def call_token(self, *, session_id: str, call_id: str, endpoint: str, ttl_s: int) -> str:
        """A relayed call's id as the browser sees it: signed, not encrypted."""
        return self._sign({"sid": session_id, "cal": call_id, "hst": endpoint}, CALL_TYPE, ttl_s)

    def read_call_token(self, token: str) -> CallClaims:
        """The claims of a call id. Raises TokenError."""
        return self._read(token, CallClaims, 0)

    def read_session_token(self, token: str, *, grace_s: float = 0) -> SessionClaims:
        """The claims of a session token that expired at most `grace_s` ago. Raises TokenError."""
        return self._read(token, SessionClaims, grace_s)

    def read_ticket(self, token: str) -> TicketClaims:
        """The claims of an unexpired ticket, which may have been used. Raises TokenError."""
        return self._read(token, TicketClaims, 0)

    def read_any(self, token: str) -> ClientSecretClaims | TicketClaims | SessionClaims:
        """The claims of an unexpired client secret, ticket or session token. Raises TokenError."""
        claims = self._known(token.removeprefix(CLIENT_SECRET_PREFIX))
        if isinstance(claims, CallClaims):
            raise TokenError("a token of another kind")
        self._check_time(claims, 0)
        return claims

    def _sign(self, claims: dict[str, Any], kind: str, ttl_s: int) -> str:
        now = int(self._clock())
        payload = to_json({"iss": ISSUER, "aud": kind, **claims, "iat": now, "exp": now + ttl_s})
        # By hand: PyJWT makes the header anew for each token, which takes longer than to sign.
        signed = self._heads[kind] + urlsafe_b64encode(payload).rstrip(b"=")
        mac = self._hmac.sign(signed, self._subkeys[kind][0])
        return (signed + b"." + urlsafe_b64encode(mac).rstrip(b"=")).decode()

    def _read(self, token: str, kind: type[C], grace_s: float) -> C:
        claims = self._known(token)
        if not isinstance(claims, kind):
            raise TokenError("a token of another kind")
        self._check_time(claims, grace_s)
        return claims

    def _known(self, token: str) -> Claims:
        if len(token) > MAX_TOKEN_CHARS:
            raise TokenError("too long")
        return self._verified(token)

    def _check_time(self, claims: Claims, grace_s: float) -> None:
        if self._clock() >= claims.expires_at_s + LEEWAY_S + grace_s:
            raise TokenError("expired", expired=True)

    def _verify(self, token: str) -> Claims:
        """The claims, expired or not. Raises TokenError."""
        try:
            kind = str(self._jws.get_unverified_header(token).get("typ"))
            for key in self._subkeys.get(kind, ()):
                try:
                    # The algorithm is pinned here: the header is the sender's (RFC 8725 §3.1).
                    claims = json.loads(self._jws.decode(token, key, algorithms=["HS256"]))
                except jwt.InvalidSignatureError:
                    continue
                if isinstance(claims, dict) and claims.get("iss") == ISSUER and claims.get("aud") == kind:
                    return _CLAIMS[kind](claims)
        except (jwt.InvalidTokenError, UnicodeError):
            pass
        raise TokenError("not one of this broker's tokens")


def is_ours(token: str) -> bool:
    """Whether `token` looks like one of this broker's, valid or not, by its prefix or its `typ`."""
    if token.startswith(CLIENT_SECRET_PREFIX):
        return True
    try:
        kind = jwt.get_unverified_header(token).get("typ")
    except jwt.InvalidTokenError:
        return False
    return isinstance(kind, str) and kind.startswith("vtb-")


class _PreparedHmac(HMACAlgorithm):
    """HS256 whose keys are prepared once: for each token, PyJWT's check of the key takes longer than signing does."""

    def __init__(self) -> None:
        super().__init__(HMACAlgorithm.SHA256)
        self._macs: dict[bytes, hmac.HMAC] = {}

    def prepare_key(self, key: str | bytes) -> bytes:
        return key if isinstance(key, bytes) else key.encode()

    def sign(self, msg: bytes, key: bytes) -> bytes:
        if (prepared := self._macs.get(key)) is None:
            prepared = self._macs[key] = hmac.new(key, digestmod="sha256")
        mac = prepared.copy()  # a quarter of what `hmac.digest` takes: OpenSSL looks the algorithm up each time
        mac.update(msg)
        return mac.digest()


def _subkey(key: bytes, kind: str) -> bytes:
    """The key of one kind of token. Whoever learns it can't sign tokens of another kind."""
    return HKDF(algorithm=SHA256(), length=_SUBKEY_BYTES, salt=None, info=f"{ISSUER} {kind}".encode()).derive(key)


def load_or_create_key(path: Path) -> SecretStr:
    """The signing key in the file `path` (mode 600), created at the first call. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError), os.fdopen(os.open(path, _NEW_FILE, 0o600), "w") as file:
        file.write(secrets.token_urlsafe(48))
        file.flush()
        os.fsync(file.fileno())  # a key that a crash loses would invalidate every token
    if len(key := path.read_text().strip()) < 32:  # noqa: PLR2004
        raise OSError(f"{path} holds no signing key; remove it and start again")
    return SecretStr(key)


def _claims_of(owner: Owner) -> dict[str, Any]:
    narrowed = owner.narrowed
    narrow = {"mxs": narrowed.max_session_s, "trp": narrowed.transports, "ori": narrowed.origin}
    narrow = {name: value for name, value in narrow.items() if value is not None}
    return {"sid": owner.session_id, "sub": owner.principal, "epo": owner.epoch, "uid": owner.user_id, **narrow}


def _owner_of(claims: Mapping[str, Any]) -> Owner:
    return Owner(
        session_id=_text(claims, "sid"),
        principal=_text(claims, "sub"),
        epoch=_number(claims, "epo"),
        user_id=_optional_text(claims, "uid"),
        talk_id=_optional_text(claims, "tlk") or "",
        narrowed=Narrowing(
            max_session_s=None if claims.get("mxs") is None else _number(claims, "mxs"),
            transports=None if claims.get("trp") is None else tuple(map(str, claims["trp"])),
            origin=_optional_text(claims, "ori"),
        ),
    )


_CLAIMS: dict[str, Callable[[Mapping[str, Any]], Claims]] = {
    SESSION_TYPE: lambda claims: SessionClaims(
        owner=_owner_of(claims),
        expires_at_s=_number(claims, "exp"),
        agent_id=_optional_text(claims, "agt"),
        issued_at_s=_number(claims, "iat"),
        minted=MintedSession(_text(claims, "azs"), _text(claims, "hst"), _text(claims, "res"))
        if "azs" in claims
        else None,
    ),
    TICKET_TYPE: lambda claims: TicketClaims(
        ticket_id=_text(claims, "jti"),
        owner=_owner_of(claims),
        agent_id=_text(claims, "agt"),
        expires_at_s=_number(claims, "exp"),
    ),
    CLIENT_SECRET_TYPE: lambda claims: ClientSecretClaims(
        secret_id=_text(claims, "jti"),
        owner=_owner_of(claims),
        agent_id=_text(claims, "agt"),
        expires_at_s=_number(claims, "exp"),
        counted_until_s=_number(claims, "cnt"),
        own_uses=tuple((str(name), int(count)) for name, count in claims.get("use", ())),
    ),
    CALL_TYPE: lambda claims: CallClaims(
        session_id=_text(claims, "sid"),
        call_id=_text(claims, "cal"),
        endpoint=_text(claims, "hst"),
        expires_at_s=_number(claims, "exp"),
    ),
}


def _text(claims: Mapping[str, Any], name: str) -> str:
    if isinstance(value := claims.get(name), str):
        return value
    raise TokenError("not one of this broker's tokens")


def _optional_text(claims: Mapping[str, Any], name: str) -> str | None:
    return None if claims.get(name) is None else _text(claims, name)


def _number(claims: Mapping[str, Any], name: str) -> int:
    if isinstance(value := claims.get(name), int) and not isinstance(value, bool):
        return value
    raise TokenError("not one of this broker's tokens")


"""The principal of every caller without authentication."""
