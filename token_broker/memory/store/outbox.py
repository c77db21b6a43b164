"""The outbox, as statements: what each sink has not got yet, claimed with a lease and settled behind a fence.

A claim is a session's at one sink: its holder alone delivers that session's oldest turns there, in order. The lease
lasts three delivery timeouts. The fence grows with each claim, so that a claimant whose lease ran out cannot settle.
Sinks share the turns' rows and nothing else, so that none waits for another. Erasures that a sink has to carry out are
claimed in the same way.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, func, or_, select, update

from token_broker.memory.store.tables import (
    TURN_ORDER,
    dead_letters,
    erasures,
    insert_for,
    is_session,
    notices,
    outbox,
    sessions,
    sink_ids,
    sink_rests,
    stored_turn,
    turns,
)
from token_broker.memory.types import (
    ERASED_PRINCIPAL,
    FULL_BATCH,
    LAST_PLACE,
    SINK_BITS,
    Backlog,
    Notice,
    OutboxStatus,
    Position,
    SinkErasure,
    SinkName,
    StoredTurn,
    arrived_us,
    bucket_of,
)

__all__ = [
    "Claim",
    "OutboxStatus",
    "Settlement",
    "claim",
    "claim_erasures",
    "drop_unused",
    "due_buckets",
    "finish_erasure",
    "hasten_erasures",
    "mark_dead",
    "mark_settled",
    "open_erasures",
    "postpone_erasure",
    "read_status",
    "request_erasure",
    "rest_sink",
    "rests_until",
    "settle",
]

# A claim of a user who is being erased is tried again then: the sink takes about so long.
_ERASURE_TAKES_US = 2_000_000
_MISSING_AT_MOST = 50  # turns that a delivery names as refused for good
_ALL_BITS = sum(SINK_BITS.values())

Choose = Callable[[Sequence[StoredTurn], Position | None, Backlog], int]
"""How many of the queued turns may go now."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A session whose oldest queued turns are ours to deliver to `sink` until `lease_until_us`.

    `going` are to be delivered now, unless there is a `task`, which the sink accepted them with, or a `notice`, which
    comes before them. `turns` are all that wait, up to a limit.
    """

    sink: SinkName
    session_id: str
    principal: str
    user_id: str | None
    agent_id: str | None
    fence: int
    lease_until_us: int
    uncertain: bool
    backlog: Backlog
    turns: Sequence[StoredTurn]
    going: Sequence[StoredTurn]
    last_settled: Position | None
    task: str | None = None
    generation: int = 0
    notice: Notice | None = None
    missing: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Settlement:
    """A claim's result. `due_at_us` is when what remains is due again.

    With `keeps` the claim's turns are a delivery that is not over: they are repeated as they are, or `task` is asked.
    """

    due_at_us: int
    backlog: Backlog = field(default_factory=Backlog)
    delivered: Sequence[str] = ()
    dead: Sequence[str] = ()
    reason: str | None = None
    uncertain: bool = False
    keeps: bool = False
    task: str | None = None
    task_failed: bool = False
    noticed: bool = False  # the notice is delivered, or given up


def read_status(connection: Connection) -> OutboxStatus:
    """Counts the outbox; cheap, whatever the number of turns."""
    waiting = {
        row.sink: (int(row.queued), row.oldest_us)
        for row in connection.execute(
            select(
                outbox.c.sink,
                func.sum(outbox.c.queued).label("queued"),
                func.min(outbox.c.oldest_us).label("oldest_us"),
            ).group_by(outbox.c.sink)
        )
    }
    counted: list[dict[str, int]] = []
    for table in (dead_letters, erasures):
        rows = connection.execute(select(table.c.sink, func.count()).group_by(table.c.sink))
        counted.append({row[0]: row[1] for row in rows})
    dead, pending = counted
    by_sink = {
        sink: OutboxStatus(*waiting.get(sink, (0, None)), dead.get(sink, 0), pending.get(sink, 0))
        for sink in sorted({*waiting, *dead, *pending})
    }
    each = by_sink.values()
    oldest = min((one.oldest_us for one in each if one.oldest_us is not None), default=None)
    queued, all_dead, erasing = (sum(getattr(one, name) for one in each) for name in ("queued", "dead", "erasures"))
    return OutboxStatus(queued, oldest, all_dead, erasing, by_sink)


def due_buckets(connection: Connection, sink: SinkName, now_us: int) -> list[int]:
    """The buckets in which sessions wait to be claimed."""
    return list(connection.scalars(select(outbox.c.bucket).distinct().where(_is_due(sink, now_us))))


def rests_until(connection: Connection, sink: SinkName) -> int:
    """When a sink that asked for a pause may be asked again, in microseconds since 1970; 0 where none is known."""
    return connection.scalar(select(sink_rests.c.until_us).where(sink_rests.c.sink == sink)) or 0


def rest_sink(connection: Connection, sink: SinkName, until_us: int) -> None:
    """Leaves the sink alone until then, in every replica; never shortens a pause."""
    made: Any = insert_for(connection.dialect.name, sink_rests).values(sink=sink, until_us=until_us)
    longer = made.excluded.until_us > sink_rests.c.until_us
    connection.execute(
        made.on_conflict_do_update(index_elements=["sink"], set_={"until_us": made.excluded.until_us}, where=longer)
    )


def claim(
    connection: Connection,
    sink: SinkName,
    bucket: int,
    limit: int,
    *,
    now_us: int,
    lease_until_us: int,
    choose: Choose = lambda queued, _last, _backlog: min(len(queued), FULL_BATCH),
    keeps_batches: bool = False,
    takes_notices: bool = False,
) -> list[Claim]:
    """Takes up to `limit` of the bucket's due sessions that nobody holds; marked uncertain until settled.

    `choose` says how many turns go. With `keeps_batches` they are written down, and a repetition has the same ones.
    """
    session_is_erased = select(erasures.c.bucket).where(
        erasures.c.bucket == outbox.c.bucket, erasures.c.sink == sink, erasures.c.session_id == outbox.c.session_id
    )
    erased_principals = select(erasures.c.principal).where(erasures.c.session_id == "", erasures.c.sink == sink)
    under_erasure = set(connection.scalars(erased_principals))
    rows = connection.execute(
        select(outbox)
        .where(outbox.c.bucket == bucket, _is_due(sink, now_us), ~session_is_erased.exists())
        .order_by(outbox.c.due_at_us)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    claims = []
    for row in rows:
        its = _is_row(row.session_id, sink)
        owner = connection.execute(
            select(sessions.c.principal, sessions.c.user_id, sessions.c.agent_id).where(
                is_session(sessions, row.session_id)
            )
        ).first()
        if owner is not None and owner.principal == ERASED_PRINCIPAL:  # a dead letter that was queued again
            connection.execute(delete(outbox).where(its))
            continue
        if owner is None or owner.principal in under_erasure:
            connection.execute(update(outbox).where(its).values(due_at_us=now_us + _ERASURE_TAKES_US))
            continue
        queued = [
            stored_turn(turn)
            for turn in connection.execute(
                select(turns).where(_is_queued(row.session_id, sink)).order_by(*TURN_ORDER).limit(2 * FULL_BATCH)
            )
        ]
        backlog = Backlog(row.attempts, row.failures, row.failing_since_us, row.batch)
        last = _last_settled(connection, row.session_id, sink)
        flight = json.loads(row.flight) if row.flight else {"turns": [], "task": None}
        going = [turn for turn in queued if turn.turn_id in flight["turns"]]
        refused = (  # the newest of them
            select(dead_letters.c.turn_id)
            .where(is_session(dead_letters, row.session_id), dead_letters.c.sink == sink)
            .order_by(dead_letters.c.arrival.desc())
            .limit(_MISSING_AT_MOST)
        )
        notice = None
        if takes_notices and not going:
            notice = _first_notice(connection, sink, row.session_id, owner, queued)
        if not going and notice is None:
            going = queued[: choose(queued, last, backlog)]
        held = {"fence": row.fence + 1, "lease_until_us": lease_until_us, "uncertain": True}
        if keeps_batches:
            held["flight"] = _flight(going, flight["task"])
        connection.execute(update(outbox).where(its).values(held))
        claims.append(
            Claim(
                sink=sink,
                session_id=row.session_id,
                principal=owner.principal,
                user_id=owner.user_id,
                agent_id=owner.agent_id,
                fence=row.fence + 1,
                lease_until_us=lease_until_us,
                uncertain=row.uncertain,
                backlog=backlog,
                turns=queued[:FULL_BATCH],
                going=going,
                last_settled=last,
                task=flight["task"] if going else None,
                generation=row.generation,
                notice=notice,
                missing=list(reversed(connection.scalars(refused).all())) if takes_notices else (),
            )
        )
    return claims


def _flight(going: Sequence[StoredTurn], task: str | None) -> str | None:
    return json.dumps({"turns": [turn.turn_id for turn in going], "task": task}) if going else None


def _first_notice(
    connection: Connection, sink: SinkName, session_id: str, owner: Any, queued: Sequence[StoredTurn]
) -> Notice | None:
    """The oldest notice, once all turns that came before it are delivered."""
    wanted = select(notices).where(is_session(notices, session_id), notices.c.sink == sink)
    row = connection.execute(wanted.order_by(notices.c.arrival).limit(1)).first()
    if row is None or any(turn.position.arrival < row.arrival for turn in queued):
        return None
    return Notice(session_id, owner.principal, owner.user_id, owner.agent_id, row.kind, row.body, row.arrival)


def _last_settled(connection: Connection, session_id: str, sink: SinkName) -> Position | None:
    """The newest turn that is not queued for the sink any more, of those with a sequence."""
    row = connection.execute(
        select(*TURN_ORDER)
        .where(is_session(turns, session_id), ~_waits_for(sink), turns.c.place < LAST_PLACE)
        .order_by(*(column.desc() for column in TURN_ORDER))
        .limit(1)
    ).first()
    return Position(row.epoch, row.place, row.arrival) if row else None


def settle(connection: Connection, held: Claim, result: Settlement) -> bool:
    """Writes a claim's result and releases the session; False, and nothing written, where it is no longer ours."""
    is_ours = _is_row(held.session_id, held.sink)
    # All sinks' rows of the session, in one order: two of them that update the same turns at once would deadlock.
    rows = select(outbox.c.sink, outbox.c.fence).where(is_session(outbox, held.session_id)).order_by(outbox.c.sink)
    if (held.sink, held.fence) not in [tuple(row) for row in connection.execute(rows.with_for_update())]:
        return False
    mark_settled(connection, held.session_id, held.sink, result.delivered)
    dead = [turn for turn in held.going if turn.turn_id in result.dead]
    mark_dead(connection, held.session_id, held.sink, dead, result.reason)
    its_notices = and_(is_session(notices, held.session_id), notices.c.sink == held.sink)
    if held.notice is not None and result.noticed:
        connection.execute(delete(notices).where(its_notices, notices.c.arrival == held.notice.arrival))
    queued, oldest = connection.execute(
        select(func.count(), func.min(turns.c.arrival)).where(_is_queued(held.session_id, held.sink))
    ).one()
    if not queued:
        queued, oldest = connection.execute(select(func.count(), func.min(notices.c.arrival)).where(its_notices)).one()
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
            flight=_flight(held.going, result.task) if result.keeps or result.task else None,
            generation=outbox.c.generation + int(result.task_failed),
        )
    )
    return True


