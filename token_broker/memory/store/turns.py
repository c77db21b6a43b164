"""What the memory keeps, as statements: sessions, tickets, turns. The same on SQLite and PostgreSQL.

Each function takes a `Connection` inside a transaction. Rows are locked in one order everywhere (sessions, turns,
outbox; within each by key), so that replicas don't block one another for good.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Insert,
    Table,
    and_,
    case,
    delete,
    func,
    literal_column,
    select,
    true,
    tuple_,
)

from token_broker.memory.delivery.backoff import FULL_BATCH
from token_broker.memory.store.bulk_insert import BATCH_ROWS, Batch, batch_fields, insert_for, insert_from_batch
from token_broker.memory.store.keys import bucket_of, place_of, to_us
from token_broker.memory.store.tables import Delivery, outbox, sessions, tickets, turns
from token_broker.memory.types import NOBODY, Outcome, SessionRecord, Turn
from token_broker.security.owner import ANONYMOUS, Owner

__all__ = [
    "Arrived",
    "are_sessions",
    "claim_session",
    "enqueue",
    "find_session",
    "insert_turns",
    "is_session",
    "last_arrival",
    "release_session",
    "remove_expired_tickets",
    "save_sessions",
    "spend_ticket",
]


_Key = tuple[str, str]  # session id, turn id


@dataclass(frozen=True, slots=True)
class Arrived:
    """A turn and its place among all that arrived; see `ArrivalClock`."""

    turn: Turn
    arrival: int
    size_bytes: int = 0  # see `stored_bytes`


SESSION_FIELDS: tuple[Column[Any], ...] = (
    sessions.c.bucket,
    sessions.c.session_id,
    sessions.c.principal,
    sessions.c.user_id,
    sessions.c.agent_id,
    sessions.c.epoch,
    sessions.c.created_at_us,
)
TURN_FIELDS: tuple[Column[Any], ...] = (
    turns.c.bucket,
    turns.c.session_id,
    turns.c.turn_id,
    turns.c.epoch,
    turns.c.place,
    turns.c.arrival,
    turns.c.agent_id,
    turns.c.role,
    turns.c.content,
    turns.c.created_at_us,
    turns.c.source,
    turns.c.interrupted,
    turns.c.channel,
    turns.c.delivery,
)
_OWNED_TURN_FIELDS = (*TURN_FIELDS, sessions.c.principal)  # whose the session has to be
OUTBOX_FIELDS: tuple[Column[Any], ...] = tuple(outbox.c)


def save_sessions(connection: Connection, owners: Iterable[tuple[Owner, str]], now_s: float) -> None:
    """Writes sessions that are not there yet, and renews those whose plan is newer; never another principal's."""
    newest: dict[str, tuple[Owner, str]] = {}
    for owner, agent_id in owners:
        known = newest.get(owner.session_id)
        if known is None or owner.epoch >= known[0].epoch:
            newest[owner.session_id] = (owner, agent_id)
    rows = [
        [bucket_of(key), key, owner.principal, owner.user_id, agent_id, owner.epoch, to_us(now_s)]
        for key, (owner, agent_id) in sorted(newest.items(), key=_by_bucket)
    ]
    if rows:
        _SAVE_SESSIONS.run(connection, rows)


def insert_turns(
    connection: Connection, batch: Sequence[Arrived], now_s: float, *, unknown: Iterable[tuple[Owner, str]], queue: bool
) -> list[Outcome]:
    """Stores turns, each once, in one transaction with their sessions and, with `queue`, their place in the outbox.

    `unknown` are the sessions that the caller has not seen stored; they are written first.
    """
    save_sessions(connection, unknown, now_s)
    rows = {_key(item): item for item in reversed(batch)}  # within the batch too the first content stays
    delivery = Delivery.QUEUED if queue else Delivery.DELIVERED
    stored = _insert(connection, rows, delivery)
    if len(stored) < len(rows):
        missing = [item for key, item in rows.items() if key not in stored]
        stored = {*stored, *_insert_again(connection, missing, delivery, now_s)}
    if queue and stored:
        enqueue(connection, Counter(session_id for session_id, _ in stored), to_us(now_s))
    if len(stored) == len(batch):
        return [Outcome.STORED] * len(batch)
    refused = _refused(connection, [item for key, item in rows.items() if key not in stored])
    return [_outcome(item, rows, stored, refused) for item in batch]


