"""The chain: order, shares of one deadline, cancellation, and a grant in any case."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import pytest
from pydantic import SecretStr

from strategies.base import Attempt, EphemeralGrant, Grant, ProxyGrant, SessionSpec, SpecSupplier
from strategies.chain import Chain, Link, RetryPolicy, WebSocketProxy
from strategies.endpoint import Target, parse_target
from strategies.errors import MalformedError, MintError, MisconfiguredError, PermanentError, TransientError
from strategies.health import BreakerPolicy
from strategies.hedging import Hedger
from strategies.pool import Pool
from strategies.resources import Quotas, Resource
from tests.strategies.fakes import SPEC

POLICY = RetryPolicy(attempts=2, attempt_timeout_s=10, backoff_s=0)
GRANT = EphemeralGrant(
    strategy="fake", token=SecretStr("ek_x"), expires_at=None, expires_in_s=60, received_at_s=0,  # type: ignore[arg-type]  # not looked at
    endpoint="https://x", dialect="ga", voice="marin", resource="default",
)  # fmt: skip

Behaviour = Callable[[float], Awaitable[Grant]]


def now_s() -> float:
    """The loop's virtual time."""
    return asyncio.get_running_loop().time()


@dataclass
class Fake:
    """A strategy that behaves as a test says, and records how much time it was given."""

    name: str
    behave: Behaviour
    limits_s: list[float] = field(default_factory=list)
    cancelled: int = 0
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    @staticmethod
    def applies(target: Target) -> bool:
        return True

    async def mint(self, spec: SessionSpec, *, timeout_s: float) -> Grant:
        self.limits_s.append(timeout_s)
        self.asked.set()
        try:
            return await self.behave(timeout_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


async def mints(_timeout_s: float) -> Grant:
    return GRANT


async def hangs(_timeout_s: float) -> Grant:
    await asyncio.Event().wait()
    raise AssertionError


async def resists(_timeout_s: float) -> Grant:
    """Ignores every cancellation for half a second."""
    until_s = now_s() + 0.5
    while (left_s := until_s - now_s()) > 0:
        try:
            await asyncio.sleep(left_s)
        except asyncio.CancelledError:
            continue
    raise RuntimeError("too late, and wrong as well")


def raises(error: BaseException) -> Behaviour:
    async def behave(_timeout_s: float) -> Grant:
        raise error

    return behave


RESOURCE = Resource(
    name="default", target=parse_target("https://x.services.ai.azure.com"), model="gpt-realtime",
    model_family="gpt-realtime", transcription_model="transcribe",
)  # fmt: skip


def one_pool() -> Pool:
    return Pool([RESOURCE], policy=BreakerPolicy(failures=1, open_s=60), clock=now_s)


def chain_of(
    *fakes: Fake | WebSocketProxy,
    pool: Pool | None = None,
    on_attempt: Callable[[Attempt], None] = lambda _attempt: None,
) -> Chain:
    """All of one resource."""
    pool = pool or one_pool()
    links = [each if isinstance(each, WebSocketProxy) else Link(RESOURCE, each) for each in fakes]
    return Chain(pool, links, policy=POLICY, hedger=Hedger(pool, clock=now_s), on_attempt=on_attempt)


def open_breaker(pool: Pool, name: str, error: MintError, *, has_rested: bool = False) -> None:
    """Opens the strategy's breaker, for no time if it `has_rested`."""
    breaker = pool.breaker("default", name)
    permit = breaker.admit()
    assert permit is not None, name
    breaker.failed(permit, error, 1)
    if has_rested:
        breaker.rest_at_most(0)


async def spec(_resource: Resource) -> SessionSpec:
    return SPEC


async def run(
    *fakes: Fake | WebSocketProxy,
    pool: Pool | None = None,
    budget_s: float = 2,
    supply: SpecSupplier = spec,
    on_attempt: Callable[[Attempt], None] = lambda _attempt: None,
) -> tuple[Grant | None, list[tuple[str, str]], float]:
    """The grant, (strategy, outcome) of each attempt, and how long it took."""
    began_s = now_s()
    chain = chain_of(*fakes, pool=pool, on_attempt=on_attempt)
    result = await chain.mint(supply, deadline_s=began_s + budget_s)
    told = [(attempt.strategy, attempt.outcome) for attempt in result.attempts]
    return result.grant, told, now_s() - began_s


def _asked_for_s(budget_s: float, count: int = 1) -> float:
    """An equal share of a short budget, less 20 ms for making the plan and a twentieth for the attempt's last word."""
    return (budget_s - 0.02) / count * 0.95


async def test_first_grant_ends_the_chain() -> None:
    first, second = Fake("a", mints), Fake("b", mints)
    grant, told, _ = await run(first, second, WebSocketProxy())
    assert (grant, told) == (GRANT, [("a", "minted")])
    assert second.limits_s == []


async def test_failures_move_on_in_order() -> None:
    links = [
        Fake("a", raises(TransientError("503"))),
        Fake("b", raises(MalformedError("HTML"))),
        Fake("c", raises(PermanentError("404"))),
        Fake("d", mints),
    ]
    grant, told, _ = await run(*links, WebSocketProxy())
    assert grant == GRANT
    assert told == [("a", "transient"), ("b", "malformed"), ("c", "permanent"), ("d", "minted")]


async def test_proxy_in_the_middle_ends_the_chain() -> None:
    behind = Fake("b", mints)
    grant, told, _ = await run(Fake("a", raises(TransientError("503"))), WebSocketProxy(), behind)
    assert isinstance(grant, ProxyGrant)
    assert told == [("a", "transient"), ("websocket_proxy", "granted")]
    assert behind.limits_s == []


async def test_no_grant_without_mint_or_proxy() -> None:
    grant, told, _ = await run(Fake("a", raises(MisconfiguredError("401"))))
    assert (grant, told) == (None, [("a", "misconfigured")])


async def test_empty_chain_grants_nothing() -> None:
    assert (await run())[:2] == (None, [])


@pytest.mark.parametrize("count", [1, 2, 4])
async def test_hanging_strategies_get_equal_shares(count: int) -> None:
    links = [Fake(str(number), hangs) for number in range(count)]
    grant, told, took_s = await run(*links, WebSocketProxy(), budget_s=0.8)
    assert isinstance(grant, ProxyGrant)
    assert {outcome for _, outcome in told[:-1]} == {"timeout"}
    assert took_s <= 0.8
    for each in links:
        (limit_s,) = each.limits_s  # asked once: a timeout is not repeated
        assert limit_s == pytest.approx(_asked_for_s(0.8, count), abs=0.005)
        assert each.cancelled == 1


async def test_early_failure_leaves_its_share_to_others() -> None:
    late = Fake("b", hangs)
    await run(Fake("a", raises(PermanentError("404"))), late, WebSocketProxy(), budget_s=0.5)
    assert late.limits_s == [pytest.approx(_asked_for_s(0.5), abs=0.005)]


async def test_open_breaker_gets_no_share() -> None:
    opened, asked = Fake("b", mints), Fake("a", hangs)
    pool = one_pool()
    open_breaker(pool, "b", PermanentError("404"))
    _, told, _ = await run(asked, opened, WebSocketProxy(), pool=pool, budget_s=0.5)
    assert asked.limits_s == [pytest.approx(_asked_for_s(0.5), abs=0.005)]
    assert told == [("a", "timeout"), ("b", "skipped"), ("websocket_proxy", "granted")]


async def test_past_deadline_asks_nobody() -> None:
    asked = Fake("a", mints)
    grant, told, _ = await run(asked, WebSocketProxy(), budget_s=-1)
    assert isinstance(grant, ProxyGrant)
    assert told == [("a", "skipped"), ("websocket_proxy", "granted")]
    assert asked.limits_s == []


async def test_uncancellable_strategy_is_left_behind() -> None:
    stubborn = [Fake("a", resists), Fake("b", resists)]
    began = asyncio.all_tasks()
    grant, told, took_s = await run(*stubborn, WebSocketProxy(), budget_s=0.2)
    assert isinstance(grant, ProxyGrant)
    assert told[:2] == [("a", "timeout"), ("b", "timeout")]
    assert took_s <= 0.2 + 0.05, "each gets a moment to clean up"
    left = asyncio.all_tasks() - began
    assert len(left) == 2
    await asyncio.wait(left, timeout=5)
    await asyncio.sleep(0)
    assert not left & asyncio.all_tasks()


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyError("bug"), ExceptionGroup("bugs", [ValueError("bug")])])
async def test_strategy_with_a_bug_fails_alone(error: Exception) -> None:
    grant, told, _ = await run(Fake("a", raises(error)), Fake("b", mints))
    assert (grant, told) == (GRANT, [("a", "failed"), ("b", "minted")])


