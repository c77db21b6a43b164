"""Rows of the ledger, as statements. The same on SQLite and PostgreSQL."""

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

from sqlalchemy import Connection, and_, case, delete, distinct, exists, func, or_, select, text, update

from token_broker.memory.store.tables import NOW_US, insert_for, usage, usage_answers
from token_broker.memory.types import bucket_of
from token_broker.usage.billed import ANSWER_COUNTS, TRANSCRIPTION_COUNTS
from token_broker.usage.talk_usage import BILLED_BY_TIME, MOVED, UNSEEN

__all__ = ["AnswerClaim", "UsageGroup", "claim_answers", "sum_usage", "write_usage"]

UsageGroup = Literal["principal", "agent", "resource", "day", "session"]
AnswerClaim = tuple[str, str, str, str]
"""A session, its talk, Azure's id of an answer or a transcription, and the writer's part."""

_KEY = ("bucket", "talk_id", "part", "resource", "day")
_FIXED = (*_KEY, "session_id", "principal", "agent_id", "transport", "started_at_us")
_SUMMED = ("responses", "unmeasured", *ANSWER_COUNTS, *TRANSCRIPTION_COUNTS[1:], "tools_run")
_GROUP_COLUMNS = {
    "principal": usage.c.principal,
    "agent": usage.c.agent_id,
    "resource": usage.c.resource,
    "day": usage.c.day,
    "session": usage.c.session_id,
}
_CLAIMS_KEPT_US = 3_600_000_000  # two replicas hear a call at once for seconds
_TALK = ("talk_id", "session_id", "principal", "agent_id", "resource", "transport", "dialect")


def write_usage(
    connection: Connection,
    rows: Sequence[Mapping[str, Any]],
    billed: Sequence[Mapping[str, int]],
    monotonic_s: Callable[[], float],
) -> int:
    """Writes rows, each over what its own writer wrote before; the database's microseconds since 1970.

    `billed` are the milliseconds that Azure bills, in all so far, by row and by session of Azure's.

    Session and principal stay as they were written first: an erasure may have made them anonymous. The time of a row
    stays, too, once another replica has taken its call: that replica counts from the row's `updated_at_us` on.
    """
    now_us = int(connection.scalar(text(f"SELECT {NOW_US[connection.dialect.name]}")) or 0)
    now_s = monotonic_s()
    insert = insert_for(connection.dialect.name, usage)
    changing = {name: insert.excluded[name] for name in usage.c.keys() if name not in _FIXED}  # noqa: SIM118  # no dict
    is_taken, is_added_to = usage.c.ended == MOVED, usage.c.dialect == BILLED_BY_TIME
    changing["live_ms"] = case((or_(is_taken, is_added_to), usage.c.live_ms), else_=changing["live_ms"])
    changing["ended"] = case((is_taken, usage.c.ended), else_=changing["ended"])
    changing["updated_at_us"] = case((is_taken, usage.c.updated_at_us), else_=changing["updated_at_us"])
    upsert = insert.on_conflict_do_update(index_elements=list(_KEY), set_=changing)
    values = [{**row, "bucket": bucket_of(row["session_id"])} for row in rows]
    for row in values:  # the row's time ends here, not now: the store may be slow
        row["updated_at_us"] = now_us - round((now_s - row.pop("looked_s")) * 1_000_000)
    connection.execute(upsert, sorted(values, key=lambda row: tuple(row[name] for name in _KEY)))
    reports = [(row, *report) for row, of_row in zip(values, billed, strict=False) for report in of_row.items()]
    for row, azure_session, billed_ms in sorted(reports, key=lambda each: (each[0]["talk_id"], *each[1:])):
        _add_billed(connection, row, azure_session, billed_ms, now_us)
    return now_us


