"""Calls as rows, as statements: who holds a call, until when, and what is to become of it. On SQLite and PostgreSQL.

Leases go by the database's clock, since those of replicas differ. Each time a call changes hands its epoch grows, and
what a former holder still writes finds no row.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, Row, and_, case, delete, func, or_, select, text, tuple_, update

from token_broker.calls.call_row import DELIVERED, ENDED, MADE, CallName, CallRow, HeldCall, PageCall, TakenCall
from token_broker.memory.store.tables import NOW_US, call_events, calls, insert_for, is_session, usage
from token_broker.memory.types import bucket_of
from token_broker.security.tokens import Owner
from token_broker.usage.talk_usage import MOVED

__all__ = [
    "claim_end",
    "end_calls",
    "find_holders",
    "insert_calls",
    "lock_calls",
    "now_us_of",
    "older_calls",
    "prune_calls",
    "reclaim_calls",
    "release_calls",
    "renew_calls",
    "take_call",
    "take_calls",
    "values_of",
    "want_ends",
]

_KEPT_US = 3_600_000_000
_PRUNED = 100  # at a time

_TalkWay = tuple[str, str]  # a talk, and its transport


def insert_calls(
    connection: Connection, rows: Iterable[tuple[CallRow, int, str | None]], holder: str, lease_us: int
) -> None:
    """Writes new calls, with their state and the end that is wanted; a row that is there stays as it is."""
    now_us = now_us_of(connection)
    values = [
        {
            **values_of(row, now_us),
            "state": state,
            "ending": ending,
            "holder": holder,
            "lease_until_us": now_us + lease_us,
        }
        for row, state, ending in rows
    ]
    if values:
        connection.execute(insert_for(connection.dialect.name, calls).values(values).on_conflict_do_nothing())


def values_of(row: CallRow, now_us: int) -> dict[str, Any]:
    """What the store keeps of a call that is new, but for who holds it."""
    return {
        "call_key": row.key,
        "session_id": row.owner.session_id,
        "talk_id": row.owner.talk_id,
        "principal": row.owner.principal,
        "user_id": row.owner.user_id,
        "plan_epoch": row.owner.epoch,
        "agent_id": row.agent_id,
        "limit_key": row.limit_key,
        "resource": row.resource,
        "endpoint": row.endpoint,
        "call_id": row.call_id,
        "transport": row.transport,
        "created_at_us": now_us,
        "expires_at_us": now_us + round(row.lasts_s * 1_000_000),
        "lease_epoch": 0,
    }


def lock_calls(connection: Connection, keys: Collection[str], names: Collection[CallName]) -> None:
    """Locks calls that are about to change, by key: replicas that lock in one order never deadlock."""
    are_these = or_(calls.c.call_key.in_(keys), tuple_(calls.c.endpoint, calls.c.call_id).in_(list(names)))
    connection.execute(select(calls.c.call_key).where(are_these).order_by(calls.c.call_key).with_for_update())


def renew_calls(
    connection: Connection,
    holder: str,
    keys: Collection[str],
    lease_us: int,
    *,
    engaged: Collection[str] = (),
    unheard_s: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, TakenCall]:
    """Renews the holder's leases; returns those of `keys` that it still holds, or that are over.

    Those of `engaged` nobody takes for as long as their leases last. For `unheard_s` the holder has not heard a call.
    """
    if not keys:
        return {}
    is_holders = and_(calls.c.call_key.in_(keys), calls.c.holder == holder)
    now_us = now_us_of(connection)
    until_us = now_us + lease_us
    stays_until_us = case((calls.c.call_key.in_(engaged), until_us), else_=None)
    since_us = {key: now_us - round(ago_s * 1_000_000) for key, ago_s in unheard_s.items()}
    renewed = {
        "lease_until_us": until_us,
        "engaged_until_us": stays_until_us,
        "unheard_since_us": case(since_us, value=calls.c.call_key) if since_us else None,
    }
    connection.execute(update(calls).where(is_holders, calls.c.state < ENDED).values(renewed))
    found = connection.execute(select(calls).where(is_holders))
    return {row.call_key: _found(row, now_us) for row in found}


def take_calls(
    connection: Connection, holder: str, lease_us: int, limit: int, *, given_up: bool = False
) -> list[TakenCall]:
    """Takes calls whose lease is over, or those alone that their replica has `given_up`, since it leaves."""
    now_us = now_us_of(connection)
    is_free = calls.c.lease_until_us == 0 if given_up else calls.c.lease_until_us < now_us
    free = select(calls.c.call_key, calls.c.lease_until_us).where(calls.c.state < ENDED, is_free).limit(limit)
    until_us = {row.call_key: row.lease_until_us for row in connection.execute(free.with_for_update(skip_locked=True))}
    return _take(connection, holder, lease_us, until_us, now_us)


def take_call(connection: Connection, holder: str, lease_us: int, page: PageCall) -> list[TakenCall] | None:
    """Takes one call of a session from the replica that holds it, which finds out as it renews; none: it is over.

    None where the call has to stay there: one with clients at two replicas would go to and fro.
    """
    is_one = and_(calls.c.session_id == page[0], calls.c.call_id == page[1], calls.c.holder != holder)
    lives = and_(calls.c.state == DELIVERED, calls.c.ending.is_(None))
    found = connection.execute(select(calls).where(is_one, lives).with_for_update()).all()
    now_us = now_us_of(connection)
    if any((row.engaged_until_us or 0) > now_us for row in found):
        return None
    return _take(connection, holder, lease_us, {row.call_key: 0 for row in found}, now_us)


def _take(
    connection: Connection, holder: str, lease_us: int, until_us: Mapping[str, int], now_us: int
) -> list[TakenCall]:
    """Takes calls by their keys; `until_us` is the end of each one's lease, 0 where its holder is there yet."""
    if not until_us:
        return []
    is_one = calls.c.call_key.in_(until_us)
    lease = {"holder": holder, "lease_until_us": now_us + lease_us, "lease_epoch": calls.c.lease_epoch + 1}
    connection.execute(update(calls).where(is_one).values({**lease, "engaged_until_us": None}))
    rows = connection.execute(select(calls).where(is_one)).all()
    alone = _only_calls(connection, rows)
    _close_usage(connection, rows)
    written_us, ended = _written_usage(connection, rows, alone)
    found = []
    for row in rows:
        heard_us = written_us.get((row.talk_id, row.transport))
        # A holder that gave the call up held it until now; one that was killed, until about its last renewal.
        held_us = until_us[row.call_key] - lease_us if until_us[row.call_key] else now_us
        known_us = held_us if row.unheard_since_us is None else row.unheard_since_us
        known_us = max(known_us, row.over_at_us or 0)
        found.append(
            replace(
                _found(row, now_us),
                age_s=max(0, now_us - row.created_at_us) / 1_000_000,
                was_heard=heard_us is not None and row.talk_id in alone,
                is_counted=row.ending is not None and (row.talk_id, row.transport) in ended,
                unheard_s=None if heard_us is None else max(0, now_us - heard_us) / 1_000_000,
                lost_s=max(0, now_us - known_us) / 1_000_000,
            )
        )
    return found


