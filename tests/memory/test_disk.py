"""A disk that is nearly full: no new turn is taken, everything else goes on, and room made is noticed."""

import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from tests.memory.conftest import MakeSettings
from tests.memory.support.app import TURNS, bearer, make_app
from tests.memory.support.turns import SESSION, owner, turn
from tests.memory.test_store_faults import has_no_room, say, the_talk_goes_on, works_again
from tests.support.waiting import eventually
from token_broker.api.metrics import memory_metrics
from token_broker.memory.drivers.sqlite import DiskSpace, free_bytes_of
from token_broker.memory.memory_status import MemoryStatus
from token_broker.memory.service import Memory
from token_broker.memory.store.sessions import find_session
from token_broker.memory.store_errors import StoreFullError
from token_broker.security.tokens import Owner
from token_broker.settings import Settings

FLOOR = 1_000_000
PATH = TURNS.format(session_id=SESSION)


class Disk:
    """Says how much is free."""

    def __init__(self) -> None:
        self.free_bytes = 10 * FLOOR
        self.looks = 0
        self.is_away = False

    def __call__(self, folder: Path) -> int:
        self.looks += 1
        if self.is_away:
            raise FileNotFoundError(folder)
        return self.free_bytes


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.setattr("token_broker.memory.drivers.sqlite._CHECK_EVERY_S", 0.0)
    return Disk()


@contextlib.asynccontextmanager
async def calling(settings: Settings, memory: Memory) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(make_app(settings, memory))
    headers = bearer(settings, owner())
    async with httpx.AsyncClient(transport=transport, base_url="http://broker", headers=headers) as http:
        yield http


async def erase(http: httpx.AsyncClient, settings: Settings, by: Owner) -> int:
    """Erases a session; how many turns it had."""
    answer = await http.delete(f"/api/v1/memory/sessions/{by.session_id}/turns", headers=bearer(settings, by))
    turns: int = answer.json()["turns"]
    return turns


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_short_disk_refuses_turns_only(make_settings: MakeSettings, disk: Disk) -> None:
    settings = make_settings(min_free_disk_bytes=FLOOR)
    with capture_logs() as logs:
        async with Memory.open(settings, free_bytes=disk) as memory, calling(settings, memory) as http:
            await memory.ready()
            assert (await say(http, "t0")).status_code == 200
            large = owner("session-to-erase-1")
            await memory.append([turn("l0", by=large)])
            disk.free_bytes = FLOOR - 1
            assert all([has_no_room(await say(http, f"t{number}")) for number in range(1, 4)])
            batch = {"transcripts": [{"text": "hello", "session_id": SESSION, "speaker": "user"}]}
            assert has_no_room(await http.post("/memory/enrich", json=batch))
            status = memory.status()
            assert (status.store, status.store_reason) == ("away", "disk nearly full")
            assert (status.disk_is_short, status.disk_free_bytes, status.short_of_disk) == (True, FLOOR - 1, 4)
            await the_talk_goes_on(memory)
            assert [said["turn_id"] for said in (await http.get(PATH)).json()["turns"]] == ["t0"]
            memory.sessions.record(owner("session-made-now-2"), "elena")
            find = partial(find_session, session_id="session-made-now-2")

            async def is_recorded() -> bool:
                return await memory._database.read(find) is not None

            await eventually(is_recorded)
            assert memory.ingest.buffered == 1, "what the proxy brings waits"
            assert await erase(http, settings, large) == 1
            disk.free_bytes = FLOOR
            await works_again(http)
            status = memory.status()
            assert (status.store, status.disk_is_short) == ("open", False)
    told = [line["event"] for line in logs if line["event"].startswith("disk_")]
    assert told == ["disk_nearly_full", "disk_has_room_again"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_erased_space_counts_as_free(make_settings: MakeSettings, disk: Disk) -> None:
    settings = make_settings(min_free_disk_bytes=FLOOR)
    async with Memory.open(settings, free_bytes=disk) as memory, calling(settings, memory) as http:
        await memory.ready()
        large = owner("session-to-erase-1")
        await memory.append([turn(f"t{number}", "x" * 32_000, by=large) for number in range(40)])
        disk.free_bytes = FLOOR // 4
        assert has_no_room(await say(http, "u1"))
        assert await erase(http, settings, large) == 40

        async def has_room() -> bool:
            await memory.refresh()
            return (await say(http, "u2")).status_code == 200

        await eventually(has_room)
        disk.free_bytes -= 1
        assert has_no_room(await say(http, "u3"))


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_zero_reserve_is_off(make_settings: MakeSettings, disk: Disk) -> None:
    disk.free_bytes = 0
    settings = make_settings(min_free_disk_bytes=0)
    async with Memory.open(settings, free_bytes=disk) as memory, calling(settings, memory) as http:
        assert (await say(http, "t0")).status_code == 200


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_postgresql_disk_is_not_checked(make_settings: MakeSettings, disk: Disk) -> None:
    disk.free_bytes = 0
    async with Memory.open(make_settings(min_free_disk_bytes=FLOOR), free_bytes=disk) as memory:
        await memory.append([turn("t0")])
        assert (disk.looks, memory.status().disk_free_bytes) == (0, None)


async def test_real_disk_below_reserve(tmp_path: Path) -> None:
    floor = free_bytes_of(tmp_path) * 100
    settings = Settings.load(
        database_url=SecretStr(f"sqlite+aiosqlite:///{tmp_path}/memory.db"),
        signing_keys="k" * 40,
        min_free_disk_bytes=floor,
    )
    async with Memory.open(settings) as memory:
        await memory.ready()
        with pytest.raises(StoreFullError):
            await memory.append([turn("t0")])


def test_disk_check_interval(tmp_path: Path) -> None:
    now_s, disk = 100.0, Disk()
    watch = DiskSpace(tmp_path, FLOOR, free_bytes=disk, clock=lambda: now_s)
    assert not any(watch.is_short(1000) for _ in range(100))
    assert disk.looks == 1
    disk.free_bytes = 0
    assert not watch.is_short()
    assert watch.is_short(16 * 1024 * 1024)
    disk.free_bytes = FLOOR
    assert watch.is_short()
    now_s += 1
    assert not watch.is_short()


def test_unreadable_disk_is_not_short(tmp_path: Path) -> None:
    disk = Disk()
    disk.is_away = True
    watch = DiskSpace(tmp_path, FLOOR, free_bytes=disk)
    assert not watch.is_short()
    assert watch.free_bytes is None


def test_short_disk_in_metrics() -> None:
    shown: dict[str, Any] = {
        "store": "away",
        "disk_is_short": True,
        "disk_free_bytes": 17,
        "short_of_disk": 3,
        "full_sessions": 2,
    }
    fields: dict[str, Any] = dict.fromkeys(MemoryStatus.__slots__, 0) | {"sinks": []}
    status = MemoryStatus(**(fields | shown))
    samples = {sample.name: sample.value for family in memory_metrics(status) for sample in family.samples}
    assert samples["token_broker_memory_disk_short"] == 1
    assert samples["token_broker_memory_disk_free_bytes"] == 17
    assert samples["token_broker_memory_short_of_disk_turns_total"] == 3
    assert samples["token_broker_memory_full_session_turns_total"] == 2
