"""Sessions and their sizes, tickets and the blocklist, as statements. The same on SQLite and PostgreSQL."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import reduce

from sqlalchemy import ColumnElement, Connection, and_, delete, func, or_, select, tuple_, update
from sqlalchemy import LargeBinary as Bytes

from token_broker.memory.store.tables import blocks, by_bucket, insert_for, is_session, sessions, tickets, turns
from token_broker.memory.store_errors import BlocklistFullError
from token_broker.memory.types import Block, BlockKind, SessionRecord, bucket_of, to_us
from token_broker.security.tokens import ANONYMOUS, Owner

__all__ = [
    "MAX_BLOCKS",
    "BlockKey",
    "TalkNote",
    "add_to_sizes",
    "block",
    "blocked_keys",
    "claim_session",
    "find_session",
    "is_known",
    "list_blocks",
    "note_talks",
    "release_session",
    "remove_expired_tickets",
    "spend_ticket",
    "subtract_from_size",
    "unblock",
]

BlockKey = tuple[BlockKind, str]


@dataclass(frozen=True, slots=True)
class TalkNote:
    """What a replica saw of a talk: that it `begins`, or when it is over, in seconds since 1970."""

    owner: Owner
    over_at_s: float
    begins: bool
    tries: int = 1


MAX_BLOCKS = 10_000  # each replica holds all of them, and reads them every two seconds


def find_session(connection: Connection, session_id: str) -> SessionRecord | None:
    """The session's row."""
    columns = (sessions.c.principal, sessions.c.epoch, sessions.c.talk_id, sessions.c.talk_over_at_us)
    row = connection.execute(select(*columns).where(is_session(sessions, session_id))).first()
    if row is None:
        return None
    return SessionRecord(session_id, row.principal, row.epoch, row.talk_id, (row.talk_over_at_us or 0) / 1_000_000)


def note_talks(connection: Connection, notes: Iterable[TalkNote]) -> list[TalkNote]:
    """Writes which talks began, and when they are over; those that changed no row, since their session has none yet."""
    unwritten = []
    for note in sorted(notes, key=lambda each: by_bucket(each.owner.session_id)):
        owner = note.owner
        its = and_(is_session(sessions, owner.session_id), sessions.c.principal == owner.principal)
        if not note.begins:
            its = and_(its, or_(sessions.c.talk_id.is_(None), sessions.c.talk_id == owner.talk_id))
        noted = update(sessions).where(its).values(talk_id=owner.talk_id, talk_over_at_us=to_us(note.over_at_s))
        if connection.execute(noted).rowcount == 0:
            unwritten.append(note)
    return unwritten


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
    insert = insert_for(connection.dialect.name, sessions)
    claimed = insert.on_conflict_do_nothing(index_elements=["bucket", "session_id"])
    if connection.execute(claimed, row).rowcount == 1:
        return True
    record = find_session(connection, owner.session_id)
    return record is not None and record.principal == owner.principal != ANONYMOUS


def release_session(connection: Connection, owner: Owner) -> None:
    """Takes back a claim whose caller was refused: deletes the session's row, unless it was renewed or has turns."""
    has_turns = select(turns.c.bucket).where(is_session(turns, owner.session_id)).exists()
    unused = and_(
        is_session(sessions, owner.session_id),
        sessions.c.principal == owner.principal,
        sessions.c.epoch == owner.epoch,
        ~has_turns,
    )
    connection.execute(delete(sessions).where(unused))


def is_known(connection: Connection, kind: BlockKind, name: str) -> bool:
    """Whether a session of that id, or of that principal, is stored."""
    its = is_session(sessions, name) if kind == "session" else sessions.c.principal == name
    return connection.execute(select(sessions.c.epoch).where(its).limit(1)).first() is not None


def spend_ticket(connection: Connection, ticket_id: str, expires_at_s: float) -> bool:
    """True the first time."""
    row = {"bucket": bucket_of(ticket_id), "ticket_id": ticket_id, "expires_at_us": to_us(expires_at_s)}
    insert = insert_for(connection.dialect.name, tickets)
    spent = insert.on_conflict_do_nothing(index_elements=["bucket", "ticket_id"])
    return connection.execute(spent, row).rowcount == 1


def remove_expired_tickets(connection: Connection, before_s: float) -> int:
    """Removes tickets that expired before; how many. An expired ticket is refused without a look at the store."""
    return connection.execute(delete(tickets).where(tickets.c.expires_at_us < to_us(before_s))).rowcount


def block(connection: Connection, kind: BlockKind, name: str, now_us: int) -> bool:
    """Blocks a principal or a session; False where it was already. Raises BlocklistFullError."""
    row = {"kind": kind, "id": name, "since_us": now_us}
    insert = insert_for(connection.dialect.name, blocks)
    is_new: bool = connection.execute(insert.values(row).on_conflict_do_nothing()).rowcount > 0
    if is_new and (connection.scalar(select(func.count()).select_from(blocks)) or 0) > MAX_BLOCKS:
        raise BlocklistFullError(f"{MAX_BLOCKS} are blocked already: unblock some of them first")
    return is_new


def unblock(connection: Connection, kind: BlockKind, name: str) -> bool:
    """Unblocks a principal or a session; False where it was not blocked."""
    return connection.execute(delete(blocks).where(blocks.c.kind == kind, blocks.c.id == name)).rowcount > 0


def list_blocks(connection: Connection) -> list[Block]:
    """All that are blocked, the latest last."""
    rows = connection.execute(select(blocks).order_by(blocks.c.since_us, blocks.c.kind, blocks.c.id))
    return [Block(row.kind, row.id, datetime.fromtimestamp(row.since_us / 1_000_000, UTC)) for row in rows]


def blocked_keys(connection: Connection, limit: int, *, after: BlockKey | None = None) -> list[BlockKey]:
    """The next `limit` of all that are blocked, by kind and id, behind `after`."""
    key = (blocks.c.kind, blocks.c.id)
    wanted = select(*key).order_by(*key).limit(limit)
    if after is not None:
        wanted = wanted.where(tuple_(*key) > after)
    return [(kind, name) for kind, name in connection.execute(wanted)]


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
    # Below 0, too: the column lags behind, and what was stored of these is added to it later.
    left = sessions.c.stored_bytes - removed
    connection.execute(update(sessions).where(is_session(sessions, session_id)).values(stored_bytes=left))