def _insert(connection: Connection, wanted: Mapping[_Key, Arrived], delivery: Delivery) -> AbstractSet[_Key]:
    """Inserts where the session is known and its owner's; the keys that are ours now."""
    if not wanted:
        return frozenset()
    rows = sorted(_turn_row(item, delivery) for item in wanted.values())  # by key, which is what they begin with
    if _INSERT_TURNS.run(connection, rows) == len(rows):
        return wanted.keys()
    by_arrival = {item.arrival: key for key, item in wanted.items()}
    found = connection.execute(
        select(turns.c.session_id, turns.c.turn_id, turns.c.arrival).where(turns.c.arrival.in_(list(by_arrival)))
    )
    return {(s, t) for s, t, arrival in found if by_arrival[arrival] == (s, t)}


def _insert_again(
    connection: Connection, missing: list[Arrived], delivery: Delivery, now_s: float
) -> AbstractSet[_Key]:
    """For turns whose session was thought to be stored and is not (forgotten meanwhile, by another replica too)."""
    ids = {item.turn.owner.session_id for item in missing}
    known = set(connection.scalars(select(sessions.c.session_id).where(are_sessions(sessions, ids))))
    orphans = [item for item in missing if item.turn.owner.session_id not in known]
    save_sessions(connection, [(item.turn.owner, item.turn.agent_id) for item in orphans], now_s)
    return _insert(connection, {_key(item): item for item in orphans}, delivery)


def enqueue(connection: Connection, counts: Mapping[str, int], now_us: int) -> None:
    """Puts so many more turns of each session into the outbox."""
    rows = [
        [bucket_of(key), key, now_us, 0, 0, False, 0, 0, None, FULL_BATCH, count, now_us, None]
        for key, count in sorted(counts.items(), key=_by_bucket)
    ]
    _ENQUEUE.run(connection, rows)


def _refused(connection: Connection, left: list[Arrived]) -> Mapping[_Key, Outcome]:
    """Of turns that were not stored, those whose session is not their principal's."""
    if not left:
        return {}
    ids = {item.turn.owner.session_id for item in left}
    found = connection.execute(select(sessions.c.session_id, sessions.c.principal).where(are_sessions(sessions, ids)))
    owners = {row.session_id: row.principal for row in found}
    refused = {}
    for item in left:
        owner = owners.get(item.turn.owner.session_id)
        if owner != item.turn.owner.principal:
            refused[_key(item)] = Outcome.ERASED if owner == NOBODY else Outcome.FOREIGN
    return refused


def _outcome(
    item: Arrived, rows: Mapping[_Key, Arrived], stored: AbstractSet[_Key], refused: Mapping[_Key, Outcome]
) -> Outcome:
    key = _key(item)
    if key in refused:
        return refused[key]
    return Outcome.STORED if key in stored and rows[key] is item else Outcome.DUPLICATE


def find_session(connection: Connection, session_id: str) -> SessionRecord | None:
    """The session's row."""
    row = connection.execute(
        select(sessions.c.principal, sessions.c.epoch).where(is_session(sessions, session_id))
    ).first()
    return SessionRecord(session_id, row.principal, row.epoch) if row else None


def claim_session(connection: Connection, owner: Owner, agent_id: str, now_s: float) -> bool:
    """Writes a session that is not there yet; True where it is new, or was the same authenticated principal's."""
    row = {
        "bucket": bucket_of(owner.session_id),
        "session_id": owner.session_id,
        "principal": owner.principal,
        "user_id": owner.user_id,
        "agent_id": agent_id,
        "epoch": owner.epoch,
        "created_at_us": to_us(now_s),
    }
    if connection.execute(_CLAIM[connection.dialect.name], row).rowcount == 1:
        return True
    record = find_session(connection, owner.session_id)
    return record is not None and record.principal == owner.principal != ANONYMOUS


def release_session(connection: Connection, owner: Owner) -> None:
    """Takes back a claim that nobody heard of: the session's row, as long as nothing else has become of it."""
    has_turns = select(turns.c.bucket).where(is_session(turns, owner.session_id)).exists()
    unheard = and_(
        is_session(sessions, owner.session_id),
        sessions.c.principal == owner.principal,
        sessions.c.epoch == owner.epoch,
        ~has_turns,
    )
    connection.execute(delete(sessions).where(unheard))


def spend_ticket(connection: Connection, ticket_id: str, expires_at_s: float) -> bool:
    """True the first time."""
    row = {"bucket": bucket_of(ticket_id), "ticket_id": ticket_id, "expires_at_us": to_us(expires_at_s)}
    return connection.execute(_SPEND[connection.dialect.name], row).rowcount == 1


def remove_expired_tickets(connection: Connection, before_s: float) -> int:
    """Tickets that no longer open anything need not be remembered."""
    return connection.execute(delete(tickets).where(tickets.c.expires_at_us < to_us(before_s))).rowcount


