"""The wire of the .NET clients `OpenAI` 2.15 and `Microsoft.Extensions.AI.OpenAI` 10.11 (docs/azure.md §9.4).

No .NET runs here. The library offers the subprotocol `realtime`, sends its key as Bearer, configures the session before
it sends audio, reads each event into a type, and stops reading at a `response.done` that has no `response`.
"""

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from tests.clients.support.compat import BROKERS, MODEL, CompatEndpoint, open_compat
from tests.clients.support.setups import QUESTION, TURNS, TYPED
from tests.support.broker import plain_client

_CHUNK_BYTES = 16 * 1024  # what SendInputAudioAsync(Stream) reads at a time
_CONFIGURED = {
    "type": "realtime",
    "instructions": "Talk like a pirate.",
    "audio": {
        "input": {"transcription": {"model": "gpt-4o-transcribe"}, "turn_detection": {"type": "server_vad"}},
        "output": {"voice": "alloy"},
    },
}
# What the library's types read without asking whether it is there.
_READ = {
    "session.created": ("session",),
    "session.updated": ("session",),
    "conversation.item.done": ("item",),
    "conversation.item.input_audio_transcription.completed": ("item_id", "content_index", "transcript"),
    "response.created": ("response",),
    "response.output_audio.delta": ("response_id", "item_id", "output_index", "content_index", "delta"),
    "response.output_audio_transcript.done": ("response_id", "item_id", "transcript"),
    "response.done": ("response",),
}


@pytest.fixture(params=BROKERS)
async def compat(
    request: pytest.FixtureRequest, tmp_path: Path, authority: trustme.CA
) -> AsyncIterator[CompatEndpoint]:
    async with open_compat(request.param, tmp_path, authority) as opened:
        yield opened


def dial(compat: CompatEndpoint, key: str, path: str = "/v1/realtime") -> connect:
    """As `RealtimeSessionClient.ConnectAsync` does: the endpoint's scheme turned to ws, the model in the query."""
    url = compat.http.replace("http", "ws", 1)
    return connect(
        f"{url}{path}?model={MODEL}",
        subprotocols=["realtime"],  # type: ignore[list-item]  # a NewType of str
        additional_headers={"Authorization": f"Bearer {key}"},
        max_size=None,
    )


async def mint(compat: CompatEndpoint) -> str:
    async with plain_client(compat.http) as client:
        answer = await client.post("/v1/realtime/client_secrets", json={"metadata": {"agent_id": "marcus"}})
    secret: str = answer.raise_for_status().json()["value"]
    return secret


async def send(socket: ClientConnection, kind: str, **fields: Any) -> None:
    await socket.send(json.dumps({"type": kind, **fields}))


async def receive(socket: ClientConnection, responses: int) -> AsyncIterator[dict[str, Any]]:
    """Events up to the end of so many responses, each with what the library reads of it."""
    while responses:
        event = json.loads(await socket.recv())
        assert isinstance(event.get("event_id"), str), event
        assert [name for name in _READ.get(event["type"], ()) if event.get(name) is None] == [], event
        responses -= event["type"] == "response.done"
        yield event


@pytest.mark.parametrize("path", ["/v1/realtime", "/openai/v1/realtime"])
async def test_talk_as_openai_2_15(compat: CompatEndpoint, path: str) -> None:
    secret = await mint(compat)
    async with dial(compat, secret, path) as socket:
        assert socket.subprotocol in {"realtime", None}, "any other ends .NET's handshake"
        await send(socket, "session.update", session=_CONFIGURED)
        for begin in range(0, len(QUESTION), _CHUNK_BYTES):
            audio = base64.b64encode(QUESTION[begin : begin + _CHUNK_BYTES]).decode()
            await send(socket, "input_audio_buffer.append", audio=audio)
        events = [event async for event in receive(socket, 1)]
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": TYPED}]}
        await send(socket, "conversation.item.create", item=item)
        await send(socket, "response.create", response={})
        events += [event async for event in receive(socket, 1)]
    assert [event["type"] for event in events[:2]] == ["session.created", "session.updated"]
    assert "pirate" not in json.dumps(events), "the agent's instructions are the broker's"
    said = [event["transcript"] for event in events if event["type"] == "response.output_audio_transcript.done"]
    assert said == [TURNS[1][1], TURNS[3][1]]
    assert await compat.turns(secret) == TURNS


async def test_refused_handshake_is_a_status(compat: CompatEndpoint) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with dial(compat, "ek_wrong"):
            pytest.fail("it was let in")
    assert refused.value.response.status_code == 401
