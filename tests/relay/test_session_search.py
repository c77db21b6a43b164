"""Talks that lost their resource find sessions elsewhere, in virtual time: held for a known quota, and never closed."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, cast

import pytest

from strategies.errors import RateLimitedError, TransientError
from strategies.health import BreakerPolicy
from strategies.hedging import Hedger
from strategies.pool import Pool
from strategies.quotas import Quotas
from strategies.resources import Resource, Wanted
from tests.strategies.test_pool import resource
from tests.strategies.virtual_time import run_in_virtual_time
from token_broker.relay.azure.connector import NoUpstreamError, _Handshakes
from token_broker.relay.azure.opening import SessionRefusedError
from token_broker.relay.azure.route import Route
from token_broker.relay.resume.search import SessionSearch
from token_broker.server.close_codes import UPSTREAM_FAILED, Ending

PER_MINUTE, PER_SECOND = 30, 5
LIMITED = Quotas(voice_live_per_minute=PER_MINUTE, voice_live_per_second=PER_SECOND)
ROUTE = cast("Route", type("VoiceLive", (), {"name": "voice_live", "dialect": "preview"}))


@dataclass
class Azure:
    """Resources that take 0.2 s for a handshake, enforce their quota, and hang or refuse once they are dead."""

    quotas: dict[str, Quotas]
    dead: str = "hanging"
    taken_s: dict[str, list[float]] = field(default_factory=dict)
    refused: int = 0

    async def connect(self, resource: Resource, route: Route, *, timeout_s: float) -> str:
        del route
        now_s, name = asyncio.get_running_loop().time(), resource.name
        if name.startswith("dead") and self.dead == "hanging":
            await asyncio.sleep(timeout_s)
            raise TransientError("silence")
        if name.startswith("dead"):
            await asyncio.sleep(0.01)
            raise TransientError("refused")
        if name.startswith("unwilling"):
            await asyncio.sleep(0.2)
            raise SessionRefusedError("not these settings")
        quota, taken_s = self.quotas.get(name, Quotas()), self.taken_s.setdefault(name, [])
        for limit, length_s in ((quota.voice_live_per_minute, 60), (quota.voice_live_per_second, 1)):
            if limit and sum(each > now_s - length_s for each in taken_s) >= limit:
                self.refused += 1
                raise RateLimitedError("too many", retry_after_s=length_s)
        taken_s.append(now_s)
        await asyncio.sleep(0.2)
        return name


@dataclass
class Fleet:
    """The replicas of one broker, and what became of its talks."""

    azure: Azure
    pools: list[Pool]
    hedgers: list[Hedger]
    found: dict[str, float] = field(default_factory=dict)
    closed: list[str] = field(default_factory=list)
    held_s: list[float] = field(default_factory=list)

    async def attempt(self, replica: int, wanted: Wanted) -> str:
        pool, hedger = self.pools[replica], self.hedgers[replica]
        contest = _Handshakes(
            pool,
            wanted,
            [(each, ROUTE) for each in pool.order(wanted)],
            cast("Any", self.azure.connect),
            last=[(each, ROUTE) for each in pool.left_out(wanted)] if wanted.running else [],
            deadline_s=hedger.clock() + 5,
            clock=hedger.clock,
        )
        if (found := await hedger.race(contest, is_handshake=True, always=wanted.running)) is None:
            raise NoUpstreamError(contest.ending or Ending(UPSTREAM_FAILED, "nobody"))
        return cast("str", found)

    async def resume(self, name: str, replica: int, *lost: str) -> None:
        wanted = Wanted(name, "elena", running=True)
        pool, began_s = self.pools[replica], asyncio.get_running_loop().time()
        search = SessionSearch(pool, lambda _: ("voice_live",), lambda: wanted, timeout_s=5, hold_s=60)
        for each in lost:
            search.failed_at(each)

        async def hold(for_s: float) -> None:
            self.held_s.append(for_s)

        try:
            await search.find(partial(self.attempt, replica), hold)
        except NoUpstreamError as error:
            self.closed.append(f"{name}: {error.ending.reason}")
        else:
            self.found[name] = asyncio.get_running_loop().time() - began_s

    async def begin(self, name: str, replica: int, after_s: float) -> None:
        await asyncio.sleep(after_s)
        try:
            await self.attempt(replica, Wanted(name, "elena"))
        except NoUpstreamError:
            return
        self.found[name] = after_s


def fleet(resources: Sequence[Resource], replicas: int, azure: Azure, fresh: Sequence[int] = ()) -> Fleet:
    clock = asyncio.get_running_loop().time
    pools = [Pool(resources, policy=BreakerPolicy(failures=5, open_s=15), clock=clock) for _ in range(replicas)]
    for number, pool in enumerate(pools):
        pool.divide_quotas(replicas, is_fresh=number in fresh)
    return Fleet(azure, pools, [Hedger(pool, clock=clock) for pool in pools])


async def rush(replicas: int, how: str) -> Fleet:
    """60 talks lose a resource that is not known to be dead; 85 new ones come in the minute after."""
    dead = resource("dead")
    others = [resource(name, priority=2, quotas=LIMITED) for name in ("x", "y")]
    azure = Azure({each.name: LIMITED for each in others}, how)
    running = fleet([dead, *others], replicas, azure, fresh=[replicas - 1] if replicas > 1 else [])
    await asyncio.gather(
        *(running.resume(f"running-{number}", number % replicas, "dead") for number in range(60)),
        *(running.begin(f"new-{number}", number % replicas, 0.7 * number) for number in range(85)),
    )
    return running


@pytest.mark.parametrize("how", ["hanging", "refusing"])
@pytest.mark.parametrize("replicas", [1, 3])
def test_nobody_is_closed_in_a_rush(replicas: int, how: str) -> None:
    running = run_in_virtual_time(rush(replicas, how))
    assert running.closed == []
    assert sum(name.startswith("running") for name in running.found) == 60
    assert running.azure.refused == 0, "no refusal by Azure"


async def held(how: str) -> Fleet:
    """Six talks lose their resource, while the quotas of the others are used up: they refill one by one."""
    dead = resource("dead")
    others = [resource(name, quotas=Quotas(voice_live_per_minute=3)) for name in ("x", "y")]
    azure = Azure({}, how)
    running = fleet([dead, *others], 1, azure)
    for name in "xy":
        for _ in range(3):
            assert running.pools[0].admit(running.pools[0].by_name[name], "voice_live", agent_id="elena", running=True)
            await asyncio.sleep(6)
    await asyncio.gather(*(running.resume(f"{number}", 0, "dead") for number in range(6)))
    return running


@pytest.mark.parametrize("how", ["hanging", "refusing"])
def test_known_refill_is_waited_for(how: str) -> None:
    running = run_in_virtual_time(held(how))
    assert running.closed == []
    assert len(running.found) == 6
    assert running.held_s
    assert max(running.found.values()) < 62
    times_s = sorted(running.found.values())
    assert max(later - earlier for earlier, later in pairwise(times_s)) < 12, "each takes the next token that comes"


async def everybody_fails() -> tuple[Fleet, float]:
    running = fleet([resource("dead"), resource("dead-too")], 1, Azure({}))
    began_s = asyncio.get_running_loop().time()
    await running.resume("1", 0, "dead")
    return running, asyncio.get_running_loop().time() - began_s


def test_search_ends_where_nothing_refills() -> None:
    running, took_s = run_in_virtual_time(everybody_fails())
    assert len(running.closed) == 1
    assert took_s <= 5.1


async def silent_region() -> Fleet:
    """Forty talks lose their resource while another one, that nobody knows of yet, is silent."""
    names = ("a", "b", "c", "dead-too")
    running = fleet([resource("dead"), *(resource(name) for name in names)], 1, Azure({}))
    await asyncio.gather(*(running.resume(f"{number}", 0, "dead") for number in range(40)))
    return running


def test_silent_resource_costs_no_talk_two_seconds() -> None:
    running = run_in_virtual_time(silent_region())
    assert running.hedgers[0].budget.has_left, "running talks take nothing from the new ones' share"
    assert len(running.found) == 40
    assert max(running.found.values()) < 2


async def others_rest(only: str, how: str) -> Fleet:
    """A talk loses its resource, and the only one that does not rest for faults of a moment ago takes no talk."""
    running = fleet([resource("dead"), *(resource(name) for name in (only, "b", "c"))], 1, Azure({}, how))
    pool = running.pools[0]
    for name in "bc":
        while permit := pool.admit(pool.by_name[name], "voice_live", agent_id="elena"):
            pool.refused(permit, TransientError("down"))
    await running.resume("1", 0, "dead")
    return running


@pytest.mark.parametrize(("only", "how"), [("dead-too", "hanging"), ("unwilling", "refusing")])
def test_talk_asks_what_rests_before_it_ends(only: str, how: str) -> None:
    running = run_in_virtual_time(others_rest(only, how))
    assert running.closed == []
    assert running.found["1"] < 2


async def all_others_failed_it() -> Fleet:
    """Each resource that does not rest for faults has failed the talk a moment ago, as where its quota is used up."""
    running = fleet([resource(name) for name in "abc"], 1, Azure({}))
    pool = running.pools[0]
    while permit := pool.admit(pool.by_name["c"], "voice_live", agent_id="elena"):
        pool.refused(permit, TransientError("down"))
    await running.resume("1", 0, "a", "b")
    return running


def test_what_rests_comes_before_what_failed_the_talk() -> None:
    running = run_in_virtual_time(all_others_failed_it())
    assert running.azure.taken_s.keys() == {"c"}


async def later_than_the_hold() -> tuple[Fleet, float]:
    limited = resource("x", quotas=Quotas(voice_live_per_minute=1))
    running = fleet([resource("dead"), limited], 1, Azure({}, "refusing"))
    pool, began_s = running.pools[0], asyncio.get_running_loop().time()
    for number in range(3):  # three others are ahead in the queue
        pool.admit(limited, "voice_live", agent_id="elena", session_id=str(number), running=True)
    await running.resume("late", 0, "dead")
    return running, asyncio.get_running_loop().time() - began_s


def test_wait_beyond_the_hold_is_none() -> None:
    running, took_s = run_in_virtual_time(later_than_the_hold())
    assert len(running.closed) == 1
    assert took_s <= 5.1