def claim_end(connection: Connection, holder: str, held: HeldCall, ending: str) -> bool:
    """Notes the end that the holder is about to make; False where it holds the call no more."""
    key, epoch = held
    is_mine = and_(calls.c.call_key == key, calls.c.holder == holder, calls.c.lease_epoch == epoch)
    wanted = update(calls).where(is_mine, calls.c.state < ENDED).values(ending=func.coalesce(calls.c.ending, ending))
    return connection.execute(wanted).rowcount == 1


def want_ends(connection: Connection, wanted: Iterable[tuple[CallName, str, float]]) -> None:
    """Notes ends that were made so many seconds ago, at any replica; whoever holds the call sees that it is over."""
    now_us = now_us_of(connection)
    for (endpoint, call_id), ending, ago_s in wanted:
        over_at_us = func.coalesce(calls.c.over_at_us, now_us - round(ago_s * 1_000_000))
        new = {"ending": func.coalesce(calls.c.ending, ending), "over_at_us": over_at_us}
        is_one = and_(calls.c.call_id == call_id, calls.c.endpoint == endpoint, calls.c.state < ENDED)
        connection.execute(update(calls).where(is_one).values(new))


def end_calls(connection: Connection, names: Collection[CallName]) -> None:
    """Notes that Azure has ended these calls."""
    if names:
        is_one = tuple_(calls.c.endpoint, calls.c.call_id).in_(list(names))
        over = {"state": ENDED, "lease_until_us": now_us_of(connection)}
        connection.execute(update(calls).where(is_one, calls.c.state < ENDED).values(over))


def older_calls(connection: Connection, row: CallRow) -> list[TakenCall]:
    """Notes that the client has its answer; returns the older calls of the same talk, which are replaced now.

    A call of a bounded talk lasts no longer than the talk's first one would have.
    """
    connection.execute(update(calls).where(calls.c.call_key == row.key, calls.c.state == MADE).values(state=DELIVERED))
    of_talk = and_(calls.c.session_id == row.owner.session_id, calls.c.talk_id == row.owner.talk_id)
    mine = select(calls.c.created_at_us).where(calls.c.call_key == row.key).scalar_subquery()
    if row.owner.narrowed.max_session_s is not None:  # it counts over all calls of the talk
        first_us = connection.scalar(select(func.min(calls.c.expires_at_us)).where(of_talk))
        connection.execute(update(calls).where(calls.c.call_key == row.key).values(expires_at_us=first_us))
    is_older = or_(calls.c.created_at_us < mine, and_(calls.c.created_at_us == mine, calls.c.call_key < row.key))
    others = select(calls).where(of_talk, calls.c.state < ENDED, calls.c.call_key != row.key, is_older)
    return [_found(each, 0) for each in connection.execute(others)]


