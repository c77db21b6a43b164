"""One of two replicas gets SIGTERM, or is killed, with many calls: are all held by the other within 10 s?

    python -m benchmarks.calls.handover [--calls 200] [--how SIGTERM]

Prints how long it took until Azure had a sideband of the other replica on every call, and how many calls were hung up.
Exit code 1 where a call was hung up, or where one was not held within 10 s.
"""

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.calls.stage import Stage, call_stage

WITHIN_S = 10.0
BOUND_S = 60.0
AT_ONCE = 6
LOG_LINES = 40  # of each broker, where something is wrong


async def main(calls: int, how: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        async with call_stage(Path(folder), every_s=0, replicas=2) as stage:
            return await measured(stage, calls, how)


async def measured(stage: Stage, calls: int, how: str) -> int:
    leaving = stage.replicas.running[0]
    gate = asyncio.Semaphore(AT_ONCE)

    async def place() -> None:
        async with gate:
            await stage.call(leaving)

    await asyncio.gather(*(place() for _ in range(calls)))
    await until(lambda: all(talk.sockets for talk in stage.azure.live()))
    await asyncio.sleep(8)  # a replica that has just come takes nothing of one that died
    before = {talk.name: talk.joins for talk in stage.azure.live()}
    began_s = time.monotonic()
    leaving.process.send_signal(getattr(signal, how))
    await until(lambda: all(talk.joins > before[talk.name] for talk in stage.azure.live()))
    took_s = time.monotonic() - began_s
    await asyncio.wait_for(leaving.process.wait(), BOUND_S)
    await until(lambda: all(len(talk.sockets) == 1 for talk in stage.azure.live()))
    hung_up = calls - len(stage.azure.live())
    held = sum(talk.joins > before[talk.name] for talk in stage.azure.live())
    print(f"{how}: {held} of {calls} calls held by the other replica after {took_s:.1f} s, {hung_up} hung up")
    is_bad = hung_up > 0 or held < calls or took_s > WITHIN_S
    if is_bad:
        for broker in stage.replicas.running:
            print(f"--- {broker.base_url}", *broker.log.splitlines()[-LOG_LINES:], sep="\n")
    return int(is_bad)


async def until(holds: Callable[[], bool], within_s: float = BOUND_S) -> None:
    """Returns when it holds, or after that time."""
    end_s = time.monotonic() + within_s
    while not holds() and time.monotonic() < end_s:  # noqa: ASYNC110  # what others change, without telling
        await asyncio.sleep(0.05)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--how", choices=["SIGTERM", "SIGKILL"], default="SIGTERM")
    chosen = parser.parse_args()
    sys.exit(asyncio.run(main(chosen.calls, chosen.how)))
