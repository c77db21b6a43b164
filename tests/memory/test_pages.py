"""Pages of turns: bounded in bytes, read without fetching more, sent piece by piece."""

import asyncio
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from tests.memory.conftest import MakeSettings
from tests.memory.support.app import bearer, make_app
from tests.memory.support.killing import free_port, process
from tests.memory.support.stores import opened
from tests.memory.support.turns import SESSION, owner, turn
from tests.support.waiting import eventually
from token_broker.bootstrap import memory_quotas
from token_broker.memory.drivers.connect import connect
from token_broker.memory.drivers.database import Database
from token_broker.memory.ingest.group_commit import ArrivalClock
from token_broker.memory.service import Memory
from token_broker.memory.store.turn_reads import PAGE_BYTES, list_turns
from token_broker.memory.store.turn_writes import insert_turns
from token_broker.memory.types import ArrivedTurn
from token_broker.security.limits import PageSlots
from token_broker.security.tokens import Owner
from token_broker.settings import Settings
from token_broker.web.requests import Problem

PATH = f"/api/v1/memory/sessions/{SESSION}/turns"
LARGEST = 32_768  # a turn's content, by BROKER_MAX_TURN_BYTES


async def fill(database: Database, contents: list[str], by: Owner | None = None) -> None:
    """Stores turns `t0`, `t1`, … in this order."""
    by, arrivals = by or owner(), ArrivalClock()
    for start in range(0, len(contents), 100):
        batch = [
            ArrivedTurn(turn(f"t{n}", content, by=by, sequence=n), arrivals.next())
            for n, content in enumerate(contents[start : start + 100], start)
        ]
        work = partial(insert_turns, batch=batch, now_s=1.0, unknown=[(by, "elena")], sinks=[])
        await database.write(work)


async def test_page_ends_at_byte_limit(database: Database) -> None:
    await fill(database, ["ü" * 50, "x" * 100, "x" * 100, "x" * 301, "x", "y"])
    read = partial(list_turns, session_id=SESSION, principal="anonymous", max_bytes=300)
    pages, after = [], None
    while True:
        page = await database.read(partial(read, limit=5, after=after))
        assert page is not None
        pages.append([said.turn_id for said in page])
        if not page.more:
            break
        after = page[-1].turn_id
    assert pages == [["t0", "t1", "t2"], ["t3"], ["t4", "t5"]]


async def test_page_has_at_least_one_turn(database: Database) -> None:
    await fill(database, ["x" * 100, "y", "z"])
    read = partial(list_turns, session_id=SESSION, principal="anonymous")
    first = await database.read(partial(read, limit=9, after=None, max_bytes=1))
    assert first is not None
    assert ([said.turn_id for said in first], first.more) == (["t0"], True)
    for limit, more in ((1, True), (2, True), (3, False), (4, False)):
        page = await database.read(partial(read, limit=limit, after=None))
        assert page is not None
        assert (len(page), page.more) == (min(limit, 3), more)
    last = await database.read(partial(read, limit=9, after="t2"))
    assert last is not None
    assert (list(last), last.more) == ([], False)


async def peak_bytes(pid: int, *, since: bool = False) -> int:
    """The process's memory at its highest, since it was last reset with `since`, or now."""
    folder = Path(f"/proc/{pid}")

    def read() -> int:
        if since:
            (folder / "clear_refs").write_text("5")
        fields = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024

    return await asyncio.to_thread(read)


