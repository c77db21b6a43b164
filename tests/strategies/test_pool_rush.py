"""A resource dies under its talks, and the others have quotas: running talks first, paced, and no refusal by Azure."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import pytest

from strategies.base import Grant, SessionSpec
from strategies.chain import Chain, Link, RetryPolicy
from strategies.endpoint import Target
from strategies.health import BreakerPolicy
from strategies.hedging import Hedger
from strategies.pool import Pool
from strategies.resources import Quotas, Resource, Wanted
from tests.strategies.fakes import SPEC
from tests.strategies.test_hedging import GRANT
from tests.strategies.test_pool import REFUSED, A, B, C, resource
from tests.strategies.virtual_time import run_in_virtual_time

PER_MINUTE, PER_SECOND = 30, 5
LIMITED = Quotas(voice_live_per_minute=PER_MINUTE, voice_live_per_second=PER_SECOND)
DEAD = resource("dead")
OTHERS = tuple(resource(name, priority=2, quotas=LIMITED) for name in ("x", "y"))


@dataclass
class Azure:
    """Counts the connections of each resource, and which talk got them."""

    at_s: dict[str, list[float]] = field(default_factory=lambda: {each.name: [] for each in OTHERS})
    got: dict[str, float] = field(default_factory=dict)

    def connect(self, resource: str, talk: str, now_s: float) -> None:
        self.at_s[resource].append(now_s)
        self.got[talk] = now_s

    def most_within(self, length_s: float) -> int:
        return max(
            sum(first <= each < first + length_s for each in times) for times in self.at_s.values() for first in times
        )


async def move(pool: Pool, azure: Azure, name: str) -> None:
    """A running talk connects elsewhere, and waits where it is told to."""
    clock = asyncio.get_running_loop().time
    wanted = Wanted(session_id=name, agent_id="elena", running=True)
    while True:
        waits_s = []
        for each in pool.order(wanted):
            if pool.admit(each, "voice_live", agent_id="elena", session_id=name, running=True) is not None:
                azure.connect(each.name, name, clock())
                return
            refusal = pool.why_not(each, "voice_live", agent_id="elena", session_id=name, running=True)
            waits_s.append(refusal.retry_after_s)
        await asyncio.sleep(max(0.01, min(waits_s)))


async def begin(pool: Pool, azure: Azure, name: str, after_s: float) -> None:
    await asyncio.sleep(after_s)
    for each in pool.order(Wanted(session_id=name, agent_id="elena")):
        if pool.admit(each, "voice_live", agent_id="elena", session_id=name) is not None:
            azure.connect(each.name, name, asyncio.get_running_loop().time())
            return


async def rush(replicas: int) -> tuple[Azure, float]:
    """60 talks lose their resource at once, and 85 new ones come in the minute after. Gives when it began."""
    clock = asyncio.get_running_loop().time
    pools = [Pool([DEAD, *OTHERS], policy=BreakerPolicy(failures=3, open_s=600), clock=clock) for _ in range(replicas)]
    for number, pool in enumerate(pools):
        pool.divide_quotas(replicas, is_fresh=number > 0)
        for _ in range(3):
            permit = pool.admit(DEAD, "voice_live", agent_id="elena")
            assert permit is not None
            pool.refused(permit, REFUSED)
    azure, began_s = Azure(), clock()
    await asyncio.gather(
        *(move(pools[number % replicas], azure, f"running-{number}") for number in range(60)),
        *(begin(pools[number % replicas], azure, f"new-{number}", 0.7 * number) for number in range(85)),
    )
    return azure, began_s


@pytest.mark.parametrize("replicas", [1, 3])
def test_running_talks_move_first(replicas: int) -> None:
    azure, began_s = run_in_virtual_time(rush(replicas))
    assert azure.most_within(60) <= PER_MINUTE
    assert azure.most_within(1) <= PER_SECOND
    waited_s = sorted(at_s - began_s for talk, at_s in azure.got.items() if talk.startswith("running"))
    assert len(waited_s) == 60
    if replicas == 1:
        assert waited_s[-1] == pytest.approx(5, abs=0.1)  # 60 talks, ten a second
        assert len(azure.got) == 60, "new talks get what is left: nothing, for a minute"
    else:
        assert waited_s[-1] < 62, "two of three begin at their rate"


# --- a full minute, again and again


async def minutes(replicas: int, per_minute: int) -> tuple[Azure, int]:
    """Three resources of 30 new connections a minute, and 85 talks a minute for five minutes. Gives who was refused."""
    clock, chance = asyncio.get_running_loop().time, random.Random(7)
    three = [resource(name, quotas=replace(LIMITED, voice_live_per_second=0)) for name in ("x", "y", "z")]
    pools = [Pool(three, clock=clock) for _ in range(replicas)]
    for pool in pools:
        pool.divide_quotas(replicas)
    azure = Azure({each.name: [] for each in three})
    talks = [(chance.uniform(0, 0.5) + number * 60 / per_minute, f"talk-{number}") for number in range(5 * per_minute)]
    await asyncio.gather(
        *(begin(pools[number % replicas], azure, name, at_s) for number, (at_s, name) in enumerate(talks))
    )
    return azure, len(talks) - len(azure.got)


@pytest.mark.parametrize("replicas", [1, 3])
def test_three_resources_serve_85_a_minute(replicas: int) -> None:
    azure, refused = run_in_virtual_time(minutes(replicas, 85))
    assert refused == 0
    assert azure.most_within(60) <= PER_MINUTE, "no 429 of Azure's"


def test_what_exceeds_the_quotas_is_kept_from_azure() -> None:
    azure, refused = run_in_virtual_time(minutes(1, 120))
    assert refused > 100
    assert azure.most_within(60) <= PER_MINUTE


# --- slow resources


@dataclass
class Slow:
    """Answers after its time."""

    name: str
    resource: Resource
    takes_s: Callable[[], float]
    running: int = 0

    @staticmethod
    def applies(target: Target) -> bool:
        return True

    async def mint(self, spec: SessionSpec, *, timeout_s: float) -> Grant:
        self.running += 1
        try:
            await asyncio.sleep(self.takes_s())
        finally:
            self.running -= 1
        return replace(GRANT, resource=self.resource.name)


async def slow_plans() -> tuple[list[list[str]], list[float], Pool, list[Slow]]:
    """200 plans a second apart while `a` takes 2.5 s and `b` 0.3 s, then 200 while both take 2.5 s."""
    clock = asyncio.get_running_loop().time
    b_takes_s = 0.3
    pool = Pool([A, B], clock=clock)
    strategies = [Slow("ga", A, lambda: 2.5), Slow("ga", B, lambda: b_takes_s)]
    chain = Chain(
        pool,
        [Link(each.resource, each) for each in strategies],
        policy=RetryPolicy(attempt_timeout_s=5),
        hedger=Hedger(pool, clock=clock),
    )
    outcomes, times_s = [], []

    async def supply(_resource: Resource) -> SessionSpec:
        return SPEC

    for number in range(400):
        b_takes_s = 0.3 if number < 200 else 2.5
        began_s = clock()
        result = await chain.mint(supply, deadline_s=began_s + 20, wanted=Wanted(str(number), "elena"))
        assert result.grant is not None
        times_s.append(clock() - began_s)
        outcomes.append([f"{attempt.resource} {attempt.outcome}" for attempt in result.attempts])
        await asyncio.sleep(1)
    return outcomes, times_s, pool, strategies


def test_slow_resource_is_hedged_within_bounds() -> None:
    outcomes, times_s, pool, strategies = run_in_virtual_time(slow_plans())
    hedged = [number for number, each in enumerate(outcomes) if len(each) > 1]
    assert outcomes[0] == ["b minted", "a undone"]
    assert times_s[0] == pytest.approx(1.1, abs=0.01)  # 800 ms, and 300 ms of b
    assert sorted(times_s[:200])[180] < 0.35, "b is asked first soon"
    for number in hedged:
        assert sum(number <= each < number + 17 for each in hedged) <= 6, "a minute has 17 plans or more"
    for name in "ab":
        status = pool.breaker(name, "ga").snapshot()
        assert status.breaker == "closed"
        assert status.attempts == status.successes, "nobody is blamed"
    assert [each.running for each in strategies] == [0, 0], "losers are undone"


# --- resources that hang


async def plans_while_some_hang() -> tuple[list[float], Pool]:
    """40 plans, eight at once, while two of three resources never answer: how long each took."""
    clock = asyncio.get_running_loop().time
    pool = Pool([A, B, C], clock=clock)
    strategies = [
        Slow(name, each, partial(float, 0.3 if each is C else 60)) for name in ("ga", "unified") for each in (A, B, C)
    ]
    links = [Link(each.resource, each) for each in strategies]
    chain = Chain(pool, links, policy=RetryPolicy(), hedger=Hedger(pool, clock=clock))
    times_s: list[float] = []
    at_once = asyncio.Semaphore(8)

    async def supply(_resource: Resource) -> SessionSpec:
        return SPEC

    async def plan(number: int) -> None:
        async with at_once:
            began_s = clock()
            result = await chain.mint(supply, deadline_s=began_s + 6, wanted=Wanted(str(number), "elena"))
            assert result.grant is not None
            times_s.append(clock() - began_s)

    await asyncio.gather(*(plan(number) for number in range(40)))
    return times_s, pool


def test_hanging_resources_are_found_together() -> None:
    times_s, pool = run_in_virtual_time(plans_while_some_hang())
    assert max(times_s) < 2.7, "what five hedged plans find out helps the others that wait"
    assert sorted(times_s)[30] < 1.0
    assert [each.health for each in pool.snapshot()] == ["slow", "slow", "good"]
