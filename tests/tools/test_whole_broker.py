"""A broker as it is served: an agent's tool runs in a talk, and its credentials stay where they belong."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook
from websockets.asyncio.client import connect

from tests.hooks.support import SECRET, answered, raw_server
from tests.support.broker import environment, plain_client, run_process
from token_broker.simulator import SimulatorConfig, run_in_thread

HEADER, QUERY = "canary-header-1", "canary-query-2"
AGENTS = """
default = "ann"
[agents.ann]
name = "Ann"
voices = {{ ga = "marin", preview = "en-US-Ava:DragonHDLatestNeural" }}
instructions = "You are Ann."
builtin_tools = ["recall"]
[[agents.ann.tools]]
type = "function"
name = "order_status"
parameters = {{ type = "object", properties = {{ number = {{ type = "string" }} }}, required = ["number"] }}
bind = {{ session = "session_id" }}
run = {{ url = "{url}?code={query}", headers = {{ X-Key = "env:TOOL_KEY" }} }}
"""


@pytest.mark.slow
async def test_tool_runs_in_a_talk(tmp_path: Path) -> None:
    with run_in_thread(SimulatorConfig(answer_speed=20)) as azure:
        async with raw_server(answered(b'{"status": "on its way"}')) as server:
            (tmp_path / "agents.toml").write_text(AGENTS.format(url=server.url, query=QUERY))
            store = tmp_path / "broker.db"
            env = environment(
                tmp_path,
                azure.base_url,
                BROKER_AGENTS_FILE=str(tmp_path / "agents.toml"),
                BROKER_DATABASE_URL=f"sqlite+aiosqlite:///{store}",
                BROKER_LOG_LEVEL="debug",
                BROKER_TOOLS_SECRET=SECRET,
                TOOL_KEY=HEADER,
            )
            async with run_process("serve", env, tmp_path) as process, plain_client(process.base_url) as client:
                plan = (await client.post("/realtime/token", json={})).json()
                events = await _talk(plan, '[call order_status {"number": "7"}]')
                metrics = (await client.get("/metrics")).text
                status = (await client.get("/status")).text
                session = {"X-Session-Token": plan["session_token"]}
                erased = await client.delete(f"/api/v1/memory/sessions/{plan['session_id']}/turns", headers=session)
    (got,) = server.received
    payload = Webhook(SECRET).verify(got.body, got.headers)
    assert payload["arguments"] == {"number": "7", "session": plan["session_id"]}
    assert got.headers["x-key"] == HEADER
    assert 'token_broker_tool_calls_total{agent="ann",outcome="done",tool="order_status"} 1.0' in metrics
    assert '"event":"tool_ran"' in process.log.replace('": "', '":"')
    assert erased.is_success
    with closing(sqlite3.connect(store)) as file:
        assert file.execute("SELECT count(*) FROM tool_claims").fetchone() == (0,)
    for shown in (process.log, metrics, status, json.dumps([plan, events])):
        assert [canary for canary in (HEADER, QUERY, SECRET) if canary in shown] == []


async def _talk(plan: dict[str, Any], text: str) -> list[dict[str, Any]]:
    """Types `text` into a talk over the proxy; what came until the answer that follows the tool's output."""
    proxy = next(each for each in plan["connections"] if each["transport"] == "websocket_proxy")
    events: list[dict[str, Any]] = []
    async with connect(proxy["url"], subprotocols=proxy["protocols"], compression=None, proxy=None) as socket:

        async def until(kind: str) -> None:
            while not events or events[-1]["type"] != kind:
                events.append(json.loads(await socket.recv()))

        await until("broker.ready")
        content = [{"type": "input_text", "text": text}]
        item = {"type": "message", "role": "user", "content": content}
        await socket.send(json.dumps({"type": "conversation.item.create", "item": item}))
        await socket.send(json.dumps({"type": "response.create"}))
        for _ in range(2):  # the answer that calls, and the one that tells
            await until("response.done")
            events.append({"type": "seen"})
    return events