def mark_settled(connection: Connection, session_id: str, sink: SinkName, turn_ids: Sequence[str]) -> None:
    """The sink has these turns of a session."""
    if turn_ids:
        left = turns.c.pending.bitwise_and(_ALL_BITS & ~SINK_BITS[sink])
        connection.execute(
            update(turns).where(is_session(turns, session_id), turns.c.turn_id.in_(turn_ids)).values(pending=left)
        )


def mark_dead(
    connection: Connection, session_id: str, sink: SinkName, dead: Sequence[StoredTurn], reason: str | None
) -> None:
    """The sink has refused these turns of a session for good: they become its dead letters."""
    if not dead:
        return
    turn_ids = [turn.turn_id for turn in dead]
    mark_settled(connection, session_id, sink, turn_ids)
    is_one = and_(is_session(turns, session_id), turns.c.turn_id.in_(turn_ids))
    connection.execute(update(turns).where(is_one).values(dead=turns.c.dead.bitwise_or(SINK_BITS[sink])))
    rows = [
        {
            "bucket": bucket_of(session_id),
            "session_id": session_id,
            "turn_id": turn.turn_id,
            "sink": sink,
            "arrival": turn.position.arrival,
            "reason": reason,
        }
        for turn in dead
    ]
    connection.execute(insert_for(connection.dialect.name, dead_letters).on_conflict_do_nothing(), rows)


