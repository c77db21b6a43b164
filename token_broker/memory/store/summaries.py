"""Summaries of talks, as statements: asked for when a talk ends, made once by whichever replica, told to the next talk.

A row is claimed by moving its due time before its hook is called, so that no two replicas call it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, select, update

from token_broker.memory.store.tables import insert_for, is_session, sessions, summaries
from token_broker.memory.store.turn_reads import last_turns, recent_sessions
from token_broker.memory.store.turn_writes import queue_notice
from token_broker.memory.types import SinkName, StoredTurn, arrival_at, bucket_of
from token_broker.security.tokens import ANONYMOUS, Owner

__all__ = [
    "DueSummary",
    "claim_summaries",
    "newest_summary",
    "put_off",
    "request_summary",
    "save_summary",
    "turns_to_sum_up",
]

_SESSIONS = 20  # of a user, the newest, whose summaries the next talk may begin with
_MAX_TURNS = 200
_MAX_CHARS = 65_536


@dataclass(frozen=True, slots=True)
class DueSummary:
    """A talk that is over, and whose summary this replica is to have made. `attempts` counts this one."""

    session_id: str
    talk_id: str
    agent_id: str
    user_id: str | None
    attempts: int


def request_summary(connection: Connection, owner: Owner, agent_id: str, due_at_us: int) -> bool:
    """Asks for a talk's summary, once it is due; a talk that went on meanwhile is due later.

    False where the session is not stored, not yet perhaps, or is not the owner's.
    """
    is_owners = and_(is_session(sessions, owner.session_id), sessions.c.principal == owner.principal)
    if connection.execute(select(sessions.c.epoch).where(is_owners).with_for_update(read=True)).first() is None:
        return False
    row = {
        "bucket": bucket_of(owner.session_id),
        "session_id": owner.session_id,
        "talk_id": owner.talk_id,
        "agent_id": agent_id,
        "due_at_us": due_at_us,
        "attempts": 0,
    }
    statement = insert_for(connection.dialect.name, summaries).values(row)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["bucket", "session_id", "talk_id"],
            set_={"due_at_us": due_at_us, "agent_id": agent_id},
            where=and_(summaries.c.due_at_us.is_not(None), summaries.c.attempts == 0),
        )
    )
    return True


def claim_summaries(connection: Connection, now_us: int, lease_us: int, limit: int) -> list[DueSummary]:
    """Talks whose summary is due; nobody else gets them for as long as the lease."""
    due = (
        select(summaries)
        .where(summaries.c.due_at_us <= now_us)
        .order_by(summaries.c.due_at_us)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    claimed = []
    for row in connection.execute(due).all():
        user_id = connection.scalar(select(sessions.c.user_id).where(is_session(sessions, row.session_id)))
        connection.execute(
            update(summaries)
            .where(_is_talk(row.session_id, row.talk_id))
            .values(due_at_us=now_us + lease_us, attempts=row.attempts + 1)
        )
        claimed.append(DueSummary(row.session_id, row.talk_id, row.agent_id, user_id, row.attempts + 1))
    return claimed


def turns_to_sum_up(connection: Connection, session_id: str) -> list[StoredTurn]:
    """The session's newest turns, oldest first, within what a hook is sent."""
    newest: list[StoredTurn] = []
    left = _MAX_CHARS
    for turn in reversed(last_turns(connection, session_id, _MAX_TURNS, chars=_MAX_CHARS)):
        left -= len(turn.content)
        if newest and left < 0:
            break
        newest.insert(0, turn)
    return newest


def save_summary(
    connection: Connection, due: DueSummary, summary: str, now_us: int, *, sinks: Sequence[SinkName] = ()
) -> bool:
    """Keeps the summary, in place of earlier ones of the session; False where the session was erased meanwhile.

    `sinks` are told of it in the same transaction.
    """
    # Locked first, as an erasure does: none slips in between.
    its = select(sessions.c.epoch).where(is_session(sessions, due.session_id)).with_for_update(read=True)
    connection.execute(its)
    is_due = _is_talk(due.session_id, due.talk_id)
    if connection.execute(select(summaries.c.attempts).where(is_due)).first() is None:
        return False
    if sinks:
        body, arrival = json.dumps({"summary": summary}), arrival_at(now_us / 1_000_000)
        queue_notice(connection, sinks, due.session_id, "session.summary", body=body, arrival=arrival)
    kept = {"due_at_us": None, "made_at_us": now_us, "summary": summary}
    connection.execute(update(summaries).where(is_due).values(kept))
    earlier = and_(is_session(summaries, due.session_id), summaries.c.made_at_us < now_us)
    connection.execute(update(summaries).where(earlier).values(summary=None, made_at_us=None))
    return True


def put_off(connection: Connection, due: DueSummary, due_at_us: int | None) -> None:
    """Has a summary made later, or never where `due_at_us` is None."""
    connection.execute(update(summaries).where(_is_talk(due.session_id, due.talk_id)).values(due_at_us=due_at_us))


def newest_summary(connection: Connection, owner: Owner) -> str:
    """The newest summary of the owner's sessions, or of the session alone where nobody is known; may be empty."""
    searched: Sequence[str] = [owner.session_id]
    if owner.principal != ANONYMOUS:
        searched = [*searched, *recent_sessions(connection, owner.principal, _SESSIONS, but=owner.session_id)]
    wanted = (
        select(summaries.c.summary)
        .join(sessions, and_(sessions.c.bucket == summaries.c.bucket, sessions.c.session_id == summaries.c.session_id))
        .where(
            summaries.c.bucket.in_([bucket_of(key) for key in searched]),
            summaries.c.session_id.in_(searched),
            sessions.c.principal == owner.principal,
            summaries.c.made_at_us.is_not(None),
        )
        .order_by(summaries.c.made_at_us.desc())
        .limit(1)
    )
    return connection.scalar(wanted) or ""


def _is_talk(session_id: str, talk_id: str) -> ColumnElement[bool]:
    return and_(is_session(summaries, session_id), summaries.c.talk_id == talk_id)
