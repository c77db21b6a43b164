"""`kill -9` in the middle of a call: what another process does with it, on a real store."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from pydantic import SecretStr

from tests.hooks.support import RawServer, answered, hangs, raw_server
from tests.memory.support.stores import opened
from tests.support.databases import sqlite_url
from tests.tools.support import agent, call, order_tool
from token_broker.hooks.sender import HookSender
from token_broker.memory.drivers.connect import connect
from token_broker.memory.tool_claims import ToolClaims
from token_broker.tools.http_runner import HttpToolRunner

MARGIN_S = 0.2
PROGRAM = """
import asyncio, json, sys
from pydantic import SecretStr
from tests.hooks.support import secrets
from tests.memory.support.stores import opened
from tests.tools.support import agent, call, order_tool
from token_broker.hooks.sender import HookSender, hook_client
from token_broker.memory.drivers.connect import connect
from token_broker.memory.tool_claims import ToolClaims
from token_broker.tools.http_runner import HttpToolRunner

async def main(url, tool_url, idempotent, margin_s):
    async with opened(connect(SecretStr(url), timeout_s=10, patience_s=5)) as database, hook_client() as http:
        runner = HttpToolRunner(HookSender(http, secrets()), ToolClaims(database, margin_s=margin_s), None)
        await runner.run(call(agent(order_tool(tool_url, idempotent=idempotent, timeout_s=3))))

asyncio.run(main(*json.loads(sys.argv[1])))
"""


@pytest_asyncio.fixture
async def server() -> AsyncIterator[RawServer]:
    async with raw_server(hangs) as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("idempotent", [False, True])
async def test_killed_in_the_middle(sender: HookSender, server: RawServer, tmp_path: Path, *, idempotent: bool) -> None:
    """The second process waits for what the first makes of the call, then knows that nobody knows."""
    url = sqlite_url(tmp_path)
    told = json.dumps([url, server.url, idempotent, MARGIN_S])
    first = await asyncio.create_subprocess_exec(sys.executable, "-c", PROGRAM, told)
    await asyncio.wait_for(server.asked.wait(), 60)
    first.send_signal(signal.SIGKILL)
    await first.wait()
    server.answer = answered(b"booked")
    async with opened(connect(SecretStr(url), timeout_s=10, patience_s=5)) as database:
        runner = HttpToolRunner(sender, ToolClaims(database, margin_s=MARGIN_S), None)
        same = call(agent(order_tool(server.url, idempotent=idempotent, timeout_s=8)))
        output = await runner.run(same)
        await runner.aclose()
        again = await HttpToolRunner(sender, ToolClaims(database), None).run(same)
    if idempotent:
        assert output.text == again.text == "booked"
    else:
        assert "It is unknown whether it took effect" in output.text
        assert "It is unknown whether it took effect" in again.text
    assert len(server.received) == 1 + idempotent
    assert len({got.headers["webhook-id"] for got in server.received}) == 1
