"""A broker with the simulator behind it, and a way through its compatible endpoints."""

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets

from tests.simulator.support import Caller
from tests.support.broker import RunningBroker, make_settings, run_broker
from tests.support.client_secrets import secret_claims
from tests.support.waiting import eventually
from token_broker.simulator import RunningSimulator, serve

SIGNING_KEY = "d" * 40


@dataclass
class CompatBroker:
    """The broker, and what a client does with its compatible endpoints."""

    running: RunningBroker
    azure: RunningSimulator
    secrets: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.running.base_url

    async def mint(self, body: object = None, prefix: str = "/v1", **headers: str) -> httpx.Response:
        """A client secret asked for; header names with underscores."""
        return await self.running.client.post(
            f"{prefix}/realtime/client_secrets",
            content=b"" if body is None else json.dumps(body),
            headers={"content-type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()},
        )

    async def secret(self, body: object = None) -> str:
        response = await self.mint(body)
        assert response.status_code == 200, response.text
        value: str = response.json()["value"]
        return value

    @contextlib.asynccontextmanager
    async def connect(
        self, path: str = "/v1/realtime?model=gpt-realtime", *, secret: str | None = None, **options: Any
    ) -> AsyncIterator[Caller]:
        """A talk through a compatible endpoint; the secret goes as Bearer unless the options say where else it is."""
        if secret is not None:
            options["additional_headers"] = {"Authorization": f"Bearer {secret}"} | options.get(
                "additional_headers", {}
            )
        url = self.url.replace("http", "ws", 1) + path
        async with websockets.connect(url, compression=None, proxy=None, close_timeout=1, **options) as socket:
            yield Caller(socket)

    async def refusal(self, path: str = "/v1/realtime", **options: Any) -> tuple[int, dict[str, Any], dict[str, str]]:
        """Status, document and headers of a refused handshake."""
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with self.connect(path, **options):
                pass
        response = refused.value.response
        return response.status_code, json.loads(response.body or b"{}"), dict(response.headers)

    async def turns(self, secret: str) -> list[dict[str, Any]]:
        """What the memory has of the secret's session, once all that was said is stored."""
        broker = self.running
        claims = secret_claims(broker.signer, secret)
        token = broker.signer.session_token(claims.owner, ttl_s=60)
        response = await self.running.client.get(
            f"/api/v1/memory/sessions/{claims.owner.session_id}/turns", headers={"Authorization": f"Bearer {token}"}
        )
        assert response.status_code == 200, response.text
        turns: list[dict[str, Any]] = response.json()["turns"]
        return turns

    async def turns_once_there(self, secret: str, count: int) -> list[dict[str, Any]]:
        """The same, once there are so many."""

        async def there() -> bool:
            return len(await self.turns(secret)) >= count

        await eventually(there)
        return await self.turns(secret)


OpenCompat = Callable[..., AbstractAsyncContextManager[CompatBroker]]


@pytest.fixture
def compat_endpoints(tmp_path: Path) -> OpenCompat:
    """Opens a broker of those settings and its simulator: `async with compat_endpoints(setting=…) as compat`."""

    @contextlib.asynccontextmanager
    async def open_compat_endpoints(**overrides: Any) -> AsyncIterator[CompatBroker]:
        async with serve() as azure:
            settings = make_settings(tmp_path, azure.base_url, signing_keys=SIGNING_KEY, **overrides)
            async with run_broker(settings) as running:
                yield CompatBroker(running, azure)

    return open_compat_endpoints
