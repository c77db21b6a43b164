"""Hedged mints at several resources: who is asked beside whom, who is blamed, and how often."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import pytest
from pydantic import SecretStr

from strategies.answer_times import AnswerTimes
from strategies.base import Attempt, EphemeralGrant, Grant, ProxyGrant, SessionSpec
from strategies.chain import Chain, ChainResult, Link, RetryPolicy, WebSocketProxy
from strategies.endpoint import Target
from strategies.errors import MintError, PermanentError, TimedOutError, TransientError
from strategies.health import BreakerPolicy, BreakerState
from strategies.hedging import Call, HedgeBudget, Hedger
from strategies.pool import Pool
from strategies.resources import Resource, Wanted
from tests.strategies.clock import Clock
from tests.strategies.fakes import SPEC
from tests.strategies.test_pool import A, B, C

GRANT = EphemeralGrant(
    strategy="fake", token=SecretStr("ek_x"), expires_at=None, expires_in_s=60, received_at_s=0,  # type: ignore[arg-type]  # not looked at
    endpoint="https://x", dialect="ga", voice="marin",
)  # fmt: skip
WANTED = Wanted(session_id="s", agent_id="elena")

Behaviour = Callable[[], Awaitable[Grant]]


def now_s() -> float:
    """The loop's virtual time."""
    return asyncio.get_running_loop().time()


@dataclass
class Azure:
    """What each (resource, strategy) does; mints where a test says nothing. Records who is asked, in order."""

    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    limits_s: list[float] = field(default_factory=list)

    async def answer(self, name: str) -> Grant:
        self.asked.append(name)
        try:
            grant = await self.behaviours[name]() if name in self.behaviours else GRANT
            return replace(grant, resource=name.partition(".")[0])
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise


@dataclass
class Fake:
    azure: Azure
    resource: Resource
    name: str

    @staticmethod
    def applies(target: Target) -> bool:
        return True

    async def mint(self, spec: SessionSpec, *, timeout_s: float) -> Grant:
        self.azure.limits_s.append(timeout_s)
        return await self.azure.answer(f"{self.resource.name}.{self.name}")


async def hangs() -> Grant:
    await asyncio.Event().wait()
    raise AssertionError


def fails(error: MintError) -> Behaviour:
    async def behave() -> Grant:
        raise error

    return behave


async def spec(resource: Resource) -> SessionSpec:
    return replace(SPEC, model=resource.model)


@dataclass
class Setup:
    """A chain over resources, each of which has the same strategies."""

    azure: Azure
    resources: tuple[Resource, ...] = (A, B, C)
    strategies: tuple[str, ...] = ("ga", "unified")
    after_ms: float | None = 5
    told: list[Attempt] = field(default_factory=list)
    pool: Pool = field(init=False)
    chain: Chain = field(init=False)

    def __post_init__(self) -> None:
        self.pool = Pool(self.resources, policy=BreakerPolicy(failures=5, open_s=60), clock=now_s)
        links: list[Link | WebSocketProxy] = [
            Link(each, Fake(self.azure, each, name)) for name in self.strategies for each in self.resources
        ]
        self.chain = Chain(
            self.pool,
            [*links, WebSocketProxy()],
            policy=RetryPolicy(attempts=1, attempt_timeout_s=60),
            hedger=Hedger(self.pool, after_ms=self.after_ms, clock=now_s),
            on_attempt=self.told.append,
        )

    async def mint(self, budget_s: float = 20, wanted: Wanted = WANTED) -> ChainResult:
        return await self.chain.mint(spec, deadline_s=now_s() + budget_s, wanted=wanted)


def outcomes(result: ChainResult) -> list[str]:
    return [f"{attempt.resource}.{attempt.strategy} {attempt.outcome}" for attempt in result.attempts]


def resource_of(result: ChainResult) -> str:
    return result.grant.resource if result.grant else ""


async def test_prompt_resource_is_asked_alone() -> None:
    setup = Setup(Azure(), after_ms=10_000)
    result = await setup.mint()
    assert (resource_of(result), setup.azure.asked) == ("a", ["a.ga"])
    assert outcomes(result) == ["a.ga minted"]
    assert setup.told == list(result.attempts)


async def test_silent_resource_is_hedged() -> None:
    setup = Setup(Azure({"a.ga": hangs}))
    result = await setup.mint()
    assert (resource_of(result), setup.azure.asked) == ("b", ["a.ga", "b.ga"])
    await asyncio.sleep(0)
    assert setup.azure.cancelled == ["a.ga"]
    assert outcomes(result) == ["b.ga minted", "a.ga undone"]
    loser = setup.pool.breaker("a", "ga")
    assert (loser.state, loser.attempts) == (BreakerState.CLOSED, 0), "neither success nor failure"
    assert setup.pool.snapshot()[0].health == "good"
    counted = {key: count for key, count in setup.chain.hedger.counts.items() if count}
    assert counted == {("b", "asked"): 1, ("b", "won"): 1, ("a", "undone"): 1}