async def test_cancelled_caller_cancels_its_attempt() -> None:
    hanging, pool = Fake("a", hangs), one_pool()
    chain = chain_of(hanging, pool=pool)
    asking = asyncio.create_task(chain.mint(spec, deadline_s=now_s() + 60))
    await hanging.asked.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.sleep(0)
    assert hanging.cancelled == 1
    assert pool.breaker("default", "a").admit() is not None
    assert pool.breaker("default", "a").attempts == 0, "a cancelled call says nothing about Azure"


async def test_spec_is_awaited_for_real_mints_only() -> None:
    asked = 0

    async def supply(_resource: Resource) -> SessionSpec:
        nonlocal asked
        asked += 1
        return SPEC

    await run(WebSocketProxy(), supply=supply)
    assert asked == 0
    await run(Fake("a", mints), WebSocketProxy(), supply=supply)
    assert asked == 1


async def test_hanging_spec_costs_one_share() -> None:
    async def never(_resource: Resource) -> SessionSpec:
        await asyncio.Event().wait()
        raise AssertionError

    asked = Fake("a", mints)
    grant, told, took_s = await run(asked, WebSocketProxy(), supply=never, budget_s=0.2)
    assert isinstance(grant, ProxyGrant)
    assert told[0] == ("a", "timeout")
    assert asked.limits_s == []
    assert took_s <= 0.2


