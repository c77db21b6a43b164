"""MCP servers that are slow to list their tools, fail, or have none: nothing waits for them."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.relay.support.azure import AzureTalk, scripted_azure
from tests.relay.support.broker import Client, broker
from tests.support.agents import write_agents
from token_broker.sessions.agents import load_agents

AGENTS = """
default = "elena"
[agents.elena]
name = "Elena"
voices = { ga = "marin", preview = "ava" }
instructions = "You are Elena."
greeting = "Welcome."
tools = [{ type = "mcp", server_label = "docs", server_url = "https://mcp.example.com" }]
"""
LIST: dict[str, Any] = {"id": "mcpl_1", "type": "mcp_list_tools", "server_label": "docs", "tools": []}


@contextlib.asynccontextmanager
async def listing(tmp_path: Path) -> AsyncIterator[tuple[AzureTalk, Client]]:
    """A talk whose server has begun to list its tools."""
    path = write_agents(tmp_path, AGENTS)
    async with (
        scripted_azure() as azure,
        broker(azure.url, agents=load_agents(path)) as running,
        running.client(agent_id="elena") as client,
    ):
        await client.ready()
        talk = await azure.talk()
        await talk.send({"type": "conversation.item.added", "item": LIST, "previous_item_id": None})
        await talk.send({"type": "mcp_list_tools.in_progress", "item_id": "mcpl_1"})
        yield talk, client


@pytest.mark.parametrize("ends", [None, "completed", "failed"])
async def test_nothing_waits_for_a_list(tmp_path: Path, ends: str | None) -> None:
    async with listing(tmp_path) as (talk, client):
        if ends is not None:
            await talk.send({"type": f"mcp_list_tools.{ends}", "item_id": "mcpl_1"})
        greeting = await talk.next_event("response.create")
        assert "Welcome." in greeting["response"]["instructions"]
        for number in (1, 2):
            await talk.send({"type": "response.created", "response": {"id": f"r{number}"}})
            done = {"id": f"r{number}", "status": "completed", "output": []}
            await talk.send({"type": "response.done", "response": done})
            await client.until("response.done")
            if number == 1:
                await client.send({"type": "response.create"})
                await talk.next_event("response.create", nth=2)
