"""What any replica does for a call's page, as statements: find and attach a call, tell and read its events.

On SQLite and PostgreSQL. Times are the database's, since the clocks of replicas differ.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, and_, delete, or_, select, update

from token_broker.calls.call_row import (
    ASKED,
    DELIVERED,
    ENDED,
    NOT_VERIFIED,
    AttachClaim,
    CallRow,
    PageCall,
    PageEventRow,
    SharedNews,
)
from token_broker.calls.lease_statements import now_us_of, values_of
from token_broker.memory.store.tables import call_events, calls, insert_for, is_session, recent_erasures
from token_broker.memory.types import bucket_of
from token_broker.security.tokens import Owner

__all__ = ["claim_attach", "find_endpoint", "news_of", "note_readers", "settle_attach", "write_events"]

_OVERLAP_US = 5_000_000  # an event that was told earlier may be committed later


def find_endpoint(connection: Connection, owner: Owner, call_id: str) -> str | None:
    """The host of the owner's call of that Azure id; None where no call of theirs that runs has it."""
    is_owners = and_(calls.c.session_id == owner.session_id, calls.c.principal == owner.principal)
    return connection.scalar(
        select(calls.c.endpoint).where(calls.c.call_id == call_id, is_owners, calls.c.state < ENDED)
    )


def claim_attach(connection: Connection, row: CallRow, holder: str, lasts_us: int) -> AttachClaim:
    """Claims an attach for `holder`, which is to ask Azure then; or says why it is not to."""
    now_us = now_us_of(connection)
    of_name = and_(calls.c.call_id == row.call_id, calls.c.endpoint == row.endpoint)
    for known in connection.execute(select(calls).where(of_name)):
        is_own = (known.session_id, known.principal) == (row.owner.session_id, row.owner.principal)
        if known.over_at_us is not None:
            return "refused"
        if known.state < ENDED:
            return "attached" if is_own else "foreign"
        if known.state == ENDED and (is_own or known.ending != NOT_VERIFIED):
            return "refused"
        if is_own and known.state == ASKED and known.lease_until_us >= now_us:
            return "attached"
    claim = {**values_of(row, now_us), "state": ASKED, "holder": holder, "lease_until_us": now_us + lasts_us}
    insert = insert_for(connection.dialect.name, calls).values(claim)
    again = {name: insert.excluded[name] for name in ("holder", "lease_until_us")}
    is_lost = and_(calls.c.state == ASKED, calls.c.lease_until_us < now_us)  # its replica died over it
    claimed = connection.execute(insert.on_conflict_do_update(index_elements=["call_key"], set_=again, where=is_lost))
    return "claimed" if claimed.rowcount == 1 else "attached"


def settle_attach(connection: Connection, row: CallRow, holder: str, lease_us: int, *, verified: bool) -> bool:
    """Notes what came of a claim. Whether the call is the holder's now: a verified one that nobody else has."""
    now_us = now_us_of(connection)
    of_name = and_(calls.c.call_id == row.call_id, calls.c.endpoint == row.endpoint, calls.c.state != ENDED)
    # Locked, and in one order: of claims that are settled at once, the first to come has the call.
    named = select(calls.c.call_key, calls.c.state).where(of_name).order_by(calls.c.call_key).with_for_update()
    others = [each for each in connection.execute(named) if each.state < ENDED and each.call_key != row.key]
    is_held = verified and not others
    new = {"state": DELIVERED, "lease_until_us": now_us + lease_us, "talk_id": row.owner.talk_id}
    over = {"state": ENDED, "ending": NOT_VERIFIED, "lease_until_us": now_us}
    is_claim = and_(calls.c.call_key == row.key, calls.c.holder == holder, calls.c.state.in_((ASKED, DELIVERED)))
    settled = connection.execute(update(calls).where(is_claim).values(new if is_held else over))
    return is_held and settled.rowcount == 1


def write_events(
    connection: Connection, told: Iterable[tuple[PageCall, str, Sequence[tuple[int, Any]]]], kept: int
) -> None:
    """Writes events by call and stream, and drops what is older than the latest `kept`. Erased sessions get none."""
    now_us = now_us_of(connection)
    for (session_id, call_id), stream, events in told:
        if not events or connection.scalar(
            select(recent_erasures.c.at_us).where(is_session(recent_erasures, session_id))
        ):
            continue
        whose = {"bucket": bucket_of(session_id), "session_id": session_id, "call_id": call_id, "stream": stream}
        values = [
            {**whose, "number": number, "told_at_us": now_us, "event": json.dumps(event, separators=(",", ":"))}
            for number, event in events
        ]
        connection.execute(insert_for(connection.dialect.name, call_events).values(values).on_conflict_do_nothing())
        is_old = and_(
            is_session(call_events, session_id),
            call_events.c.call_id == call_id,
            call_events.c.stream == stream,
            call_events.c.number <= events[-1][0] - kept,
        )
        connection.execute(delete(call_events).where(is_old))


def note_readers(connection: Connection, pages: Collection[PageCall], lasts_us: int) -> Mapping[PageCall, bool]:
    """Notes that pages read the events of these calls here; each that is known, and whether its holder knew already."""
    now_us = now_us_of(connection)
    found = connection.execute(select(calls).where(_are(pages), _goes_on(now_us))).all()
    keys = [row.call_key for row in found]
    if keys:
        until = {"read_until_us": now_us + lasts_us}
        connection.execute(update(calls).where(calls.c.call_key.in_(keys)).values(until))
    return {(row.session_id, row.call_id): (row.read_until_us or 0) > now_us for row in found}


def news_of(connection: Connection, pages: Collection[PageCall], since_us: int) -> SharedNews:
    """What was told of these calls since about then, in order, and which of them go on."""
    now_us = now_us_of(connection)
    is_new = call_events.c.told_at_us >= since_us - _OVERLAP_US
    of_pages = or_(
        *(and_(is_session(call_events, session_id), call_events.c.call_id == call_id) for session_id, call_id in pages)
    )
    rows = connection.execute(
        select(call_events).where(of_pages, is_new).order_by(call_events.c.told_at_us, call_events.c.number)
    )
    events = [
        PageEventRow((row.session_id, row.call_id), row.stream, row.number, row.told_at_us, row.event) for row in rows
    ]
    lives = connection.execute(select(calls.c.session_id, calls.c.call_id).where(_are(pages), _goes_on(now_us)))
    return SharedNews(now_us, events, frozenset((row.session_id, row.call_id) for row in lives))


def _are(pages: Collection[PageCall]) -> Any:
    return or_(*(and_(calls.c.session_id == session_id, calls.c.call_id == call_id) for session_id, call_id in pages))


def _goes_on(now_us: int) -> Any:
    is_held = and_(calls.c.state < ENDED, calls.c.over_at_us.is_(None))
    return or_(is_held, and_(calls.c.state == ASKED, calls.c.lease_until_us >= now_us))
