"""Images from a client: one as large as a photograph passes, a larger one is refused, and the talk goes on."""

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from tests.relay.support.azure import AzureTalk, scripted_azure
from tests.relay.support.broker import Client, Running, broker
from token_broker.security.tokens import Owner
from token_broker.server import frames
from token_broker.server.frames import FrameBudget, FrameError, FrameReader

Event = dict[str, Any]
LIMIT = 1_000_000


def photo(size: int, *, text: str = "What is this?") -> Event:
    image = {"type": "input_image", "image_url": "data:image/jpeg;base64," + "A" * size}
    content = [{"type": "input_text", "text": text}, image]
    return {"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": content}}


@contextlib.asynccontextmanager
async def talking(endpoint: str, **overrides: Any) -> AsyncIterator[tuple[Running, Client, AzureTalk]]:
    """A talk on the proxy or on a compatible endpoint."""
    async with (
        scripted_azure() as azure,
        broker(azure.url, **overrides) as running,
        contextlib.AsyncExitStack() as stack,
    ):
        if endpoint == "proxy":
            client = await stack.enter_async_context(running.client())
            await client.until("session.updated")
        else:
            secret = running.signer.client_secret(Owner("session", "anonymous", 1), agent_id="elena", ttl_s=60)
            headers = {"Authorization": f"Bearer {secret}"}
            url = f"ws://127.0.0.1:{running.port}{endpoint}"
            # as many official clients do, it takes messages of 1 MiB at most
            socket = await stack.enter_async_context(
                connect(url, additional_headers=headers, proxy=None, close_timeout=1)
            )
            client = Client(socket, "session")
            await client.until("session.created")
        yield running, client, await azure.talk()


ENDPOINTS = ["proxy", "/v1/realtime", "/voice-live/realtime"]
ITEM_KINDS = {"conversation.item.added", "conversation.item.created"}


async def next_item(client: Client) -> Event:
    while (event := await client.next())["type"] not in ITEM_KINDS:
        assert "error" not in event["type"], event
    item: Event = event["item"]
    return item


@pytest.mark.parametrize("size", [400_000, 3_000_000])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_photo_reaches_azure(endpoint: str, size: int) -> None:
    async with talking(endpoint) as (_, client, talk):
        await client.send(photo(size))
        sent = await talk.next_event("conversation.item.create")
        assert sent["item"]["content"] == photo(size)["item"]["content"]
        # Azure repeats the item: the broker takes it, and a client of 1 MiB gets it without the image
        image = (await next_item(client))["content"][1]
        assert ("image_url" in image) is (endpoint == "proxy")


@pytest.mark.parametrize("text", ["What is this?", "Was für ein Gebäude ist das, ganz genau? 🏛"])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_too_large_photo_is_refused_alone(endpoint: str, text: str) -> None:
    async with talking(endpoint, image_bytes=LIMIT) as (running, client, talk):
        for size in (LIMIT, 9 * LIMIT):
            await client.send(photo(size, text=text))
            error = await client.until("broker.error" if endpoint == "proxy" else "error")
            error = error.get("error", error)
            assert (error["code"], error["param"]) == ("image_too_large", "item")
        await client.send(photo(LIMIT - 1_000, text=text))
        assert (await next_item(client))["content"][0]["text"] == text
        assert len(talk.received) == 2  # the session and the last photo
        assert running.relay.snapshot().refused_events == 2


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"input_audio_buffer.append","audio":"' + "A" * 400_000 + '"}',
        json.dumps({"type": "conversation.item.create", "x": '"image_url"' + "A" * 400_000}),
        json.dumps({"type": "conversation.item.create", "x": "A" * 400_000, "image_url": "late"}),
    ],
    ids=["audio", "quoted", "late"],
)
async def test_other_messages_keep_their_limit(text: str) -> None:
    async with talking("proxy") as (_, client, _talk):
        with contextlib.suppress(ConnectionClosed):
            await client.socket.send(text)
        assert await client.closed() == 1009


