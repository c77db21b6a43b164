"""Erasures that sinks have to carry out, as statements: asked for, claimed with a lease, followed to their end."""

from sqlalchemy import ColumnElement, Connection, and_, delete, func, or_, select, update

from token_broker.memory.store.tables import erasures, insert_for, sink_ids
from token_broker.memory.types import SinkErasure, SinkName, bucket_of

__all__ = [
    "claim_erasures",
    "finish_erasure",
    "hasten_erasures",
    "open_erasures",
    "postpone_erasure",
    "request_erasure",
]


def request_erasure(connection: Connection, erasure: SinkErasure, due_at_us: int) -> None:
    """Asks a sink to erase a session, or the whole principal where `session_id` is empty."""
    row = {
        "bucket": _bucket(erasure),
        "sink": erasure.sink,
        "principal": erasure.principal,
        "session_id": erasure.session_id,
        "user_id": erasure.user_id,
        "agent_id": erasure.agent_id,
        "before_us": erasure.before_us,
        "due_at_us": due_at_us,
        "lease_until_us": 0,
        "failures": 0,
    }
    connection.execute(insert_for(connection.dialect.name, erasures).values(row).on_conflict_do_nothing())


def claim_erasures(
    connection: Connection, sink: SinkName, limit: int, *, now_us: int, lease_until_us: int
) -> list[SinkErasure]:
    """Erasures that are due at a sink; a user's sessions before the user."""
    rows = connection.execute(
        select(erasures)
        .where(erasures.c.sink == sink, erasures.c.due_at_us <= now_us, erasures.c.lease_until_us <= now_us)
        .order_by(erasures.c.session_id.desc())
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    claimed = [
        SinkErasure(
            row.sink, row.principal, row.session_id, row.user_id, row.agent_id, row.before_us, row.failures, row.task
        )
        for row in rows
    ]
    for erasure in claimed:
        connection.execute(update(erasures).where(_is_row(erasure)).values(lease_until_us=lease_until_us))
    return claimed


def finish_erasure(connection: Connection, erasure: SinkErasure) -> None:
    """The sink has erased it; what it called it is forgotten, too."""
    connection.execute(delete(erasures).where(_is_row(erasure)))
    key = erasure.session_id or erasure.principal
    connection.execute(
        delete(sink_ids).where(
            sink_ids.c.bucket == bucket_of(key), sink_ids.c.sink == erasure.sink, sink_ids.c.key == key
        )
    )


def postpone_erasure(
    connection: Connection, erasure: SinkErasure, due_at_us: int, *, reason: str | None = None, task: str | None = None
) -> None:
    """The sink failed for this `reason`, or accepted a `task`; due again then. An erasure is never given up."""
    later = {
        "due_at_us": due_at_us,
        "lease_until_us": 0,
        "failures": erasure.failures + (reason is not None),
        "last_error": reason,
        "task": task,
    }
    connection.execute(update(erasures).where(_is_row(erasure)).values(later))


def hasten_erasures(connection: Connection, principal: str, due_at_us: int) -> None:
    """A principal's erasures are due then already: nothing of theirs is being delivered any more."""
    whole = and_(
        erasures.c.bucket == bucket_of(principal), erasures.c.principal == principal, erasures.c.session_id == ""
    )
    connection.execute(update(erasures).where(whole, erasures.c.due_at_us > due_at_us).values(due_at_us=due_at_us))


def open_erasures(
    connection: Connection, *, session_id: str | None = None, user: str | None = None
) -> dict[str, tuple[int, str | None, str | None]]:
    """What sinks still have to erase of a session or a user: how many erasures, a task of them, the last error."""
    wanted = (
        erasures.c.session_id == session_id
        if user is None
        else or_(erasures.c.principal == user, erasures.c.user_id == user)
    )
    rows = connection.execute(
        select(erasures.c.sink, func.count(), func.max(erasures.c.task), func.max(erasures.c.last_error))
        .where(wanted)
        .group_by(erasures.c.sink)
    )
    return {sink: (count, task, error) for sink, count, task, error in rows}


def _bucket(erasure: SinkErasure) -> int:
    return bucket_of(erasure.session_id or erasure.principal)


def _is_row(erasure: SinkErasure) -> ColumnElement[bool]:
    return and_(
        erasures.c.bucket == _bucket(erasure),
        erasures.c.sink == erasure.sink,
        erasures.c.principal == erasure.principal,
        erasures.c.session_id == erasure.session_id,
    )
