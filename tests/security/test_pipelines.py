"""Trailers, pipelined requests and bodies in tiny chunks, over real sockets."""

import asyncio
import base64
import json
import re
import time

import pytest

from tests.conftest import StartBroker
from tests.support.broker import RunningBroker
from tests.support.machine import retry_if_host_busy
from token_broker.server.http_protocol import MAX_PIPELINED
from token_broker.simulator import RunningSimulator

PROMPT_MS = 500  # generous: an unblocked broker answers in a few milliseconds


def claimed(name: str) -> str:
    document = {"auth_typ": "aad", "claims": [{"typ": "oid", "val": name}]}
    return base64.b64encode(json.dumps(document).encode()).decode()


async def sent(broker: RunningBroker, data: bytes) -> bytes:
    """All that is answered until the broker closes, or says nothing more for a second."""
    reader, writer = await asyncio.open_connection("127.0.0.1", broker.client.base_url.port)
    answer = b""
    try:
        writer.write(data)
        await writer.drain()
        while piece := await asyncio.wait_for(reader.read(65_536), 1):
            answer += piece
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.close()
    return answer


@pytest.mark.parametrize("name", ["X-MS-CLIENT-PRINCIPAL", "x-ms-client-principal"])
async def test_trailer_is_not_a_header(name: str, azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, auth="easyauth")
    head = (
        b"POST /realtime/token HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    trailer = f"{name}: {claimed('victim')}\r\n".encode()
    answer = await sent(broker, head + b"2\r\n{}\r\n0\r\n" + trailer + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"not_signed_in" in answer
    also = await sent(broker, head + b"2\r\n{}\r\n0\r\nHost: evil.example\r\nOrigin: https://evil.example\r\n\r\n")
    assert also.startswith(b"HTTP/1.1 401 "), "neither host nor origin comes from a trailer"


async def test_trailers_are_bounded_like_heads(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure)
    head = b"POST /realtime/token HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    answer = await sent(broker, head + b"".join(b"X-Fill-%d: %s\r\n" % (n, b"x" * 1000) for n in range(100)))
    assert b" 431 " in answer or not answer


@pytest.mark.slow
async def test_few_pipelined_requests_keep_order(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure)
    paths = [b"/healthz", b"/readyz", b"/config/elena", b"/nothing"]
    answer = await sent(broker, b"".join(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path for path in paths))
    assert re.findall(rb"HTTP/1.1 (\d+) ", answer) == [b"200"] * 3 + [b"404"]


@retry_if_host_busy()
async def test_pipelined_flood_is_closed_and_blocks_none(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure)
    flood = b"GET /a HTTP/1.1\r\nHost: localhost\r\n\r\n" * 6_000
    flooding = [asyncio.create_task(sent(broker, flood)) for _ in range(10)]
    assert await slowest_ms(broker, flooding) < PROMPT_MS
    for answer in await asyncio.gather(*flooding):
        assert answer.count(b"HTTP/1.1 ") <= MAX_PIPELINED + 1


@retry_if_host_busy()
async def test_tiny_chunks_are_refused_and_block_none(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure)
    head = b"POST /conversation/turn HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    flooding = [asyncio.create_task(sent(broker, head + b"1\r\nx\r\n" * 200_000)) for _ in range(4)]
    assert await slowest_ms(broker, flooding) < PROMPT_MS
    for answer in await asyncio.gather(*flooding):
        assert b"HTTP/1.1 400 " in answer


async def test_body_in_many_chunks_is_read_whole(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure)
    body = json.dumps({"agent_id": "marcus", "modalities": ["audio", "text"]}).encode()
    head = (
        b"POST /realtime/token HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    pieces = b"".join(b"1\r\n%c\r\n" % letter for letter in body)
    answer = await sent(broker, head + pieces + b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"agent_id":"marcus"' in answer


async def slowest_ms(broker: RunningBroker, flooding: list[asyncio.Task[bytes]]) -> float:
    """The slowest of the probes while the flood comes; at least twenty are made."""
    slowest, probes = 0.0, 0
    while probes < 20 or not all(task.done() for task in flooding):
        began_s = time.monotonic()
        assert (await broker.client.get("/healthz")).status_code == 200
        slowest, probes = max(slowest, (time.monotonic() - began_s) * 1000), probes + 1
    return slowest
