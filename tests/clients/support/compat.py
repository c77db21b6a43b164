"""What a client connects to: the simulated Azure itself, or a broker with a single upstream there."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme

from tests.clients.support.tls_front import tls_front
from tests.support.broker import RunningBroker, make_settings, plain_client, run_broker
from tests.support.client_secrets import secret_claims
from tests.support.waiting import eventually
from token_broker.simulator import RunningSimulator, SimulatorConfig, serve

__all__ = [
    "BROKERS",
    "COMPAT_ENDPOINTS",
    "MODEL",
    "SIMULATED_ENTRA_TOKEN",
    "SIMULATED_KEY",
    "SIMULATOR",
    "CompatEndpoint",
    "open_compat",
]

SIMULATOR = "simulator"
BROKERS = ("voice_live", "openai_realtime")
"""Brokers by their only upstream: each makes half of the clients need a translation of the dialect."""
COMPAT_ENDPOINTS = (SIMULATOR, *BROKERS)

MODEL = "gpt-realtime"
SIMULATED_KEY = "simulated-key"
SIMULATED_ENTRA_TOKEN = "simulated-entra-token"
_AZURE = SimulatorConfig(answer_speed=50, ephemeral_subprotocol=True)


@dataclass(frozen=True, slots=True)
class CompatEndpoint:
    """Where a client connects to, plain and behind TLS; `broker` is None for the simulator itself."""

    http: str
    https: str
    openai_path: str
    azure: RunningSimulator
    broker: RunningBroker | None

    @property
    def mint_key(self) -> str:
        """The credential of a mint. A broker without authentication takes any: the SDKs insist on some key."""
        return "unused" if self.broker else SIMULATED_KEY

    async def mint(self, **body: Any) -> str:
        """An ephemeral secret of this compatible endpoint's, `ek_…`."""
        asked = {"session": {"type": "realtime", "model": MODEL}, **body}
        async with plain_client(self.http) as client:
            headers = {"Authorization": f"Bearer {self.mint_key}"}
            answer = await client.post(f"{self.openai_path}/realtime/client_secrets", json=asked, headers=headers)
        secret: str = answer.raise_for_status().json()["value"]
        return secret

    async def turns(self, secret: str) -> list[tuple[str, str]]:
        """(role, content) of the session that `secret` was minted for, as its memory tells them after all talks."""
        assert self.broker is not None
        broker = self.broker
        await eventually(lambda: _are_over(broker), within_s=15)
        await broker.memory.ingest.flushed()
        claims = secret_claims(broker.signer, secret)
        token = broker.signer.session_token(claims.owner, ttl_s=60)
        path = f"/api/v1/memory/sessions/{claims.owner.session_id}/turns"
        answer = await broker.client.get(path, headers={"Authorization": f"Bearer {token}"})
        return [(turn["role"], turn["content"]) for turn in answer.raise_for_status().json()["turns"]]


async def _are_over(broker: RunningBroker) -> bool:
    return not broker.drain.talks


@contextlib.asynccontextmanager
async def open_compat(
    name: str, directory: Path, authority: trustme.CA, **settings: Any
) -> AsyncIterator[CompatEndpoint]:
    """The compatible endpoint of that name, until the block ends; `settings` are the broker's."""
    async with contextlib.AsyncExitStack() as stack:
        azure = await stack.enter_async_context(serve(_AZURE))
        broker = None
        if name != SIMULATOR:
            chosen = make_settings(directory, azure.base_url, proxy_upstreams=(name,), **settings)
            broker = await stack.enter_async_context(run_broker(chosen))
        http = broker.base_url if broker else azure.base_url
        https = await stack.enter_async_context(tls_front(http, authority))
        yield CompatEndpoint(http, https, "/v1" if broker else "/openai/v1", azure, broker)
