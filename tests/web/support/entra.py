"""A fake of Entra for browsers, on loopback: it signs a user in without asking; the broker can check its tokens."""

import base64
import hashlib
import json
import time
from typing import Any
from urllib.parse import urlencode

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from tests.security.fakes import AUDIENCE, TENANT, USER, Key, Tenant

__all__ = ["CLIENT_ID", "SignInTenant"]

CLIENT_ID = "99999999-8888-7777-6666-555555555555"


class SignInTenant:
    """Authorize, token and keys of one tenant. `expired` tokens are given first; then good ones."""

    def __init__(self, *, expired: int = 0) -> None:
        self.keys = Tenant(Key.make("browser"))
        self.keys.keys = [self.keys.key.jwk()]
        self.expired = expired
        self.asked: list[str] = []
        self._codes: dict[str, dict[str, str]] = {}
        base = f"/{TENANT}/oauth2/v2.0"
        self.app = Starlette(
            routes=[
                Route(f"{base}/authorize", self.authorize),
                Route(f"{base}/token", self.token, methods=["POST"]),
                Route(f"/{TENANT}/discovery/v2.0/keys", self.published),
            ],
            middleware=[Middleware(CORSMiddleware, allow_origins=["*"], allow_headers=["*"])],
        )

    async def authorize(self, request: Request) -> Response:
        """The user has a session, and consents."""
        asked = dict(request.query_params)
        assert (asked["client_id"], asked["response_type"], asked["code_challenge_method"]) == (
            CLIENT_ID,
            "code",
            "S256",
        )
        code = f"code-{len(self._codes) + 1}"
        self._codes[code] = asked
        answer = urlencode({"code": code, "state": asked["state"], "client_info": self._client_info()})
        return RedirectResponse(f"{asked['redirect_uri']}#{answer}", 302)

    async def token(self, request: Request) -> Response:
        form = {name: str(value) for name, value in (await request.form()).items()}
        self.asked.append(form["grant_type"])
        asked: dict[str, str] = {}
        if form["grant_type"] == "authorization_code":
            asked = self._codes.pop(form["code"])
            digest = hashlib.sha256(form["code_verifier"].encode()).digest()
            assert asked["code_challenge"] == base64.urlsafe_b64encode(digest).decode().rstrip("=")
        else:
            assert form["refresh_token"] == "refresh-me"
        expired = self.expired > 0
        self.expired -= expired
        now = int(time.time())
        lifetime: dict[str, Any] = {"exp": now - 3600, "iat": now - 7200, "nbf": now - 7200} if expired else {}
        person: dict[str, Any] = {"nonce": asked.get("nonce"), "preferred_username": "ada@contoso.test", "name": "Ada"}
        body = {
            "token_type": "Bearer",
            "scope": form["scope"],
            "expires_in": 3600,
            "ext_expires_in": 3600,
            "access_token": self.keys.token(scp="talk", azp=CLIENT_ID, **lifetime),
            "refresh_token": "refresh-me",
            "id_token": self.keys.token(aud=CLIENT_ID, **person),
            "client_info": self._client_info(),
        }
        return JSONResponse(body)

    async def published(self, request: Request) -> Response:
        return JSONResponse({"keys": self.keys.keys})

    def settings(self, base_url: str) -> dict[str, Any]:
        """The broker's settings for this tenant, whose keys it reads at `base_url`."""
        self.keys.base_url = base_url
        return {
            "auth": "entra",
            "entra_authority": base_url,
            "entra_tenant_id": TENANT,
            "entra_audience": (AUDIENCE,),
            "entra_required_scope": "talk",
        }

    @staticmethod
    def _client_info() -> str:
        info = json.dumps({"uid": USER, "utid": TENANT}).encode()
        return base64.urlsafe_b64encode(info).decode().rstrip("=")
