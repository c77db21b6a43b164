"""Brings the tables to the revision that this version knows. Alembic is imported only where there is an older one."""

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from token_broker.memory.errors import StoreAwayError
from token_broker.memory.store.tables import SCHEMA_REVISION, SQLITE_SEARCH, metadata

__all__ = ["migrate", "upgrade"]

_MIGRATION_LOCK = 0x76_6F_69_63_65  # any number, the same in every replica

_VERSION_TABLE = """CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
)"""


def migrate(connection: Connection) -> bool:
    """Makes or upgrades the tables within the connection's transaction, one replica at a time; whether there were none.

    Raises StoreAwayError where the tables are newer than this version: it must not write what it does not understand.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
    found = _revision(connection)
    if found is None:
        _create(connection)
    elif found != SCHEMA_REVISION:
        upgrade(connection, found)
    return found is None


def _create(connection: Connection) -> None:
    """The newest tables in an empty store, as all migrations together make them, without what Alembic takes to load."""
    metadata.create_all(connection, checkfirst=False)
    for statement in SQLITE_SEARCH if connection.dialect.name == "sqlite" else ():
        connection.execute(text(statement))
    connection.execute(text(_VERSION_TABLE))
    connection.execute(text("INSERT INTO alembic_version VALUES (:revision)"), {"revision": SCHEMA_REVISION})


def upgrade(connection: Connection, found: str | None) -> None:
    """Runs the migrations behind revision `found`. Raises StoreAwayError where it is none of ours."""
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parents[1] / "migrations"))
    config.attributes["connection"] = connection
    script = ScriptDirectory.from_config(config)
    if found is not None and found not in {revision.revision for revision in script.walk_revisions()}:
        raise StoreAwayError(f"the database is at revision {found}, which is newer than this version knows")
    with EnvironmentContext(config, script, fn=lambda revision, _: script._upgrade_revs("head", revision)):  # noqa: SLF001  # what alembic.command.upgrade does, without its other commands
        script.run_env()


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
