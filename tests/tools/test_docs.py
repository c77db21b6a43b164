"""The snippets of docs/tools.md verify what the broker sends, and refuse everything else."""

import asyncio
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.hooks.support import SECRET
from tests.support.node import find_tool, installed_modules
from tests.support.serving import serve_app
from tests.support.sockets import free_port
from tests.tools.support import MemoryClaims, agent, call
from token_broker.hooks.sender import HookSender
from token_broker.sessions.agent_tools import FunctionTool
from token_broker.tools.http_runner import HttpToolRunner

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/tools.md").read_text()


def snippet(language: str) -> str:
    found = re.search(rf"^ *```{language}\n(.*?)^ *```", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def tool_of_the_page(url: str) -> FunctionTool:
    """The page's tool, at another URL."""
    entry = tomllib.loads(snippet("toml"))["agents"]["elena"]["tools"][0]
    return FunctionTool.model_validate(entry | {"run": entry["run"] | {"url": url}})


async def _check(sender: HookSender, url: str) -> None:
    """A call comes back with its answer, a ping with nothing, and what is not signed with 401."""
    runner = HttpToolRunner(sender, MemoryClaims(), None)
    output = await runner.run(call(agent(tool_of_the_page(url)), '{"number": "A-17"}'))
    answer = {"number": "A-17", "customer": "ann@example.com", "status": "on its way"}
    assert httpx.Response(200, text=output.text).json() == answer
    ping: Any = {"webhook_id": "ping_1", "timeout_s": 10, "max_bytes": 10}
    assert (await sender.post(url, {"type": "ping"}, **ping)).body == ""
    async with httpx.AsyncClient() as client:
        forged = {"webhook-id": "x", "webhook-timestamp": "1", "webhook-signature": "v1,AAAA"}
        assert (await client.post(url, json={"type": "ping"}, headers=forged)).status_code == 401
        assert (await client.post(url, json={"type": "ping"})).status_code == 401


async def test_python_snippet(sender: HookSender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLS_SECRET", SECRET)
    monkeypatch.setenv("CRM_TOKEN", "Bearer crm")
    program: dict[str, Any] = {}
    exec(compile(snippet("python"), "docs/tools.md", "exec"), program)  # noqa: S102  # the page's own program
    async with serve_app(program["app"]) as base_url:
        await _check(sender, f"{base_url}/tools/order")


@pytest.mark.slow
async def test_node_snippet(sender: HookSender, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CRM_TOKEN", "Bearer crm")
    (tmp_path / "node_modules").symlink_to(installed_modules(ROOT / "tests/hooks"))
    (tmp_path / "server.mjs").write_text(snippet("js"))
    port = free_port()
    variables = os.environ | {"TOOLS_SECRET": SECRET, "PORT": str(port)}
    server = await asyncio.create_subprocess_exec(find_tool("node"), "server.mjs", cwd=tmp_path, env=variables)
    try:
        async with asyncio.timeout(30):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    break
        await _check(sender, f"http://127.0.0.1:{port}/tools/order")
    finally:
        server.kill()
        await server.wait()
