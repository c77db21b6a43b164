"""The outbox, as statements: what the sink has not got yet, claimed with a lease and settled behind a fence.

A claim is a session's: its holder alone delivers that session's oldest turns, in order. The lease lasts three delivery
timeouts. The fence grows with each claim, so that a claimant whose lease ran out cannot settle. Erasures that the sink
has to carry out are claimed in the same way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    delete,
    func,
    select,
    update,
)

from token_broker.memory.store.tables import (
    TURN_ORDER,
    erasures,
    insert_for,
    is_session,
    outbox,
    sessions,
    stored_turn,
    turns,
)
from token_broker.memory.types import (
    ERASED_PRINCIPAL,
    FULL_BATCH,
    LAST_PLACE,
    Backlog,
    Delivery,
    Position,
    StoredTurn,
    arrived_us,
    bucket_of,
)

__all__ = [
    "Claim",
    "Erasure",
    "OutboxStatus",
    "Settlement",
    "claim",
    "claim_erasures",
    "due_buckets",
    "finish_erasure",
    "mark_delivery",
    "postpone_erasure",
    "read_status",
    "request_erasure",
    "settle",
]

# A claim of a user who is being erased is tried again then: the sink takes about so long.
_ERASURE_TAKES_US = 2_000_000


@dataclass(frozen=True, slots=True)
class Claim:
    """A session whose oldest queued turns are ours to deliver until `lease_until_us`."""

    session_id: str
    principal: str
    user_id: str | None
    fence: int
    lease_until_us: int
    uncertain: bool
    backlog: Backlog
    turns: Sequence[StoredTurn]
    last_settled: Position | None


@dataclass(frozen=True, slots=True)
class Settlement:
    """A claim's result. `due_at_us` is when what remains is due again."""

    due_at_us: int
    backlog: Backlog = field(default_factory=Backlog)
    delivered: Sequence[str] = ()
    dead: Sequence[str] = ()
    reason: str | None = None
    uncertain: bool = False


@dataclass(frozen=True, slots=True)
class Erasure:
    """Something the sink has to erase: a session, or all of a principal where `session_id` is empty."""

    principal: str
    session_id: str
    failures: int = 0

    @property
    def row(self) -> ColumnElement[bool]:
        return and_(
            erasures.c.bucket == bucket_of(self.session_id or self.principal),
            erasures.c.principal == self.principal,
            erasures.c.session_id == self.session_id,
        )


@dataclass(frozen=True, slots=True)
class OutboxStatus:
    """The outbox in numbers, over all replicas."""

    queued: int
    oldest_us: int | None
    dead: int
    erasures: int


def read_status(connection: Connection) -> OutboxStatus:
    """Counts the outbox; cheap, whatever the number of turns."""
    queued, oldest_us = connection.execute(
        select(func.coalesce(func.sum(outbox.c.queued), 0), func.min(outbox.c.oldest_us))
    ).one()
    dead = connection.scalar(select(func.count()).select_from(turns).where(turns.c.delivery == Delivery.DEAD)) or 0
    pending = connection.scalar(select(func.count()).select_from(erasures)) or 0
    return OutboxStatus(int(queued), oldest_us, dead, pending)


def due_buckets(connection: Connection, now_us: int) -> list[int]:
    """The buckets in which sessions wait to be claimed."""
    return list(connection.scalars(select(outbox.c.bucket).distinct().where(_is_due(now_us))))


