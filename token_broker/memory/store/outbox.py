"""The outbox as statements: claims with a lease, settling behind a fence, dead letters.

A claim is a session's: whoever holds it delivers that session's oldest turns, in order, alone. Its lease lasts three
delivery timeouts; its fence, which grows with each claim, keeps a claimant whose lease ran out from settling.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, Connection, and_, delete, func, select, update

from token_broker.memory.delivery.backoff import FULL_BATCH, Backlog
from token_broker.memory.delivery.ordering import Position
from token_broker.memory.store.chunks import within_bytes
from token_broker.memory.store.erasure import users_being_forgotten
from token_broker.memory.store.keys import LAST_PLACE, arrived_us
from token_broker.memory.store.rows import DeadLetter, StoredTurn, stored_turn
from token_broker.memory.store.session_room import note_removed
from token_broker.memory.store.tables import Delivery, erasures, outbox, sessions, turns
from token_broker.memory.store.turns import enqueue, is_session
from token_broker.memory.types import NOBODY

__all__ = [
    "Claim",
    "Figures",
    "Settlement",
    "claim",
    "due_buckets",
    "figures",
    "list_dead",
    "purge_dead",
    "retry_dead",
    "settle",
]


MAX_BYTES = 1_048_576  # of turns that one transaction rewrites or deletes, since others wait for it
_FORGETTING_TAKES_US = 2_000_000


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
    """What a claim came to. `due_at_us` is when what remains is to be looked at again."""

    due_at_us: int
    backlog: Backlog = field(default_factory=Backlog)
    delivered: Sequence[str] = ()
    dead: Sequence[str] = ()
    reason: str | None = None
    uncertain: bool = False


@dataclass(frozen=True, slots=True)
class Figures:
    """The outbox in numbers, over all replicas."""

    queued: int
    oldest_us: int | None
    dead: int
    erasures: int


def due_buckets(connection: Connection, now_us: int) -> list[int]:
    """The buckets in which sessions wait to be claimed."""
    return list(connection.scalars(select(outbox.c.bucket).distinct().where(_is_due(now_us))))


def claim(connection: Connection, bucket: int, limit: int, *, now_us: int, lease_until_us: int) -> list[Claim]:
    """Takes up to `limit` of the bucket's due sessions that nobody holds; marked uncertain until settled."""
    forgetting = select(erasures.c.bucket).where(
        erasures.c.bucket == outbox.c.bucket, erasures.c.session_id == outbox.c.session_id
    )
    spared = users_being_forgotten(connection)
    rows = connection.execute(
        select(outbox)
        .where(outbox.c.bucket == bucket, _is_due(now_us), ~forgetting.exists())
        .order_by(outbox.c.due_at_us)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    claims = []
    for row in rows:
        owner = connection.execute(
            select(sessions.c.principal, sessions.c.user_id).where(is_session(sessions, row.session_id))
        ).first()
        if owner is not None and owner.principal == NOBODY:  # erased; a dead letter that was queued again brought it
            connection.execute(delete(outbox).where(is_session(outbox, row.session_id)))
            continue
        if owner is None or owner.principal in spared:
            _look_later(connection, row.session_id, now_us)
            continue
        connection.execute(
            update(outbox)
            .where(is_session(outbox, row.session_id))
            .values(fence=row.fence + 1, lease_until_us=lease_until_us, uncertain=True)
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
                turns=_oldest_queued(connection, row.session_id),
                last_settled=_last_settled(connection, row.session_id),
            )
        )
    return claims


def settle(connection: Connection, held: Claim, result: Settlement) -> bool:
    """Writes a claim's result and gives the session free; False, and nothing written, where it is no longer ours."""
    is_ours = and_(is_session(outbox, held.session_id), outbox.c.fence == held.fence)
    if connection.execute(select(outbox.c.fence).where(is_ours).with_for_update()).first() is None:
        return False
    _mark(connection, held.session_id, result.delivered, Delivery.DELIVERED, None)
    _mark(connection, held.session_id, result.dead, Delivery.DEAD, result.reason)
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


def figures(connection: Connection) -> Figures:
    """Counts for the status; cheap, whatever the number of turns."""
    queued, oldest_us = connection.execute(
        select(func.coalesce(func.sum(outbox.c.queued), 0), func.min(outbox.c.oldest_us))
    ).one()
    dead = count_dead(connection)
    to_forget = connection.scalar(select(func.count()).select_from(erasures)) or 0
    return Figures(int(queued), oldest_us, dead, to_forget)


