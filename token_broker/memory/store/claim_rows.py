"""Claims of tool calls, as statements: who may make a call, and what came of it. The same on SQLite and PostgreSQL."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Delete,
    Insert,
    Select,
    Update,
    and_,
    bindparam,
    delete,
    literal,
    literal_column,
    or_,
    select,
    update,
)

from token_broker.memory.store.tables import NOW_US, insert_for, sessions, tool_claims
from token_broker.memory.types import ERASED_PRINCIPAL, bucket_of

__all__ = [
    "DONE",
    "RUNNING",
    "UNKNOWN",
    "CallKey",
    "Claim",
    "Finished",
    "claim_calls",
    "find_call",
    "finish_calls",
    "prune_claims",
    "take_over",
]

RUNNING, DONE, UNKNOWN = 0, 1, 2

CallKey = tuple[str, str, str, str]
"""Session, talk, Azure's session, call: Azure's call ids alone are not unique."""
Claim = tuple[CallKey, str, int]
"""A call, who claims it, and for how many microseconds."""
Finished = tuple[CallKey, str, str | None, bool]
"""A call, who claimed it, what the model is told (None: unknown), and whether that is the tool's own word."""


def claim_calls(connection: Connection, claims: Sequence[Claim]) -> list[bool]:
    """Claims each call for its holder; False where it is claimed already, or its session was erased.

    One statement a call, since it waits for it. The same holder may claim again: the answer to the first may be lost.
    """
    statements = _statements(connection.dialect.name)
    claimed = dict.fromkeys(claims, False)
    for claim in sorted(claims):  # replicas that claim in one order never deadlock
        key, holder, lasts_us = claim
        given = {**_named(key), "its_holder": holder, "lasts_us": lasts_us}
        if connection.execute(statements.claim, given).rowcount == 1:
            claimed[claim] = True
        else:
            found = connection.execute(statements.find, _named(key)).first()
            claimed[claim] = found is not None and found.holder == holder
    return list(claimed.values())


def take_over(connection: Connection, key: CallKey, holder: str, lasts_us: int) -> bool:
    """Claims a call again whose outcome is unknown; False where another did, or it isn't unknown."""
    given = {**_named(key), "new_holder": holder, "lasts_us": lasts_us}
    return connection.execute(_statements(connection.dialect.name).take_over, given).rowcount == 1


def finish_calls(connection: Connection, outcomes: Sequence[Finished]) -> list[None]:
    """Notes what came of the holders' calls. Of a session that was erased meanwhile nothing is kept."""
    finish = _statements(connection.dialect.name).finish
    for key, holder, output, ok in sorted(outcomes, key=lambda each: each[0]):
        outcome = {"new_state": UNKNOWN if output is None else DONE, "told": output, "is_ok": ok}
        connection.execute(finish, {**_named(key), "its_holder": holder, **outcome})
    return [None] * len(outcomes)


def find_call(connection: Connection, key: CallKey) -> tuple[int, str | None, bool] | None:
    """The call's state, what the model was told, whether that is the tool's own word; None where it is unclaimed."""
    row = connection.execute(_statements(connection.dialect.name).find, _named(key)).first()
    if row is None:
        return None
    return UNKNOWN if row.state == RUNNING and row.is_over else row.state, row.output, bool(row.ok)


def prune_claims(connection: Connection, older_than_s: float, limit: int) -> int:
    """Deletes up to `limit` claims that are older, with their outputs; how many."""
    now_us: ColumnElement[int] = literal_column(NOW_US[connection.dialect.name])
    old = tool_claims.c.claimed_at_us < now_us - round(older_than_s * 1_000_000)
    key = (tool_claims.c.session_id, tool_claims.c.talk_id, tool_claims.c.azure_session, tool_claims.c.call_id)
    found = [_named(tuple(row)) for row in connection.execute(select(*key).where(old).limit(limit))]
    if found:
        connection.execute(_statements(connection.dialect.name).drop, found)
    return len(found)


# --- statements that a call waits for: to make one takes ten times as long as to execute it, and holds up other talks


@dataclass(frozen=True, slots=True)
class _Statements:
    claim: Insert
    take_over: Update
    finish: Update
    find: Select[Any]
    drop: Delete


_KEY = ("bucket", "session_id", "talk_id", "azure_session", "call_id")


def _named(key: CallKey) -> dict[str, Any]:
    """The key as parameters. An update takes one that is called like a column for the column's new value."""
    return {f"its_{name}": value for name, value in zip(_KEY, (bucket_of(key[0]), *key), strict=True)}


@cache
def _statements(dialect: str) -> _Statements:
    now_us: ColumnElement[int] = literal_column(NOW_US[dialect])
    lasts_us = bindparam("lasts_us", type_=tool_claims.c.until_us.type)
    its = {name: bindparam(f"its_{name}", type_=tool_claims.c[name].type) for name in (*_KEY, "holder")}
    is_call = and_(*(tool_claims.c[name] == its[name] for name in _KEY))
    is_holders = and_(is_call, tool_claims.c.holder == its["holder"])
    is_sessions = and_(sessions.c.bucket == its["bucket"], sessions.c.session_id == its["session_id"])
    is_erased = select(sessions.c.bucket).where(is_sessions, sessions.c.principal == ERASED_PRINCIPAL).exists()
    is_over = (tool_claims.c.until_us < now_us).label("is_over")
    is_unknown = or_(
        tool_claims.c.state == UNKNOWN, and_(tool_claims.c.state == RUNNING, tool_claims.c.until_us < now_us)
    )
    values = its | {
        "state": literal(RUNNING, tool_claims.c.state.type),
        "claimed_at_us": now_us,
        "until_us": now_us + lasts_us,
    }
    row = select(*(value.label(name) for name, value in values.items())).where(~is_erased)
    taken = {"holder": bindparam("new_holder"), "state": RUNNING, "until_us": now_us + lasts_us}
    outcome: dict[str, Any] = {"state": bindparam("new_state"), "output": bindparam("told"), "ok": bindparam("is_ok")}
    told = (tool_claims.c.state, tool_claims.c.output, tool_claims.c.ok, tool_claims.c.holder)
    return _Statements(
        insert_for(dialect, tool_claims).from_select(list(values), row).on_conflict_do_nothing(),
        update(tool_claims).where(is_call, is_unknown).values(taken),
        update(tool_claims).where(is_holders, ~is_erased).values(outcome),
        select(*told, is_over).where(is_call),
        delete(tool_claims).where(is_call),
    )
