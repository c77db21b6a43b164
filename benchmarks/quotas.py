"""New talks at three resources of 30 new Voice Live connections a minute: all are served, and Azure refuses none.

    python -m benchmarks.quotas [--talks 85] [--seconds 60] [--resources 3] [--per-minute 30]

Each talk comes through the proxy, is asked one typed question, and ends. The simulators enforce the quota, and refuse
what exceeds it with 429. Exit code 1 where a talk did not come about, or where a simulator refused a connection.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from websockets.exceptions import ConnectionClosed, InvalidHandshake

from benchmarks.failover import NAMES
from benchmarks.stage import Stage, TalkLostError, open_client, proxy_of, stage

ANSWER_S = 20.0
TOO_MANY = 429


async def talk(running: Stage, number: int, after_s: float, lost: Counter[str]) -> None:
    await asyncio.sleep(after_s)
    proxy = proxy_of(await running.plan())
    try:
        async with asyncio.timeout(ANSWER_S), open_client(proxy["url"], protocols=proxy["protocols"]) as client:
            await client.hear("broker.ready")
            await client.write(f"What about #{number}?")
            await client.hear("response.done")
    except (TalkLostError, ConnectionClosed, InvalidHandshake, OSError, TimeoutError) as error:
        lost[f"{type(error).__name__} {error}"[:120]] += 1


async def run(directory: Path, given: argparse.Namespace) -> bool:
    names, chance = NAMES[: given.resources], random.Random(1)
    entries = {name: {"voice_live_per_minute": given.per_minute} for name in names}
    lost: Counter[str] = Counter()
    async with stage(directory, names, entries=entries, BROKER_PROXY_UPSTREAMS="voice_live") as running:
        for azure in running.azure:
            azure.set_faults({"match": "/", "fault": "quota", "limit": given.per_minute, "window_s": 60})
        began_s = time.monotonic()
        await asyncio.gather(
            *(talk(running, n, (n + chance.random()) * given.seconds / given.talks, lost) for n in range(given.talks))
        )
        took_s = time.monotonic() - began_s
        refused = {azure.name: sum(seen.status == TOO_MANY for seen in azure.requests) for azure in running.azure}
        by_resource = Counter(answer.resource for answer in running.azure.transcript.answers)
    print(f"{given.talks - lost.total()} of {given.talks} talks in {took_s:.0f} s, by resource {dict(by_resource)}")
    print(f"refused by Azure: {refused}; lost: {dict(lost)}")
    return not lost and not any(refused.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--talks", type=int, default=85)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--resources", type=int, choices=[1, 2, 3], default=3)
    parser.add_argument("--per-minute", type=int, default=30)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="quotas-") as name:
        well = asyncio.run(run(Path(name), given))
    sys.exit(not well)


if __name__ == "__main__":
    main()