def list_dead(connection: Connection, limit: int, *, session_id: str | None = None) -> list[DeadLetter]:
    """Dead letters, oldest first."""
    rows = connection.execute(select(turns).where(_is_dead(session_id)).order_by(turns.c.arrival).limit(limit))
    return [DeadLetter(row.session_id, stored_turn(row), row.dead_reason or "") for row in rows]


def count_dead(connection: Connection, *, session_id: str | None = None) -> int:
    """How many dead letters there are, of all sessions or of one."""
    return connection.scalar(select(func.count()).select_from(turns).where(_is_dead(session_id))) or 0


def _is_dead(session_id: str | None) -> ColumnElement[bool]:
    dead = turns.c.delivery == Delivery.DEAD
    return dead if session_id is None else and_(is_session(turns, session_id), dead)


def retry_dead(
    connection: Connection, now_us: int, *, session_id: str | None = None, limit: int = 1000, max_bytes: int = MAX_BYTES
) -> int:
    """Queues dead letters once more, at most `limit` or so many bytes of them; how many."""
    letters = _oldest_dead(connection, limit, max_bytes, session_id)
    by_session: dict[str, list[str]] = {}
    for dead_session_id, turn_id in letters:
        by_session.setdefault(dead_session_id, []).append(turn_id)
    for key in sorted(by_session):
        _mark(connection, key, by_session[key], Delivery.QUEUED, None)
        enqueue(connection, {key: len(by_session[key])}, now_us)
        reset = {"due_at_us": now_us, "attempts": 0, "failures": 0, "failing_since_us": None, "batch": FULL_BATCH}
        connection.execute(update(outbox).where(is_session(outbox, key), outbox.c.lease_until_us == 0).values(reset))
    return len(letters)


def purge_dead(
    connection: Connection, *, session_id: str | None = None, limit: int = 1000, max_bytes: int = MAX_BYTES
) -> int:
    """Deletes dead letters for good, at most `limit` or so many bytes of them; how many."""
    letters = _oldest_dead(connection, limit, max_bytes, session_id)
    for dead_session_id, turn_id in letters:
        its = turns.c.turn_id == turn_id
        note_removed(connection, dead_session_id, its)
        connection.execute(delete(turns).where(is_session(turns, dead_session_id), its))
    return len(letters)


def _oldest_dead(connection: Connection, limit: int, max_bytes: int, session_id: str | None) -> list[tuple[str, str]]:
    """Session and turn of the oldest dead letters."""
    sizes = connection.execute(
        select(turns.c.session_id, turns.c.turn_id, func.length(turns.c.content))
        .where(_is_dead(session_id))
        .order_by(turns.c.arrival)
        .limit(limit)
    )
    return within_bytes([((row[0], row[1]), row[2]) for row in sizes], max_bytes)


def _look_later(connection: Connection, session_id: str, now_us: int) -> None:
    connection.execute(
        update(outbox).where(is_session(outbox, session_id)).values(due_at_us=now_us + _FORGETTING_TAKES_US)
    )


def _oldest_queued(connection: Connection, session_id: str) -> list[StoredTurn]:
    rows = connection.execute(
        select(turns)
        .where(_is_queued(session_id))
        .order_by(turns.c.epoch, turns.c.place, turns.c.arrival)
        .limit(FULL_BATCH)
    )
    return [stored_turn(row) for row in rows]


def _last_settled(connection: Connection, session_id: str) -> Position | None:
    """The newest turn that is no longer queued, of those with a sequence."""
    row = connection.execute(
        select(turns.c.epoch, turns.c.place, turns.c.arrival)
        .where(is_session(turns, session_id), turns.c.delivery != Delivery.QUEUED, turns.c.place < LAST_PLACE)
        .order_by(turns.c.epoch.desc(), turns.c.place.desc(), turns.c.arrival.desc())
        .limit(1)
    ).first()
    return Position(row.epoch, row.place, row.arrival) if row else None


def _mark(
    connection: Connection, session_id: str, turn_ids: Sequence[str], delivery: Delivery, reason: str | None
) -> None:
    if turn_ids:
        connection.execute(
            update(turns)
            .where(is_session(turns, session_id), turns.c.turn_id.in_(turn_ids))
            .values(delivery=int(delivery), dead_reason=reason)
        )


def _is_queued(session_id: str) -> ColumnElement[bool]:
    return and_(is_session(turns, session_id), turns.c.delivery == Delivery.QUEUED)


def _is_due(now_us: int) -> ColumnElement[bool]:
    return and_(outbox.c.due_at_us <= now_us, outbox.c.lease_until_us <= now_us)
