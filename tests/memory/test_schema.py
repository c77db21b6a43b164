"""The migrations make what `tables.py` says, once, and leave alone what they don't know."""

import asyncio
import importlib
from functools import partial
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic import SecretStr
from sqlalchemy import Connection, text

import token_broker.memory
from tests.memory.support.stores import erase_session
from tests.memory.support.turns import SESSION, owner, turn
from token_broker.memory.drivers.connect import connect
from token_broker.memory.drivers.database import Database
from token_broker.memory.errors import StoreAwayError
from token_broker.memory.store.full_text import index_words
from token_broker.memory.store.migrate import upgrade
from token_broker.memory.store.searching import search
from token_broker.memory.store.tables import SCHEMA_REVISION, metadata
from token_broker.memory.store.turns import Arrived, insert_turns

SEARCH_TABLES = "turn_words"  # SQLite's full text, which only the migration knows

FIRST = importlib.import_module("token_broker.memory.migrations.versions.0001_first")
WORDED_AT_FIRST = {
    "sqlite": ("DROP TRIGGER turns_unworded", "DROP TABLE turn_words", *FIRST.SQLITE_SEARCH),
    "postgresql": FIRST.POSTGRESQL_SEARCH,
}


def differences(connection: Connection) -> list[object]:
    def ours(_object: object, name: str | None, kind: str, _reflected: bool, _to: object) -> bool:
        return not (name or "").startswith(SEARCH_TABLES)

    context = MigrationContext.configure(connection, opts={"include_object": ours})
    return list(compare_metadata(context, metadata))


async def test_the_migrations_make_the_tables_that_the_statements_know(database: Database) -> None:
    assert await database.read(differences) == []


def test_the_newest_migration_is_the_one_that_this_version_wants() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(token_broker.memory.__path__[0]) / "migrations"))
    assert ScriptDirectory.from_config(config).get_heads() == [SCHEMA_REVISION]


async def everything(database: Database) -> list[str]:
    """All that a database keeps of its tables, indexes and triggers."""
    catalogue = {
        "sqlite": """
            SELECT type || ' ' || name || ' ' || coalesce(sql, '') FROM sqlite_master
            UNION ALL SELECT k || ' ' || v FROM turn_words_config""",
        "postgresql": """
            SELECT concat_ws(' ', table_name, column_name, data_type, is_nullable, column_default)
            FROM information_schema.columns WHERE table_schema = 'public'
            UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
            UNION ALL SELECT conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid)
            FROM pg_constraint WHERE connamespace = 'public'::regnamespace""",
    }
    rows = await database.read(lambda c: c.scalars(text(catalogue[c.dialect.name])).all())
    return sorted(" ".join(row.split()).replace("( ", "(").replace(" )", ")") for row in rows)


async def test_an_empty_store_gets_what_all_migrations_together_make(database: Database) -> None:
    created = await everything(database)

    def begin_anew(connection: Connection) -> None:
        for statement in (
            ["DROP SCHEMA public CASCADE", "CREATE SCHEMA public"]
            if connection.dialect.name == "postgresql"
            else [f"DROP TABLE {name}" for name in ("turn_words", "alembic_version", *metadata.tables)]
        ):
            connection.execute(text(statement))
        upgrade(connection, None)

    await database.write(begin_anew)
    assert await everything(database) == created


async def test_a_store_that_is_up_to_date_opens_again_without_alembic(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await database.close()
    monkeypatch.setattr(ScriptDirectory, "from_config", lambda _: pytest.fail("migrates what is up to date"))
    again = connect(SecretStr(database_url), timeout_s=5, patience_s=1)
    await again.open()
    await again.close()


async def test_a_store_of_the_first_version_is_brought_up_and_keeps_what_it_has(
    database: Database, database_url: str
) -> None:
    def as_it_was(connection: Connection) -> None:
        for statement in (
            *WORDED_AT_FIRST[connection.dialect.name],
            "DROP TABLE cutoffs",
            "ALTER TABLE sessions DROP COLUMN stored_bytes",
            "UPDATE alembic_version SET version_num = '0001'",
            "INSERT INTO tickets VALUES (1, 'a-ticket', 1)",
        ):
            connection.execute(text(statement))
        said = [Arrived(turn("t1", "mein Böötchen, my boat"), 1)]
        insert_turns(connection, said, 1.0, unknown=[(owner(), "elena")], queue=False)

    made = await everything(database)
    await database.write(as_it_was)
    await database.close()
    again = connect(SecretStr(database_url), timeout_s=20, patience_s=1)
    await again.open()
    assert await everything(again) == made
    assert await again.read(lambda c: c.scalars(text("SELECT ticket_id FROM tickets")).all()) == ["a-ticket"]
    if again.dialect == "sqlite":
        assert await again.write(index_words) == 1
    find = partial(search, words=["boat"], limit=9, session_ids=[SESSION])
    assert [said.content for said in await again.read(find)] == ["mein Böötchen, my boat"]
    size_bytes = len("mein Böötchen, my boat".encode()) + len("t1" + SESSION + "elena")
    assert await again.read(lambda c: c.scalars(text("SELECT stored_bytes FROM sessions")).all()) == [size_bytes]
    assert await erase_session(again, SESSION) == 1
    assert await again.read(find) == []
    await again.close()


async def test_a_store_of_a_newer_version_is_left_alone(database: Database, database_url: str) -> None:
    await database.write(lambda c: c.execute(text("UPDATE alembic_version SET version_num = '9999'")).rowcount)
    await database.close()
    older = connect(SecretStr(database_url), timeout_s=5, patience_s=1)
    with pytest.raises(StoreAwayError, match="newer"):
        await older.open()
    await older.close()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_replicas_that_start_at_once_migrate_once(database_url: str) -> None:
    replicas = [connect(SecretStr(database_url), timeout_s=20, patience_s=1) for _ in range(4)]
    await asyncio.gather(*(replica.open() for replica in replicas))
    versions = [
        await r.read(lambda c: c.scalars(text("SELECT version_num FROM alembic_version")).all()) for r in replicas
    ]
    assert versions == [[SCHEMA_REVISION]] * 4
    await asyncio.gather(*(replica.close() for replica in replicas))
