"""Storing turns, as statements: each once, in a session that is its owner's and has room. For SQLite and PostgreSQL.

Each function takes a `Connection` inside a transaction. Rows are locked in one order everywhere (sessions, turns,
outbox; within each by key), so that replicas never deadlock.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import reduce
from itertools import islice
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Insert,
    Select,
    and_,
    func,
    literal_column,
    select,
    true,
    update,
)
from sqlalchemy import LargeBinary as Bytes

from token_broker.memory.ingest.session_sizes import SizeLimit
from token_broker.memory.store.outbox import enqueue
from token_broker.memory.store.statements import (
    BATCH_ROWS,
    Batch,
    are_sessions,
    batch_fields,
    by_bucket,
    insert_for,
    insert_from_batch,
    is_session,
)
from token_broker.memory.store.tables import TURN_ORDER, sessions, turns
from token_broker.memory.types import (
    ERASED_PRINCIPAL,
    LAST_PLACE,
    ArrivedTurn,
    Delivery,
    Interruption,
    Outcome,
    bucket_of,
    to_us,
)
from token_broker.security.owner import Owner

__all__ = [
    "add_to_sizes",
    "insert_turns",
    "insert_within_limit",
    "last_arrival",
    "mark_interrupted",
    "put_back",
    "save_sessions",
    "subtract_from_size",
]

_Key = tuple[str, str]  # session id, turn id

_PUT_BACK_AT_MOST = 500  # turns of a session that history is compared with


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
_OWNED_TURN_FIELDS = (*TURN_FIELDS, sessions.c.principal)  # the principal that has to own the session


def save_sessions(connection: Connection, owners: Iterable[tuple[Owner, str]], now_s: float) -> None:
    """Writes sessions that are not there yet, and renews those whose plan is newer; never another principal's."""
    newest: dict[str, tuple[Owner, str]] = {}
    for owner, agent_id in owners:
        known = newest.get(owner.session_id)
        if known is None or owner.epoch >= known[0].epoch:
            newest[owner.session_id] = (owner, agent_id)
    rows = []
    for key in sorted(newest, key=by_bucket):
        owner, agent_id = newest[key]
        rows.append([bucket_of(key), key, owner.principal, owner.user_id, agent_id, owner.epoch, to_us(now_s)])
    if rows:
        _SAVE_SESSIONS.run(connection, rows)


def insert_within_limit(
    connection: Connection,
    batch: Sequence[ArrivedTurn],
    now_s: float,
    *,
    unknown: Iterable[tuple[Owner, str]],
    queue: bool,
    limit: SizeLimit | None,
    groups: Sequence[int],
    interruptions: Sequence[Interruption] = (),
) -> tuple[list[Outcome], dict[str, int]]:
    """`insert_turns`, for sessions that have room; an outcome a turn, and the stored sizes that were read for `limit`.

    `groups` says how many consecutive turns of the batch were submitted together. Of a group either all turns of a
    session are stored, or none: then they are FULL, or duplicates of stored ones.
    """
    found, full = _sizes_and_full(connection, batch, groups, limit) if limit else ({}, set())
    known = put_back(connection, batch)
    full -= known
    if not full and not known:
        outcomes_of_all = insert_turns(connection, batch, now_s, unknown=unknown, queue=queue)
        mark_interrupted(connection, interruptions)
        return outcomes_of_all, found
    duplicates: set[_Key] = set()
    for key in {item.turn.owner.session_id for item in batch if id(item) in full}:
        ids = [item.turn.turn_id for item in batch if id(item) in full and item.turn.owner.session_id == key]
        stored = connection.scalars(select(turns.c.turn_id).where(is_session(turns, key), turns.c.turn_id.in_(ids)))
        duplicates |= {(key, turn_id) for turn_id in stored}
    left_out = full | known
    fitting = [item for item in batch if id(item) not in left_out]
    outcomes = iter(insert_turns(connection, fitting, now_s, unknown=unknown, queue=queue))
    mark_interrupted(connection, interruptions)
    return [
        next(outcomes)
        if id(item) not in left_out
        else Outcome.FULL
        if id(item) in full and item.key not in duplicates
        else Outcome.DUPLICATE
        for item in batch
    ], found


