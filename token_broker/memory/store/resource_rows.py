"""Which Azure resources are disabled, and which replicas share their quotas, as statements.

The same on SQLite and PostgreSQL. Replicas are judged by the database's clock: theirs may differ.
"""

from sqlalchemy import Connection, delete, func, select, text

from token_broker.memory.store.tables import NOW_US, disabled_resources, insert_for, replicas

__all__ = ["beat", "disable_resource", "disabled_names", "enable_resource"]

_LIVE_US = 15_000_000  # a replica that has not beaten for so long has ended
_KEPT_US = 60_000_000  # a quota's minute: what one that has ended took counts until then


def disabled_names(connection: Connection) -> list[str]:
    """The names of the disabled resources, in order."""
    return list(connection.scalars(select(disabled_resources.c.name).order_by(disabled_resources.c.name)))


def disable_resource(connection: Connection, name: str, now_us: int) -> bool:
    """Disables a resource; False where it was already."""
    insert = insert_for(connection.dialect.name, disabled_resources)
    row = {"name": name, "since_us": now_us}
    return connection.execute(insert.values(row).on_conflict_do_nothing()).rowcount > 0


def enable_resource(connection: Connection, name: str) -> bool:
    """Enables a resource; False where it was not disabled."""
    return connection.execute(delete(disabled_resources).where(disabled_resources.c.name == name)).rowcount > 0


def beat(connection: Connection, replica_id: str) -> tuple[int, int]:
    """Notes that this replica lives. Returns how many live, and how many others did within the last minute."""
    now_us = int(connection.scalar(text(f"SELECT {NOW_US[connection.dialect.name]}")) or 0)
    insert = insert_for(connection.dialect.name, replicas)
    row = {"replica_id": replica_id, "seen_at_us": now_us}
    connection.execute(
        insert.values(row).on_conflict_do_update(index_elements=["replica_id"], set_={"seen_at_us": now_us})
    )
    connection.execute(delete(replicas).where(replicas.c.seen_at_us < now_us - _KEPT_US))
    seen = select(func.count()).select_from(replicas)
    live = connection.scalar(seen.where(replicas.c.seen_at_us >= now_us - _LIVE_US)) or 1
    others = connection.scalar(seen.where(replicas.c.replica_id != replica_id)) or 0
    return live, others