async def test_each_delay_asks_one_more() -> None:
    setup = Setup(Azure({"a.ga": hangs, "b.ga": hangs}))
    result = await setup.mint()
    assert setup.azure.asked == ["a.ga", "b.ga", "c.ga"]
    assert resource_of(result) == "c"


async def test_0_is_no_hedge() -> None:
    setup = Setup(Azure({"a.ga": hangs}), after_ms=0)
    result = await setup.mint(budget_s=0.5)
    assert outcomes(result) == ["a.ga timeout", "b.ga minted"]
    assert setup.pool.breaker("a", "ga").snapshot().last_outcome == "timeout"


async def test_first_of_two_answers_wins() -> None:
    """The silent resource answers after all, while the hedge is under way."""
    release = asyncio.Event()

    async def releases() -> Grant:
        release.set()
        return await hangs()

    async def when_released() -> Grant:
        await release.wait()
        return GRANT

    setup = Setup(Azure({"a.ga": when_released, "b.ga": releases}))
    result = await setup.mint()
    assert outcomes(result) == ["a.ga minted", "b.ga undone"]


@pytest.mark.parametrize("error", [TransientError("refused"), TimedOutError("silence")])
async def test_dead_resource_costs_one_attempt(error: MintError) -> None:
    """Its other strategies come behind those of the other resources."""
    every = {f"{name}.{route}": fails(error) for name in "ab" for route in ("ga", "unified")}
    setup = Setup(Azure(every), after_ms=10_000)
    result = await setup.mint()
    assert setup.azure.asked == ["a.ga", "b.ga", "c.ga"]
    assert resource_of(result) == "c"


async def test_refused_route_goes_on_to_the_next() -> None:
    setup = Setup(Azure({"a.ga": fails(PermanentError("404", status=404))}), after_ms=10_000)
    result = await setup.mint()
    assert outcomes(result) == ["a.ga permanent", "a.unified minted"]


async def test_all_are_asked_before_the_proxy() -> None:
    error = TransientError("refused")
    every = {f"{name}.{route}": fails(error) for name in "abc" for route in ("ga", "unified")}
    setup = Setup(Azure(every), after_ms=10_000)
    result = await setup.mint()
    assert isinstance(result.grant, ProxyGrant)
    assert sorted(setup.azure.asked) == sorted(every)


async def test_only_permitted_are_hedged() -> None:
    setup = Setup(Azure({"a.ga": hangs, "a.unified": hangs}))
    result = await setup.mint(budget_s=0.2, wanted=replace(WANTED, resources=("a",)))
    assert set(setup.azure.asked) == {"a.ga", "a.unified"}
    assert isinstance(result.grant, ProxyGrant)


async def test_spec_is_the_resources_own() -> None:
    seen = []

    async def supply(resource: Resource) -> SessionSpec:
        seen.append(resource.name)
        return SPEC

    setup = Setup(Azure({"a.ga": hangs}))
    await setup.chain.mint(supply, deadline_s=now_s() + 20, wanted=WANTED)
    assert seen == ["a", "b"]


async def test_own_slowness_is_not_hedged() -> None:
    """Nobody was asked while the spec was made."""
    setup, made = Setup(Azure()), asyncio.Event()

    async def supply(_resource: Resource) -> SessionSpec:
        await made.wait()
        return SPEC

    asking = asyncio.create_task(setup.chain.mint(supply, deadline_s=now_s() + 20, wanted=WANTED))
    done, _ = await asyncio.wait([asking], timeout=0.05)  # ten delays
    assert not done
    made.set()
    assert outcomes(await asking) == ["a.ga minted"]


@pytest.mark.parametrize(
    ("resources", "strategies", "parts"),
    [((A,), ("ga",), 1), ((A,), ("ga", "unified"), 2), ((A, B), ("ga", "unified"), 2), ((A, B, C), ("ga",), 3)],
)
async def test_time_is_divided(resources: tuple[Resource, ...], strategies: tuple[str, ...], parts: int) -> None:
    setup = Setup(Azure(), resources, strategies, after_ms=0)
    await setup.mint(budget_s=12)
    assert setup.azure.limits_s == [pytest.approx(12 / parts, abs=1)]


async def test_three_lost_in_a_row_are_slow() -> None:
    setup = Setup(Azure({"a.ga": hangs}))
    for _ in range(3):
        await setup.mint()
    assert setup.pool.snapshot()[0].health == "slow"
    setup.azure.asked.clear()
    await setup.mint()
    assert setup.azure.asked == ["b.ga"], "it comes behind the others"
    pace = setup.pool.pace("a")
    pace.rest_at_most(0)
    await setup.mint()
    assert setup.pool.snapshot()[0].health == "slow", "its probe was silent as well"
    pace.rest_at_most(0)
    del setup.azure.behaviours["a.ga"]
    assert resource_of(await setup.mint()) == "a"
    assert setup.pool.snapshot()[0].health == "good"


