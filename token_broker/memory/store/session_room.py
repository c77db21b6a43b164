"""Storing turns where their sessions have room for them, as statements: `insert_turns`, and what is full."""

from collections.abc import Iterable, Sequence
from functools import reduce
from itertools import islice

from sqlalchemy import ColumnElement, Connection, and_, func, select, update
from sqlalchemy import LargeBinary as Bytes

from token_broker.memory.ingest.sizes import Room
from token_broker.memory.store.tables import sessions, turns
from token_broker.memory.store.turns import Arrived, are_sessions, insert_turns, is_session
from token_broker.memory.types import Outcome
from token_broker.security.owner import Owner

__all__ = ["insert_where_room", "note_removed"]


def insert_where_room(
    connection: Connection,
    batch: Sequence[Arrived],
    now_s: float,
    *,
    unknown: Iterable[tuple[Owner, str]],
    queue: bool,
    room: Room | None,
    groups: Sequence[int],
) -> tuple[list[Outcome], dict[str, int]]:
    """`insert_turns`; an outcome a turn, and the columns of sessions that were read for `room`.

    `groups` says how many of the batch, one after the other, were handed in together: of a group either all turns of a
    session are stored, or none: then they are FULL, or duplicates of stored ones.
    """
    found, full = _sizes_and_full(connection, batch, groups, room) if room else ({}, set())
    if not full:
        return insert_turns(connection, batch, now_s, unknown=unknown, queue=queue), found
    known = _stored_keys(connection, [item for item in batch if id(item) in full])
    fitting = [item for item in batch if id(item) not in full]
    stored = iter(insert_turns(connection, fitting, now_s, unknown=unknown, queue=queue))
    outcomes = []
    for item in batch:
        if id(item) not in full:
            outcomes.append(next(stored))
        elif (item.turn.owner.session_id, item.turn.turn_id) in known:
            outcomes.append(Outcome.DUPLICATE)
        else:
            outcomes.append(Outcome.FULL)
    return outcomes, found


def _sizes_and_full(
    connection: Connection, batch: Sequence[Arrived], groups: Sequence[int], room: Room
) -> tuple[dict[str, int], set[int]]:
    """The columns of the sessions that are unsure, and the turns (by id()) that find no room."""
    rows = connection.execute(
        select(sessions.c.session_id, sessions.c.principal, sessions.c.stored_bytes).where(
            are_sessions(sessions, room.unsure)
        )
    ).all()
    found = dict.fromkeys(room.unsure, 0) | {row.session_id: row.stored_bytes for row in rows}
    owners = {row.session_id: row.principal for row in rows}
    left = {key: room.limit_bytes - size - room.unnoted.get(key, 0) for key, size in found.items()}
    full: set[int] = set()
    items = iter(batch)
    for group in (list(islice(items, size)) for size in groups):
        for key in {item.turn.owner.session_id for item in group} & room.unsure:
            its = [item for item in group if item.turn.owner.session_id == key]
            if any(item.turn.owner.principal != owners.get(key, item.turn.owner.principal) for item in its):
                continue  # another's session: that is told, and not whether it is full
            wanted = sum(item.size_bytes for item in its)
            if wanted <= left[key]:
                left[key] -= wanted
            else:
                full |= set(map(id, its))
    return found, full


def _stored_keys(connection: Connection, items: Sequence[Arrived]) -> set[tuple[str, str]]:
    """Which of these turns are stored already."""
    found: set[tuple[str, str]] = set()
    for key in {item.turn.owner.session_id for item in items}:
        ids = [item.turn.turn_id for item in items if item.turn.owner.session_id == key]
        stored = connection.scalars(select(turns.c.turn_id).where(is_session(turns, key), turns.c.turn_id.in_(ids)))
        found |= {(key, turn_id) for turn_id in stored}
    return found


def note_removed(connection: Connection, session_id: str, which: ColumnElement[bool]) -> None:
    """Takes the turns `which` of a session off its size, before they are deleted."""
    its = and_(is_session(turns, session_id), which)
    removed = select(func.coalesce(func.sum(_size_of(connection)), 0)).where(its).scalar_subquery()
    least = func.max if connection.dialect.name == "sqlite" else func.greatest
    left = least(0, sessions.c.stored_bytes - removed)
    connection.execute(update(sessions).where(is_session(sessions, session_id)).values(stored_bytes=left))


def _size_of(connection: Connection) -> ColumnElement[int]:
    """`stored_bytes` as a database counts it."""
    texts = (turns.c.content, turns.c.turn_id, turns.c.session_id, turns.c.agent_id, func.coalesce(turns.c.channel, ""))
    sizes: list[ColumnElement[int]] = [
        func.length(text.cast(Bytes)) if connection.dialect.name == "sqlite" else func.octet_length(text)
        for text in texts
    ]
    return reduce(lambda one, other: one + other, sizes)
