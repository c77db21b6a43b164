"""What one connection says of its resource: a handshake proves nothing, each answer does."""

import asyncio
import json
from typing import Any

import pytest

from strategies.errors import RateLimitedError
from strategies.health import BreakerPolicy
from strategies.pool import Pool, PoolPermit
from tests.strategies.test_pool import A, condition
from token_broker.relay.azure import route
from token_broker.relay.azure.opening import refusal_of
from token_broker.relay.azure.route import ConnectionHealth
from token_broker.relay.live.azure_session import _refusal

QUOTA = {"type": "insufficient_quota", "code": "insufficient_quota", "message": "You exceeded your current quota"}
BROKEN = {"type": "server_error", "code": None, "message": "The server had an error"}
EXPIRED = {"type": "invalid_request_error", "code": "session_expired", "message": "The maximum duration"}
MISTAKEN = {"type": "invalid_request_error", "code": "invalid_value", "message": "x"}


class FakeSocket:
    failure: str | None = None
    on_end: Any = None

    def __init__(self) -> None:
        self.frames: list[str] = []


def connection(pool: Pool, agent: str = "elena", socket: FakeSocket | None = None) -> ConnectionHealth:
    permit = pool.admit(A, "voice_live", agent_id=agent)
    assert permit is not None
    pool.connected(permit)
    return ConnectionHealth(pool, permit, socket or FakeSocket(), expires_s=None)  # type: ignore[arg-type]  # its end only


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


@pytest.mark.parametrize("error", [QUOTA, BROKEN], ids=["quota", "server error"])
@pytest.mark.parametrize("told_by", ["answer", "error", "unread answer", "unread error"])
async def test_end_after_a_fault_is_no_lost_connection(pool: Pool, error: dict[str, Any], told_by: str) -> None:
    failed = {"id": "r", "status": "failed", "status_details": {"type": "failed", "error": error}}
    for _ in range(3):
        socket = FakeSocket()
        talk = connection(pool, socket=socket)
        if told_by == "answer":
            talk.answer_failed(error["code"] or "server_error")
        elif told_by == "error":
            talk.told_error(error)
        elif told_by == "unread answer":
            socket.frames.append(json.dumps({"type": "response.done", "response": failed}))
        else:
            socket.frames.append(json.dumps({"type": "error", "error": error}))
        socket.on_end("Azure closed the connection")
    assert condition(pool) == "good"
    assert not is_admitted(pool), "the model rests, or the agent"
    assert is_admitted(pool, agent="marcus") == (error is BROKEN)


@pytest.mark.parametrize("is_read", [False, True])
async def test_session_that_expired_is_nobodys_fault(pool: Pool, *, is_read: bool) -> None:
    for _ in range(9):
        socket = FakeSocket()
        talk = connection(pool, socket=socket)
        if is_read:
            talk.told_error(EXPIRED)
        else:
            socket.frames.append(json.dumps({"type": "error", "error": EXPIRED}))
        socket.on_end("Azure closed the connection")
    assert condition(pool) == "good"
    assert is_admitted(pool)


@pytest.mark.parametrize("error", [None, MISTAKEN])
async def test_other_ends_are_lost_connections(pool: Pool, error: dict[str, Any] | None) -> None:
    for _ in range(3):
        socket = FakeSocket()
        talk = connection(pool, socket=socket)
        if error is not None:
            talk.told_error(error)
            socket.frames.append(json.dumps({"type": "error", "error": error}))
        socket.on_end("the connection to Azure broke")
    assert condition(pool) == "failing"


@pytest.mark.parametrize("asked", [False, True])
async def test_time_proves_only_what_was_not_asked(pool: Pool, monkeypatch: pytest.MonkeyPatch, *, asked: bool) -> None:
    monkeypatch.setattr(route, "_PROVEN_AFTER_S", 0.01)
    proven: list[PoolPermit] = []
    monkeypatch.setattr(pool, "succeeded", proven.append)
    talk = connection(pool)
    talk.was_asked = lambda: asked
    await asyncio.sleep(0.03)
    assert len(proven) == (not asked)
    talk.works()
    assert len(proven) == 1


@pytest.mark.parametrize(
    ("error", "is_of_tokens"),
    [
        (QUOTA, True),
        ({"type": "tokens", "code": "rate_limit_exceeded", "message": "x"}, True),
        ({"type": "requests", "code": "rate_limit_exceeded", "message": "Too many connections"}, False),
    ],
)
def test_session_refused_at_a_limit(error: dict[str, Any], *, is_of_tokens: bool) -> None:
    with pytest.raises(RateLimitedError) as refused:
        refusal_of({"type": "error", "error": error})
    live = _refusal(error, {})
    assert isinstance(live, RateLimitedError)
    assert (refused.value.is_of_tokens, live.is_of_tokens) == (is_of_tokens, is_of_tokens)