def release_calls(connection: Connection, holder: str, held: Sequence[HeldCall]) -> None:
    """Gives leases up, so that another replica takes the calls."""
    if held:
        is_one = tuple_(calls.c.call_key, calls.c.lease_epoch).in_(list(held))
        is_mine = and_(is_one, calls.c.holder == holder, calls.c.state < ENDED)
        connection.execute(update(calls).where(is_mine).values(lease_until_us=0, holder=None))


def reclaim_calls(connection: Connection, holder: str, keys: Collection[str], lease_us: int) -> None:
    """Takes calls back that were given up, and that nobody took."""
    until_us = now_us_of(connection) + lease_us
    is_free = and_(calls.c.call_key.in_(keys), calls.c.holder.is_(None), calls.c.state < ENDED)
    connection.execute(update(calls).where(is_free).values(holder=holder, lease_until_us=until_us))


def find_holders(connection: Connection, keys: Collection[str]) -> dict[str, str | None]:
    """Who holds these calls; None: nobody. Calls that are over are left out."""
    found = connection.execute(
        select(calls.c.call_key, calls.c.holder).where(calls.c.call_key.in_(keys), calls.c.state < ENDED)
    )
    return {row.call_key: row.holder for row in found}


def prune_calls(connection: Connection) -> None:
    """Deletes calls that have been over for an hour, and what their pages were told."""
    is_old = and_(calls.c.state >= ENDED, calls.c.lease_until_us < now_us_of(connection) - _KEPT_US)
    old = connection.execute(select(calls.c.call_key, calls.c.session_id, calls.c.call_id).where(is_old).limit(_PRUNED))
    for row in old.all():
        of_call = and_(is_session(call_events, row.session_id), call_events.c.call_id == row.call_id)
        connection.execute(delete(call_events).where(of_call))
        connection.execute(delete(calls).where(calls.c.call_key == row.call_key))


def now_us_of(connection: Connection) -> int:
    """The database's microseconds since 1970."""
    return int(connection.scalar(text(f"SELECT {NOW_US[connection.dialect.name]}")) or 0)


def _found(row: Row[Any], now_us: int) -> TakenCall:
    owner = Owner(row.session_id, row.principal, row.plan_epoch, row.user_id, row.talk_id)
    call = CallRow(
        key=row.call_key,
        owner=owner,
        agent_id=row.agent_id,
        limit_key=row.limit_key,
        resource=row.resource,
        endpoint=row.endpoint,
        call_id=row.call_id,
        transport=row.transport,
        lasts_s=(row.expires_at_us - now_us) / 1_000_000,
    )
    read_for_s = max(0, (row.read_until_us or 0) - now_us) / 1_000_000 if now_us else 0.0
    return TakenCall(call, row.state, row.lease_epoch, row.ending, read_for_s)


def _close_usage(connection: Connection, rows: Sequence[Row[Any]]) -> None:
    """Has the time of these calls' former holders end with what they have written: we count on from there.

    A talk may have another call, which is not taken: then its usage goes on.
    """
    talks, keys = {row.talk_id for row in rows}, {row.call_key for row in rows}
    others = select(calls.c.talk_id).where(
        calls.c.talk_id.in_(talks), calls.c.state < ENDED, calls.c.call_key.not_in(keys)
    )
    is_open = and_(usage.c.ended.is_(None), usage.c.seen, usage.c.transport.in_({row.transport for row in rows}))
    of_taken = and_(_are_of(rows), is_open, usage.c.talk_id.not_in(others))
    connection.execute(update(usage).where(of_taken).values(ended=MOVED))


def _are_of(rows: Sequence[Row[Any]]) -> Any:
    buckets = {bucket_of(row.session_id) for row in rows}
    return and_(usage.c.bucket.in_(buckets), usage.c.talk_id.in_({row.talk_id for row in rows}))


def _written_usage(
    connection: Connection, rows: Sequence[Row[Any]], alone: Collection[str]
) -> tuple[dict[_TalkWay, int], set[_TalkWay]]:
    """By talk and transport: until when the time of each that was heard is written, by any of its holders so far.

    And those whose latest writer has ended them. Of talks that are not `alone` another call may have been ended.
    """
    columns = (usage.c.talk_id, usage.c.transport, usage.c.ended)
    written = connection.execute(select(*columns, usage.c.updated_at_us).where(_are_of(rows), usage.c.seen))
    heard_us: dict[_TalkWay, int] = {}
    ended: set[_TalkWay] = set()
    for row in sorted(written, key=lambda row: row.updated_at_us):
        is_end = row.ended not in {None, MOVED}
        if row.talk_id in alone or not is_end:
            heard_us[row.talk_id, row.transport] = row.updated_at_us
            (ended.add if is_end else ended.discard)((row.talk_id, row.transport))
    return heard_us, ended


def _only_calls(connection: Connection, rows: Sequence[Row[Any]]) -> frozenset[str]:
    """The talks that have had one call: what was heard of the talk was that call."""
    of_talks = and_(
        calls.c.session_id.in_({row.session_id for row in rows}), calls.c.talk_id.in_({row.talk_id for row in rows})
    )
    once = select(calls.c.talk_id).where(of_talks).group_by(calls.c.talk_id).having(func.count() == 1)
    return frozenset(connection.scalars(once))
