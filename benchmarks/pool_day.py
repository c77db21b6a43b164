"""Simulates days with outages: the share of talks that come about with one, two and three Azure resources.

    python -m benchmarks.pool_day [--days 10] [--talks-per-minute 6] [--seed 1]

Each resource is up for 99.9 % of the time. Its outages come at random, last two minutes on average, and are of three
kinds: connections refused, 503, silence. The talks are minted by the broker's own chain, pool, breakers, quotas and
hedges, in virtual time. Beside each share is the formula's: the probability that not all resources are down at once.

The formula knows no time for discovery: a resource that has recovered is asked again only after its rest, so that one
resource alone stays a little below. The last lines repeat it where one outage in ten hits all resources, as one of
Entra, of DNS or of a Global deployment's back end does: more resources do not help against those.
"""

import argparse
import asyncio
import random
import statistics
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field

from pydantic import SecretStr

from strategies.base import EphemeralGrant, Grant, SessionSpec
from strategies.chain import Chain, Link, RetryPolicy
from strategies.endpoint import Target, parse_target
from strategies.errors import TimedOutError, TransientError
from strategies.hedging import Hedger
from strategies.pool import Pool
from strategies.resources import Quotas, Resource, Wanted
from tests.strategies.virtual_time import run_in_virtual_time

AVAILABILITY = 0.999
OUTAGE_S = 120.0
DAY_S = 86_400.0
BUDGET_S = 6.0
ANSWER_S = 0.3
KINDS = ("refused", "503", "silent")
AGENTS = ("elena", "marcus")
STRATEGIES = ("ga", "unified")


@dataclass
class Outages:
    """When a resource is down, and how: (begin, end, kind), in order."""

    spans: list[tuple[float, float, str]] = field(default_factory=list)

    def kind_at(self, now_s: float) -> str | None:
        """How it fails at that time; None while it is up."""
        index = bisect_right(self.spans, (now_s, float("inf"), "")) - 1
        return self.spans[index][2] if index >= 0 and now_s < self.spans[index][1] else None

    def merged(self, other: "Outages") -> "Outages":
        """Both; where they overlap, the one that began first counts to its end."""
        spans: list[tuple[float, float, str]] = []
        for begin_s, end_s, kind in sorted([*self.spans, *other.spans]):
            start_s = max(begin_s, spans[-1][1]) if spans else begin_s
            if start_s < end_s:
                spans.append((start_s, end_s, kind))
        return Outages(spans)


def outages(chance: random.Random, begin_s: float, length_s: float, down_share: float) -> Outages:
    """Random outages that fill `down_share` of the time on average."""
    found, now_s = Outages(), begin_s
    up_s = OUTAGE_S * (1 - down_share) / down_share
    while (now_s := now_s + chance.expovariate(1 / up_s)) < begin_s + length_s:
        end_s = now_s + chance.expovariate(1 / OUTAGE_S)
        found.spans.append((now_s, end_s, chance.choice(KINDS)))
        now_s = end_s
    return found


