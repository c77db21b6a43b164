"""Frames are read as `websockets` reads them, however the data is cut, and within the budget."""

import asyncio
import json
import random
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

from tests.relay.support.azure import scripted_azure
from tests.relay.support.broker import broker
from token_broker.server import frames
from token_broker.server.frames import FrameBudget, FrameError, FrameReader, text_frame_head

Read = tuple[int, bytes]

payloads = st.one_of(st.binary(max_size=200), st.sampled_from([125, 126, 127]).map(bytes))
texts = st.one_of(st.text(max_size=60).map(str.encode), st.sampled_from([125, 126, 700]).map(lambda size: b"x" * size))


def sent(opcode: Opcode, payload: bytes, text: bytes, fin: bool, mask: bool) -> bytes:
    if opcode >= Opcode.CLOSE:
        return Frame(opcode, payload[:125]).serialize(mask=mask)
    return Frame(opcode, text, fin=fin).serialize(mask=mask)


def streams(mask: st.SearchStrategy[bool]) -> st.SearchStrategy[list[bytes]]:
    opcodes = st.sampled_from([Opcode.TEXT, Opcode.BINARY, Opcode.CONT, Opcode.CONT, Opcode.PING, Opcode.PONG])
    return st.lists(st.builds(sent, opcodes, payloads, texts, st.booleans(), mask), min_size=1, max_size=6)


def a_reader(*, frames: float = 0, control_frames: float = 0, max_bytes: int = 100_000) -> FrameReader:
    return FrameReader(max_message_bytes=max_bytes, budget=FrameBudget(frames, control_frames, 0.0))


def read(reader: FrameReader, *pieces: bytes) -> tuple[list[Read], int | None]:
    """All complete messages in the pieces, and the code of the error that ends them."""
    found: list[Read] = []
    try:
        for piece in pieces:
            reader.feed(piece)
            while (frame := reader.read()) is not None:
                if frame[0] != frames.CONTINUATION:
                    found.append(frame)
    except FrameError as error:
        return found, error.code
    return found, None


def read_by_websockets(data: bytes) -> tuple[list[Read], int | None]:
    conn = ServerProtocol(state=State.OPEN, max_size=100_000)
    conn.receive_data(data)
    found: list[Read] = []
    opcode, message = Opcode.TEXT, b""
    for event in conn.events_received():
        assert isinstance(event, Frame)
        if event.opcode >= Opcode.CLOSE:
            found.append((event.opcode, bytes(event.data)))
            continue
        opcode = opcode if event.opcode is Opcode.CONT else event.opcode
        message += event.data
        if event.fin:
            found.append((opcode, message))
            message = b""
    return found, conn.close_sent.code if conn.close_sent else None


@given(streams(st.sampled_from([True] * 9 + [False])))
def test_reads_frames_as_websockets_does(stream: list[bytes]) -> None:
    data = b"".join(stream)
    assert read(a_reader(), data) == read_by_websockets(data)


@given(streams(st.just(True)), st.randoms())
def test_frames_survive_any_cut(stream: list[bytes], chance: random.Random) -> None:
    data = b"".join(stream)
    pieces, at = [], 0
    while at < len(data):
        size = chance.choice([1, 2, 3, 7, 50, 70_000])
        pieces.append(data[at : at + size])
        at += size
    assert read(a_reader(), *pieces) == read(a_reader(), data)


@pytest.mark.parametrize("length", [0, 125, 126, 65_535, 65_536, 100_000])
@pytest.mark.parametrize("cut", [3, 9, 13, 50])
def test_frame_of_any_length_is_read(length: int, cut: int) -> None:
    data = Frame(Opcode.BINARY, b"x" * length).serialize(mask=True)
    expected = ([(frames.BINARY, b"x" * length)], None)
    assert read(a_reader(), data) == read(a_reader(), data[:cut], data[cut:]) == expected


@pytest.mark.parametrize("fragments", [[2_001], [1_000, 1_001], [1] * 1_999 + [2]])
def test_oversized_message_is_refused_by_head(fragments: list[int]) -> None:
    heads = [
        Frame(Opcode.CONT if number else Opcode.TEXT, b"x" * size, fin=False).serialize(mask=True)
        for number, size in enumerate(fragments)
    ]
    assert read(a_reader(max_bytes=2_000), b"".join(heads)[: -fragments[-1]]) == ([], 1009)