def request_erasure(connection: Connection, erasure: SinkErasure, due_at_us: int) -> None:
    """Asks a sink to erase a session, or the whole principal where `session_id` is empty."""
    row = {
        "bucket": bucket_of(erasure.session_id or erasure.principal),
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
        connection.execute(update(erasures).where(_is_erasure(erasure)).values(lease_until_us=lease_until_us))
    return claimed


def finish_erasure(connection: Connection, erasure: SinkErasure) -> None:
    """The sink has erased it; what it called it is forgotten, too."""
    connection.execute(delete(erasures).where(_is_erasure(erasure)))
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
    connection.execute(update(erasures).where(_is_erasure(erasure)).values(later))


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


def _is_erasure(erasure: SinkErasure) -> ColumnElement[bool]:
    return and_(
        erasures.c.bucket == bucket_of(erasure.session_id or erasure.principal),
        erasures.c.sink == erasure.sink,
        erasures.c.principal == erasure.principal,
        erasures.c.session_id == erasure.session_id,
    )


def drop_unused(connection: Connection, used: Sequence[SinkName], before_us: int, limit: int) -> int:
    """Gives up what has waited since before `before_us` for sinks that are not used any more; how many sessions."""
    unused = and_(outbox.c.sink.not_in(used), outbox.c.oldest_us < before_us)
    rows = connection.execute(
        select(outbox.c.session_id, outbox.c.sink).where(unused).limit(limit).with_for_update(skip_locked=True)
    ).all()
    for session_id, sink in rows:
        left = turns.c.pending.bitwise_and(_ALL_BITS & ~SINK_BITS[sink])
        connection.execute(update(turns).where(_is_queued(session_id, sink)).values(pending=left))
        connection.execute(delete(notices).where(is_session(notices, session_id), notices.c.sink == sink))
        connection.execute(delete(outbox).where(_is_row(session_id, sink)))
    return len(rows)


def _is_row(session_id: str, sink: SinkName) -> ColumnElement[bool]:
    return and_(is_session(outbox, session_id), outbox.c.sink == sink)


def _waits_for(sink: SinkName) -> ColumnElement[bool]:
    return turns.c.pending.bitwise_and(SINK_BITS[sink]) != 0


def _is_queued(session_id: str, sink: SinkName) -> ColumnElement[bool]:
    return and_(is_session(turns, session_id), _waits_for(sink))


def _is_due(sink: SinkName, now_us: int) -> ColumnElement[bool]:
    return and_(outbox.c.sink == sink, outbox.c.due_at_us <= now_us, outbox.c.lease_until_us <= now_us)
