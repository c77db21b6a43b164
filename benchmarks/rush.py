"""A whole resource dies under its talks, while the others have quotas: running talks first, paced, none refused.

    python -m benchmarks.rush [--talks 60] [--new 85] [--replicas 1|3] [--per-minute 30] [--per-second 5]
        [--keep DIR]

All talks run on the resource that is asked first. It resets them and refuses connections; two others take so many new
connections a minute and a second, and the simulators refuse what exceeds that with 429. New talks come beside, spread
over a minute. Each running talk must go on, on the client's own socket, and answer a typed question. A new talk must
answer one too, or be told that it can't: by a poor outlook with `retry_after_s`, or with 4502. Three replicas share a
PostgreSQL. Exit code 1 where a running talk did not go on, where a simulator refused a connection, or where a new talk
was neither served nor told.
"""

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from websockets.exceptions import ConnectionClosed, InvalidHandshake

from benchmarks.failover import NAMES
from benchmarks.stage import Client, Stage, TalkLostError, open_client, proxy_of, stage
from tests.support.databases import postgres_server

ANSWER_S = 20.0
HOLD_S = 90.0
"""A known refill is waited for up to 60 s; the rest is pacing."""
TOO_MANY = 429
UPSTREAM_FAILED = 4502


@dataclass
class Outcome:
    """What became of the talks."""

    resumed_s: list[float] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)
    begun: Counter[str] = field(default_factory=Counter)


async def ask(client: Client, question: str) -> None:
    async with asyncio.timeout(ANSWER_S):
        await client.write(question)
        while (await client.hear("response.done"))["response"]["status"] != "completed":
            pass


async def run_on(running: Stage, number: int, replica: int, ready: asyncio.Barrier, outcome: Outcome) -> None:
    """A talk that is live when its resource dies. They begin one by one: else handshakes are slow, and hedged."""
    await asyncio.sleep(number * 0.1)
    proxy = proxy_of(await running.plan(replica=replica))
    async with open_client(proxy["url"], protocols=proxy["protocols"]) as client:
        try:
            await client.hear("broker.ready")
            await ask(client, f"What about #{number}?")
            await ready.wait()
            began_s = time.monotonic()
            async with asyncio.timeout(HOLD_S):
                await client.hear("broker.resumed")
            outcome.resumed_s.append(time.monotonic() - began_s)
            await ask(client, f"And what about #{1000 + number}?")
        except (TalkLostError, TimeoutError) as error:
            outcome.lost[f"{type(error).__name__} {error}"[:120]] += 1


async def begin(running: Stage, replica: int, after_s: float, outcome: Outcome) -> None:
    """A new talk beside them."""
    await asyncio.sleep(after_s)
    plan = await running.plan(replica=replica)
    if plan["outlook"] == "poor":
        outcome.begun["told by the plan" if plan.get("retry_after_s") else "poor without retry_after_s"] += 1
        return
    proxy = proxy_of(plan)
    try:
        async with asyncio.timeout(ANSWER_S), open_client(proxy["url"], protocols=proxy["protocols"]) as client:
            try:
                await client.hear("broker.ready")
                await ask(client, "Is anybody there?")
                outcome.begun["served"] += 1
            except TalkLostError as error:
                told = str(error).startswith(str(UPSTREAM_FAILED))
                outcome.begun["told by 4502" if told else f"closed: {error}"[:120]] += 1
    except (ConnectionClosed, InvalidHandshake, OSError, TimeoutError) as error:
        outcome.begun[f"lost: {type(error).__name__} {error}"[:120]] += 1


async def run(directory: Path, given: argparse.Namespace, **variables: str) -> bool:
    dead, *others = NAMES
    limits = {"voice_live_per_minute": given.per_minute, "voice_live_per_second": given.per_second, "priority": 2}
    entries = {dead: {"priority": 1}, **dict.fromkeys(others, limits)}
    outcome, chance = Outcome(), random.Random(1)
    async with stage(
        directory, NAMES, entries=entries, replicas=given.replicas, BROKER_PROXY_UPSTREAMS="voice_live", **variables
    ) as running:
        for name in others:
            running.azure.by_name[name].set_faults(
                {"match": "/", "fault": "quota", "limit": given.per_minute, "window_s": 60},
                {"match": "/", "fault": "quota", "limit": given.per_second, "window_s": 1},
            )
        ready = asyncio.Barrier(given.talks + 1)
        async with asyncio.TaskGroup() as group:
            for number in range(given.talks):
                group.create_task(run_on(running, number, number % given.replicas, ready, outcome))
            async with asyncio.timeout(HOLD_S):
                while ready.n_waiting < given.talks:
                    if outcome.lost:
                        raise SystemExit(f"talks did not begin: {dict(outcome.lost)}")
                    await asyncio.sleep(0.1)
            # Replicas count each other every 6 s.
            await asyncio.sleep(8 if given.replicas > 1 else 0)
            await ready.wait()
            group.create_task(die(running, dead))
            for number in range(given.new):
                after_s = (number + chance.random()) * 60 / given.new
                group.create_task(begin(running, number % given.replicas, after_s, outcome))
        refused = {azure.name: sum(seen.status == TOO_MANY for seen in azure.requests) for azure in running.azure}
    paused_s = sorted(outcome.resumed_s) or [0.0]
    went_on = f"{len(outcome.resumed_s)} of {given.talks} running talks went on"
    print(
        f"{given.replicas} replica(s): {went_on}, p50 {paused_s[len(paused_s) // 2]:.1f} s, last {paused_s[-1]:.1f} s"
    )
    print(f"lost: {dict(outcome.lost)}")
    print(f"new talks: {dict(outcome.begun)}; refused by Azure: {refused}")
    wrong = list(faults(given, outcome, refused))
    print(*wrong, sep="\n")
    return not wrong


async def die(running: Stage, name: str) -> None:
    """The resource resets its talks, and refuses connections, until every talk has had its time."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(running.azure.by_name[name].fault("refuse"))
        stack.enter_context(running.azure.by_name[name].fault("cut"))
        await asyncio.sleep(HOLD_S)


def faults(given: argparse.Namespace, outcome: Outcome, refused: dict[str, int]) -> Iterator[str]:
    if len(outcome.resumed_s) < given.talks or outcome.lost:
        yield "not every running talk went on"
    if any(refused.values()):
        yield "Azure refused connections"
    known = ("served", "told by the plan", "told by 4502")
    if other := {name: count for name, count in outcome.begun.items() if name not in known}:
        yield f"new talks were neither served nor told: {other}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--talks", type=int, default=60, help="that run when the resource dies")
    parser.add_argument("--new", type=int, default=85, help="that come in the minute after")
    parser.add_argument("--replicas", type=int, choices=[1, 2, 3], default=1)
    parser.add_argument("--per-minute", type=int, default=30)
    parser.add_argument("--per-second", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="directory for the brokers' logs")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rush-") as name, contextlib.ExitStack() as stack:
        variables: dict[str, str] = {}
        if given.replicas > 1:
            variables["BROKER_DATABASE_URL"] = asyncio.run(stack.enter_context(postgres_server()).create())
        well = asyncio.run(run(given.keep or Path(name), given, **variables))
    sys.exit(not well)


if __name__ == "__main__":
    main()
