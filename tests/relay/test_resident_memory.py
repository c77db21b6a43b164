"""The resident memory of a talk whose client stops reading."""

import asyncio
import json

from tests.relay.support.azure import AzureTalk, scripted_azure
from tests.relay.support.process import LOOP, broker_process

TALKS = 10
FRAMES_AT_MOST = 2_000  # 24 MB: more than all the kernel's buffers hold
LIMIT_KB = 2_000


class Flood:
    """Sends as much as one connection accepts."""

    def __init__(self, talk: AzureTalk) -> None:
        self.sent_bytes = 0
        self._talk = talk

    async def run(self) -> None:
        frame = '{"type":"response.audio.delta","delta":"' + "A" * 12_000 + '"}'
        for _ in range(FRAMES_AT_MOST):
            await self._talk.connection.send(frame)
            self.sent_bytes += len(frame)


async def stalled(floods: list[Flood]) -> None:
    """Returns when none of them has sent anything for half a second."""
    async with asyncio.timeout(8):  # before the broker closes such clients
        while True:
            before = [flood.sent_bytes for flood in floods]
            await asyncio.sleep(0.5)
            if before == [flood.sent_bytes for flood in floods]:
                return


async def test_stalled_client_costs_less_than_2_mb() -> None:
    async with scripted_azure() as azure, broker_process(azure, LOOP, grace_s=0.1) as process:
        clients = [await process.connect() for _ in range(TALKS)]
        for client in clients:
            assert json.loads(await client.recv())["type"] == "broker.ready"
            client.transport.pause_reading()
        before_kb = process.resident_kb
        floods = [Flood(await azure.talk(number)) for number in range(TALKS)]
        running = [asyncio.create_task(flood.run()) for flood in floods]
        await stalled(floods)
        grown_kb = process.resident_kb - before_kb
        assert not any(task.done() for task in running)  # so each talk holds its maximum
        for task in running:
            task.cancel()
        for client in clients:
            client.transport.abort()
        process.terminate()
        await process.line()
    assert grown_kb / TALKS < LIMIT_KB