@pytest.mark.slow
async def test_azures_other_messages_keep_their_limit() -> None:
    async with talking("proxy") as (running, client, talk):
        running.connector._timeout_s = 0.0  # no other session can be had
        await talk.send({"type": "conversation.item.added", "item": {"audio": "A" * 2_000_000}})
        assert await client.closed() == 4502
        assert client.socket.close_reason == "Azure sent a message that is too large: ask for a new plan"


async def test_long_item_is_retrieved_without_azure() -> None:
    """Azure's answer would be longer than a message may be."""
    async with talking("proxy") as (_, client, talk):
        content = [{"type": "input_audio", "transcript": "A long story."}]
        item = {"id": "item_1", "type": "message", "role": "user", "content": content}
        await talk.send({"type": "conversation.item.created", "event_id": "e", "item": item})
        await client.until("conversation.item.created")
        await client.send({"type": "conversation.item.retrieve", "item_id": "item_1"})
        assert (await client.until("conversation.item.retrieved"))["item"] == item
        assert [event["type"] for event in talk.received] == ["session.update"]


# --- the reader of frames


def read(data: bytes, *, cut: random.Random) -> list[tuple[int, bytes]] | int:
    """The complete messages in the data, which comes in pieces of any length; or the code of the error."""
    budget = FrameBudget(0, 0, 0.0)
    reader = FrameReader(max_message_bytes=1_000, budget=budget, image_field=b'"image_url"', max_image_bytes=5_000)
    found = []
    at = 0
    try:
        while at < len(data):
            size = cut.choice([1, 7, 500, 4_000, len(data)])
            reader.feed(data[at : at + size])
            at += size
            while (frame := reader.read()) is not None:
                if frame[0] != frames.CONTINUATION:
                    found.append(frame)
    except FrameError as error:
        return error.code
    return found


def framed(payload: bytes, *, pieces: int) -> bytes:
    size = -(-len(payload) // pieces)
    cut = [payload[at : at + size] for at in range(0, len(payload), size)]
    return b"".join(
        Frame(Opcode.CONT if index else Opcode.TEXT, piece, fin=index == len(cut) - 1).serialize(mask=True)
        for index, piece in enumerate(cut)
    )


@pytest.mark.parametrize("pieces", [1, 2, 30])
@pytest.mark.parametrize("seed", range(4))
def test_reader_drops_only_oversized_images(pieces: int, seed: int) -> None:
    cut = random.Random(seed)
    small, large, huge = (b'{"image_url":"' + "ä".encode() * (size // 2) + b'"}' for size in (500, 4_000, 50_000))
    after = Frame(Opcode.TEXT, b"after").serialize(mask=True)
    data = b"".join(framed(payload, pieces=pieces) for payload in (small, large, huge, large)) + after
    text = frames.TEXT
    expected = [(text, small), (text, large), (frames.OVERSIZED, b""), (text, large), (text, b"after")]
    assert read(data, cut=cut) == expected
    for other in (b"A" * 2_000, b"A" * 1_000 + huge, b'"image_ur"' + b"A" * 50_000):
        assert read(framed(other, pieces=pieces), cut=cut) == 1009
    assert read(framed(huge[:-3] + b"\xff\xff\xff", pieces=pieces), cut=cut) == 1007


def test_binary_and_endless_messages_are_refused() -> None:
    field = b'"image_url"'
    assert read(Frame(Opcode.BINARY, field + b"A" * 2_000).serialize(mask=True), cut=random.Random(0)) == 1009
    endless = b"\x81\xff" + (2**40).to_bytes(8, "big") + b"mask"
    assert read(endless, cut=random.Random(0)) == 1009


async def test_dropped_image_is_not_held() -> None:
    async with talking("proxy", image_bytes=LIMIT) as (running, client, _talk):
        sending = asyncio.create_task(client.send(photo(20 * LIMIT)))
        error = await client.until("broker.error")
        assert error["code"] == "image_too_large"
        await sending
        assert running.relay.active == 1
