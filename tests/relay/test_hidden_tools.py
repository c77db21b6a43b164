"""An MCP server's list of tools belongs to the agent: a client learns that it exists, but not what is in it."""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.asyncio.client import connect

from tests.relay.support.azure import AzureTalk, converse, scripted_azure
from tests.relay.support.broker import Client, broker
from token_broker.relay.policy.visibility import without_agents_settings
from token_broker.web.requests import uuid7

TOOL = {"name": "canary_transfer", "description": "canary says what it does", "input_schema": {"type": "object"}}
ITEM: dict[str, Any] = {
    "id": "mcpl_1",
    "type": "mcp_list_tools",
    "server_label": "docs",
    "tools": [TOOL],
    "error": {"type": "http_error", "message": "canary failed at https://canary.example.com"},
}
WITH_ITEM = (
    "conversation.item.added",
    "conversation.item.created",
    "conversation.item.done",
    "conversation.item.retrieved",
    "response.output_item.added",
    "response.output_item.done",
    "some.event.of.the.future",
)
EVENTS: list[dict[str, Any]] = [
    *({"type": kind, "event_id": f"e{number}", "item": ITEM} for number, kind in enumerate(WITH_ITEM)),
    {"type": "response.created", "event_id": "e20", "response": {"id": "resp_1", "output": [ITEM]}},
    {"type": "response.done", "event_id": "e21", "response": {"id": "resp_1", "status": "completed", "output": [ITEM]}},
    {"type": "mcp_list_tools.failed", "event_id": "e22", "item_id": "mcpl_1", "error": {"message": "canary"}},
]
PATHS = ("proxy", "/v1/realtime", "/voice-live/realtime")


@contextlib.asynccontextmanager
async def talking(path: str, upstream: str) -> AsyncIterator[tuple[Client, AzureTalk]]:
    async with scripted_azure(converse) as azure, broker(azure.url, proxy_upstreams=(upstream,)) as running:
        session = uuid7()
        if path == "proxy":
            async with running.client(session_id=session) as client:
                yield client, await azure.talk()
            return
        url = f"ws://127.0.0.1:{running.port}{path}"
        bearer = {"Authorization": f"Bearer {running.ticket(session)}"}
        async with connect(url, additional_headers=bearer, compression=None, proxy=None, close_timeout=1) as socket:
            yield Client(socket, session), await azure.talk()


@pytest.mark.parametrize("upstream", ["voice_live", "openai_realtime"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("text", ["ASCII", "not ASCII"])
async def test_no_event_shows_mcp_tools(path: str, upstream: str, text: str) -> None:
    async with talking(path, upstream) as (client, talk):
        await client.until("session.created")
        for event in EVENTS:
            # An event that is not ASCII is handled instead of forwarded.
            more = {} if text == "ASCII" else {"note": "Grüße"}
            await talk.connection.send(json.dumps({**event, **more}, ensure_ascii=False))
        await talk.send({"type": "response.text.delta", "event_id": "last", "delta": "x"})
        while client.events[-1].get("event_id") != "last":
            await client.next()
    assert "canary" not in json.dumps(client.events)
    items = [event["item"] for event in client.events if "item" in event]
    assert {item["type"] for item in items} == {"mcp_list_tools"}
    assert all(item["tools"] == [] and item["id"] == "mcpl_1" and item["server_label"] == "docs" for item in items)
    (done,) = [event for event in client.events if event["type"] == "response.done"]
    assert [(item["type"], item["tools"]) for item in done["response"]["output"]] == [("mcp_list_tools", [])]
    assert any(event["type"] == "mcp_list_tools.failed" for event in client.events)


async def test_other_items_stay_the_same_object() -> None:
    for item in ({"id": "i", "type": "mcp_call", "name": "x"}, {"type": "message", "content": []}, "text", None):
        event = {"type": "conversation.item.added", "item": item}
        assert without_agents_settings(event) is event
        done = {"type": "response.done", "response": {"id": "r", "output": [item]}}
        assert without_agents_settings(done) is done


async def test_users_words_about_tools_pass() -> None:
    async with talking("proxy", "openai_realtime") as (client, talk):
        await client.until("session.updated")
        event = {"type": "response.output_text.done", "event_id": "e", "text": "mcp_list_tools", "item_id": "i"}
        await talk.send(event)
        assert await client.until("response.output_text.done") == event
