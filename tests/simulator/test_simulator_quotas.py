"""Quotas over short windows: what they count, what they refuse, and the wait that they tell."""

import pytest
from websockets.exceptions import InvalidStatus

from tests.simulator.scene import user_text
from tests.simulator.support import GA_PATH, VOICE_LIVE_PATH, Caller, call
from tests.support.broker import plain_client
from token_broker.simulator import RunningSimulator
from token_broker.simulator.faults.quotas import Quota, QuotaFault


class Clock:
    def __init__(self) -> None:
        self.now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


def quota(clock: Clock, **options: object) -> Quota:
    return Quota(QuotaFault.model_validate({"match": "/", "fault": "quota", **options}), clock)


def test_window_slides() -> None:
    clock = Clock()
    counted = quota(clock, limit=2, window_s=10)
    assert counted.admits("websocket")
    clock.now_s += 4
    assert counted.admits("websocket")
    assert not counted.admits("websocket")
    assert counted.wait_s == 6
    clock.now_s += 6
    assert counted.admits("websocket")
    assert not counted.admits("websocket")
    assert counted.wait_s == 4


@pytest.mark.parametrize(("counts", "refused"), [("connections", "websocket"), ("requests", "http")])
def test_quota_counts_one_protocol(counts: str, refused: str) -> None:
    counted = quota(Clock(), limit=0, counts=counts)
    assert [protocol for protocol in ("websocket", "http") if not counted.admits(protocol)] == [refused]


def test_refused_attempts_count_on_request() -> None:
    clock = Clock()
    counted = quota(clock, limit=1, window_s=10, counts_refused=True)
    assert counted.admits("websocket")
    clock.now_s += 5
    assert not counted.admits("websocket")
    clock.now_s += 6
    assert not counted.admits("websocket")


def test_tokens_are_spent_beyond_the_limit() -> None:
    clock = Clock()
    counted = quota(clock, limit=100, window_s=60, counts="tokens")
    counted.spend(90)
    assert counted.wait_s == 0
    clock.now_s += 10
    counted.spend(500)
    assert counted.wait_s == 60
    assert not counted.admits("http")


@pytest.mark.parametrize(
    ("told", "header", "value"),
    [("seconds", "retry-after", "7"), ("ms", "retry-after-ms", "6500"), ("none", None, None)],
)
def test_wait_is_told(told: str, header: str | None, value: str | None) -> None:
    clock = Clock()
    counted = quota(clock, limit=1, window_s=6.5, retry_after=told)
    counted.admits("websocket")
    refusal = counted.refusal()
    assert refusal.status == 429
    assert refusal.headers == ({header: value} if header else {})


async def test_second_handshake_of_the_window_is_429(azure: RunningSimulator) -> None:
    azure.set_faults(
        {"match": "/voice-live", "fault": "quota", "limit": 1, "window_s": 1000},
        {"match": "/voice-live", "fault": "quota", "limit": 30, "window_s": 60},
    )
    async with call(azure, VOICE_LIVE_PATH) as caller:
        await caller.hear("session.created")
        with pytest.raises(InvalidStatus) as refused:
            async with call(azure, VOICE_LIVE_PATH):
                pass
        async with call(azure, GA_PATH) as other:
            await other.hear("session.created")
    assert refused.value.response.status_code == 429
    assert 990 < int(refused.value.response.headers["retry-after"]) <= 1000
    assert [request.fault for request in azure.requests] == [None, "quota", None]


async def test_mints_beyond_quota_are_429(azure: RunningSimulator) -> None:
    azure.set_faults(
        {"match": "/openai/v1/realtime/client_secrets", "fault": "quota", "limit": 1, "counts": "requests"}
    )
    session = {"session": {"type": "realtime", "model": "gpt-realtime"}}
    async with plain_client(azure.base_url) as client:
        answers = [
            await client.post("/openai/v1/realtime/client_secrets", json=session, headers={"api-key": "simulated-key"})
            for _ in range(2)
        ]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert 0 < int(answers[1].headers["retry-after"]) <= 60


async def test_answers_fail_beyond_token_quota(azure: RunningSimulator) -> None:
    azure.set_faults({"match": "/", "fault": "quota", "limit": 1, "counts": "tokens"})

    async def answered(caller: Caller) -> dict[str, object]:
        await caller.send("conversation.item.create", item=user_text("a question"))
        await caller.send("response.create")
        response: dict[str, object] = (await caller.hear("response.done"))["response"]
        return response

    async with call(azure) as caller:
        assert (await answered(caller))["status"] == "completed"
        failed = await answered(caller)
        assert failed["status"] == "failed"
        assert "rate_limit_exceeded" in str(failed["status_details"])
        with pytest.raises(InvalidStatus):
            async with call(azure):
                pass