@given(st.binary(max_size=60))
def test_any_bytes_are_frames_or_an_error(data: bytes) -> None:
    _, code = read(a_reader(), data)
    assert code in {None, 1002, 1007, 1008, 1009}


def test_partial_frame_is_not_rescanned() -> None:
    """Otherwise a frame that arrives byte by byte costs the square of its length."""
    reader = a_reader()
    for byte in Frame(Opcode.TEXT, b"x" * 65_000).serialize(mask=True)[:-1]:
        reader.feed(bytes([byte]))
        assert reader.read() is None
        assert len(reader._data) < 14


def test_empty_fragments_take_no_memory() -> None:
    reader = a_reader()
    read(reader, Frame(Opcode.TEXT, b"", fin=False).serialize(mask=True))
    reader.feed(Frame(Opcode.CONT, b"", fin=False).serialize(mask=True) * 5_000)
    tracemalloc.start()
    try:
        while reader.read() is not None:
            pass
        assert tracemalloc.get_traced_memory()[0] < 10_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "one",
    [
        Frame(Opcode.TEXT, b"hi").serialize(mask=True),
        Frame(Opcode.TEXT, b"").serialize(mask=True),
        Frame(Opcode.BINARY, b"").serialize(mask=True),
        Frame(Opcode.PONG, b"").serialize(mask=True),
    ],
    ids=["text", "empty text", "empty binary", "pong"],
)
def test_burst_allows_ten_seconds_of_frames(one: bytes) -> None:
    reader = a_reader(frames=3)
    found, code = read(reader, one * 30)
    assert (len(found), code) == (30, None)
    reader.budget.now_s = 1.0
    assert read(reader, one * 3) == (found[:3], None)
    reader.budget.now_s = 1.3
    assert read(reader, one) == ([], 1008)


def test_pause_saves_no_more_than_a_burst() -> None:
    reader = a_reader(frames=3)
    reader.budget.now_s = 1_000.0
    found, code = read(reader, Frame(Opcode.TEXT, b"hi").serialize(mask=True) * 40)
    assert (len(found), code) == (30, 1008)


def test_fragments_count_as_frames() -> None:
    begun = Frame(Opcode.TEXT, b"", fin=False).serialize(mask=True)
    for more in (b"", b"x"):
        reader = a_reader(frames=1)
        fragment = Frame(Opcode.CONT, more, fin=False).serialize(mask=True)
        assert read(reader, begun + fragment * 9) == ([], None)
        assert read(reader, fragment) == ([], 1008)


@pytest.mark.parametrize("opcode", [Opcode.PING, Opcode.PONG])
def test_control_frames_have_own_budget(opcode: Opcode) -> None:
    reader = a_reader(frames=100, control_frames=2)
    one = Frame(opcode, b"").serialize(mask=True)
    found, code = read(reader, one * 20 + Frame(Opcode.CLOSE, b"").serialize(mask=True))
    assert (len(found), code) == (21, None)
    reader.feed(one)
    with pytest.raises(FrameError, match="too many control frames"):
        reader.read()


def test_budget_0_is_unlimited() -> None:
    found, code = read(a_reader(), Frame(Opcode.PING, b"").serialize(mask=True) * 20_000)
    assert (len(found), code) == (20_000, None)


@given(streams(st.just(True)), st.integers(0, 300))
def test_close_frame_is_found_behind_others(stream: list[bytes], begun: int) -> None:
    reader = a_reader(max_bytes=1_000_000)
    data = b"".join(stream) + Frame(Opcode.CLOSE, b"").serialize(mask=True)
    try:
        reader.feed(data[:begun])
        while reader.read() is not None:
            pass
    except FrameError:
        return
    reader.feed(data[begun:-6])
    assert not reader.skip_to_close()
    reader.feed(data[-6:])
    assert reader.skip_to_close()


def test_frames_after_close_are_bounded() -> None:
    reader = a_reader()
    one = Frame(Opcode.TEXT, b"x").serialize(mask=True)
    reader.feed(one * 1_000)
    assert not reader.skip_to_close()
    reader.feed(one)
    with pytest.raises(FrameError):
        reader.skip_to_close()


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65_535, 65_536, 100_000])
def test_writes_text_as_websockets_does(length: int) -> None:
    payload = b"x" * length
    assert text_frame_head(length) + payload == Frame(Opcode.TEXT, payload).serialize(mask=False)


async def test_cut_talk_reaches_azure_in_order() -> None:
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
