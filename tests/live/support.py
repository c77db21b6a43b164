"""A broker whose agent speaks GPT-Live, with the simulator behind it, and the official client in front."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI

from tests.hooks.support import SECRET
from tests.simulator.support import silence, speech
from tests.support.agents import write_agents
from tests.support.broker import RunningBroker, make_settings, run_broker
from tests.support.client_secrets import secret_claims
from tests.support.tool_server import ToolServer, run_tool_server
from tests.support.waiting import eventually
from token_broker.simulator import RunningSimulator, SimulatorConfig, serve

__all__ = ["INSTRUCTIONS", "LiveBroker", "agents_file", "hear", "live_broker", "pieces", "say"]

INSTRUCTIONS = "canary-instructions-4711"
_BACKEND = 'delegation = { type = "responses", responses = { model = "gpt-5.4", instructions = "canary-backend" } }'


def agents_file(tools: ToolServer | None, more: str = "") -> str:
    """Three agents: ann delegates to a Responses model, ben to us, and cid is none of GPT-Live's."""
    url = "http://127.0.0.1:1/ok" if tools is None else tools.url("ok")
    tool = (
        'type = "function"\nname = "order_status"\ndescription = "Looks an order up."\n'
        'parameters = { type = "object", properties = { number = { type = "string" } }, required = ["number"] }\n'
        f'run = {{ url = "{url}", timeout_s = 8 }}\n'
    )
    return (
        'default = "ann"\n[agents.ann]\nname = "Ann"\nmodel = "gpt-live-1"\n'
        'voices = { ga = "cedar", preview = "en-US-Ava:DragonHDLatestNeural" }\n'
        f'instructions = "{INSTRUCTIONS}"\n{more}\n'
        f"[agents.ann.session.live]\n{_BACKEND}\n[[agents.ann.tools]]\n{tool}"
        '[[agents.ann.tools]]\ntype = "function"\nname = "show_map"\nrun = "client"\ntimeout_s = 5\n'
        '[agents.ben]\nname = "Ben"\nmodel = "gpt-live-1"\n'
        'voices = { ga = "cedar", preview = "en-US-Ava:DragonHDLatestNeural" }\n'
        f'instructions = "{INSTRUCTIONS}"\n[[agents.ben.tools]]\n{tool}'
        '[agents.cid]\nname = "Cid"\nvoices = { ga = "cedar", preview = "en-US-Ava:DragonHDLatestNeural" }\n'
        'instructions = "You are Cid."\n'
    )


@dataclass
class LiveBroker:
    """The broker, its Azure, and the server of its tools."""

    running: RunningBroker
    azure: RunningSimulator
    tools: ToolServer

    async def secret(self, agent_id: str = "ann", **metadata: Any) -> str:
        body = {"metadata": {"agent_id": agent_id, **metadata}}
        response = await self.running.client.post("/v1/realtime/client_secrets", json=body)
        assert response.status_code == 200, response.text
        value: str = response.json()["value"]
        return value

    def official(self, secret: str, prefix: str = "/v1") -> AsyncOpenAI:
        return AsyncOpenAI(api_key=secret, base_url=f"{self.running.base_url}{prefix}", max_retries=0)

    async def turns(self, secret: str) -> list[dict[str, Any]]:
        claims = secret_claims(self.running.signer, secret)
        token = self.running.signer.session_token(claims.owner, ttl_s=60)
        path = f"/api/v1/memory/sessions/{claims.owner.session_id}/turns"
        response = await self.running.client.get(path, headers={"Authorization": f"Bearer {token}"})
        assert response.status_code == 200, response.text
        found: list[dict[str, Any]] = response.json()["turns"]
        return found

    async def turns_once_there(self, secret: str, count: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []

        async def there() -> bool:
            found[:] = await self.turns(secret)
            return len(found) >= count

        await eventually(there)
        return found

    async def all_ended(self) -> None:
        """No talk and no call is left. A call that ended before the broker had joined it is given up after 30 s."""

        async def ended() -> bool:
            return not self.running.relay.active and not self.running.talks.active and not self.running.drain.talks

        await eventually(ended, within_s=60)

    async def usage(self) -> list[dict[str, Any]]:
        """The ledger's rows, all of them written."""
        from sqlalchemy import select

        from token_broker.memory.store.tables import usage

        def rows(connection: Any) -> list[dict[str, Any]]:
            return [dict(row) for row in connection.execute(select(usage)).mappings()]

        return await self.running.memory.database.read(rows)


@asynccontextmanager
async def live_broker(directory: Path, more: str = "", **overrides: Any) -> AsyncIterator[LiveBroker]:
    config = SimulatorConfig(ice_addresses=("127.0.0.1",))
    async with serve(config) as azure, run_tool_server() as tools:
        path = write_agents(directory, agents_file(tools, more))
        settings = make_settings(
            directory, azure.base_url, agents_file=path, signing_keys="d" * 40, tools_secret=SECRET, **overrides
        )
        async with run_broker(settings) as running:
            yield LiveBroker(running, azure, tools)


def pieces(pcm: bytes) -> list[str]:
    return [base64.b64encode(pcm[begin : begin + 4800]).decode() for begin in range(0, len(pcm), 4800)]


async def say(connection: Any, seconds: float = 0.5) -> None:
    """Speaks, and is silent for long enough that an answer comes."""
    for audio in pieces(speech(seconds) + silence(0.7)):
        await connection.session.input_audio.append(audio=audio)


async def hear(connection: Any, name: str, kept: list[Any]) -> Any:
    """Reads up to an event of that type; `kept` gets all."""
    async with asyncio.timeout(15):
        while True:
            event = await connection.recv()
            kept.append(event)
            assert "canary" not in json.dumps(event.to_dict()), event
            if event.type == name:
                return event
