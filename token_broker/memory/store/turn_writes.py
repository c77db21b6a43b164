"""Storing turns, as statements: each once, in a session that is its owner's and has room. For SQLite and PostgreSQL.

Each function takes a `Connection` inside a transaction. Rows are locked in one order everywhere (sessions, turns,
outbox; within each by key), so that replicas never deadlock.

A batch of rows is parameters of one statement: `VALUES` for SQLite, an array a column for PostgreSQL. So it makes no
trip through the interpreter's lock for each row, and neither database has to pick its values out of JSON.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache
from itertools import chain, islice
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Dialect,
    FromClause,
    Insert,
    Select,
    Table,
    Text,
    and_,
    case,
    func,
    literal_column,
    or_,
    select,
    table,
    true,
    update,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import asyncpg

from token_broker.memory.store.tables import (
    TURN_ORDER,
    are_sessions,
    erased_users,
    insert_for,
    is_session,
    notices,
    outbox,
    sessions,
    turn_words,
    turns,
)
from token_broker.memory.types import (
    ERASED_PRINCIPAL,
    FULL_BATCH,
    LAST_PLACE,
    NOTICE_SINKS,
    SINK_BITS,
    ArrivedTurn,
    Interruption,
    NoticeKind,
    Outcome,
    SinkName,
    SizeLimit,
    arrival_at,
    arrived_us,
    bucket_of,
    to_us,
)
from token_broker.memory.words.folding import FOLDING_VERSION, MAX_FOLDED_CHARS, fold_turn
from token_broker.security.tokens import ANONYMOUS, Owner

__all__ = [
    "enqueue",
    "fold_stored",
    "insert_turns",
    "insert_within_limit",
    "insert_words",
    "last_arrival",
    "mark_interrupted",
    "put_back",
    "queue_notice",
    "save_sessions",
]

_Key = tuple[str, str]  # session id, turn id
_DIALECTS: dict[str, Dialect] = {"sqlite": sqlite.dialect(), "postgresql": asyncpg.dialect()}  # type: ignore[no-untyped-call]
_FEW_ROWS = 64
_MOST_ROWS = 512  # times columns: SQLite takes 32,766 values

BATCH_ROWS: FromClause = table("batch")  # a placeholder to read `batch_fields` from; `Batch` puts the rows in its place
_FOLDED_AT_ONCE = 200  # a transaction: the next commit waits behind it
_PUT_BACK_AT_MOST = 500  # turns of a session that history is compared with


SESSION_FIELDS: tuple[Column[Any], ...] = (
    sessions.c.bucket,
    sessions.c.session_id,
    sessions.c.principal,
    sessions.c.user_id,
    sessions.c.agent_id,
    sessions.c.epoch,
    sessions.c.created_at_us,
    sessions.c.sinks,
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
    turns.c.pending,
    turns.c.folding,
)
_OUTBOX_FIELDS: tuple[Column[Any], ...] = tuple(outbox.c)
_WORD_FIELDS: tuple[Column[Any], ...] = tuple(turn_words.c)
_OWNED_TURN_FIELDS = (*TURN_FIELDS, sessions.c.principal)  # the principal that has to own the session


def save_sessions(
    connection: Connection, owners: Iterable[tuple[Owner, str]], now_s: float, told: Mapping[str, int] | None = None
) -> None:
    """Writes sessions that are not there yet, and renews those whose plan is newer; never another principal's.

    `told`: the bits of the sinks that a session's turns go to.
    """
    newest: dict[str, tuple[Owner, str]] = {}
    for owner, agent_id in owners:
        known = newest.get(owner.session_id)
        if known is None or owner.epoch >= known[0].epoch:
            newest[owner.session_id] = (owner, agent_id)
    bits = told or {}
    rows = [
        [bucket_of(key), key, owner.principal, owner.user_id, agent_id, owner.epoch, to_us(now_s), bits.get(key, 0)]
        for key, (owner, agent_id) in newest.items()
    ]
    if rows:
        _SAVE_SESSIONS.run(connection, sorted(rows))  # sorted by key, which comes first in a row


def insert_within_limit(
    connection: Connection,
    batch: Sequence[ArrivedTurn],
    now_s: float,
    *,
    unknown: Iterable[tuple[Owner, str]],
    sinks: Sequence[SinkName],
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
    left_out = dict.fromkeys(full | known, Outcome.DUPLICATE)
    exceeding = [item for item in batch if id(item) in full] if full else []
    for session_id in {item.turn.owner.session_id for item in exceeding}:
        items = [item for item in exceeding if item.turn.owner.session_id == session_id]
        ids = [item.turn.turn_id for item in items]
        found_ids = select(turns.c.turn_id).where(is_session(turns, session_id), turns.c.turn_id.in_(ids))
        stored = set(connection.scalars(found_ids))
        left_out |= {id(item): Outcome.FULL for item in items if item.turn.turn_id not in stored}
    fitting = [item for item in batch if id(item) not in left_out] if left_out else batch
    outcomes = insert_turns(connection, fitting, now_s, unknown=unknown, sinks=sinks)
    mark_interrupted(connection, interruptions, told=[sink for sink in sinks if sink in NOTICE_SINKS], now_s=now_s)
    if left_out:
        inserted = iter(outcomes)
        outcomes = [left_out[id(item)] if id(item) in left_out else next(inserted) for item in batch]
    return outcomes, found


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


def mark_interrupted(
    connection: Connection, interruptions: Iterable[Interruption], *, told: Sequence[SinkName] = (), now_s: float = 0
) -> None:
    """Marks turns that are stored, and their owner's, as interrupted; sinks in `told` get a notice of each new mark.

    Call it after turns were inserted: an outbox row is locked before its turns, here as in `settle`.
    """
    marks = sorted(set(interruptions), key=lambda interruption: interruption.key)
    if marks and told:
        enqueue(connection, told, dict.fromkeys([each.owner.session_id for each in marks], 0), to_us(now_s))
    for each in marks:
        session_id = each.owner.session_id
        is_owners = select(sessions.c.bucket).where(
            is_session(sessions, session_id), sessions.c.principal == each.owner.principal
        )
        marked = connection.execute(
            update(turns)
            .where(
                is_session(turns, session_id),
                turns.c.turn_id == each.turn_id,
                turns.c.interrupted.is_(False),
                is_owners.exists(),
            )
            .values(interrupted=True)
            .returning(turns.c.content, turns.c.arrival)
        ).first()
        if marked is not None and told:
            body = json.dumps({"turn_id": each.turn_id, "content": marked.content})
            arrival = max(arrival_at(now_s), marked.arrival + 1)
            queue_notice(connection, told, session_id, "turn.interrupted", body=body, arrival=arrival)


def queue_notice(
    connection: Connection, sinks: Sequence[SinkName], session_id: str, kind: NoticeKind, *, body: str, arrival: int
) -> None:
    """Queues a notice of a stored session for these sinks, behind the turns that arrived before.

    `body` is JSON: the event's data beside the ids. Call it before other rows of the session are locked, or `enqueue`.
    """
    enqueue(connection, sinks, {session_id: 1}, arrived_us(arrival))
    rows = [
        {
            "bucket": bucket_of(session_id),
            "session_id": session_id,
            "sink": sink,
            "arrival": arrival,
            "kind": kind,
            "body": body,
        }
        for sink in sinks
    ]
    if rows:
        connection.execute(insert_for(connection.dialect.name, notices).on_conflict_do_nothing(), rows)


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
    sinks: Sequence[SinkName],
) -> list[Outcome]:
    """Stores turns, each once, in one transaction with their sessions and their place in the outbox of each sink.

    `unknown` are the sessions that the caller has not seen stored; they are written first.
    """
    rows = {item.key: item for item in reversed(batch)}  # within the batch too the first content stays
    pending = sum(SINK_BITS[sink] for sink in sinks)
    bits = {session_id: pending for session_id, _ in rows}
    save_sessions(connection, unknown, now_s, bits)
    stored = _insert(connection, rows, pending)
    if len(stored) < len(rows):
        # Sessions that were thought to be stored and are not: erased meanwhile, perhaps by another replica.
        missing = [item for key, item in rows.items() if key not in stored]
        ids = {item.turn.owner.session_id for item in missing}
        known = set(connection.scalars(select(sessions.c.session_id).where(are_sessions(sessions, ids))))
        orphans = [item for item in missing if item.turn.owner.session_id not in known]
        save_sessions(connection, [(item.turn.owner, item.turn.agent_id) for item in orphans], now_s, bits)
        stored = {*stored, *_insert(connection, {item.key: item for item in orphans}, pending)}
    if stored:
        told = (rows[key] for key in stored)
        insert_words(connection, ((item.turn.owner.session_id, item.arrival, item.turn.content) for item in told))
        enqueue(connection, sinks, Counter(session_id for session_id, _ in stored), to_us(now_s))
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
        else:  # a session that is not even there is one of a user who was erased
            outcomes.append(Outcome.ERASED if owner in {None, ERASED_PRINCIPAL} else Outcome.FOREIGN)
    return outcomes


def _insert(connection: Connection, wanted: Mapping[_Key, ArrivedTurn], pending: int) -> AbstractSet[_Key]:
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
            pending,
            FOLDING_VERSION,
            turn.owner.principal,
        ]
        rows.append(row)
    if _INSERT_TURNS.run(connection, sorted(rows)) == len(rows):
        return wanted.keys()
    # Not by RETURNING, which says nothing of rows that were there before: a repeated attempt finds its own arrival.
    by_arrival = {item.arrival: key for key, item in wanted.items()}
    found = connection.execute(
        select(turns.c.session_id, turns.c.turn_id, turns.c.arrival).where(turns.c.arrival.in_(list(by_arrival)))
    )
    return {(s, t) for s, t, arrival in found if by_arrival[arrival] == (s, t)}


def insert_words(connection: Connection, said: Iterable[tuple[str, int, str]]) -> None:
    """Writes the words of stored turns: session, arrival, content. Those of a repeated attempt are there already."""
    rows = [(bucket_of(key), key, arrival, words) for key, arrival, text in said if (words := fold_turn(text)).strip()]
    if rows:
        _INSERT_WORDS.run(connection, sorted(rows))


def fold_stored(connection: Connection, limit: int = _FOLDED_AT_ONCE) -> int:
    """Folds the newest stored turns that have no words yet; how many turns, 0 at the end."""
    said = func.substr(turns.c.content, 1, MAX_FOLDED_CHARS).label("said")
    unfolded = (
        select(turns.c.session_id, turns.c.turn_id, turns.c.arrival, said)
        .where(turns.c.folding.is_(None))
        .order_by(turns.c.arrival.desc())
        .limit(limit)
        .with_for_update(skip_locked=True)  # a turn that is being deleted is left alone
    )
    found = connection.execute(unfolded).all()
    insert_words(connection, ((row.session_id, row.arrival, row.said) for row in found))
    for row in found:
        its = (is_session(turns, row.session_id), turns.c.turn_id == row.turn_id)
        connection.execute(update(turns).where(*its).values(folding=FOLDING_VERSION))
    return len(found)


def last_arrival(connection: Connection) -> int:
    """The greatest arrival in the table; 0 where there is none."""
    return connection.scalar(select(func.max(turns.c.arrival))) or 0


def enqueue(connection: Connection, sinks: Sequence[SinkName], counts: Mapping[str, int], now_us: int) -> None:
    """Adds so many turns of each session to the outbox of each sink."""
    rows = [
        [bucket_of(key), key, sink, now_us, 0, 0, False, 0, 0, None, FULL_BATCH, counts[key], now_us, None, None, 0]
        for key in counts
        for sink in sinks
    ]
    if rows:
        _ENQUEUE.run(connection, sorted(rows))


class Batch:
    """An `Insert` that reads `BATCH_ROWS`, whose rows have fields for these columns.

    It is compiled here, once: SQLAlchemy would walk through such a statement at each execution, to find its cached
    form again.
    """

    def __init__(self, columns: Sequence[Column[Any]], make: Callable[[str], Insert]) -> None:
        self._width = len(columns)
        compiled = {name: str(make(name).compile(dialect=dialect)) for name, dialect in _DIALECTS.items()}
        self._values = compiled["sqlite"]
        # Each array is one text: PostgreSQL parses it in less time than asyncpg takes to encode its elements.
        types = [column.type.compile(dialect=_DIALECTS["postgresql"]) for column in columns]
        arrays = ", ".join(f"${number}::text::{name}[]" for number, name in enumerate(types, 1))
        names = ", ".join(f"column{number}" for number, _ in enumerate(columns, 1))
        self._arrays = _replace_rows(compiled["postgresql"], f"unnest({arrays}) AS batch ({names})")
        self._literals = [_text_array if isinstance(column.type, Text) else _plain_array for column in columns]

    def run(self, connection: Connection, rows: Sequence[Sequence[Any]]) -> int:
        """Writes at least one row; how many rows were written."""
        if connection.dialect.name == "postgresql":
            columns = zip(*rows, strict=True)
            arrays = tuple(literal(values) for literal, values in zip(self._literals, columns, strict=True))
            return connection.exec_driver_sql(self._arrays, arrays).rowcount
        left, written = iter(rows), 0
        while part := list(islice(left, _MOST_ROWS)):
            # Statements come in few sizes, so that SQLite's statement cache keeps them; the rest are rows of NULL.
            count = len(part)
            size = -(-count // _FEW_ROWS) * _FEW_ROWS if count > _FEW_ROWS else 1 << (count - 1).bit_length()
            values = [*chain.from_iterable(part), *[None] * (self._width * (size - count))]
            statement = _with_values(self._values, self._width, size)
            written += connection.exec_driver_sql(statement, tuple(values)).rowcount
        return written


@lru_cache(maxsize=64)
def _with_values(statement: str, width: int, size: int) -> str:
    row = f"({', '.join('?' * width)})"
    return _replace_rows(
        statement, f"(VALUES {', '.join([row] * size)}) AS batch"
    )  # SQLite names its columns `column1`…


def _plain_array(values: Sequence[Any]) -> str:
    """PostgreSQL's literal for numbers and booleans."""
    return f"{{{','.join(['NULL' if value is None else str(value) for value in values])}}}"


