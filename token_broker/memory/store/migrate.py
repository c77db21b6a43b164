"""Brings the tables to the revision that this version knows. Alembic is imported only where an upgrade is needed."""

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from token_broker.memory.store.tables import SCHEMA_REVISION, SQLITE_FULL_TEXT, metadata
from token_broker.memory.store_errors import StoreAwayError

__all__ = ["MIGRATIONS", "migrate", "upgrade"]

MIGRATIONS = Path(__file__).parents[1] / "migrations"

_MIGRATION_LOCK = 0x76_6F_69_63_65  # any number, the same in every replica

_VERSION_TABLE = """CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
)"""


def migrate(connection: Connection) -> bool:
    """Makes or upgrades the tables in the connection's transaction, one replica at a time; True where there were none.

    Raises StoreAwayError where the tables are newer than this version: it must not write what it does not understand.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
    found = None
    if inspect(connection).has_table("alembic_version"):
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if found is None:
        # The newest tables at once, as all migrations together make them: Alembic takes long to load.
        metadata.create_all(connection, checkfirst=False)
        for statement in SQLITE_FULL_TEXT if connection.dialect.name == "sqlite" else ():
            connection.execute(text(statement))
        connection.execute(text(_VERSION_TABLE))
        connection.execute(text("INSERT INTO alembic_version VALUES (:revision)"), {"revision": SCHEMA_REVISION})
    elif found != SCHEMA_REVISION:
        upgrade(connection, found)
    return found is None


def upgrade(connection: Connection, found: str | None) -> None:
    """Runs the migrations behind revision `found`. Raises StoreAwayError where no migration has that revision."""
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    script = ScriptDirectory.from_config(config)
    if found is not None and found not in {revision.revision for revision in script.walk_revisions()}:
        raise StoreAwayError(f"the database is at revision {found}, which is newer than this version knows")
    with EnvironmentContext(config, script, fn=lambda revision, _: script._upgrade_revs("head", revision)):  # noqa: SLF001  # what alembic.command.upgrade does, without its other commands
        script.run_env()
