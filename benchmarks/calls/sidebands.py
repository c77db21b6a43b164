"""Many sidebands in one process, and what one costs beside a proxied talk of the same run.

    python -m benchmarks.calls.sidebands [--sidebands 1000] [--proxied 20] [--seconds 30]

A call's events come over its sideband: an answer every ten seconds, without sound. A proxied talk relays sound both
ways, 50 pieces of 20 ms a second. Both are measured by the broker's own CPU time, over what it takes idle. Exit code 1
where a sideband takes more than 15 % of a proxied talk's CPU, or where some were not joined.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from benchmarks.calls.handover import until
from benchmarks.calls.stage import Stage, call_stage

SHARE = 0.15
ANSWERS_EVERY_S = 10.0
PIECE_S = 0.02
AT_ONCE = 6
CALM_BY_S = 90.0
PIECE = base64.b64encode(bytes(960)).decode()


async def main(sidebands: int, proxied: int, seconds: float) -> int:
    with tempfile.TemporaryDirectory() as folder:
        async with call_stage(Path(folder), every_s=ANSWERS_EVERY_S, replicas=1) as stage:
            idle = await idle_cpu(stage, seconds)
            gate = asyncio.Semaphore(AT_ONCE)

            async def place() -> None:
                async with gate:
                    await stage.call(stage.replicas.running[0])

            await asyncio.gather(*(place() for _ in range(sidebands)))
            await until(lambda: all(talk.sockets for talk in stage.azure.live()))
            joined = sum(bool(talk.sockets) for talk in stage.azure.live())
            await asyncio.sleep(3)
            a_sideband = (await cpu_a_second(stage, seconds) - idle) / max(1, joined)
            rss = rss_mib(stage.replicas.running[0].process.pid)
            for talk in stage.azure.live():
                talk.end()
            calm_by_s = time.monotonic() + CALM_BY_S
            while await cpu_a_second(stage, 2) > idle + 0.02 and time.monotonic() < calm_by_s:
                pass  # the ended calls are asked for several times, and written down
            idle = await idle_cpu(stage, seconds)
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(proxied):
                    await stack.enter_async_context(speaking(stage))
                await asyncio.sleep(2)
                a_talk = (await cpu_a_second(stage, seconds) - idle) / proxied
    share = a_sideband / a_talk
    print(f"{joined} of {sidebands} sidebands in one process of {rss:.0f} MiB")
    print(f"a sideband {a_sideband * 1000:.2f} ms of CPU a second, a proxied talk {a_talk * 1000:.2f}: {share:.1%}")
    return int(not 0 <= share <= SHARE or a_talk <= 0 or joined < sidebands)


async def idle_cpu(stage: Stage, seconds: float) -> float:
    """As `cpu_a_second`, without calls: the least of three, since a broker that has just started still works."""
    return min([await cpu_a_second(stage, seconds / 3) for _ in range(3)])


async def cpu_a_second(stage: Stage, seconds: float) -> float:
    """Seconds of CPU a second, of the first broker."""
    pid = stage.replicas.running[0].process.pid
    before_s = cpu_s(pid)
    await asyncio.sleep(seconds)
    return (cpu_s(pid) - before_s) / seconds


def cpu_s(pid: int) -> float:
    """Of the process, so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mib(pid: int) -> float:
    """Its memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextlib.asynccontextmanager
async def speaking(stage: Stage) -> AsyncIterator[None]:
    """A proxied talk that sends and gets sound."""
    _, plan = await stage.plan(stage.replicas.running[0])
    proxy = plan["connections"][-1]
    protocols = [Subprotocol(name) for name in proxy["protocols"]]
    socket = await connect(proxy["url"], subprotocols=protocols, proxy=None, compression=None, max_size=None)
    append = json.dumps({"type": "input_audio_buffer.append", "audio": PIECE})

    async def speak() -> None:
        while True:
            await socket.send(append)
            await asyncio.sleep(PIECE_S)

    async def hear() -> None:
        async for _ in socket:
            pass

    tasks = [asyncio.create_task(speak()), asyncio.create_task(hear())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await socket.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sidebands", type=int, default=1000)
    parser.add_argument("--proxied", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=30)
    chosen = parser.parse_args()
    sys.exit(asyncio.run(main(chosen.sidebands, chosen.proxied, chosen.seconds)))
