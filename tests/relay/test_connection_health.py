"""What one connection says of its resource: a handshake proves nothing, each answer does."""

from typing import Any

import pytest

from strategies.health import BreakerPolicy
from strategies.pool import Pool
from tests.strategies.test_pool import A, condition
from token_broker.relay.azure.route import ConnectionHealth


class FakeSocket:
    failure: str | None = None
    on_end: Any = None


def connection(pool: Pool, agent: str = "elena") -> ConnectionHealth:
    permit = pool.admit(A, "voice_live", agent_id=agent)
    assert permit is not None
    pool.connected(permit)
    return ConnectionHealth(pool, permit, FakeSocket(), expires_s=None)  # type: ignore[arg-type]  # only its end is used


def is_admitted(pool: Pool, agent: str = "elena", route: str = "voice_live") -> bool:
    return pool.admit(A, route, agent_id=agent) is not None


@pytest.fixture
def pool() -> Pool:
    return Pool([A], policy=BreakerPolicy(failures=3))


@pytest.mark.parametrize("code", ["insufficient_quota", "rate_limit_exceeded"])
async def test_answers_at_a_limit_rest_the_model(pool: Pool, code: str) -> None:
    for _ in range(3):
        connection(pool).answer_failed(code)
    assert not is_admitted(pool)
    assert not is_admitted(pool, route="ga"), "the model's limit holds for all routes"
    assert condition(pool) == "good"


async def test_failing_answers_rest_their_agent(pool: Pool) -> None:
    for _ in range(3):
        connection(pool).answer_failed("server_error")
    assert not is_admitted(pool)
    assert is_admitted(pool, agent="marcus")


async def test_one_talk_counts_once(pool: Pool) -> None:
    talk = connection(pool)
    for _ in range(9):
        talk.answer_failed("server_error")
    assert is_admitted(pool)


async def test_completed_answer_begins_anew(pool: Pool) -> None:
    for _ in range(2):
        connection(pool).answer_failed("server_error")
    connection(pool).works()
    for _ in range(2):
        connection(pool).answer_failed("server_error")
    assert is_admitted(pool)
