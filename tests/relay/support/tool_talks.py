"""Talks of an agent with tools: a tool server, a simulated Azure that calls, and the broker between them."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from websockets.asyncio.client import connect

from tests.hooks.support import secrets
from tests.relay.support.broker import Client, Running, broker
from tests.support.agents import write_agents
from tests.support.tool_server import ToolServer, run_tool_server
from token_broker.hooks.sender import HookSender, hook_client
from token_broker.memory.tool_claims import CallId, ClaimedCall
from token_broker.sessions.agents import load_agents
from token_broker.simulator import RunningSimulator, SimulatorConfig, run_in_thread
from token_broker.tools.http_runner import HttpToolRunner
from token_broker.web.requests import uuid7

__all__ = ["PATHS", "ToolTalks", "agents_with_tools", "ask", "run_tool_talks", "spoken", "typed"]

PATHS = {"proxy": "", "ga": "/v1/realtime", "voice_live": "/voice-live/realtime"}
"""The ways in which a client talks with an agent, by name."""

_AGENTS = """
default = "elena"
[agents.elena]
name = "Elena"
voices = {{ ga = "marin", preview = "en-US-Ava:DragonHDLatestNeural" }}
instructions = "You are Elena."
builtin_tools = ["recall"]
tools = [
{tools}
    {{ type = "function", name = "map", run = "client", timeout_s = {client_s}, parameters = {{ type = "object", properties = {{ place = {{ type = "string" }} }}, required = ["place"] }} }},
    {{ type = "mcp", server_label = "docs", server_url = "https://mcp.example.com", allowed_tools = ["search"], require_approval = "never" }},
    {{ type = "mcp", server_label = "asked", server_url = "https://mcp.example.com", allowed_tools = ["delete"], require_approval = "always" }},
]
"""  # noqa: E501
_TOOL = '    {{ type = "function", name = "{name}", run = {{ url = "{url}", timeout_s = {timeout_s} {more} }} }},'


@dataclass(slots=True)
class OnceClaims:
    """The claims of one process, without a store."""

    found: dict[CallId, ClaimedCall] = field(default_factory=dict)

    async def claim(self, call: CallId, *, timeout_s: float) -> str | ClaimedCall:
        del timeout_s
        if call in self.found:
            return self.found[call]
        self.found[call] = ClaimedCall("running")
        return "us"

    async def find(self, call: CallId) -> ClaimedCall:
        return self.found[call]

    async def take_over(self, call: CallId, *, timeout_s: float) -> str | None:
        del call, timeout_s
        return None

    async def finish(self, call: CallId, holder: str, output: str | None, *, ok: bool) -> None:
        del holder
        self.found[call] = ClaimedCall("unknown" if output is None else "done", output, ok)


@dataclass(slots=True)
class ToolTalks:
    """A broker whose agent has the tools of `ToolServer`'s paths, and `map`, which the client answers."""

    azure: RunningSimulator
    server: ToolServer
    running: Running
    claims: OnceClaims

    @contextlib.asynccontextmanager
    async def client(self, path: str = "proxy") -> AsyncIterator[Client]:
        """A client that may begin to talk: of the proxy, or of a compatible endpoint."""
        session = uuid7()
        if path == "proxy":
            async with self.running.client(session_id=session) as client:
                await client.ready()
                yield client
            return
        url = f"ws://127.0.0.1:{self.running.port}{PATHS[path]}"
        bearer = {"Authorization": f"Bearer {self.running.ticket(session)}"}
        async with connect(url, additional_headers=bearer, compression=None, proxy=None, close_timeout=1) as socket:
            client = Client(socket, session)
            await client.until("session.created")
            yield client

    def tool_answers(self) -> int:
        """How many answers Azure has begun that go on from a tool's output."""
        return sum(answer.follows == "tool" for answer in self.azure.transcript.answers)


def agents_with_tools(server: ToolServer | None, *, client_s: float = 20, timeout_s: float = 8) -> str:
    """An agents' file: elena has a tool for each of the server's paths, `map` for the client, and two MCP servers."""
    tools = [
        _TOOL.format(
            name=name,
            url=server.url(name),
            timeout_s=timeout_s,
            more=', say = "One moment."' if name == "held" else "",
        )
        for name in ("ok", "held", "fail", "moved", "big", "die", "hang")
        if server is not None
    ]
    return _AGENTS.format(tools="\n".join(tools), client_s=client_s)


@contextlib.asynccontextmanager
async def run_tool_talks(
    folder: Path, *, client_s: float = 20, timeout_s: float = 8, **overrides: Any
) -> AsyncIterator[ToolTalks]:
    """Everything that a talk with tools needs, until the block ends."""
    claims = OnceClaims()
    with run_in_thread(SimulatorConfig(answer_speed=20)) as azure:
        async with run_tool_server() as server, hook_client() as http:
            file = write_agents(folder, agents_with_tools(server, client_s=client_s, timeout_s=timeout_s))
            runner = HttpToolRunner(HookSender(http, secrets()), claims, None)
            settings = {"key": SecretStr("simulated-key")} | overrides
            try:
                async with broker(azure.base_url, agents=load_agents(file), tools=runner, **settings) as running:
                    yield ToolTalks(azure, server, running, claims)
            finally:
                await runner.aclose()


def typed(text: str) -> dict[str, Any]:
    """What a user types, as an event."""
    content = [{"type": "input_text", "text": text}]
    return {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": content}}


async def ask(client: Client, text: str) -> None:
    """Types something, and asks for the answer. `[call ok {}]` in it makes Azure call the tool `ok`."""
    await client.send(typed(text))
    await client.send({"type": "response.create"})


def spoken(events: list[dict[str, Any]]) -> list[str]:
    """What the agent said."""
    kinds = {"response.audio_transcript.done", "response.output_audio_transcript.done"}
    return [event["transcript"] for event in events if event["type"] in kinds]
