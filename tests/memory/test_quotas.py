"""What a principal may take of the memory: turns and bytes a minute, reads a minute; and nothing once it is blocked."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.memory.conftest import MakeSettings
from tests.memory.support.app import bearer, make_app
from tests.memory.support.turns import SESSION, owner, turn
from tests.support.serving import serve_app
from tests.support.waiting import eventually
from token_broker.memory.maintenance import open_maintenance
from token_broker.memory.service import Memory
from token_broker.security.tokens import Owner
from token_broker.settings import Settings

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

ANN, BOB = owner(principal="ann"), owner("session-of-bob-001", principal="bob")
IDS_BYTES = len(SESSION) + len("elena") + len("t1")


class Caller:
    """Browsers with session tokens of different principals."""

    def __init__(self, http: httpx.AsyncClient, settings: Settings, memory: Memory) -> None:
        self.http, self.settings, self.memory = http, settings, memory

    async def say(self, content: str = "hello", turn_id: str = "t1", *, by: Owner = ANN) -> httpx.Response:
        said = {"agent_id": "elena", "role": "user", "content": content, "turn_id": turn_id}
        return await self.post("/conversation/turn", {"session_id": by.session_id, **said}, by)

    async def enrich(self, *texts: str, by: Owner = ANN) -> httpx.Response:
        said = [{"session_id": by.session_id, "speaker": "user", "text": text} for text in texts]
        return await self.post("/memory/enrich", {"transcripts": said}, by)

    async def post(self, path: str, body: Any, by: Owner = ANN) -> httpx.Response:
        return await self.http.post(path, json=body, headers=bearer(self.settings, by))

    async def read(self, by: Owner = ANN) -> httpx.Response:
        path = f"/api/v1/memory/sessions/{by.session_id}/turns"
        return await self.http.get(path, headers=bearer(self.settings, by))

    async def forget(self, by: Owner = ANN) -> httpx.Response:
        path = f"/api/v1/memory/sessions/{by.session_id}/turns"
        return await self.http.delete(path, headers=bearer(self.settings, by))

    async def stored(self, by: Owner = ANN) -> list[str]:
        return [
            turn.content for turn in await self.memory.turns(by.session_id, principal=by.principal, limit=1000) or []
        ]


@contextlib.asynccontextmanager
async def calling(settings: Settings) -> AsyncIterator[Caller]:
    async with Memory.open(settings) as memory:
        await memory.ready()
        async with serve_app(make_app(settings, memory)) as base_url, httpx.AsyncClient(base_url=base_url) as http:
            yield Caller(http, settings, memory)


def refusal(answer: httpx.Response) -> tuple[int, str, bool]:
    """Status, code, and whether it says when to come again."""
    return answer.status_code, answer.json()["code"], int(answer.headers.get("retry-after", 0)) > 0


OVER_QUOTA = (429, "turn_quota", True)


async def test_turns_per_minute(make_settings: MakeSettings) -> None:
    async with calling(make_settings(turns_per_minute=3)) as caller:
        assert [(await caller.say(turn_id=f"t{n}")).status_code for n in range(3)] == [200] * 3
        assert refusal(await caller.say(turn_id="t3")) == OVER_QUOTA
        assert refusal(await caller.enrich("hello")) == OVER_QUOTA
        assert len(await caller.stored()) == 3
        assert (await caller.say(by=BOB)).status_code == 200


async def test_bytes_per_minute(make_settings: MakeSettings) -> None:
    async with calling(make_settings(turn_bytes_per_minute=3 * (1000 + IDS_BYTES))) as caller:
        assert [(await caller.say("ü" * 500, f"t{n}")).status_code for n in range(3)] == [200] * 3
        assert refusal(await caller.say("x", "t3")) == OVER_QUOTA
        assert len(await caller.stored()) == 3


async def test_ids_and_channels_count(make_settings: MakeSettings) -> None:
    async with calling(make_settings(turn_bytes_per_minute=1000)) as caller:
        said = {"session_id": SESSION, "speaker": "user", "text": "x", "turn_id": "t" * 128, "channel": "c" * 64}
        batch = {"transcripts": [{**said, "turn_id": f"{n}".ljust(128, "t")} for n in range(5)]}
        assert refusal(await caller.post("/memory/enrich", batch)) == (413, "over_quota", False)
        assert await caller.stored() == []


async def test_duplicate_counts(make_settings: MakeSettings) -> None:
    async with calling(make_settings(turns_per_minute=2)) as caller:
        assert [(await caller.say()).json()["duplicate"] for _ in range(2)] == [False, True]
        assert refusal(await caller.say()) == OVER_QUOTA


async def test_batch_over_quota_counts_nothing(
    make_settings: MakeSettings,
) -> None:
    async with calling(make_settings(turns_per_minute=5)) as caller:
        assert (await caller.enrich("one", "two")).status_code == 202
        assert refusal(await caller.enrich("three", "four", "five", "six")) == OVER_QUOTA
        assert (await caller.enrich("seven", "eight", "nine")).status_code == 202
        assert await caller.stored() == ["one", "two", "seven", "eight", "nine"]


async def test_batch_larger_than_quota_is_413(make_settings: MakeSettings) -> None:
    async with calling(make_settings(turns_per_minute=5)) as caller:
        answer = await caller.enrich(*"abcdef")
        assert refusal(answer) == (413, "over_quota", False)
        assert "5 turns" in answer.json()["detail"]
        assert (await caller.enrich(*"abcde")).status_code == 202


async def test_refused_body_counts_as_turn(make_settings: MakeSettings) -> None:
    async with calling(make_settings(turns_per_minute=2)) as caller:
        assert [(await caller.post("/conversation/turn", {"no": "turn"})).status_code for _ in range(2)] == [422] * 2
        assert refusal(await caller.post("/conversation/turn", {"no": "turn"})) == OVER_QUOTA


async def test_anonymous_caller_fills_no_disk(make_settings: MakeSettings) -> None:
    """By address, whichever sessions they have; with the quotas that a broker has by itself."""
    settings = make_settings()
    fields = {name: Settings.model_fields[name].get_default() for name in ("turns_per_minute", "turn_bytes_per_minute")}
    async with calling(make_settings(**fields)) as caller:
        content = "x" * settings.max_turn_bytes
        batch = [content] * (settings.max_memory_body_bytes // len(content) - 1)
        taken_bytes, batch_bytes = 0, len(content) * len(batch)
        for number in range(20_000_000 // batch_bytes):
            answer = await caller.enrich(*batch, by=owner(f"session-{number:016}"))
            if answer.status_code != 202:
                break
            taken_bytes += batch_bytes
        assert refusal(answer) == OVER_QUOTA
        assert 2_000_000 < taken_bytes < 10_000_000  # 4 MiB, and what a slow machine's minute adds


async def test_zero_turns_quotas_off(make_settings: MakeSettings) -> None:
    async with calling(make_settings(turns_per_minute=0, turn_bytes_per_minute=0)) as caller:
        for _ in range(9):  # 900 turns and 4.5 MB: beyond a broker's own quotas
            assert (await caller.enrich(*["x" * 5000] * 100)).status_code == 202


async def test_reads_and_erasures_have_own_rate(make_settings: MakeSettings) -> None:
    async with calling(make_settings(rate_limit_per_minute=3)) as caller:
        assert [(await caller.read()).status_code for _ in range(2)] == [200] * 2
        assert (await caller.forget()).status_code == 200
        for answer in (await caller.read(), await caller.forget()):
            assert refusal(answer) == (429, "rate_limited", True)
        assert (await caller.say(by=owner("another-session-01", principal=ANN.principal))).status_code == 200
        assert (await caller.read(by=BOB)).status_code == 200


@pytest.mark.parametrize(("kind", "name"), [("principal", "ann"), ("session", SESSION)])
async def test_blocked_caller_is_refused(make_settings: MakeSettings, kind: Any, name: str) -> None:
    settings = make_settings()
    async with calling(settings) as caller:
        assert (await caller.say("before")).status_code == 200
        assert (await caller.say(by=BOB)).status_code == 200
        async with open_maintenance(settings) as admin:
            await admin.block(kind, name)
        await caller.memory.blocklist.refresh()
        for answer in (
            await caller.say("after", "t2"),
            await caller.enrich("after"),
            await caller.read(),
            await caller.forget(),
        ):
            assert refusal(answer) == (403, "blocked", False)
        assert await caller.stored() == ["before"]
        for answer in (await caller.say(by=BOB, turn_id="t2"), await caller.read(by=BOB), await caller.forget(by=BOB)):
            assert answer.status_code == 200


async def test_proxied_turn_after_block_is_kept(make_settings: MakeSettings) -> None:
    settings = make_settings()
    async with calling(settings) as caller:
        async with open_maintenance(settings) as admin:
            await admin.block("principal", "ann")
        await caller.memory.blocklist.refresh()
        assert caller.memory.ingest.offer(turn(content="said before", by=ANN))

        async def is_kept() -> bool:
            return await caller.stored() == ["said before"]

        await eventually(is_kept)
