"""Reservations of budgets, as statements. The same on SQLite and PostgreSQL, by the database's clock.

A holder has one row a day: what it has used, and what it holds until a time. What is held beyond its time is free: its
process was killed. The row without a holder stands for the principal's day; who reserves locks it first, so that of
several at once each sees what the others hold.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, case, func, select, text

from token_broker.memory.store.tables import NOW_US, budget_reservations, insert_for
from token_broker.memory.types import bucket_of

__all__ = ["Reserved", "Taken", "find_taken", "reserve", "settle"]

_KEY = ("bucket", "budget_key", "day", "holder")
_table = budget_reservations.c


@dataclass(frozen=True, slots=True)
class Reserved:
    """What was reserved. `tokens_left` are those that nobody has used or holds; None without a limit."""

    now_us: int
    held_ms: int
    tokens_fit: bool
    tokens_left: int | None


@dataclass(frozen=True, slots=True)
class Taken:
    """What is used or held, and the database's microseconds since 1970."""

    ms: int
    tokens: int
    now_us: int


def find_taken(connection: Connection, budget_key: str, day: int, *, but: str = "") -> Taken:
    """What all holders of the day but one have used and hold."""
    now_us = int(connection.scalar(text(f"SELECT {NOW_US[connection.dialect.name]}")) or 0)
    holds = _table.until_us > now_us
    sums = select(
        func.coalesce(func.sum(_table.used_ms + case((holds, _table.held_ms), else_=0)), 0),
        func.coalesce(func.sum(_table.used_tokens + case((holds, _table.held_tokens), else_=0)), 0),
    ).where(
        _table.bucket == bucket_of(budget_key),
        _table.budget_key == budget_key,
        _table.day == day,
        _table.holder != but,
    )
    ms, tokens = connection.execute(sums).one()
    return Taken(int(ms), int(tokens), now_us)


def reserve(
    connection: Connection,
    budget_key: str,
    day: int,
    holder: str,
    *,
    spent_ms: int,
    spent_tokens: int,
    wanted_ms: int,
    wanted_tokens: int,
    limit_ms: int | None,
    limit_tokens: int | None,
) -> Reserved:
    """Notes what the holder has spent, and reserves what it wants, or the time that is left.

    Tokens are reserved all or none: an answer can't be cut short by them.
    """
    _put(connection, (budget_key, day, ""), (0, 0))  # locks the principal's day
    taken = find_taken(connection, budget_key, day, but=holder)
    held_ms = wanted_ms if limit_ms is None else max(0, min(wanted_ms, limit_ms - taken.ms - spent_ms))
    tokens_left = None if limit_tokens is None else limit_tokens - taken.tokens - spent_tokens - wanted_tokens
    fit = tokens_left is None or tokens_left >= 0
    held = (held_ms, wanted_tokens if fit else 0)
    _put(connection, (budget_key, day, holder), (spent_ms, spent_tokens), held, taken.now_us + held_ms * 1000)
    return Reserved(taken.now_us, held_ms, fit, tokens_left)


def settle(connection: Connection, budget_key: str, day: int, holder: str, *, spent_ms: int, spent_tokens: int) -> None:
    """Notes what the holder has spent that day; it holds nothing more."""
    _put(connection, (budget_key, day, holder), (spent_ms, spent_tokens))


def _put(
    connection: Connection,
    whose: tuple[str, int, str],
    spent: tuple[int, int],
    held: tuple[int, int] = (0, 0),
    until_us: int = 0,
) -> None:
    key = dict(zip(_KEY, (bucket_of(whose[0]), *whose), strict=True))
    amounts = {"used_ms": spent[0], "held_ms": held[0], "used_tokens": spent[1], "held_tokens": held[1]}
    changed = {**amounts, "until_us": until_us}
    insert = insert_for(connection.dialect.name, budget_reservations).values({**key, **changed})
    connection.execute(insert.on_conflict_do_update(index_elements=list(_KEY), set_=changed))
