"""The migrations make what `tables.py` says, once, and leave alone what they don't know."""

import asyncio
import shutil
from functools import partial
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from pydantic import SecretStr
from sqlalchemy import Connection, text

import token_broker.memory
from tests.memory.conftest import MakeSettings
from tests.memory.support.stores import opened
from tests.memory.support.turns import SESSION, owner, turn
from tests.memory.support.zep import Zep
from token_broker.memory.drivers.connect import connect
from token_broker.memory.drivers.database import Database
from token_broker.memory.service import Memory
from token_broker.memory.store import tables
from token_broker.memory.store.dead_letters import list_dead
from token_broker.memory.store.tables import SCHEMA_REVISION, metadata
from token_broker.memory.store.turn_writes import insert_turns
from token_broker.memory.store_errors import StoreAwayError
from token_broker.memory.turn_search import TurnSearch
from token_broker.memory.types import ArrivedTurn, bucket_of

# A migration that a later version may bring: it adds a table and fills it from what is stored.
LATER = """
from alembic import op

revision = "9999"
down_revision = "%s"


def upgrade() -> None:
    op.execute("CREATE TABLE later (session_id TEXT NOT NULL)")
    op.execute("INSERT INTO later SELECT session_id FROM sessions")
"""  # behind the newest revision


def differences(connection: Connection) -> list[object]:
    return list(compare_metadata(MigrationContext.configure(connection), metadata))


async def test_migrations_match_tables(database: Database) -> None:
    assert await database.read(differences) == []


def test_newest_migration_is_schema_revision() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(token_broker.memory.__path__[0]) / "migrations"))
    assert ScriptDirectory.from_config(config).get_heads() == [SCHEMA_REVISION]


async def everything(database: Database) -> list[str]:
    """All that a database keeps of its tables, indexes and triggers."""
    catalogue = {
        "sqlite": """
            SELECT m.name || ' ' || p.name || ' ' || p.type || ' ' || p."notnull" || ' ' || coalesce(p.dflt_value, '')
                || ' ' || p.pk FROM sqlite_master AS m, pragma_table_info(m.name) AS p WHERE m.type = 'table'
            UNION ALL SELECT name || ' without rowid ' || wr FROM pragma_table_list WHERE schema = 'main'
            UNION ALL SELECT type || ' ' || name || ' ' || coalesce(sql, '')
                FROM sqlite_master WHERE type <> 'table'""",
        "postgresql": """
            SELECT concat_ws(' ', table_name, column_name, data_type, is_nullable, column_default)
            FROM information_schema.columns WHERE table_schema = 'public'
            UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
            UNION ALL SELECT conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid)
            FROM pg_constraint WHERE connamespace = 'public'::regnamespace""",
    }
    rows = await database.read(lambda c: c.scalars(text(catalogue[c.dialect.name])).all())
    return sorted(" ".join(row.split()).replace("( ", "(").replace(" )", ")") for row in rows)


async def test_empty_store_matches_migrations(database: Database) -> None:
    created = await everything(database)

    def begin_anew(connection: Connection) -> None:
        for statement in (
            ["DROP SCHEMA public CASCADE", "CREATE SCHEMA public"]
            if connection.dialect.name == "postgresql"
            else [f"DROP TABLE {name}" for name in ("alembic_version", *metadata.tables)]
        ):
            connection.execute(text(statement))
        tables.upgrade(connection, None)

    await database.write(begin_anew)
    assert await everything(database) == created