def claim(connection: Connection, bucket: int, limit: int, *, now_us: int, lease_until_us: int) -> list[Claim]:
    """Takes up to `limit` of the bucket's due sessions that nobody holds; marked uncertain until settled."""
    session_is_erased = select(erasures.c.bucket).where(
        erasures.c.bucket == outbox.c.bucket, erasures.c.session_id == outbox.c.session_id
    )
    erased_users = set(connection.scalars(select(erasures.c.principal).where(erasures.c.session_id == "")))
    rows = connection.execute(
        select(outbox)
        .where(outbox.c.bucket == bucket, _is_due(now_us), ~session_is_erased.exists())
        .order_by(outbox.c.due_at_us)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    claims = []
    for row in rows:
        its = is_session(outbox, row.session_id)
        owner = connection.execute(
            select(sessions.c.principal, sessions.c.user_id).where(is_session(sessions, row.session_id))
        ).first()
        if owner is not None and owner.principal == ERASED_PRINCIPAL:  # a dead letter that was queued again
            connection.execute(delete(outbox).where(its))
            continue
        if owner is None or owner.principal in erased_users:
            connection.execute(update(outbox).where(its).values(due_at_us=now_us + _ERASURE_TAKES_US))
            continue
        held = {"fence": row.fence + 1, "lease_until_us": lease_until_us, "uncertain": True}
        connection.execute(update(outbox).where(its).values(held))
        queued = connection.execute(
            select(turns).where(_is_queued(row.session_id)).order_by(*TURN_ORDER).limit(FULL_BATCH)
        )
        claims.append(
            Claim(
                session_id=row.session_id,
                principal=owner.principal,
                user_id=owner.user_id,
                fence=row.fence + 1,
                lease_until_us=lease_until_us,
                uncertain=row.uncertain,
                backlog=Backlog(row.attempts, row.failures, row.failing_since_us, row.batch),
                turns=[stored_turn(turn) for turn in queued],
                last_settled=_last_settled(connection, row.session_id),
            )
        )
    return claims


def _last_settled(connection: Connection, session_id: str) -> Position | None:
    """The newest turn that is no longer queued, of those with a sequence."""
    row = connection.execute(
        select(*TURN_ORDER)
        .where(is_session(turns, session_id), turns.c.delivery != Delivery.QUEUED, turns.c.place < LAST_PLACE)
        .order_by(*(column.desc() for column in TURN_ORDER))
        .limit(1)
    ).first()
    return Position(row.epoch, row.place, row.arrival) if row else None


def settle(connection: Connection, held: Claim, result: Settlement) -> bool:
    """Writes a claim's result and releases the session; False, and nothing written, where it is no longer ours."""
    is_ours = and_(is_session(outbox, held.session_id), outbox.c.fence == held.fence)
    if connection.execute(select(outbox.c.fence).where(is_ours).with_for_update()).first() is None:
        return False
    mark_delivery(connection, held.session_id, result.delivered, Delivery.DELIVERED)
    mark_delivery(connection, held.session_id, result.dead, Delivery.DEAD, result.reason)
    queued, oldest = connection.execute(
        select(func.count(), func.min(turns.c.arrival)).where(_is_queued(held.session_id))
    ).one()
    if not queued:
        connection.execute(delete(outbox).where(is_ours))
        return True
    backlog = result.backlog
    connection.execute(
        update(outbox)
        .where(is_ours)
        .values(
            due_at_us=result.due_at_us,
            lease_until_us=0,
            uncertain=result.uncertain,
            attempts=backlog.attempts,
            failures=backlog.failures,
            failing_since_us=backlog.failing_since_us,
            batch=backlog.batch,
            queued=queued,
            oldest_us=arrived_us(oldest),
            last_error=result.reason,
        )
    )
    return True


def mark_delivery(
    connection: Connection, session_id: str, turn_ids: Sequence[str], delivery: Delivery, reason: str | None = None
) -> None:
    """Sets the delivery state of some of a session's turns."""
    if turn_ids:
        connection.execute(
            update(turns)
            .where(is_session(turns, session_id), turns.c.turn_id.in_(turn_ids))
            .values(delivery=int(delivery), dead_reason=reason)
        )


def request_erasure(connection: Connection, principal: str, session_id: str, due_at_us: int) -> None:
    """Asks the sink to erase a session, or the whole principal where `session_id` is empty."""
    row = {
        "bucket": bucket_of(session_id or principal),
        "principal": principal,
        "session_id": session_id,
        "due_at_us": due_at_us,
        "lease_until_us": 0,
        "failures": 0,
    }
    connection.execute(insert_for(connection.dialect.name, erasures).values(row).on_conflict_do_nothing())


def claim_erasures(connection: Connection, limit: int, *, now_us: int, lease_until_us: int) -> list[Erasure]:
    """Erasures that are due; a user's sessions before the user."""
    rows = connection.execute(
        select(erasures)
        .where(erasures.c.due_at_us <= now_us, erasures.c.lease_until_us <= now_us)
        .order_by(erasures.c.session_id.desc())
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    claimed = [Erasure(row.principal, row.session_id, row.failures) for row in rows]
    for erasure in claimed:
        connection.execute(update(erasures).where(erasure.row).values(lease_until_us=lease_until_us))
    return claimed


def finish_erasure(connection: Connection, erasure: Erasure) -> None:
    """The sink has erased it."""
    connection.execute(delete(erasures).where(erasure.row))


def postpone_erasure(connection: Connection, erasure: Erasure, due_at_us: int, reason: str) -> None:
    """The sink failed; due again at `due_at_us`. An erasure is never given up."""
    later = {"due_at_us": due_at_us, "lease_until_us": 0, "failures": erasure.failures + 1, "last_error": reason}
    connection.execute(update(erasures).where(erasure.row).values(later))


def _is_queued(session_id: str) -> ColumnElement[bool]:
    return and_(is_session(turns, session_id), turns.c.delivery == Delivery.QUEUED)


def _is_due(now_us: int) -> ColumnElement[bool]:
    return and_(outbox.c.due_at_us <= now_us, outbox.c.lease_until_us <= now_us)