@dataclass
class SimulatedStrategy:
    """Mints at a resource, if it is up."""

    name: str
    outages: Outages
    clock: Callable[[], float]
    chance: random.Random

    @staticmethod
    def applies(target: Target) -> bool:
        return bool(target.base)

    async def mint(self, spec: SessionSpec, *, timeout_s: float) -> Grant:
        match self.outages.kind_at(self.clock()):
            case "refused":
                await asyncio.sleep(0.01)
                raise TransientError("the connection is refused")
            case "503":
                await asyncio.sleep(0.1)
                raise TransientError("Azure failed", status=503)
            case "silent":
                await asyncio.sleep(timeout_s)
                raise TimedOutError("silence")
        await asyncio.sleep(self.chance.lognormvariate(0, 0.4) * ANSWER_S)
        return EphemeralGrant(
            strategy=self.name, token=SecretStr("ek_x"), expires_at=None, expires_in_s=60, received_at_s=0,  # type: ignore[arg-type]  # not looked at
            endpoint="", dialect="ga", voice=str(spec.voices["ga"]),
        )  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What came of all talks."""

    talks: int
    live: int
    p50_ms: float
    p99_ms: float


async def simulate(resources: int, days: float, talks_per_minute: float, common_share: float, seed: int) -> Result:
    """Runs the talks of so many days."""
    clock, length_s = asyncio.get_running_loop().time, days * DAY_S
    chance, begin_s = random.Random(seed), clock()
    common = outages(chance, begin_s, length_s, (1 - AVAILABILITY) * common_share) if common_share else Outages()
    pool = Pool([azure(f"r{number}", talks_per_minute) for number in range(resources)], clock=clock)
    down = {
        each.name: outages(chance, begin_s, length_s, (1 - AVAILABILITY) * (1 - common_share)).merged(common)
        for each in pool.resources
    }
    links = [
        Link(each, SimulatedStrategy(name, down[each.name], clock, chance))
        for name in STRATEGIES
        for each in pool.resources
    ]
    chain = Chain(pool, links, policy=RetryPolicy(), hedger=Hedger(pool, clock=clock))
    spec = SessionSpec(model="m", instructions="", voices={"ga": "marin", "preview": "Ava"})
    times_ms: list[float] = []

    async def supply(_resource: Resource) -> SessionSpec:
        return spec

    async def talk(number: int) -> None:
        asked_s = clock()
        wanted = Wanted(session_id=f"{seed}-{number}", agent_id=AGENTS[number % len(AGENTS)])
        if (await chain.mint(supply, deadline_s=asked_s + BUDGET_S, wanted=wanted)).grant is not None:
            times_ms.append((clock() - asked_s) * 1000)

    running: set[asyncio.Task[None]] = set()
    talks = 0
    while clock() < begin_s + length_s:
        await asyncio.sleep(chance.expovariate(talks_per_minute / 60))
        task = asyncio.create_task(talk(talks))
        talks += 1
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    times_ms.sort()
    return Result(talks, len(times_ms), statistics.median(times_ms), times_ms[len(times_ms) * 99 // 100])


def azure(name: str, talks_per_minute: float) -> Resource:
    """A resource that can take all talks alone, three times over: a busy minute of one that is left alone fits."""
    return Resource(
        name=name, target=parse_target(f"https://{name}.services.ai.azure.com"), model="m", model_family="gpt-realtime",
        transcription_model="t", quotas=Quotas(mints_per_minute=round(talks_per_minute * 3)),
    )  # fmt: skip


def formula(resources: int, common_share: float) -> float:
    """The share of the time in which a resource is up."""
    down = 1 - AVAILABILITY
    return (1 - down * common_share) * (1 - (down * (1 - common_share)) ** resources)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--days", type=float, default=10)
    options.add_argument("--talks-per-minute", type=float, default=6)
    options.add_argument("--seed", type=int, default=1)
    chosen = options.parse_args()
    print(
        f"{'resources':>9}  {'outages':<16}{'talks':>8}{'live':>11}{'formula':>13}{'p50 ms':>8}{'p99 ms':>8}{'took':>7}"
    )
    for common_share, shown in ((0.0, "independent"), (0.1, "1 in 10 hits all")):
        for resources in (1, 2, 3):
            began_s = time.perf_counter()
            result = run_in_virtual_time(
                simulate(resources, chosen.days, chosen.talks_per_minute, common_share, chosen.seed)
            )
            print(
                f"{resources:>9}  {shown:<16}{result.talks:>8}{result.live / result.talks:>11.4%}"
                f"{formula(resources, common_share):>13.5%}{result.p50_ms:>8.0f}{result.p99_ms:>8.0f}"
                f"{time.perf_counter() - began_s:>6.0f}s"
            )


if __name__ == "__main__":
    main()
