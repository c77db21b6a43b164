"""A fake Entra tenant that signs."""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from starlette.types import Receive, Scope, Send

TENANT = "11111111-2222-3333-4444-555555555555"
AUDIENCE = "api://voice"
USER = "aaaaaaaa-0000-0000-0000-00000000000b"


@dataclass
class Key:
    """A signing key and how the tenant publishes it."""

    kid: str
    private: rsa.RSAPrivateKey

    @classmethod
    def make(cls, kid: str, bits: int = 2048) -> "Key":
        return cls(kid, rsa.generate_private_key(public_exponent=65537, key_size=bits))

    def jwk(self) -> dict[str, Any]:
        published: dict[str, Any] = jwt.algorithms.RSAAlgorithm.to_jwk(self.private.public_key(), as_dict=True)
        return published | {"kid": self.kid, "use": "sig"}


@dataclass
class Tenant:
    """A fake for Entra's key endpoint: publishes `keys`, counts who asks, fails on command."""

    key: Key
    keys: list[dict[str, Any]] = field(default_factory=list)
    base_url: str = ""
    fetches: int = 0
    status: int = 200
    hangs: asyncio.Event | None = None
    huge: bool = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.fetches += 1
        if self.hangs is not None:
            await self.hangs.wait()
        if scope["path"] != f"/{TENANT}/discovery/v2.0/keys":
            body, status = b"", 404
        else:
            body, status = json.dumps({"keys": self.keys}).encode(), self.status
        if self.huge:
            body += b" " * 1_000_000
        await send(
            {"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]}
        )
        await send({"type": "http.response.body", "body": body})

    def token(self, *, signed_by: Key | None = None, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        """A token as the tenant signs it; a claim of None is left out."""
        key = signed_by or self.key
        said = self.claims() | claims
        said = {name: value for name, value in said.items() if value is not None}
        return jwt.encode(said, key.private, algorithm="RS256", headers={"kid": key.kid} | (headers or {}))

    def claims(self) -> dict[str, Any]:
        now = int(time.time())
        return {
            "iss": f"{self.base_url}/{TENANT}/v2.0",
            "aud": AUDIENCE,
            "exp": now + 600,
            "nbf": now - 5,
            "iat": now - 5,
            "tid": TENANT,
            "oid": USER,
            "sub": "pairwise",
            "ver": "2.0",
        }
