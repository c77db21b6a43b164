"""A call of a tool is claimed once, whoever is told of it, and what came of it is kept for a while."""

import asyncio
from functools import partial

from sqlalchemy import func, select, update

from tests.memory.support.stores import erase_session
from tests.memory.support.turns import SESSION, owner
from token_broker.memory import maintenance as maintenance_module
from token_broker.memory.drivers.database import Database
from token_broker.memory.maintenance import Maintenance
from token_broker.memory.store.claim_rows import claim_call
from token_broker.memory.store.sessions import claim_session
from token_broker.memory.store.tables import tool_claims
from token_broker.memory.tool_claims import CallId, ClaimedCall, ToolClaims

CALL = CallId(SESSION, "talk-1", "sess_1", "call_1")
OTHERS = (
    CallId("session-of-somebody-else", "talk-1", "sess_1", "call_1"),
    CallId(SESSION, "talk-2", "sess_1", "call_1"),
    CallId(SESSION, "talk-1", "sess_2", "call_1"),
    CallId(SESSION, "talk-1", "sess_1", "call_2"),
)


async def age(database: Database, seconds: float) -> None:
    """Makes all claims so much older."""
    us = round(seconds * 1_000_000)
    older = update(tool_claims).values(
        until_us=tool_claims.c.until_us - us, claimed_at_us=tool_claims.c.claimed_at_us - us
    )
    await database.write(lambda connection: connection.execute(older).rowcount)


async def count(database: Database) -> int:
    return await database.read(lambda c: c.scalar(select(func.count()).select_from(tool_claims)) or 0)


async def test_call_is_claimed_once(database: Database) -> None:
    claims = ToolClaims(database)
    answers = await asyncio.gather(*(claims.claim(CALL, timeout_s=8) for _ in range(5)))
    assert sum(isinstance(answer, str) for answer in answers) == 1
    assert [answer for answer in answers if not isinstance(answer, str)] == [ClaimedCall("running")] * 4
    for other in OTHERS:
        assert isinstance(await claims.claim(other, timeout_s=8), str)


async def test_output_is_told_again(database: Database) -> None:
    claims = ToolClaims(database)
    holder = await claims.claim(CALL, timeout_s=8)
    assert isinstance(holder, str)
    await claims.finish(CALL, "somebody else", "wrong", ok=True)
    await claims.finish(CALL, holder, '{"état": "prêt 👋"}', ok=True)
    assert await claims.claim(CALL, timeout_s=8) == ClaimedCall("done", '{"état": "prêt 👋"}', ok=True)
    assert await claims.find(CALL) == ClaimedCall("done", '{"état": "prêt 👋"}', ok=True)


async def test_repeated_claim_is_the_holders(database: Database) -> None:
    """The answer to a claim may be lost with the connection: the database then runs it once more."""
    claim = partial(claim_call, key=CALL.key, holder="me", lasts_us=1_000_000)
    assert await database.write(claim)
    assert await database.write(claim)
    assert not await database.write(partial(claim_call, key=CALL.key, holder="other", lasts_us=1_000_000))


async def test_ended_process_leaves_unknown(database: Database) -> None:
    claims = ToolClaims(database, margin_s=5)
    await claims.claim(CALL, timeout_s=8)
    await age(database, 12)
    assert await claims.find(CALL) == ClaimedCall("running")
    assert await claims.take_over(CALL, timeout_s=8) is None
    await age(database, 2)
    assert await claims.find(CALL) == ClaimedCall("unknown")
    taken = await asyncio.gather(*(claims.take_over(CALL, timeout_s=8) for _ in range(3)))
    assert sum(holder is not None for holder in taken) == 1
    assert await claims.find(CALL) == ClaimedCall("running")


async def test_unknown_outcome_is_noted(database: Database) -> None:
    claims = ToolClaims(database)
    holder = await claims.claim(CALL, timeout_s=8)
    assert isinstance(holder, str)
    await claims.finish(CALL, holder, None, ok=False)
    assert await claims.claim(CALL, timeout_s=8) == ClaimedCall("unknown")


async def test_erased_session_keeps_no_output(database: Database) -> None:
    claims = ToolClaims(database)
    holder = await claims.claim(CALL, timeout_s=8)
    other = await claims.claim(OTHERS[0], timeout_s=8)
    assert isinstance(holder, str)
    assert isinstance(other, str)
    await erase_session(database, SESSION)
    await claims.finish(CALL, holder, "what was private", ok=True)
    assert await claims.find(CALL) == ClaimedCall("erased")
    assert await claims.claim(CALL, timeout_s=8) == ClaimedCall("erased")
    assert await claims.claim(OTHERS[3], timeout_s=8) == ClaimedCall("erased")
    assert await count(database) == 1


async def test_erased_user_keeps_no_output(database: Database) -> None:
    claims = ToolClaims(database)
    ann = owner(CALL.session_id, principal="ann@example.com")
    await database.write(partial(claim_session, owner=ann, agent_id="elena", now_s=1.0))
    holder = await claims.claim(CALL, timeout_s=8)
    assert isinstance(holder, str)
    await claims.finish(CALL, holder, "what was private", ok=True)
    await Maintenance(database, sinks=[], lease_s=1, session_token_s=1).erase_user("ann@example.com")
    assert await count(database) == 0


async def test_sweep_deletes_old_claims(database: Database) -> None:
    claims = ToolClaims(database)
    operator = Maintenance(database, sinks=[], lease_s=1, session_token_s=1)
    await claims.claim(CALL, timeout_s=8)
    await operator.sweep(0)
    assert await count(database) == 1
    await age(database, maintenance_module.CLAIMS_KEPT_S + 1)
    await claims.claim(OTHERS[0], timeout_s=8)
    await operator.sweep(0)
    assert await count(database) == 1