def _text_array(values: Sequence[str | None]) -> str:
    """PostgreSQL's literal for texts: in quotes only `"` and the backslash are special (manual, §8.15.6)."""
    quoted = []
    for value in values:
        if value is None:
            quoted.append("NULL")
        else:
            escaped = value.replace("\\", "\\\\").replace('"', '\\"')
            quoted.append(f'"{escaped}"')
    return f"{{{','.join(quoted)}}}"


def _replace_rows(statement: str, rows: str) -> str:
    before, _, behind = statement.partition("FROM batch")
    return f"{before}FROM {rows}{behind}"


def batch_fields(columns: Sequence[Column[Any]]) -> list[ColumnElement[Any]]:
    """The fields of a row of the batch, in their order."""
    return [literal_column(f"batch.column{number}", column.type) for number, column in enumerate(columns, 1)]


def insert_from_batch(dialect: str, into: Table, columns: Sequence[Column[Any]]) -> Any:
    """Inserts each row of the batch; a row's first field is NULL only in the rows that fill up a statement."""
    fields = batch_fields(columns)
    source = select(*fields).select_from(BATCH_ROWS).where(fields[0].is_not(None))
    return insert_for(dialect, into).from_select([column.name for column in columns], source)


def _save_sessions(dialect: str) -> Insert:
    """Leaves out sessions that began before their user was erased."""
    bucket, _, principal, user_id, _, epoch, _, _ = fields = batch_fields(SESSION_FIELDS)
    is_users = or_(
        and_(erased_users.c.kind == literal_column("'principal'"), erased_users.c.id == principal),
        and_(
            erased_users.c.kind == literal_column("'label'"),
            principal == literal_column(f"'{ANONYMOUS}'"),
            erased_users.c.id == user_id,
        ),
    )
    erased = select(erased_users.c.id).where(is_users, erased_users.c.before_us >= epoch * literal_column("1000"))
    source = select(*fields).select_from(BATCH_ROWS).where(bucket.is_not(None), ~erased.exists())
    statement: Any = insert_for(dialect, sessions).from_select([column.name for column in SESSION_FIELDS], source)
    new = statement.excluded
    is_newer = sessions.c.epoch < new.epoch
    newest = {
        "epoch": new.epoch,
        "user_id": func.coalesce(new.user_id, sessions.c.user_id),
        "agent_id": new.agent_id,
    }
    saved: Insert = statement.on_conflict_do_update(
        index_elements=["bucket", "session_id"],
        set_={name: case((is_newer, value), else_=sessions.c[name]) for name, value in newest.items()}
        | {"sinks": sessions.c.sinks.bitwise_or(new.sinks)},
        where=and_(
            sessions.c.principal == new.principal,
            or_(is_newer, sessions.c.sinks.bitwise_and(new.sinks) != new.sinks),
        ),
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


def _insert_words(dialect: str) -> Insert:
    statement = insert_from_batch(dialect, turn_words, _WORD_FIELDS)
    inserted: Insert = statement.on_conflict_do_nothing(index_elements=["bucket", "session_id", "arrival"])
    return inserted


def _enqueue_for(dialect: str) -> Insert:
    """A session in backoff stays there; any other is due at once, because the new turn may fill a gap."""
    statement = insert_from_batch(dialect, outbox, _OUTBOX_FIELDS)
    new = statement.excluded
    enqueued: Insert = statement.on_conflict_do_update(
        index_elements=["bucket", "session_id", "sink"],
        set_={
            "queued": outbox.c.queued + new.queued,
            "due_at_us": case((outbox.c.failures == literal_column("0"), new.due_at_us), else_=outbox.c.due_at_us),
        },
    )
    return enqueued


_SAVE_SESSIONS = Batch(SESSION_FIELDS, _save_sessions)
_INSERT_TURNS = Batch(_OWNED_TURN_FIELDS, _insert_turns)
_INSERT_WORDS = Batch(_WORD_FIELDS, _insert_words)
_ENQUEUE = Batch(_OUTBOX_FIELDS, _enqueue_for)
