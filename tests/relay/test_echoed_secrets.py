"""Azure's errors may quote what the broker sent; a client gets them without its secrets."""

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from tests.relay.support.azure import AzureTalk, scripted_azure
from tests.relay.support.broker import ENTRA_TOKEN, KEY, Client, build, make_settings, serving
from tests.support.agents import TOOL_AUTHORIZATION, agents_with_secrets, write_agents
from token_broker.sessions.agents import load_agents
from token_broker.web.requests import uuid7

QUOTED_HEADER = 'canary-"header"-88'  # its quotes are escaped in the JSON that carries it
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJjYW5hcnkiOiJjYW5hcnkifQ.canary-signature"
SECRETS = (KEY, TOOL_AUTHORIZATION, QUOTED_HEADER, JWT)
QUOTED = "Refused: " + ", ".join(SECRETS)
EVENTS: list[dict[str, Any]] = [
    {
        "type": "error",
        "event_id": "e1",
        "error": {"type": "invalid_request_error", "code": "x", "message": QUOTED, "param": KEY, "event_id": "mine"},
    },
    {"type": "error", "event_id": "e2", "error": {"message": "Grüße", "details": [{"innererror": {"text": QUOTED}}]}},
    {"type": "error", "event_id": "e3", "message": QUOTED, "error": None},
    {
        "type": "response.done",
        "event_id": "e4",
        "response": {
            "id": "resp_1",
            "status": "failed",
            "output": [],
            "status_details": {"type": "failed", "error": {"code": "x", "message": QUOTED}},
        },
    },
    {
        "type": "conversation.item.input_audio_transcription.failed",
        "event_id": "e5",
        "item_id": "item_1",
        "content_index": 0,
        "error": {"code": "x", "message": QUOTED},
    },
    {"type": "warning", "event_id": "e6", "warning": {"code": "x", "message": QUOTED}},
]


@contextlib.asynccontextmanager
async def talking(path: str, tmp_path: Path, **overrides: Any) -> AsyncIterator[tuple[Client, AzureTalk]]:
    file = write_agents(tmp_path, agents_with_secrets(QUOTED_HEADER))
    async with scripted_azure() as azure:
        prepared = build(make_settings(azure.url, **overrides), agents=load_agents(file))
        async with serving(prepared) as running:
            session = uuid7()
            ticket = running.ticket(session, agent_id="ann")
            if path == "proxy":
                async with running.client(session_id=session, ticket=ticket) as client:
                    yield client, await azure.talk()
                return
            url, bearer = f"ws://127.0.0.1:{running.port}{path}", {"Authorization": f"Bearer {ticket}"}
            async with connect(url, additional_headers=bearer, compression=None, proxy=None, close_timeout=1) as socket:
                yield Client(socket, session), await azure.talk()


async def hear(client: Client, talk: AzureTalk, events: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the client gets of `events`, by their ids."""
    await client.until("session.created")
    for event in events:
        await talk.connection.send(json.dumps(event, ensure_ascii=False))
    await talk.send({"type": "response.text.delta", "event_id": "last", "delta": "x"})
    while client.events[-1].get("event_id") != "last":
        await client.next()
    return {event["event_id"]: event for event in client.events if "event_id" in event}


@pytest.mark.parametrize("upstream", ["voice_live", "openai_realtime"])
@pytest.mark.parametrize("path", ["proxy", "/v1/realtime", "/voice-live/realtime"])
async def test_quoted_secret_is_redacted(tmp_path: Path, path: str, upstream: str) -> None:
    async with talking(path, tmp_path, proxy_upstreams=(upstream,)) as (client, talk):
        told = await hear(client, talk, EVENTS)
    assert "canary" not in json.dumps(list(told.values()))
    error = told["e1"]["error"]
    assert error["message"].startswith("Refused: [redacted], ")
    assert (error["type"], error["code"], error["event_id"]) == ("invalid_request_error", "x", "mine")
    assert told["e4"]["response"]["status_details"]["error"]["message"].startswith("Refused: [redacted], ")
    assert told["e2"]["error"]["message"] == "Grüße"
    assert {"e3", "e5"} <= set(told)


async def test_quoted_entra_token_is_redacted(tmp_path: Path) -> None:
    async with talking("proxy", tmp_path, azure_auth="entra", key=None) as (client, talk):
        event = {"type": "error", "event_id": "e1", "error": {"message": f"not valid: {ENTRA_TOKEN}"}}
        told = await hear(client, talk, [event])
    assert told["e1"]["error"] == {"message": "not valid: [redacted]"}


async def test_error_without_secret_is_unchanged(tmp_path: Path) -> None:
    text = '{ "type": "error", "event_id": "e1", "error": {"message": "no \\u0073uch item", "param": null} }'
    async with talking("proxy", tmp_path) as (client, talk):
        await client.until("session.created")
        await client.until("session.updated")
        await talk.connection.send(text)
        assert await client.socket.recv() == text
