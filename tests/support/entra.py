"""A fake for the managed identity endpoint of Azure's App Service and Container Apps, which azure-identity asks."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.support.serving import serve_app

__all__ = ["IdentityEndpoint", "run_identity_endpoint"]


@dataclass(slots=True)
class IdentityEndpoint:
    """Answers with `token`, valid for `ttl_s`. It fails with another `status`, and hangs while `healthy` is not set."""

    token: str = "simulated-entra-token"
    ttl_s: int = 86_400
    status: int = 200
    header: str = "identity-header-of-the-platform"
    healthy: asyncio.Event = field(default_factory=asyncio.Event)
    resources: list[str] = field(default_factory=list)
    client_ids: list[str] = field(default_factory=list)
    url: str = ""
    _asked: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def calls(self) -> int:
        return len(self.resources)

    @property
    def variables(self) -> dict[str, str]:
        """What the platform sets in the environment of an app with a managed identity."""
        return {"IDENTITY_ENDPOINT": self.url, "IDENTITY_HEADER": self.header}

    async def until_asked(self) -> None:
        """Returns once a token has been asked for."""
        async with asyncio.timeout(10):
            await self._asked.wait()

    async def answer(self, request: Request) -> Response:
        self.resources.append(request.query_params.get("resource", ""))
        self.client_ids.append(request.query_params.get("client_id", ""))
        self._asked.set()
        await self.healthy.wait()
        if request.headers.get("x-identity-header") != self.header:
            return JSONResponse({"error": "wrong identity header"}, 401)
        if self.status != 200:
            return JSONResponse({"statusCode": self.status, "message": f"no, not with {self.header}"}, self.status)
        return JSONResponse(
            {
                "access_token": self.token,
                "expires_on": str(int(time.time()) + self.ttl_s),
                "resource": self.resources[-1],
                "token_type": "Bearer",
            }
        )


@contextlib.asynccontextmanager
async def run_identity_endpoint() -> AsyncIterator[IdentityEndpoint]:
    """The endpoint, healthy, until the block ends."""
    endpoint = IdentityEndpoint()
    endpoint.healthy.set()
    async with serve_app(Starlette(routes=[Route("/msi/token", endpoint.answer)])) as base_url:
        endpoint.url = f"{base_url}/msi/token"
        try:
            yield endpoint
        finally:
            endpoint.healthy.set()