def put_back(connection: Connection, batch: Sequence[ArrivedTurn]) -> set[int]:
    """The turns (by id()) that are history put back: their session has the role and text from before their talk.

    Only the session's latest turns are looked at: a client puts back what it was told, or what it kept itself.
    """
    known: set[int] = set()
    for item in batch:
        turn = item.turn
        if turn.put_back_at is None:
            continue
        session_id = turn.owner.session_id
        latest = (
            select(turns.c.role, turns.c.content, turns.c.created_at_us)
            .join(sessions, and_(sessions.c.bucket == turns.c.bucket, sessions.c.session_id == turns.c.session_id))
            .where(is_session(turns, session_id), sessions.c.principal == turn.owner.principal)
            .order_by(*(column.desc() for column in TURN_ORDER))
            .limit(_PUT_BACK_AT_MOST)
            .subquery()
        )
        found: Select[tuple[Any]] = select(literal_column("1")).where(
            latest.c.role == turn.role,
            latest.c.content == turn.content,
            latest.c.created_at_us < to_us(turn.put_back_at.timestamp()),
        )
        if connection.execute(found.limit(1)).first() is not None:
            known.add(id(item))
    return known


def mark_interrupted(connection: Connection, interruptions: Iterable[Interruption]) -> None:
    """Marks turns that are stored, and their owner's, as interrupted.

    Call it after turns were inserted: an outbox row is locked before its turns, here as in `settle`.
    """
    for each in sorted(set(interruptions), key=lambda interruption: interruption.key):
        session_id = each.owner.session_id
        is_owners = select(sessions.c.bucket).where(
            is_session(sessions, session_id), sessions.c.principal == each.owner.principal
        )
        connection.execute(
            update(turns)
            .where(is_session(turns, session_id), turns.c.turn_id == each.turn_id, is_owners.exists())
            .values(interrupted=True)
        )


def _sizes_and_full(
    connection: Connection, batch: Sequence[ArrivedTurn], groups: Sequence[int], limit: SizeLimit
) -> tuple[dict[str, int], set[int]]:
    """The stored sizes of the sessions that may be full, and the turns (by id()) that exceed the limit."""
    rows = connection.execute(
        select(sessions.c.session_id, sessions.c.principal, sessions.c.stored_bytes).where(
            are_sessions(sessions, limit.unsure)
        )
    ).all()
    found = dict.fromkeys(limit.unsure, 0) | {row.session_id: row.stored_bytes for row in rows}
    owners = {row.session_id: row.principal for row in rows}
    left = {key: limit.limit_bytes - size - limit.pending.get(key, 0) for key, size in found.items()}
    full: set[int] = set()
    items = iter(batch)
    for group in (list(islice(items, size)) for size in groups):
        for key in {item.turn.owner.session_id for item in group} & limit.unsure:
            its = [item for item in group if item.turn.owner.session_id == key]
            if any(item.turn.owner.principal != owners.get(key, item.turn.owner.principal) for item in its):
                continue  # another principal's session: FOREIGN tells nothing of whether it is full
            wanted = sum(item.size_bytes for item in its)
            if wanted <= left[key]:
                left[key] -= wanted
            else:
                full |= set(map(id, its))
    return found, full


def insert_turns(
    connection: Connection,
    batch: Sequence[ArrivedTurn],
    now_s: float,
    *,
    unknown: Iterable[tuple[Owner, str]],
    queue: bool,
) -> list[Outcome]:
    """Stores turns, each once, in one transaction with their sessions and, with `queue`, their place in the outbox.

    `unknown` are the sessions that the caller has not seen stored; they are written first.
    """
    save_sessions(connection, unknown, now_s)
    rows = {item.key: item for item in reversed(batch)}  # within the batch too the first content stays
    delivery = Delivery.QUEUED if queue else Delivery.DELIVERED
    stored = _insert(connection, rows, delivery)
    if len(stored) < len(rows):
        # Sessions that were thought to be stored and are not: erased meanwhile, perhaps by another replica.
        missing = [item for key, item in rows.items() if key not in stored]
        ids = {item.turn.owner.session_id for item in missing}
        known = set(connection.scalars(select(sessions.c.session_id).where(are_sessions(sessions, ids))))
        orphans = [item for item in missing if item.turn.owner.session_id not in known]
        save_sessions(connection, [(item.turn.owner, item.turn.agent_id) for item in orphans], now_s)
        stored = {*stored, *_insert(connection, {item.key: item for item in orphans}, delivery)}
    if queue and stored:
        enqueue(connection, Counter(session_id for session_id, _ in stored), to_us(now_s))
    if len(stored) == len(batch):
        return [Outcome.STORED] * len(batch)
    left = {item.turn.owner.session_id for key, item in rows.items() if key not in stored}
    found = connection.execute(select(sessions.c.session_id, sessions.c.principal).where(are_sessions(sessions, left)))
    owners = {row.session_id: row.principal for row in found}
    outcomes = []
    for item in batch:
        session = rows[item.key].turn.owner
        if item.key in stored:
            outcomes.append(Outcome.STORED if rows[item.key] is item else Outcome.DUPLICATE)
        elif (owner := owners.get(session.session_id)) == session.principal:
            outcomes.append(Outcome.DUPLICATE)
        else:
            outcomes.append(Outcome.ERASED if owner == ERASED_PRINCIPAL else Outcome.FOREIGN)
    return outcomes


