"""Claims of tool calls, as statements: who may make a call, and what came of it. The same on SQLite and PostgreSQL."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, literal, literal_column, select, update

from token_broker.memory.store.tables import NOW_US, insert_for, is_session, sessions, tool_claims
from token_broker.memory.types import ERASED_PRINCIPAL, bucket_of

__all__ = [
    "DONE",
    "RUNNING",
    "UNKNOWN",
    "CallKey",
    "claim_call",
    "find_call",
    "finish_call",
    "prune_claims",
    "take_over",
]

RUNNING, DONE, UNKNOWN = 0, 1, 2

CallKey = tuple[str, str, str, str]
"""Session, talk, Azure's session, call: Azure's call ids alone are not unique."""


def claim_call(connection: Connection, key: CallKey, holder: str, lasts_us: int) -> bool:
    """Claims the call for `holder`; False where it is claimed already, or its session was erased.

    One statement, since a call waits for it. The same holder may claim again: the answer to the first may be lost.
    """
    session_id, talk_id, azure_session, call_id = key
    now_us: ColumnElement[int] = literal_column(NOW_US[connection.dialect.name])
    values: Sequence[tuple[str, Any]] = (
        ("bucket", literal(bucket_of(session_id), tool_claims.c.bucket.type)),
        ("session_id", literal(session_id)),
        ("talk_id", literal(talk_id)),
        ("azure_session", literal(azure_session)),
        ("call_id", literal(call_id)),
        ("holder", literal(holder)),
        ("state", literal(RUNNING, tool_claims.c.state.type)),
        ("claimed_at_us", now_us),
        ("until_us", now_us + literal(lasts_us, tool_claims.c.until_us.type)),
    )
    row = select(*(value.label(name) for name, value in values)).where(~_is_erased(session_id))
    insert = insert_for(connection.dialect.name, tool_claims).from_select([name for name, _ in values], row)
    claimed = connection.execute(insert.on_conflict_do_nothing())
    if claimed.rowcount == 1:
        return True
    return connection.scalar(select(tool_claims.c.holder).where(_is_call(key))) == holder


def take_over(connection: Connection, key: CallKey, holder: str, lasts_us: int) -> bool:
    """Claims a call again whose outcome is unknown; False where another did, or it isn't unknown."""
    now_us: ColumnElement[int] = literal_column(NOW_US[connection.dialect.name])
    is_unknown = (tool_claims.c.state == UNKNOWN) | (
        (tool_claims.c.state == RUNNING) & (tool_claims.c.until_us < now_us)
    )
    taken = {"holder": holder, "state": RUNNING, "until_us": now_us + lasts_us}
    return connection.execute(update(tool_claims).where(_is_call(key), is_unknown).values(taken)).rowcount == 1


def finish_call(connection: Connection, key: CallKey, holder: str, output: str | None, *, ok: bool) -> None:
    """Notes what came of the holder's call; None: unknown. Of a session that was erased meanwhile nothing is kept."""
    is_holders = and_(_is_call(key), tool_claims.c.holder == holder)
    outcome = {"state": UNKNOWN if output is None else DONE, "output": output, "ok": ok}
    connection.execute(update(tool_claims).where(is_holders, ~_is_erased(key[0])).values(outcome))


def find_call(connection: Connection, key: CallKey) -> tuple[int, str | None, bool] | None:
    """The call's state, what the model was told, whether that is the tool's own word; None where it is unclaimed."""
    now_us: ColumnElement[int] = literal_column(NOW_US[connection.dialect.name])
    is_over = (tool_claims.c.until_us < now_us).label("is_over")
    row = connection.execute(
        select(tool_claims.c.state, tool_claims.c.output, tool_claims.c.ok, is_over).where(_is_call(key))
    ).first()
    if row is None:
        return None
    return UNKNOWN if row.state == RUNNING and row.is_over else row.state, row.output, bool(row.ok)


def prune_claims(connection: Connection, older_than_s: float, limit: int) -> int:
    """Deletes up to `limit` claims that are older, with their outputs; how many."""
    now_us: ColumnElement[int] = literal_column(NOW_US[connection.dialect.name])
    old = tool_claims.c.claimed_at_us < now_us - round(older_than_s * 1_000_000)
    key = (tool_claims.c.session_id, tool_claims.c.talk_id, tool_claims.c.azure_session, tool_claims.c.call_id)
    found = [tuple(row) for row in connection.execute(select(*key).where(old).limit(limit))]
    for each in found:
        connection.execute(delete(tool_claims).where(_is_call(each)))
    return len(found)


def _is_call(key: Any) -> ColumnElement[bool]:
    session_id, talk_id, azure_session, call_id = key
    return and_(
        is_session(tool_claims, session_id),
        tool_claims.c.talk_id == talk_id,
        tool_claims.c.azure_session == azure_session,
        tool_claims.c.call_id == call_id,
    )


def _is_erased(session_id: str) -> ColumnElement[bool]:
    erased = select(sessions.c.bucket).where(is_session(sessions, session_id), sessions.c.principal == ERASED_PRINCIPAL)
    return erased.exists()