def _add_billed(
    connection: Connection, row: Mapping[str, Any], azure_session: str, billed_ms: int, now_us: int
) -> None:
    """Adds to the row what Azure bills of a session beyond what any writer of the talk has counted."""
    key = {"bucket": row["bucket"], "talk_id": row["talk_id"], "answer": f"billed {azure_session}"}
    first = {**key, "part": row["part"], "counted_at_us": now_us, "billed_ms": 0}
    connection.execute(insert_for(connection.dialect.name, usage_answers).values(first).on_conflict_do_nothing())
    is_one = and_(*(usage_answers.c[name] == value for name, value in key.items()))
    counted_ms = connection.scalar(select(usage_answers.c.billed_ms).where(is_one).with_for_update()) or 0
    counted = {"billed_ms": max(counted_ms, billed_ms), "counted_at_us": now_us}
    connection.execute(update(usage_answers).where(is_one).values(counted))
    more = {"live_ms": func.coalesce(usage.c.live_ms, 0) + max(0, billed_ms - counted_ms)}
    connection.execute(update(usage).where(*(usage.c[name] == row[name] for name in _KEY)).values(more))


def claim_answers(connection: Connection, claims: Sequence[AnswerClaim]) -> frozenset[AnswerClaim]:
    """Claims answers for their writers; returns those that another writer of the talk has counted already."""
    now_us = int(connection.scalar(text(f"SELECT {NOW_US[connection.dialect.name]}")) or 0)
    connection.execute(delete(usage_answers).where(usage_answers.c.counted_at_us < now_us - _CLAIMS_KEPT_US))
    lost = set()
    for session_id, talk_id, answer, part in claims:
        key = {"bucket": bucket_of(session_id), "talk_id": talk_id, "answer": answer}
        values = {**key, "part": part, "counted_at_us": now_us}
        connection.execute(insert_for(connection.dialect.name, usage_answers).values(values).on_conflict_do_nothing())
        is_one = and_(*(usage_answers.c[name] == value for name, value in key.items()))
        if connection.scalar(select(usage_answers.c.part).where(is_one)) != part:
            lost.add((session_id, talk_id, answer, part))
    return frozenset(lost)


def sum_usage(
    connection: Connection,
    *,
    by: UsageGroup | None = None,
    since_day: int | None = None,
    principal: str | None = None,
    session_id: str | None = None,
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """Sums by a group, or by talk, resource and day where there is none; in order, `limit` at most.

    A sum is None where every part of it is unknown. `seen` and `complete` are true where all parts are. What a page may
    do with a secret of Azure's is left out where the talk was seen.
    """
    columns = [usage.c.day, *(usage.c[name] for name in _TALK)] if by is None else [_GROUP_COLUMNS[by]]
    all_of = {name: func.min(case((usage.c[name], 1), else_=0)).label(name) for name in ("seen", "complete")}
    query = select(
        *columns,
        func.count(distinct(usage.c.talk_id)).label("talks"),
        func.sum(usage.c.live_ms).label("live_ms"),
        *(func.sum(usage.c[name]).label(name) for name in _SUMMED),
        func.sum(usage.c.transcription_ms).label("transcription_ms"),
        *all_of.values(),
        *([func.max(case((usage.c.ended != MOVED, usage.c.ended))).label("ended")] if by is None else []),
    )
    seen = usage.alias()
    of_talk = and_(seen.c.bucket == usage.c.bucket, seen.c.talk_id == usage.c.talk_id)
    query = query.where(or_(usage.c.part != UNSEEN, ~exists().where(of_talk, seen.c.part != UNSEEN)))
    if since_day is not None:
        query = query.where(usage.c.day >= since_day)
    if principal is not None:
        query = query.where(usage.c.principal == principal)
    if session_id is not None:
        query = query.where(usage.c.bucket == bucket_of(session_id), usage.c.session_id == session_id)
    query = query.group_by(*columns).order_by(*columns).limit(limit)
    found = connection.execute(query).mappings()
    # PostgreSQL's sums of BIGINT are NUMERIC.
    return [{key: int(value) if isinstance(value, Decimal) else value for key, value in row.items()} for row in found]
