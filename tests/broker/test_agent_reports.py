"""What a start says of agents whose settings some path lacks: in the log, in `/status`, by the doctor."""

from pathlib import Path
from typing import Any

import pytest

from tests.broker.test_settings import written
from tests.support.broker import make_settings, run_broker
from token_broker.azure import build_pool
from token_broker.sessions.agent_reports import agent_reports, tool_reports
from token_broker.sessions.agents import load_agents
from token_broker.settings import Settings
from token_broker.simulator import serve

HEAD = """
default = "a"
[agents.a]
name = "A"
voices = { ga = "marin", preview = "alloy" }
instructions = "Be A."
"""
MCP = """
[[agents.a.tools]]
type = "mcp"
server_label = "docs"
server_url = "https://mcp.example.com"
require_approval = "never"
"""


def settings_of(**overrides: Any) -> Settings:
    return make_settings(None, "https://x.services.ai.azure.com", **overrides)


def reports(tmp_path: Path, lines: str, *, tools: bool = False, **overrides: Any) -> list[str]:
    (agent,) = load_agents(written(tmp_path, HEAD + lines)).values()
    settings = settings_of(**overrides)
    return (tool_reports if tools else agent_reports)(agent, settings, build_pool(settings).resources)


@pytest.mark.parametrize(
    ("lines", "overrides", "told"),
    [
        ("", {}, []),
        ("speed = 1.2", {}, ["speed is left out, on Voice Live"]),
        ("speed = 1.2", {"token_strategies": ("ga",)}, []),
        ("speed = 1.2", {"proxy_upstreams": ("openai_realtime",)}, []),
        (
            "temperature = 0.7",
            {},
            ["temperature is left out, on GA's mint, GA's socket"],
        ),
        (
            "temperature = 0.7",
            {"token_strategies": ("unified", "websocket_proxy"), "proxy_upstreams": ("openai_realtime",)},
            ["temperature is left out, on GA's socket"],
        ),
        ("temperature = 0.3", {"token_strategies": ("unified",)}, ["temperature is left out, on the flat mints"]),
        (
            'reasoning_effort = "low"',
            {},
            ["reasoning_effort is left out, on GA's mint, Voice Live, GA's socket, the flat mints"],
        ),
        ('reasoning_effort = "low"\nmodel_family = "gpt-realtime-2"', {"token_strategies": ("ga",)}, []),
        (
            'transcription = { model = "whisper-1" }',
            {"token_strategies": ("ga",)},
            ["transcription.model: whisper-1 is a classic whisper, which a GA session does not take"],
        ),
    ],
)
def test_lost_settings_are_told(tmp_path: Path, lines: str, overrides: dict[str, Any], told: list[str]) -> None:
    assert reports(tmp_path, lines, **overrides) == told


@pytest.mark.parametrize(
    ("lines", "overrides", "word"),
    [
        ('tools = [{ type = "function", name = "look_up" }]', {}, "tools.look_up: nobody runs it"),
        (MCP, {}, "tools.docs: Voice Live has no MCP in api-version 2025-10-01"),
        (MCP, {"api_version": "2026-04-10"}, None),
        (MCP, {"proxy_upstreams": ("openai_realtime",)}, None),
    ],
)
def test_tools_are_told(tmp_path: Path, lines: str, overrides: dict[str, Any], word: str | None) -> None:
    told = reports(tmp_path, lines, tools=True, **overrides)
    assert len(told) == (word is not None)
    assert all(word in line for line in told if word)


async def test_start_and_status_tell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, f'{HEAD}speed = 1.2\ntools = [{{ type = "function", name = "look_up" }}]\n')
    async with serve() as azure, run_broker(make_settings(tmp_path, azure.base_url, agents_file=path)) as broker:
        status = (await broker.client.get("/status")).json()
        assert status["agent_reports"] == {"a": ["speed is left out, on Voice Live"]}
        assert "look_up" not in str(status), "whoever may see the figures need not know the tools"
    log = capsys.readouterr().out
    assert log.count("agent_report ") == 2
    assert "tools.look_up: nobody runs it" in log