async def test_answer_in_time_ends_the_row() -> None:
    setup = Setup(Azure({"a.ga": hangs}))
    for _ in range(2):
        await setup.mint()
    del setup.azure.behaviours["a.ga"]
    await setup.mint()
    setup.azure.behaviours["a.ga"] = hangs
    for _ in range(2):
        await setup.mint()
    assert setup.pool.snapshot()[0].health == "good"


async def test_client_that_leaves_blames_nobody() -> None:
    setup = Setup(Azure({"a.ga": hangs, "b.ga": hangs, "c.ga": hangs}))
    asking = asyncio.create_task(setup.mint())
    async with asyncio.timeout(20):
        while len(setup.azure.asked) < 3:  # noqa: ASYNC110  # the race waits for its own delay
            await asyncio.sleep(0.001)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.sleep(0)
    assert sorted(setup.azure.cancelled) == ["a.ga", "b.ga", "c.ga"]
    assert [status.health for status in setup.pool.snapshot()] == ["good"] * 3
    assert setup.pool.pace("a").admit() is not None


# --- handshakes, by the same race


@dataclass
class Handshakes:
    """A contest whose calls give the name of their resource; one that is undone is closed."""

    pool: Pool
    behaviours: dict[str, Callable[[], Awaitable[str]]]
    closed: list[str] = field(default_factory=list)
    _left: list[Resource] = field(default_factory=lambda: [A, B])

    def next_call(self, busy: object) -> Call[str] | None:
        if not self._left:
            return None
        resource = self._left.pop(0)
        permit = self.pool.admit(resource, "voice_live", agent_id="elena")
        assert permit is not None

        async def run(_call: Call[str]) -> str:
            return await self.behaviours[resource.name]()

        return Call(resource.name, permit, run, limit_s=20)

    def ended(self, call: Call[str], error: MintError | None) -> None:
        pass

    def undone(self, call: Call[str], late: str | None) -> None:
        if late is not None:
            self.closed.append(late)


async def test_late_handshake_is_closed() -> None:
    """A handshake that ignores its cancellation succeeds after another one has won."""
    release = asyncio.Event()

    async def stubborn() -> str:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return "socket of a"

    async def prompt() -> str:
        return "socket of b"

    pool = Pool([A, B], clock=now_s)
    hedger, contest = Hedger(pool, after_ms=5, clock=now_s), Handshakes(pool, {"a": stubborn, "b": prompt})
    assert await hedger.race(contest, is_handshake=True) == "socket of b"
    assert contest.closed == []
    release.set()
    await asyncio.wait(hedger.left_behind, timeout=20)
    await asyncio.sleep(0)
    assert (contest.closed, hedger.left_behind) == (["socket of a"], set())


async def test_handshake_is_no_success() -> None:
    async def prompt() -> str:
        return "socket"

    pool = Pool([A, B], clock=now_s)
    await Hedger(pool, after_ms=None, clock=now_s).race(Handshakes(pool, {"a": prompt}), is_handshake=True)
    status = pool.breaker("a", "voice_live").snapshot()
    assert (status.attempts, status.last_outcome) == (1, "connected")


# --- when, and how often


@pytest.mark.parametrize(
    ("answers_ms", "expected_ms"),
    [
        ([], 800),
        ([50] * 19, 800),  # too few
        ([400] * 20, 600),
        ([50] * 20, 300),  # at least
        ([2500] * 20, 1500),  # at most
        ([300] * 94 + [700] * 6, 1050),  # 1.5 times 700
    ],
)
def test_delay_goes_by_the_95th_percentile(answers_ms: list[float], expected_ms: float) -> None:
    times = AnswerTimes()
    for each in answers_ms:
        times.add(each)
    assert times.hedge_after_ms == pytest.approx(expected_ms)


def test_age_of_lost_answers_counts() -> None:
    clock = Clock()
    pool = Pool([A, B], clock=clock)
    for _ in range(20):
        permit = pool.admit(A, "ga", agent_id="elena")
        assert permit is not None
        clock.now_s += 0.9
        pool.undone(permit)
    assert pool.answer_times("a", "ga").hedge_after_ms == pytest.approx(1350)


@pytest.mark.parametrize(("requests", "hedges"), [(0, 5), (49, 5), (60, 6), (1000, 100)])
def test_a_tenth_is_hedged_but_always_five(requests: int, hedges: int) -> None:
    clock = Clock(now_s=1005)
    budget = HedgeBudget(clock)
    for number in range(requests):
        clock.now_s = 1005 + 40 * number / requests
        budget.count_request()
    for _ in range(hedges):
        assert budget.has_left
        budget.count_hedged()
    assert not budget.has_left
    clock.now_s += 60
    assert budget.has_left


async def test_hedges_end_with_their_budget() -> None:
    setup = Setup(Azure({"a.ga": hangs}), strategies=("ga",))
    first = []
    for _ in range(7):
        setup.pool.pace("a")._close()  # as if it was not known to be slow
        result = await setup.mint(budget_s=0.3)
        first.append([each.outcome for each in result.attempts if each.resource == "a"])
    assert first == [["undone"]] * 5 + [["timeout"]] * 2