@pytest.fixture
async def large_session(database_url: str) -> str:
    """A store with a session of 20 MB. Six pages of all of it at once would take 120 MB."""
    async with opened(connect(SecretStr(database_url), timeout_s=60, patience_s=5)) as database:
        await fill(database, ["0123456789abcdef" * (LARGEST // 16)] * 600)
    return database_url


async def test_concurrent_pages_take_little_memory(large_session: str, tmp_path: Path) -> None:
    settings = Settings.load(database_url=SecretStr(large_session), signing_keys="k" * 40)
    port = free_port()
    async with (
        process(tmp_path, port, large_session, None) as running,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, headers=bearer(settings, owner())) as http,
    ):

        async def page() -> httpx.Response | None:
            try:
                return await http.get(PATH, params={"limit": 1000})
            except httpx.TransportError:
                return None

        async def is_read() -> bool:
            answer = await page()
            return answer is not None and answer.status_code == 200

        await eventually(is_read, within_s=30)
        before = await peak_bytes(running.pid, since=True)
        answers = await asyncio.gather(*(page() for _ in range(6)))
        grown = await peak_bytes(running.pid) - before
        for answer in answers:
            assert answer is not None
            assert answer.status_code == 200
            assert LARGEST < len(answer.content) < 2 * PAGE_BYTES
            assert answer.json()["next"] == answer.json()["turns"][-1]["turn_id"]
        assert grown < 100_000_000


async def test_large_session_is_paged(make_settings: MakeSettings) -> None:
    settings = make_settings()
    async with Memory.open(settings) as memory:
        await memory.ready()
        await fill(memory._database, ["x" * LARGEST] * 100)
        transport = httpx.ASGITransport(make_app(settings, memory))
        headers = bearer(settings, owner())
        async with httpx.AsyncClient(transport=transport, base_url="http://broker", headers=headers) as http:
            found: list[str] = []
            after: dict[str, str] = {}
            while True:
                page = (await http.get(PATH, params={"limit": 1000, **after})).json()
                assert page["turns"]
                found += [said["turn_id"] for said in page["turns"]]
                if page["next"] is None:
                    break
                after = {"after": page["next"]}
        assert found == [f"t{number}" for number in range(100)]


class SlowReader:
    """Asks for a page as an ASGI server would, and takes nothing until it is told to."""

    def __init__(self, app: Any, settings: Settings, by: Owner) -> None:
        self.pieces: list[bytes] = []
        self.status = 0
        self.takes = asyncio.Event()
        self._app = app
        token = bearer(settings, by)["Authorization"]
        self._scope = {
            "type": "http",
            "method": "GET",
            "path": f"/api/v1/memory/sessions/{by.session_id}/turns",
            "query_string": b"limit=1000",
            "headers": [(b"authorization", token.encode())],
            "client": ("127.0.0.1", 1),
        }
        self.done: asyncio.Task[None] = asyncio.create_task(self._ask())

    async def _ask(self) -> None:
        await self._app(self._scope, self._receive, self._send)

    async def _receive(self) -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        self.pieces.append(message.get("body", b""))
        await self.takes.wait()

    async def has_begun(self) -> bool:
        return bool(self.pieces)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_slow_reader_delays_nobody_else(make_settings: MakeSettings) -> None:
    ann, bob = owner(principal="ann"), owner("session-of-bob-001", principal="bob")
    settings = make_settings()
    async with Memory.open(settings) as memory:
        await memory.ready()
        for by in (ann, bob):
            await fill(memory._database, ["x" * LARGEST] * 40, by)
        quotas = memory_quotas(settings)
        quotas.pages = PageSlots(total=10, per_key=2, wait_s=0.3)
        app = make_app(settings, memory, quotas=quotas)
        slow = [SlowReader(app, settings, ann) for _ in range(2)]
        for reader in slow:
            await eventually(reader.has_begun)
        assert [len(reader.pieces) for reader in slow] == [1, 1], "each piece waits for the one before"
        assert max(len(piece) for reader in slow for piece in reader.pieces) <= 65_536
        third = SlowReader(app, settings, ann)
        third.takes.set()
        await third.done
        assert (third.status, json.loads(third.pieces[0])["code"]) == (503, "store_busy")
        other = SlowReader(app, settings, bob)
        other.takes.set()
        await other.done
        assert other.status == 200
        slow[0].takes.set()
        await slow[0].done
        assert len(json.loads(b"".join(slow[0].pieces))["turns"]) == PAGE_BYTES // LARGEST
        fourth = SlowReader(app, settings, ann)
        fourth.takes.set()
        await fourth.done
        assert fourth.status == 200
        slow[1].done.cancel()
        await asyncio.wait({slow[1].done})
        assert quotas.pages._all_taken == 0


async def test_slots_are_fair_and_never_lost() -> None:
    slots = PageSlots(total=2, per_key=1, wait_s=5)
    order: list[str] = []

    async def take(key: str, name: str) -> None:
        async with slots.slot(key):
            order.append(name)
            await asyncio.sleep(0)

    async with slots.slot("a"):
        waiting = [asyncio.create_task(take("a", name)) for name in ("first", "second", "third")]
        await asyncio.sleep(0)
        await asyncio.gather(take("b", "another's"), take("b", "another's again"))
        waiting[1].cancel()
        await asyncio.wait({waiting[1]})
    await asyncio.gather(waiting[0], waiting[2])
    assert order == ["another's", "another's again", "first", "third"]
    assert (slots._all_taken, slots._taken, slots._waiting) == (0, {}, [])


async def test_slot_wait_ends_with_retry_after() -> None:
    slots = PageSlots(total=1, per_key=1, wait_s=0.05)
    async with slots.slot("a"):
        began_s = time.monotonic()
        with pytest.raises(Problem) as refused:
            async with slots.slot("b"):
                pytest.fail("there is one place")
        assert time.monotonic() - began_s < 5
    assert (refused.value.status, refused.value.code, refused.value.headers) == (
        503,
        "store_busy",
        {"Retry-After": "1"},
    )
    async with slots.slot("b"):
        pass