def last_arrival(connection: Connection) -> int:
    """The greatest arrival in the table; 0 where there is none."""
    return connection.scalar(select(func.max(turns.c.arrival))) or 0


def is_session(table: Table, session_id: str) -> ColumnElement[bool]:
    """The rows of one session."""
    return and_(table.c.bucket == bucket_of(session_id), table.c.session_id == session_id)


def are_sessions(table: Table, session_ids: Iterable[str]) -> ColumnElement[bool]:
    """The rows of several sessions."""
    return tuple_(table.c.bucket, table.c.session_id).in_([(bucket_of(key), key) for key in session_ids])


def _key(item: Arrived) -> _Key:
    return item.turn.owner.session_id, item.turn.turn_id


def _by_bucket(item: tuple[str, Any]) -> tuple[int, str]:
    return bucket_of(item[0]), item[0]


def _turn_row(item: Arrived, delivery: Delivery) -> list[Any]:
    turn = item.turn
    return [
        bucket_of(turn.owner.session_id),
        turn.owner.session_id,
        turn.turn_id,
        turn.owner.epoch,
        place_of(turn.sequence),
        item.arrival,
        turn.agent_id,
        turn.role,
        turn.content,
        to_us(turn.created_at.timestamp()),
        turn.source,
        turn.interrupted,
        turn.channel,
        int(delivery),
        turn.owner.principal,
    ]


def _save_sessions(dialect: str) -> Insert:
    statement = insert_from_batch(dialect, sessions, SESSION_FIELDS)
    new = statement.excluded
    saved: Insert = statement.on_conflict_do_update(
        index_elements=["bucket", "session_id"],
        set_={
            "epoch": new.epoch,
            "user_id": func.coalesce(new.user_id, sessions.c.user_id),
            "agent_id": new.agent_id,
        },
        where=and_(sessions.c.principal == new.principal, sessions.c.epoch < new.epoch),
    )
    return saved


def _insert_turns(dialect: str) -> Insert:
    """Only into sessions that are stored and their owner's; holding them, so that nobody forgets them meanwhile.

    PostgreSQL is made to look each session up by its key, in the batch's order: left to itself it reads the whole table
    of sessions for each batch, as long as it has not counted them, and locks them as it finds them.
    """
    *fields, principal = batch_fields(_OWNED_TURN_FIELDS)
    is_owners = and_(
        sessions.c.bucket == fields[0], sessions.c.session_id == fields[1], sessions.c.principal == principal
    )
    if dialect == "postgresql":
        held = select(sessions.c.bucket).where(is_owners).limit(literal_column("1"))
        owner = held.with_for_update(read=True, key_share=True).lateral("owner")
        joined = BATCH_ROWS.join(owner, true())
    else:
        joined = BATCH_ROWS.join(sessions, is_owners)
    source = select(*fields).select_from(joined).where(true())  # else SQLite takes ON CONFLICT for the join's
    statement = insert_for(dialect, turns).from_select([target.name for target in TURN_FIELDS], source)
    inserted: Insert = statement.on_conflict_do_nothing(index_elements=["bucket", "session_id", "turn_id"])
    return inserted


def _enqueue_for(dialect: str) -> Insert:
    """A session in backoff stays there; any other is due at once, for the newcomer may fill a gap."""
    statement = insert_from_batch(dialect, outbox, OUTBOX_FIELDS)
    new = statement.excluded
    enqueued: Insert = statement.on_conflict_do_update(
        index_elements=["bucket", "session_id"],
        set_={
            "queued": outbox.c.queued + new.queued,
            "due_at_us": case((outbox.c.failures == literal_column("0"), new.due_at_us), else_=outbox.c.due_at_us),
        },
    )
    return enqueued


def _spend(dialect: str) -> Insert:
    spent: Insert = insert_for(dialect, tickets).on_conflict_do_nothing(index_elements=["bucket", "ticket_id"])
    return spent


def _claim(dialect: str) -> Insert:
    claimed: Insert = insert_for(dialect, sessions).on_conflict_do_nothing(index_elements=["bucket", "session_id"])
    return claimed


_SAVE_SESSIONS = Batch(SESSION_FIELDS, _save_sessions)
_INSERT_TURNS = Batch(_OWNED_TURN_FIELDS, _insert_turns)
_ENQUEUE = Batch(OUTBOX_FIELDS, _enqueue_for)
_SPEND = {dialect: _spend(dialect) for dialect in ("sqlite", "postgresql")}
_CLAIM = {dialect: _claim(dialect) for dialect in ("sqlite", "postgresql")}
