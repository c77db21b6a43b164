"""A call of a tool is claimed once, whoever is told of it, and what came of it is kept for a while."""

import asyncio
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, func, select, text, update

from tests.memory.support.stores import Obstinate, erase_session
from tests.memory.support.turns import SESSION, owner
from token_broker.memory import maintenance as maintenance_module
from token_broker.memory.drivers.database import Database
from token_broker.memory.maintenance import Maintenance
from token_broker.memory.store.claim_rows import claim_calls
from token_broker.memory.store.sessions import claim_session
from token_broker.memory.store.tables import tool_claims
from token_broker.memory.store_errors import StoreAwayError, StoreRefusedError
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


class Counted(Obstinate):
    """Counts the claims of each transaction; refuses those with a call that spoils it."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.sizes: list[int] = []

    async def write(self, work: Any, *, idempotent: bool = True, one_statement: bool = False) -> Any:
        claims = work.keywords["claims"]
        self.sizes.append(len(claims))
        assert one_statement == (len(claims) == 1), "a transaction costs two more ways to the database"
        if self.refuses in {key[3] for key, *_ in claims}:
            raise StoreRefusedError("spoilt")
        return await super().write(work, idempotent=idempotent, one_statement=one_statement)


async def claims_at_once(store: Counted, count: int) -> list[asyncio.Task[str | ClaimedCall]]:
    """So many claims: the store holds the first, while the others wait."""
    claims = ToolClaims(store)
    store.free.clear()
    ids = [CallId(SESSION, "talk-1", "sess_1", f"call_{number}") for number in range(count)]
    tasks = [asyncio.create_task(claims.claim(call, timeout_s=8)) for call in ids]
    await asyncio.wait_for(store.asked.wait(), 20)
    return tasks


async def test_claims_at_once_are_one_transaction(database: Database) -> None:
    store = Counted(database)
    tasks = await claims_at_once(store, 8)
    store.free.set()
    assert all(isinstance(found, str) for found in await asyncio.gather(*tasks))
    assert (store.sizes, await count(database)) == ([1, 7], 8)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_one_statement_has_no_transaction(database: Database) -> None:
    """Each statement is a transaction of its own then, without `BEGIN` and `COMMIT` on the way."""

    def transactions(connection: Connection) -> int:
        return len({connection.scalar(text("SELECT txid_current()")) for _ in range(2)})

    assert [await database.write(transactions, one_statement=alone) for alone in (True, False, True)] == [2, 1, 2]


async def test_claim_that_spoils_its_transaction_is_alone(database: Database) -> None:
    store = Counted(database)
    store.refuses = "call_2"
    tasks = await claims_at_once(store, 4)
    store.free.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(each, str) for each in found] == [True, True, False, True]
    assert isinstance(found[2], StoreRefusedError)
    assert (store.sizes, await count(database)) == ([1, 3, 1, 1, 1], 3)


@pytest.mark.parametrize("leaves", [0, 1, 3], ids=["who writes", "who writes next", "who waits"])
async def test_caller_that_leaves_takes_nobody_along(database: Database, leaves: int) -> None:
    store = Counted(database)
    tasks = await claims_at_once(store, 4)
    tasks[leaves].cancel()
    await asyncio.wait({tasks[leaves]})
    store.free.set()
    stay = [task for number, task in enumerate(tasks) if number != leaves]
    assert all(isinstance(found, str) for found in await asyncio.gather(*stay))


async def test_store_that_is_away_fails_all(database: Database) -> None:
    store = Counted(database)
    tasks = await claims_at_once(store, 3)
    store.error = StoreAwayError("down")
    store.free.set()
    assert [type(each) for each in await asyncio.gather(*tasks, return_exceptions=True)] == [StoreAwayError] * 3


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
    claim = partial(claim_calls, claims=[(CALL.key, "me", 1_000_000)])
    assert await database.write(claim) == [True]
    assert await database.write(claim) == [True]
    assert await database.write(partial(claim_calls, claims=[(CALL.key, "other", 1_000_000)])) == [False]


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