async def test_one_caller_probes_all_links() -> None:
    pool, release = one_pool(), asyncio.Event()

    async def fails_when_released(_timeout_s: float) -> Grant:
        await release.wait()
        raise PermanentError("404")

    first = Fake("a", fails_when_released)
    for name in ("a", "b"):
        open_breaker(pool, name, TransientError("503"), has_rested=True)
    chain = chain_of(first, Fake("b", mints), WebSocketProxy(), pool=pool)
    deadline_s = now_s() + 5
    prober = asyncio.create_task(chain.mint(spec, deadline_s=deadline_s))
    await first.asked.wait()
    others = await asyncio.gather(*(chain.mint(spec, deadline_s=deadline_s) for _ in range(20)))
    assert all(isinstance(other.grant, ProxyGrant) for other in others)
    assert pool.breaker("default", "b").attempts == 1
    release.set()
    assert (await prober).grant == GRANT


async def test_closed_link_is_asked_during_a_probe() -> None:
    first, pool = Fake("a", hangs), one_pool()
    open_breaker(pool, "a", TransientError("503"), has_rested=True)
    chain = chain_of(first, Fake("b", mints), WebSocketProxy(), pool=pool)
    prober = asyncio.create_task(chain.mint(spec, deadline_s=now_s() + 0.3))
    await first.asked.wait()
    other = await chain.mint(spec, deadline_s=now_s() + 5)
    assert [(attempt.strategy, attempt.outcome) for attempt in other.attempts] == [("a", "skipped"), ("b", "minted")]
    assert other.grant == GRANT
    await prober


async def test_every_attempt_is_reported() -> None:
    heard: list[Attempt] = []
    error = MintError("no", status=418, code="Teapot", request_id="r-1")
    await run(Fake("a", raises(error)), Fake("b", mints), on_attempt=heard.append)
    failed, succeeded = heard
    assert (failed.strategy, failed.outcome, failed.why, failed.tries) == ("a", "failed", "no", 1)
    assert (failed.status, failed.code, failed.request_id) == (418, "Teapot", "r-1")
    assert (succeeded.outcome, succeeded.status, succeeded.tries) == ("minted", 200, 1)
    assert all(attempt.duration_ms >= 0 for attempt in heard)


async def test_attempt_counts_its_tries() -> None:
    heard: list[Attempt] = []
    await run(Fake("a", raises(TransientError("503"))), on_attempt=heard.append)
    assert heard[0].tries == 2


async def test_each_try_takes_a_token() -> None:
    limited = replace(RESOURCE, quotas=Quotas(mints_per_minute=3))
    pool = Pool([limited], clock=now_s)
    fake = Fake("ga", raises(TransientError("503", status=503)))
    chain = Chain(pool, [Link(limited, fake)], policy=POLICY, hedger=Hedger(pool, clock=now_s))
    told = []
    for _ in range(3):
        attempt = (await chain.mint(spec, deadline_s=now_s() + 2)).attempts[0]
        told.append((attempt.outcome, attempt.tries))
    assert told == [("transient", 2), ("transient", 1), ("skipped", 0)]
    assert len(fake.limits_s) == 3, "Azure is asked no more often than its quota permits"


async def test_mint_without_a_field_takes_two_tokens() -> None:
    limited = replace(RESOURCE, quotas=Quotas(mints_per_minute=4))
    pool = Pool([limited], clock=now_s)

    async def mints_without(_timeout_s: float) -> Grant:
        return replace(GRANT, left_out=("session.speed",))

    chain = Chain(pool, [Link(limited, Fake("ga", mints_without))], policy=POLICY, hedger=Hedger(pool, clock=now_s))
    await chain.mint(spec, deadline_s=now_s() + 2)
    assert pool.snapshot()[0].load == {"mints": 0.5}
