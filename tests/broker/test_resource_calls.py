"""WebRTC calls with several resources: one is asked at a time, and whoever made a call ends it."""

import contextlib
from pathlib import Path

import httpx
import pytest

from tests.support.offers import OFFER
from tests.support.resources import SeveralResources, run_resources
from tests.support.waiting import eventually
from token_broker.security.tokens import ANONYMOUS, Owner

OFFERS = "/openai/v1/realtime/calls"

pytestmark = pytest.mark.usefixtures("calls_without_media")


def session_at(several: SeveralResources, name: str) -> str:
    """A session that prefers that resource."""
    pool, agent = several.broker.state["minting"].pool, several.broker.agents["elena"]
    sessions = (f"session-of-the-calls-{number:04}" for number in range(200))
    return next(each for each in sessions if pool.order(agent.wanted(each))[0].name == name)


def token_of(several: SeveralResources, session_id: str) -> str:
    return several.broker.signer.session_token(Owner(session_id, ANONYMOUS, 1), ttl_s=60, agent_id="elena")


async def offer(several: SeveralResources, session_id: str) -> httpx.Response:
    headers = {"Content-Type": "application/sdp", "Authorization": f"Bearer {token_of(several, session_id)}"}
    return await several.broker.client.post("/realtime/calls", content=OFFER, headers=headers)


def offers(several: SeveralResources, name: str) -> list[int | None]:
    """The answers to the offers that came to that resource."""
    return [each.status for each in several.azures[name].requests if each.path == OFFERS]


def hang_ups(several: SeveralResources, name: str) -> list[str]:
    return [each.path for each in several.azures[name].requests if each.path.endswith("/hangup")]


@pytest.mark.slow
async def test_late_call_is_hung_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_broker.api.offers._OFFER_SHARE_S", 0.2)
    async with run_resources(tmp_path, "one", "two") as several:
        session_id = session_at(several, "one")
        with several.azures["one"].fault("slow", OFFERS, seconds=1.0):
            answer = await offer(several, session_id)
            assert answer.status_code == 201
            assert offers(several, "two") == [201]

            async def is_hung_up() -> bool:
                return bool(hang_ups(several, "one"))

            await eventually(is_hung_up)
        assert offers(several, "one") == [201]
        assert hang_ups(several, "two") == []
        assert several.broker.talks.active == 1


async def test_offers_are_never_made_twice(tmp_path: Path) -> None:
    async with run_resources(tmp_path, "one", "two", hedge_after_ms=1) as several:
        session_id = session_at(several, "one")
        with several.azures["one"].fault("slow", OFFERS, seconds=0.3):
            assert (await offer(several, session_id)).status_code == 201
        # The mint may be hedged, and then the faster resource gets the offer: one of the two, not both.
        assert len(offers(several, "one")) + len(offers(several, "two")) == 1


@pytest.mark.parametrize("name", ["one", "two"])
async def test_call_ends_where_it_was_made(name: str, tmp_path: Path) -> None:
    async with run_resources(tmp_path, "one", "two") as several:
        session_id = session_at(several, name)
        answer = await offer(several, session_id)
        headers = {"Authorization": f"Bearer {token_of(several, session_id)}"}
        ended = await several.broker.client.delete(answer.headers["location"], headers=headers)
        assert ended.status_code == 204
        # Each simulated resource takes its own key alone: 404 is "no such call", 401 would be the wrong key.
        (hang_up,) = [each for each in several.azures[name].requests if each.path.endswith("/hangup")]
        assert hang_up.status == 404
        other = "two" if name == "one" else "one"
        assert hang_ups(several, other) == []


async def test_sick_route_is_left_out(tmp_path: Path) -> None:
    async with run_resources(tmp_path, "one", "two", breaker_failures=1) as several:
        session_id = session_at(several, "one")
        with several.azures["one"].fault("status", OFFERS, code=503):
            for _ in range(4):
                assert (await offer(several, session_id)).status_code == 201
        assert offers(several, "one").count(503) < 4
        assert offers(several, "two") == [201] * 4


async def test_refused_everywhere_is_told(tmp_path: Path) -> None:
    async with run_resources(tmp_path, "one", "two") as several:
        session_id = session_at(several, "one")
        with (
            several.azures["one"].fault("status", OFFERS, code=500),
            several.azures["two"].fault("status", OFFERS, code=500),
        ):
            answer = await offer(several, session_id)
        assert (answer.status_code, answer.json()["code"]) == (502, "azure_refused")
        assert several.broker.talks.active == 0
        level = (await several.broker.client.get("/status")).json()["slo"]["talks"]
        assert (level["asked"], level["live"], level["ratio"]) == (1, 0, 0.0)


async def test_calls_ask_while_all_rest(tmp_path: Path) -> None:
    async with run_resources(tmp_path, "one", "two", breaker_failures=1, retry_attempts=1) as several:
        session_id = session_at(several, "one")
        names = ("one", "two")
        with contextlib.ExitStack() as stack:
            for name in names:
                stack.enter_context(several.azures[name].fault("reset"))
            for _ in range(3):
                before = {name: len(several.azures[name].requests) for name in names}
                answer = await offer(several, session_id)
                assert answer.json()["code"] == "nothing_minted"
                assert all(len(several.azures[name].requests) > before[name] for name in names)
        assert (await offer(several, session_id)).status_code == 201, "no rest outlasts the outage"


async def test_shortest_wait_is_told_of_calls(tmp_path: Path) -> None:
    async with run_resources(tmp_path, "one", "two", retry_attempts=1) as several:
        session_id = session_at(several, "one")
        with contextlib.ExitStack() as stack:
            for name, wait_s in (("one", 25), ("two", 40)):
                headers = {"retry-after": str(wait_s)}
                stack.enter_context(several.azures[name].fault("status", code=429, headers=headers))
            answer = await offer(several, session_id)
        assert (answer.status_code, answer.json()["code"]) == (503, "nothing_minted")
        assert 20 <= int(answer.headers["retry-after"]) <= 25


async def test_shortest_wait_is_told_of_offers(tmp_path: Path) -> None:
    async with run_resources(tmp_path, "one", "two", retry_attempts=1) as several:
        session_id = session_at(several, "one")
        with contextlib.ExitStack() as stack:
            for name, wait_s in (("one", 25), ("two", 40)):
                headers = {"retry-after": str(wait_s)}
                stack.enter_context(several.azures[name].fault("status", OFFERS, code=429, headers=headers))
            answer = await offer(several, session_id)
        assert (answer.status_code, answer.json()["code"]) == (502, "azure_refused")
        assert 20 <= int(answer.headers["retry-after"]) <= 25
