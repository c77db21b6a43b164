"""Brings the tables to the revision that this version knows. Alembic is imported only where there is work for it."""

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from token_broker.memory.errors import StoreAwayError
from token_broker.memory.tables import SCHEMA_REVISION

__all__ = ["migrate"]

_MIGRATION_LOCK = 0x76_6F_69_63_65  # any number, the same in every replica


def migrate(connection: Connection) -> None:
    """Upgrades the tables within the connection's transaction; one replica at a time.

    Raises StoreAwayError where the tables are newer than this version: it must not write what it does not understand.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
    found = _revision(connection)
    if found == SCHEMA_REVISION:
        return
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
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
