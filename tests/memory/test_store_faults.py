"""Stores that are full, locked, restarted, or not there: never a false success, and back without a restart."""

import asyncio
import contextlib
import gc
import resource
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import Connection
from structlog.testing import capture_logs

from tests.memory.conftest import MakeSettings
from tests.memory.support.app import bearer, make_app
from tests.memory.support.stores import assert_sound, opened
from tests.memory.support.turns import SESSION, owner, turn
from tests.support.broker import environment, plain_client, run_process
from tests.support.databases import PostgresServer, sqlite_url
from tests.support.serving import serve_app
from tests.support.waiting import eventually
from token_broker.memory.drivers.sqlite import SqliteDatabase
from token_broker.memory.ingest.group_commit import GroupWriter
from token_broker.memory.maintenance import open_maintenance
from token_broker.memory.service import Memory
from token_broker.memory.store_errors import StoreAwayError, StoreError, StoreInUseError, StoreRefusedError
from token_broker.memory.types import Outcome
from token_broker.security.tokens import Owner
from token_broker.settings import Settings
from token_broker.simulator import RunningSimulator

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@contextlib.asynccontextmanager
async def calling(settings: Settings, memory: Memory) -> AsyncIterator[httpx.AsyncClient]:
    headers = bearer(settings, owner())
    async with (
        serve_app(make_app(settings, memory)) as base_url,
        httpx.AsyncClient(base_url=base_url, headers=headers, timeout=30) as http,
    ):
        yield http


async def say(
    http: httpx.AsyncClient, turn_id: str, content: str = "hello", session_id: str = SESSION
) -> httpx.Response:
    said = {"session_id": session_id, "agent_id": "elena", "role": "user", "content": content, "turn_id": turn_id}
    return await http.post("/conversation/turn", json=said)


async def the_talk_goes_on(memory: Memory) -> None:
    """What a mint and an admission need of the memory is answered, soon and whatever the store does."""
    began_s = time.monotonic()
    memory.sessions.record(owner("session-made-now-1"), "elena")
    with contextlib.suppress(StoreError):  # of a silent store nobody is told whose a session is, and soon
        assert await memory.sessions.find("session-made-now-1") is not None
    assert [await memory.tickets.spend(f"{began_s}", time.time() + 60) for _ in range(2)] == [True, False]
    await memory.recall.block(owner())
    assert memory.ingest.offer(turn("from-the-proxy"))
    assert time.monotonic() - began_s < 0.25 + 0.25 + 0.3 + 1.5


async def works_again(http: httpx.AsyncClient) -> None:
    async def stored() -> bool:
        return (await say(http, "afterwards")).status_code == 200

    await eventually(stored, within_s=30)

    async def from_the_proxy() -> bool:
        turns = (await http.get(f"/api/v1/memory/sessions/{SESSION}/turns")).json()["turns"]
        return "from-the-proxy" in [found["turn_id"] for found in turns]

    await eventually(from_the_proxy, within_s=30)


def executing(statement: str) -> Callable[[Connection], int]:
    return lambda connection: connection.exec_driver_sql(statement).rowcount


def refused(answer: httpx.Response) -> bool:
    return answer.status_code == 503 and int(answer.headers["retry-after"]) > 0


def has_no_room(answer: httpx.Response) -> bool:
    return (answer.status_code, answer.json()["code"]) == (507, "store_full") and int(answer.headers["retry-after"]) > 0