async def test_current_store_opens_without_alembic(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await database.close()
    monkeypatch.setattr(ScriptDirectory, "from_config", lambda _: pytest.fail("migrates what is up to date"))
    again = connect(SecretStr(database_url), timeout_s=5, patience_s=1)
    await again.open()
    await again.close()


async def test_older_store_is_upgraded_with_its_data(
    database: Database, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [ArrivedTurn(turn("t1", "mein Böötchen, my boat"), 1)]
    await database.write(
        partial(insert_turns, batch=said, now_s=1.0, unknown=[(owner(), "elena")], sinks=[]),
    )
    await database.close()
    later = tmp_path / "migrations"
    shutil.copytree(tables.MIGRATIONS, later)
    (later / "versions" / "9999_later.py").write_text(LATER % SCHEMA_REVISION)
    monkeypatch.setattr(tables, "MIGRATIONS", later)
    monkeypatch.setattr(tables, "SCHEMA_REVISION", "9999")
    async with opened(connect(SecretStr(database_url), timeout_s=20, patience_s=1)) as upgraded:
        assert await upgraded.read(lambda c: c.scalars(text("SELECT session_id FROM later")).all()) == [SESSION]
        assert await upgraded.read(lambda c: c.scalars(text("SELECT version_num FROM alembic_version")).all()) == [
            "9999"
        ]
        found = await TurnSearch(upgraded).find(owner(), "Where is my boat?", limit=9)
        assert [said.content for said in found] == ["mein Böötchen, my boat"]


async def test_newer_store_is_left_alone(database: Database, database_url: str) -> None:
    await database.write(lambda c: c.execute(text("UPDATE alembic_version SET version_num = '9999'")).rowcount)
    await database.close()
    older = connect(SecretStr(database_url), timeout_s=5, patience_s=1)
    with pytest.raises(StoreAwayError, match="newer"):
        await older.open()
    await older.close()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_concurrent_replicas_migrate_once(database_url: str) -> None:
    replicas = [connect(SecretStr(database_url), timeout_s=20, patience_s=1) for _ in range(4)]
    await asyncio.gather(*(replica.open() for replica in replicas))
    versions = [
        await r.read(lambda c: c.scalars(text("SELECT version_num FROM alembic_version")).all()) for r in replicas
    ]
    assert versions == [[SCHEMA_REVISION]] * 4
    await asyncio.gather(*(replica.close() for replica in replicas))


async def test_store_before_sinks_is_moved(database: Database, zep: Zep, zep_settings: MakeSettings) -> None:
    """What waited and what was dead in the version before several sinks is Zep's."""

    def go_back(connection: Connection) -> None:
        for statement in (
            ["DROP SCHEMA public CASCADE", "CREATE SCHEMA public"]
            if connection.dialect.name == "postgresql"
            else [f"DROP TABLE {name}" for name in ("alembic_version", *metadata.tables)]
        ):
            connection.execute(text(statement))
        config = Config()
        config.set_main_option("script_location", str(tables.MIGRATIONS))
        config.attributes["connection"] = connection
        script = ScriptDirectory.from_config(config)
        with EnvironmentContext(config, script, fn=lambda revision, _: script._upgrade_revs("0003", revision)):
            script.run_env()
        key = {"bucket": bucket_of(SESSION), "session_id": SESSION}
        turn_row = (
            "INSERT INTO turns VALUES (:bucket, :session_id, :turn_id, 1, :place, :arrival, 'elena', 'user', 'hello', "
            "1, 'browser', false, NULL, :delivery, :reason)"
        )
        for statement, values in (
            ("INSERT INTO sessions VALUES (:bucket, :session_id, 'ann', NULL, 'elena', 1, 1, 0)", {}),
            ("INSERT INTO outbox VALUES (:bucket, :session_id, 1, 0, 0, false, 0, 0, NULL, 30, 1, 1, NULL)", {}),
            (turn_row, {"turn_id": "t1", "place": 1, "arrival": 1, "delivery": 1, "reason": None}),
            (turn_row, {"turn_id": "t2", "place": 2, "arrival": 2, "delivery": 0, "reason": None}),
            (turn_row, {"turn_id": "t3", "place": 3, "arrival": 3, "delivery": 2, "reason": "zep: 400"}),
        ):
            connection.execute(text(statement), key | values)

    await database.write(go_back)
    await database.close()
    async with Memory.open(zep_settings()) as memory:
        await zep.has(1)
        assert zep.turn_ids(SESSION) == ["t2"]
        (letter,) = await memory._database.read(partial(list_dead, limit=9))
        assert (letter.turn.turn_id, letter.sink, letter.reason) == ("t3", "zep", "zep: 400")
        page = await memory.turns(SESSION, principal="ann", limit=9)
        assert [said.delivery.label for said in page or []] in (
            ["delivered", "queued", "dead"],
            ["delivered", "delivered", "dead"],
        )