def _insert(connection: Connection, wanted: Mapping[_Key, ArrivedTurn], delivery: Delivery) -> AbstractSet[_Key]:
    """Inserts where the session is known and its owner's; the keys of the rows that were written."""
    if not wanted:
        return frozenset()
    rows = []
    for item in wanted.values():
        turn = item.turn
        row = [
            bucket_of(turn.owner.session_id),
            turn.owner.session_id,
            turn.turn_id,
            turn.owner.epoch,
            LAST_PLACE if turn.sequence is None else turn.sequence,
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
        rows.append(row)
    if _INSERT_TURNS.run(connection, sorted(rows)) == len(rows):  # sorted by key, which comes first in a row
        return wanted.keys()
    # Not by RETURNING, which says nothing of rows that were there before: a repeated attempt finds its own arrival.
    by_arrival = {item.arrival: key for key, item in wanted.items()}
    found = connection.execute(
        select(turns.c.session_id, turns.c.turn_id, turns.c.arrival).where(turns.c.arrival.in_(list(by_arrival)))
    )
    return {(s, t) for s, t, arrival in found if by_arrival[arrival] == (s, t)}


def add_to_sizes(connection: Connection, added: Mapping[str, int]) -> dict[str, int]:
    """Adds to the stored sizes of sessions; the sizes they have then."""
    found: dict[str, int] = {}
    for key in sorted(added, key=by_bucket):
        grown = update(sessions).where(is_session(sessions, key))
        grown = grown.values(stored_bytes=sessions.c.stored_bytes + added[key])
        size = connection.scalar(grown.returning(sessions.c.stored_bytes))
        if size is not None:
            found[key] = size
    return found


def subtract_from_size(connection: Connection, session_id: str, which: ColumnElement[bool]) -> None:
    """Subtracts the turns `which` of a session from its stored size, before they are deleted."""
    is_sqlite = connection.dialect.name == "sqlite"
    texts = (turns.c.content, turns.c.turn_id, turns.c.session_id, turns.c.agent_id, func.coalesce(turns.c.channel, ""))
    sizes: list[ColumnElement[int]] = [
        func.length(text.cast(Bytes)) if is_sqlite else func.octet_length(text) for text in texts
    ]
    size = reduce(lambda one, other: one + other, sizes)  # `stored_bytes` in SQL
    removed = select(func.coalesce(func.sum(size), 0)).where(is_session(turns, session_id), which).scalar_subquery()
    least = func.max if is_sqlite else func.greatest
    # Never below 0: the column lags behind what other replicas have stored.
    left = least(0, sessions.c.stored_bytes - removed)
    connection.execute(update(sessions).where(is_session(sessions, session_id)).values(stored_bytes=left))


def last_arrival(connection: Connection) -> int:
    """The greatest arrival in the table; 0 where there is none."""
    return connection.scalar(select(func.max(turns.c.arrival))) or 0


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
    """Inserts only into sessions that are stored and their owner's, and holds them, so that nobody erases them
    meanwhile.

    PostgreSQL is made to look each session up by its key, in the batch's order. Left to itself it reads the whole table
    of sessions for each batch, as long as it has no statistics of it, and locks rows as it finds them.
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
    source = select(*fields).select_from(joined).where(true())  # without WHERE, SQLite parses ON CONFLICT as the join's
    statement = insert_for(dialect, turns).from_select([target.name for target in TURN_FIELDS], source)
    inserted: Insert = statement.on_conflict_do_nothing(index_elements=["bucket", "session_id", "turn_id"])
    return inserted


_SAVE_SESSIONS = Batch(SESSION_FIELDS, _save_sessions)
_INSERT_TURNS = Batch(_OWNED_TURN_FIELDS, _insert_turns)
