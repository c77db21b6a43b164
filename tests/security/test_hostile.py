"""One caller floods the broker, and another one still gets its plans. `benchmarks/hostile.py` measures how fast."""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator

from tests.conftest import StartBroker
from tests.support.broker import RunningBroker
from token_broker.simulator import RunningSimulator

SLOW_CONNECTIONS = 100
FLOODERS = 16
HEAD_TIMEOUT_S = 2
WAIT_S = 60


def signed_in(name: str) -> dict[str, str]:
    claims = [{"typ": "oid", "val": name}]
    document = json.dumps({"auth_typ": "aad", "claims": claims}).encode()
    return {"X_MS_CLIENT_PRINCIPAL": base64.b64encode(document).decode()}


async def slow_loris(base_url: str) -> bytes:
    """Sends a head a line at a time, and never its end; the first line of what the broker says to it in the end."""
    host, _, port = base_url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /realtime/token HTTP/1.1\r\nHost: broker\r\n")
    # Up to the end it could not be read: a line that is sent after the broker closed makes TCP reset the connection.
    said = asyncio.create_task(reader.readline())
    try:
        async with asyncio.timeout(WAIT_S):
            while not said.done():
                writer.write(b"X-More: y\r\n")
                await asyncio.wait({said}, timeout=0.5)
            return await said
    finally:
        writer.transport.abort()


@contextlib.asynccontextmanager
async def flood(broker: RunningBroker, name: str) -> AsyncIterator[list[int]]:
    """Token requests of one principal, as fast as they are answered, while the block runs; the statuses."""
    statuses: list[int] = []

    async def ask_on() -> None:
        while True:
            statuses.append((await broker.token(**signed_in(name))).response.status_code)

    tasks = [asyncio.create_task(ask_on()) for _ in range(FLOODERS)]
    try:
        yield statuses
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_flood_and_slow_loris_spare_other_callers(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, auth="easyauth", rate_limit_per_minute=60, head_timeout_s=HEAD_TIMEOUT_S)
    slow = [asyncio.create_task(slow_loris(broker.base_url)) for _ in range(SLOW_CONNECTIONS)]
    async with flood(broker, "mallory") as mallorys:
        anns = [(await broker.token(**signed_in("ann"))).response for _ in range(20)]
        while len(mallorys) < 100:  # noqa: ASYNC110  # what is seen is the point
            await asyncio.sleep(0.01)
    assert [answer.status_code for answer in anns] == [200] * 20
    assert not any(answer.json()["degraded"] for answer in anns)
    assert set(mallorys) == {200, 429}
    farewells = await asyncio.gather(*slow)
    assert [farewell.partition(b"\r\n")[0] for farewell in farewells] == [
        b"HTTP/1.1 408 Request Timeout"
    ] * SLOW_CONNECTIONS