@on_sqlite
async def test_full_disk_is_507_and_recovers(make_settings: MakeSettings) -> None:
    settings = make_settings()
    async with Memory.open(settings) as memory:
        await memory.ready()
        async with calling(settings, memory) as http:
            assert (await say(http, "t0")).status_code == 200
            await memory._database.write(lambda c: c.exec_driver_sql("PRAGMA max_page_count = 1").scalar())
            answers = [await say(http, f"t{number}", "x" * 30_000) for number in range(1, 9)]
            lost = [number for number, answer in enumerate(answers, start=1) if answer.status_code != 200]
            assert lost
            assert all(has_no_room(answers[number - 1]) for number in lost)
            assert memory.status().store == "away"
            await the_talk_goes_on(memory)
            await memory._database.write(lambda c: c.exec_driver_sql("PRAGMA max_page_count = 1000000").scalar())
            await works_again(http)
            kept = (await http.get(f"/api/v1/memory/sessions/{SESSION}/turns")).json()["turns"]
            acknowledged = {f"t{number}" for number in range(9) if number not in lost}
            assert acknowledged <= {found["turn_id"] for found in kept}
            assert memory.status().store == "open"


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="a running process's limits are Linux's to change")
async def test_broker_with_full_disk_still_mints(azure: RunningSimulator, tmp_path: Path) -> None:
    """The kernel refuses to let the files grow: the log can't be written, and no checkpoint can either."""
    env = environment(tmp_path, azure.base_url, BROKER_DATABASE_URL=sqlite_url(tmp_path))
    async with run_process("serve", env, tmp_path) as broker, plain_client(broker.base_url) as http:
        plan = (await http.post("/realtime/token", json={"agent_id": "elena"})).json()
        session_id = plan["session_id"]
        http.headers["Authorization"] = f"Bearer {plan['session_token']}"
        acknowledged = []

        async def say_next(number: int) -> httpx.Response:
            answer = await say(http, f"t{number}", "teal boats " * 2_000, session_id)
            if answer.status_code == 200:
                acknowledged.append(f"t{number}")
            return answer

        _, hard = resource.prlimit(broker.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(broker.process.pid, resource.RLIMIT_FSIZE, (512 * 1024, hard))
        answers = [await say_next(number) for number in range(40)]
        await asyncio.sleep(1.5)  # while checkpoints are tried, and words are to be indexed
        answers += [await say_next(number) for number in range(40, 60)]
        assert acknowledged
        assert answers[-1].status_code == 503
        assert all(answer.status_code == 200 or refused(answer) for answer in answers)
        assert (await http.post("/realtime/token", json={"agent_id": "elena"})).json()["strategy"] == "ga"
        assert (await http.get("/readyz")).status_code == 200

        resource.prlimit(broker.process.pid, resource.RLIMIT_FSIZE, (hard, hard))

        async def is_taken() -> bool:
            return (await say_next(60)).status_code == 200

        await eventually(is_taken, within_s=30)
        page = (await http.get(f"/api/v1/memory/sessions/{session_id}/turns", params={"limit": 1000})).json()
        found = [turn["turn_id"] for turn in page["turns"]]
        assert [turn_id for turn_id in found if turn_id in acknowledged] == acknowledged
    assert_sound(tmp_path / "memory.db")


@on_sqlite
async def test_locked_database_recovers(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings()
    async with Memory.open(settings) as memory:
        await memory.ready()
        async with calling(settings, memory) as http:
            assert (await say(http, "t0")).status_code == 200
            intruder = sqlite3.connect(tmp_path / "memory.db", isolation_level=None)
            intruder.execute("BEGIN IMMEDIATE")
            assert refused(await say(http, "t1"))
            await the_talk_goes_on(memory)
            intruder.execute("ROLLBACK")
            intruder.close()
            await works_again(http)


async def test_postgresql_restart(postgres: PostgresServer) -> None:
    settings = Settings.load(database_url=SecretStr(await postgres.create()), signing_keys="k" * 40)
    async with Memory.open(settings) as memory:
        await memory.ready()
        async with calling(settings, memory) as http:
            assert (await say(http, "t0")).status_code == 200
            await asyncio.to_thread(postgres.control, "restart", "-m", "immediate")
            assert (await say(http, "t1")).status_code == 200  # once more, on a fresh connection
            await asyncio.to_thread(postgres.control, "stop", "-m", "fast")
            try:
                assert refused(await say(http, "t2"))
                assert memory.status().store == "away"
                await the_talk_goes_on(memory)
            finally:
                await asyncio.to_thread(postgres.control, "start")
            await works_again(http)
            turns = (await http.get(f"/api/v1/memory/sessions/{SESSION}/turns")).json()["turns"]
            assert {"t0", "t1"} <= {found["turn_id"] for found in turns}


SQLSTATES = {
    "53100": 507,  # disk full
    "40P01": 503,  # deadlock
    "25006": 503,  # read-only after a failover
    "42501": 503,  # no right to the table
    "XX001": 503,  # damaged table
    "0A000": 503,  # a feature that an extension lacks
    "54000": 422,  # row too large for an index
    "23514": 422,  # a constraint of the owner's
    "P0001": 422,  # a trigger of the owner's
}


async def test_postgresql_errors_are_mapped(postgres: PostgresServer) -> None:
    """Only a row's own fault is refused for good: after the server's the same row is stored once that is repaired."""
    settings = Settings.load(database_url=SecretStr(await postgres.create()), signing_keys="k" * 40)
    async with Memory.open(settings) as memory:
        await memory.ready()
        async with calling(settings, memory) as http:
            for sqlstate, status in SQLSTATES.items():
                fails = f"BEGIN RAISE EXCEPTION USING ERRCODE = '{sqlstate}'; END"
                for statement in (
                    f"CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ {fails} $$",
                    "CREATE TRIGGER failing BEFORE INSERT ON turns EXECUTE FUNCTION fail()",
                ):
                    await memory._database.write(executing(statement))
                answer = await say(http, sqlstate)
                assert answer.status_code == status, sqlstate
                assert (int(answer.headers.get("retry-after", 0)) > 0) is (status != 422), sqlstate
                assert memory.status().store == ("open" if status == 422 else "away"), sqlstate
                await memory._database.write(executing("DROP TRIGGER failing ON turns"))
                assert (await say(http, sqlstate)).status_code == 200, sqlstate


async def test_deadlock_costs_no_work(postgres: PostgresServer) -> None:
    """PostgreSQL undoes one of two transactions that wait for each other: it runs once more."""
    settings = Settings.load(database_url=SecretStr(await postgres.create()), signing_keys="k" * 40)
    runs: list[int] = []

    def locking(first: int, second: int) -> Callable[[Connection], int]:
        def work(connection: Connection) -> int:
            runs.append(first)
            connection.exec_driver_sql("SET LOCAL deadlock_timeout = '50ms'")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({first}), pg_sleep(0.2)")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({second})")
            return first

        return work

    async with Memory.open(settings) as memory:
        await memory.ready()
        write = memory._database.write
        assert {*await asyncio.gather(write(locking(1, 2)), write(locking(2, 1)))} == {1, 2}
    assert len(runs) == 3


async def test_blocklist_holds_while_store_is_away(postgres: PostgresServer) -> None:
    settings = Settings.load(database_url=SecretStr(await postgres.create()), signing_keys="k" * 40)
    async with Memory.open(settings) as memory:
        await memory.ready()
        async with open_maintenance(settings) as admin:
            await admin.block("principal", "ann")
        await memory.blocklist.refresh()
        try:
            with capture_logs() as logs:
                await asyncio.to_thread(postgres.control, "stop", "-m", "fast")

                async def asked_twice_in_vain() -> bool:
                    return memory.status().blocklist_unread >= 2

                await eventually(asked_twice_in_vain)
            assert [line["event"] for line in logs].count("blocklist_unread") == 1
            assert [memory.blocklist.refused(name, SESSION) for name in ("ann", "bob")] == [True, False]
            assert (memory.status().blocklist_age_s or 0) > 1
        finally:
            await asyncio.to_thread(postgres.control, "start")
        async with open_maintenance(settings) as admin:
            await admin.unblock("principal", "ann")

        async def let_in() -> bool:
            return not memory.blocklist.refused("ann", SESSION)

        await eventually(let_in)


async def test_start_without_postgresql(postgres: PostgresServer) -> None:
    settings = Settings.load(database_url=SecretStr(await postgres.create()), signing_keys="k" * 40)
    await asyncio.to_thread(postgres.control, "stop", "-m", "fast")
    try:
        async with Memory.open(settings) as memory, calling(settings, memory) as http:
            assert refused(await say(http, "t1"))
            assert memory.status().store == "away"
            await the_talk_goes_on(memory)
            await asyncio.to_thread(postgres.control, "start")
            await works_again(http)
    finally:
        with contextlib.suppress(Exception):
            await asyncio.to_thread(postgres.control, "start")


@on_sqlite
async def test_second_process_on_file_is_refused(make_settings: MakeSettings) -> None:
    settings = make_settings()
    async with Memory.open(settings) as memory:
        await memory.ready()
        with pytest.raises(StoreInUseError):
            async with Memory.open(settings):
                pytest.fail("two on one file")
        assert await memory.append([turn("t1")]) == [Outcome.STORED]
    async with Memory.open(settings) as heir:
        assert await heir.append([turn("t1")]) == [Outcome.DUPLICATE]


async def test_unwritable_folder_stops_no_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    blocked = tmp_path / "file" / "folder"
    settings = Settings.load(database_url=SecretStr(sqlite_url(blocked)), signing_keys="k" * 40)
    async with Memory.open(settings) as memory:
        with pytest.raises(StoreAwayError):
            await memory.append([turn("t1")])
        await the_talk_goes_on(memory)
        (tmp_path / "file").unlink()

        async def stored() -> bool:
            try:
                return await memory.append([turn("t2")]) == [Outcome.STORED]
            except StoreError:
                return False

        await eventually(stored)


async def test_foreign_file_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "memory.db"
    file.write_bytes(b"not a database, and somebody else's " * 100)
    before = file.read_bytes()
    settings = Settings.load(database_url=SecretStr(sqlite_url(tmp_path)), signing_keys="k" * 40)
    async with Memory.open(settings) as memory:
        with pytest.raises(StoreAwayError):
            await memory.append([turn("t1")])
        assert memory.status().store_reason == "SQLITE_NOTADB"
    assert file.read_bytes() == before


@pytest.mark.slow
async def test_hanging_commit_is_answered(tmp_path: Path) -> None:
    """The disk stalls: who waits is told in time; what was handed over is stored when it goes on."""
    settings = Settings.load(
        database_url=SecretStr(sqlite_url(tmp_path)), signing_keys="k" * 40, store_timeout_s=0.3, store_patience_s=0.1
    )
    async with Memory.open(settings) as memory:
        await memory.ready()
        assert isinstance(memory._database, SqliteDatabase)
        stalled = memory._database._writer_thread.submit(time.sleep, 1.5)
        with pytest.raises(StoreAwayError):
            await memory.append([turn("t1")])
        await asyncio.wrap_future(stalled)

        async def is_there() -> bool:
            try:
                return await memory.append([turn("t1")]) == [Outcome.DUPLICATE]
            except StoreError:
                return False

        await eventually(is_there)


async def test_proxied_turns_are_flushed_on_close(tmp_path: Path) -> None:
    settings = Settings.load(database_url=SecretStr(sqlite_url(tmp_path)), signing_keys="k" * 40)
    async with Memory.open(settings) as memory:
        await memory.ready()
        for number in range(50):
            assert memory.ingest.offer(turn(f"t{number}", sequence=number))
    async with Memory.open(settings) as heir:
        await heir.ready()
        assert len(await heir.turns(SESSION, principal="anonymous", limit=100) or []) == 50


async def test_session_of_the_last_moment_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its talk; and the talk of a session that has no row does not hold the close up."""
    monkeypatch.setattr("token_broker.memory.repositories._NOTE_AGAIN_S", 60)
    settings = Settings.load(database_url=SecretStr(sqlite_url(tmp_path)), signing_keys="k" * 40, store_patience_s=60)
    late, rowless = (Owner(f"session-{name}", "anonymous", 1, talk_id=name) for name in ("late", "rowless"))
    async with asyncio.timeout(30), Memory.open(settings) as memory:
        await memory.ready()
        memory.sessions.record(late, "elena")
        for each in (late, rowless):
            memory.sessions.note_talk(each, over_in_s=60, begins=True)
    async with Memory.open(settings) as heir:
        await heir.ready()
        found = await heir.sessions.find(late.session_id)
        assert found is not None
        assert found.talk_id == "late"
        assert await heir.sessions.find(rowless.session_id) is None


@on_sqlite
async def test_broken_task_is_started_again(make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """One fault of ours in a task of the memory's must not keep it from its work for good."""
    monkeypatch.setattr("token_broker.memory.service._RESTART_S", 0)
    run = GroupWriter.run
    runs = 0

    async def break_once(writer: GroupWriter) -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise ZeroDivisionError
        await run(writer)

    monkeypatch.setattr(GroupWriter, "run", break_once)
    with capture_logs() as logs:
        async with Memory.open(make_settings()) as memory:
            assert await memory.append([turn("t1")]) == [Outcome.STORED]
    assert runs == 2
    broken = [line for line in logs if line["event"] == "memory_task_broke"]
    assert [(line["task"], line["error"]) for line in broken] == [("writer", "ZeroDivisionError")]


async def test_early_turns_delay_nobody_later(
    make_settings: MakeSettings,
) -> None:
    async with Memory.open(make_settings()) as memory:
        memory.sessions.record(owner("session-made-now-1"), "elena")
        assert memory.ingest.offer(turn("t1"))
        assert await memory.append([turn("t2")]) == [Outcome.STORED]
        assert memory.status().failed_commits == 0


async def test_failed_commit_leaves_no_transaction(tmp_path: Path) -> None:
    async with opened(SqliteDatabase(sqlite_url(tmp_path), busy_s=1, timeout_s=10)) as database:

        def promise_in_vain(connection: Connection) -> None:
            """Breaks a constraint that is looked at with the commit, after which SQLite's transaction is still open."""
            connection.exec_driver_sql("INSERT INTO child VALUES (1)")

        def prepare(connection: Connection) -> None:
            connection.exec_driver_sql("CREATE TABLE parent (id PRIMARY KEY)")
            connection.exec_driver_sql("CREATE TABLE child (id REFERENCES parent DEFERRABLE INITIALLY DEFERRED)")

        await database.write(prepare)
        await asyncio.get_running_loop().run_in_executor(database._writer_thread, _watch_references, database)
        with pytest.raises(StoreRefusedError):
            await database.write(promise_in_vain)
        await database.write(lambda connection: connection.exec_driver_sql("INSERT INTO parent VALUES (2)"))
        assert await database.read(lambda c: c.exec_driver_sql("SELECT count(*) FROM child").scalar()) == 0
        assert await database.read(lambda c: c.exec_driver_sql("SELECT count(*) FROM parent").scalar()) == 1


def _watch_references(database: SqliteDatabase) -> None:
    assert database._kept is not None
    database._kept.connection.cursor().execute("PRAGMA foreign_keys = ON")


async def test_close_during_read_leaks_no_file(tmp_path: Path) -> None:
    database = SqliteDatabase(sqlite_url(tmp_path), busy_s=1, timeout_s=10)
    await database.open()
    reads = threading.Event()

    def read_long(connection: Connection) -> None:
        connection.exec_driver_sql("SELECT 1")
        reads.set()
        time.sleep(0.3)

    gc.disable()  # nothing may be left for it
    try:
        reading = asyncio.create_task(database.read(read_long))
        await asyncio.to_thread(reads.wait, 10)
        await database.close()
        await reading
        assert not open_files_of(tmp_path)
    finally:
        gc.enable()


def open_files_of(folder: Path) -> list[str]:
    """What this process has open in it; for Linux."""
    files = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [path.name for path in files if path.is_relative_to(folder)]
