"""The fast way past uvicorn's parser comes to what the parser comes to, however the data is cut."""

import asyncio
import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from tests.relay.support.azure import scripted_azure
from tests.relay.support.broker import broker
from token_broker.relay.frames import FrameEdge, text_frame, text_frame_head

payloads = st.one_of(st.binary(max_size=200), st.sampled_from([125, 126, 127, 65_535, 65_536, 70_000]).map(bytes))
frames = st.builds(
    lambda opcode, payload, mask: Frame(opcode, payload[:125] if opcode >= 8 else payload).serialize(mask=mask),
    st.sampled_from([Opcode.TEXT, Opcode.BINARY, Opcode.CONT, Opcode.PING]),
    payloads,
    st.booleans(),
)


@given(st.lists(frames, min_size=1, max_size=4), st.randoms())
def test_the_edge_is_found_however_the_data_is_cut(stream: list[bytes], chance: random.Random) -> None:
    data = b"".join(stream)
    edges = {sum(map(len, stream[:count])) for count in range(len(stream) + 1)}
    edge, at = FrameEdge(), 0
    while at < len(data):
        size = chance.choice([1, 2, 3, 7, 50, 70_000])
        edge.walk(data[at : at + size])
        at = min(at + size, len(data))
        assert edge.between_frames is (at in edges)


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65_535, 65_536, 100_000])
def test_a_text_frame_is_written_as_websockets_writes_it(length: int) -> None:
    payload = b"x" * length
    assert text_frame_head(length) + payload == Frame(Opcode.TEXT, payload).serialize(mask=False)


@given(st.binary(max_size=40))
def test_any_data_begins_with_a_text_frame_or_does_not(data: bytes) -> None:
    if (span := text_frame(data)) is not None:
        begin, end = span
        assert 6 <= begin <= len(data)
        assert begin <= end < begin + 65_536


@pytest.mark.parametrize("length", [0, 1, 125, 126, 1330, 65_535])
def test_a_text_frame_is_found_with_or_without_more_behind_it_and_before_it_is_whole(length: int) -> None:
    frame = Frame(Opcode.TEXT, b"x" * length).serialize(mask=True)
    for data in (frame, frame + b"\x81", frame[:8]):
        span = text_frame(data)
        assert span == (len(frame) - length, len(frame))


async def test_a_talk_cut_at_any_byte_reaches_azure_whole_and_in_order() -> None:
    chance = random.Random(7)
    messages: list[dict[str, Any]] = [
        {"type": "input_audio_buffer.append", "audio": "A" * chance.choice([0, 40, 80, 900, 1280, 40_000, 70_000])}
        if chance.random() < 0.8
        else {"type": "input_text.delta", "id": str(number), "delta": "Grüße \U0001f44b"}
        for number in range(120)
    ]
    stream = bytearray()
    for message in messages:
        text = json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()
        cut = chance.choice([None, None, 1, 30])
        if cut is None:
            stream += Frame(Opcode.TEXT, text).serialize(mask=True)
        else:
            stream += Frame(Opcode.TEXT, text[:cut], fin=False).serialize(mask=True)
            stream += Frame(Opcode.PING, b"in between").serialize(mask=True)
            stream += Frame(Opcode.CONT, text[cut:]).serialize(mask=True)
    async with scripted_azure() as azure, broker(azure.url) as running, running.client() as client:
        await client.ready()
        at = 0
        while at < len(stream):
            size = chance.choice([1, 5, 100, 1340, 3000, 50_000])
            client.socket.transport.write(bytes(stream[at : at + size]))
            at += size
            if chance.random() < 0.3:
                await asyncio.sleep(0.001)
        talk = await azure.talk()
        await talk.arrivals(1 + len(messages))
        assert talk.received[1:] == messages
