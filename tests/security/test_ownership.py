"""A session belongs to its owner, whether the store answers, is silent or is not open yet."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Close
from websockets.typing import Subprotocol

from tests.conftest import StartBroker
from tests.memory.support.turns import owner, turn
from tests.support.broker import RunningBroker, make_settings, run_broker
from tests.support.databases import PostgresServer
from tests.support.easyauth import signed_in
from tests.support.waiting import eventually
from token_broker.memory.maintenance import open_maintenance
from token_broker.security.tokens import Owner
from token_broker.settings import Settings
from token_broker.simulator import RunningSimulator

SESSION = "session-0123456789"
FOREIGN, ERASED, AWAY = (403, "foreign_session"), (403, "session_erased"), (503, "store_away")
UNREAD = (503, "blocklist_unread")
GONE = Close(4401, "this session was erased: begin a new one")

Silence = Callable[..., contextlib.AbstractContextManager[None]]


ANN, BOB = signed_in("ann"), signed_in("bob")
ANNS, BOBS = "easyauth:aad:ann", "easyauth:aad:bob"


def verdict(answer: httpx.Response) -> tuple[int, str | None]:
    return answer.status_code, answer.json().get("code")


def token_of(broker: RunningBroker, principal: str, session_id: str = SESSION) -> str:
    """A session token as only the broker itself could have signed it."""
    return broker.signer.session_token(Owner(session_id, principal, 1), ttl_s=3600)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def name(broker: RunningBroker, session_id: str = SESSION, **headers: str) -> httpx.Response:
    return (await broker.token({"session_id": session_id}, **headers)).response


async def turns(broker: RunningBroker, headers: dict[str, str], method: str = "GET") -> httpx.Response:
    return await broker.client.request(method, f"/api/v1/memory/sessions/{SESSION}/turns", headers=headers)


async def say(broker: RunningBroker, token: str, session_id: str = SESSION) -> httpx.Response:
    said = {"session_id": session_id, "agent_id": "elena", "role": "user", "content": "a secret"}
    return await broker.client.post("/conversation/turn", json=said, headers=bearer(token))


async def mint_with(broker: RunningBroker, token: str, **headers: str) -> httpx.Response:
    return await broker.client.post("/v1/realtime/client_secrets", json={}, headers={**bearer(token), **headers})


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> Silence:
    """Holds a running broker's store silent for the block, or each of its answers back for `for_s`."""

    @contextlib.contextmanager
    def hold(broker: RunningBroker, *, for_s: float = 30) -> Any:
        database = broker.memory._database
        read, write = database.read, database.write
        over = asyncio.Event()

        async def wait() -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(for_s):
                    await over.wait()

        async def held_read(*arguments: Any, **named: Any) -> Any:
            await wait()
            return await read(*arguments, **named)

        async def held_write(*arguments: Any, **named: Any) -> Any:
            await wait()
            return await write(*arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(database, "read", held_read)
            patch.setattr(database, "write", held_write)
            yield
        over.set()

    return hold


@pytest.mark.parametrize("for_s", [1.2, 30])  # a little longer than the broker waits, and much longer
async def test_silent_store_requires_session_token(
    for_s: float, azure: RunningSimulator, start_broker: StartBroker, silence: Silence
) -> None:
    broker = await start_broker(azure, auth="easyauth")
    plan = (await broker.token({"session_id": SESSION}, **ANN)).plan
    assert (await say(broker, plan["session_token"])).status_code == 200
    broker.memory.sessions._seen.clear()  # as in a process that has just begun
    with silence(broker, for_s=for_s):
        for caller in (BOB, ANN):
            answer = await name(broker, **caller)
            assert verdict(answer) == AWAY
            assert int(answer.headers["retry-after"]) > 0
        assert verdict(await name(broker, "a-new-name-012345", **BOB)) == AWAY
        renewed = await name(broker, x_session_token=plan["session_token"], **ANN)
        assert renewed.status_code == 200, "a token of the owner is proof enough"
        assert verdict(await name(broker, x_session_token=plan["session_token"], **BOB)) == FOREIGN
        assert (await broker.token(**BOB)).response.status_code == 200, "nobody's session is named"
        assert verdict(await turns(broker, BOB)) == AWAY
    assert verdict(await name(broker, **BOB)) == FOREIGN
    assert (await name(broker, **ANN)).status_code == 200


async def test_silent_store_gives_anonymous_no_session(
    azure: RunningSimulator, start_broker: StartBroker, silence: Silence
) -> None:
    broker = await start_broker(azure)
    plan = await broker.plan({"session_id": SESSION})
    with silence(broker):
        assert verdict(await name(broker)) == AWAY
        mint = {"metadata": {"session_id": SESSION}}
        assert verdict(await broker.client.post("/v1/realtime/client_secrets", json=mint)) == AWAY
        assert (await name(broker, x_session_token=plan["session_token"])).status_code == 200
    assert verdict(await name(broker)) == FOREIGN


async def test_token_of_other_principal_opens_nothing(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, auth="easyauth")
    plan = (await broker.token({"session_id": SESSION}, **ANN)).plan
    assert (await say(broker, plan["session_token"])).status_code == 200
    wrong = token_of(broker, BOBS)
    assert verdict(await turns(broker, bearer(wrong))) == FOREIGN
    assert verdict(await turns(broker, bearer(wrong), "DELETE")) == FOREIGN
    assert verdict(await say(broker, wrong)) == FOREIGN
    assert verdict(await name(broker, x_session_token=wrong, **BOB)) == FOREIGN
    assert verdict(await mint_with(broker, wrong, **BOB)) == FOREIGN
    assert len((await turns(broker, bearer(plan["session_token"]))).json()["turns"]) == 1


@pytest.mark.parametrize("auth", ["none", "easyauth"])
async def test_erased_id_stays_taken(auth: str, azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, auth=auth)
    ann, bob = (ANN, BOB) if auth == "easyauth" else ({}, {})
    plan = (await broker.token({"session_id": SESSION}, **ann)).plan
    old = plan["session_token"]
    assert (await say(broker, old)).status_code == 200
    assert (await turns(broker, bearer(old), "DELETE")).json()["turns"] == 1
    assert verdict(await name(broker, **bob)) == ERASED
    assert verdict(await name(broker, x_session_token=old, **ann)) == ERASED
    assert verdict(await mint_with(broker, old, **ann)) == ERASED
    assert verdict(await say(broker, old)) == ERASED
    read = await turns(broker, bearer(old))
    assert (read.status_code, read.json()["turns"]) == (200, [])
    assert (await broker.token(**ann)).response.status_code == 200


@pytest.mark.parametrize("auth", ["none", "easyauth"])
async def test_one_of_many_claims_a_new_id(auth: str, azure: RunningSimulator, start_broker: StartBroker) -> None:
    # A patient store: on a slow machine a commit must not be taken for silence.
    broker = await start_broker(azure, auth=auth, store_patience_s=20, store_timeout_s=20)
    callers = [signed_in(f"user-{number}") if auth == "easyauth" else {} for number in range(12)]
    answers = await asyncio.gather(*(name(broker, **caller) for caller in callers))
    assert sorted(verdict(answer)[0] for answer in answers) == [200] + [403] * 11


async def test_two_replicas_give_a_new_id_once(
    azure: RunningSimulator, postgres: PostgresServer, tmp_path: Path
) -> None:
    url = SecretStr(await postgres.create())
    settings = [
        make_settings(
            tmp_path, azure.base_url, database_url=url, signing_keys="k" * 40, store_patience_s=20, store_timeout_s=20
        )
        for _ in range(2)
    ]
    async with run_broker(settings[0]) as one, run_broker(settings[1]) as other:
        for number in range(5):
            session_id = f"session-named-twice-{number}"
            answers = await asyncio.gather(*(name(each, session_id) for each in (one, other, one, other)))
            assert sorted(verdict(answer)[0] for answer in answers) == [200, 403, 403, 403]


@pytest.mark.slow
async def test_refused_claim_succeeds_next_time(
    azure: RunningSimulator, start_broker: StartBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim is silent, and is stored though its caller was refused."""
    broker = await start_broker(azure)
    memory = broker.memory
    write, reached = memory._database.write, asyncio.Event()

    async def slow(work: Any, **named: Any) -> Any:
        if getattr(work, "func", None) is not None and work.func.__name__ == "claim_session":
            reached.set()
            await asyncio.sleep(2 * broker.settings.store_patience_s)
        return await write(work, **named)

    with monkeypatch.context() as patch:
        patch.setattr(memory._database, "write", slow)
        assert verdict(await name(broker)) == AWAY
        async with asyncio.timeout(20):  # on a busy machine the caller is refused before
            await reached.wait()

    async def theirs() -> bool:
        return (await name(broker)).status_code == 200

    await eventually(theirs)


async def test_unstored_broker_id_needs_its_token(azure: RunningSimulator, start_broker: StartBroker) -> None:
    """As after a crash between a plan and the commit of its session's row."""
    broker = await start_broker(azure)
    plan = await broker.plan()
    lost = broker.signer.new_session_id()
    assert lost != plan["session_id"]
    assert verdict(await name(broker, lost)) == FOREIGN
    token = token_of(broker, "anonymous", lost)
    assert (await name(broker, lost, x_session_token=token)).status_code == 200, "its token opens it"
    assert (await name(broker, lost[:-1] + ("a" if lost[-1] != "a" else "b"))).status_code == 200, "not one of ours"


# --- a store that is not there yet


@contextlib.contextmanager
def away(settings: Settings) -> Iterator[Callable[[], None]]:
    """The settings' SQLite file can't be opened until what this yields is called."""
    path = Path(settings.database_url.get_secret_value().partition(":///")[2])
    hidden = path.with_name("hidden.db")
    path.rename(hidden)
    path.mkdir()

    def restore() -> None:
        path.rmdir()
        hidden.rename(path)

    yield restore


async def blocked(settings: Settings, principal: str) -> None:
    async with open_maintenance(settings) as admin:
        await admin.block("principal", principal)


def waiting(tmp_path: Path, azure: RunningSimulator, **overrides: Any) -> Settings:
    """Settings of a broker that waits for its store at the start, but not for long."""
    keys = {"signing_keys": "k" * 40, "auth": "easyauth", "store_start_wait_s": 0.2}
    return make_settings(tmp_path, azure.base_url, **{**keys, **overrides})


async def test_no_store_serves_new_sessions_only(azure: RunningSimulator, tmp_path: Path) -> None:
    settings = waiting(tmp_path, azure, direct_websocket="on")
    with away(settings) as restore:
        async with run_broker(settings) as broker:
            for proof in ({}, {"x_session_token": token_of(broker, ANNS)}):
                assert verdict(await name(broker, **proof, **ANN)) == AWAY
            assert verdict(await mint_with(broker, token_of(broker, ANNS), **ANN)) == AWAY
            plan = (await broker.token(**ANN)).plan
            assert [each["transport"] for each in plan["connections"]] == ["webrtc_relay", "websocket_proxy"]
            assert (plan["token"], plan["endpoint"], plan["degraded"]) == (None, broker.base_url, False)
            assert "ek_" not in json.dumps(plan)
            assert (await broker.client.get("/readyz")).status_code == 200
            restore()
            await asyncio.wait_for(broker.memory.ready(), 30)
            plan = (await broker.token(**ANN)).plan
            assert plan["connections"][0]["transport"] == "webrtc"
            assert plan["token"].startswith("ek_")
            assert (await name(broker, **ANN)).status_code == 200


async def test_reading_blocklist_ends_blocked_talks(azure: RunningSimulator, tmp_path: Path) -> None:
    settings = waiting(tmp_path, azure)
    await blocked(settings, ANNS)
    with away(settings) as restore:
        async with run_broker(settings) as broker:
            plans = [(await broker.token(**caller)).plan for caller in (ANN, BOB)]
            async with talk(broker, plans[0]) as anns, talk(broker, plans[1]) as bobs:
                restore()
                assert (await ending(anns)).code == 4401
                await bobs.ping()
                assert verdict((await broker.token(**ANN)).response) == (403, "blocked")
                assert (await broker.token(**BOB)).response.status_code == 200


@contextlib.asynccontextmanager
async def talk(broker: RunningBroker, plan: dict[str, Any]) -> AsyncIterator[ClientConnection]:
    """The plan's proxy, once its talk is ready."""
    url = f"{broker.base_url.replace('http', 'ws')}/api/v1/voice/voicelive/{plan['session_id']}"
    protocols = plan["connections"][-1]["protocols"]
    async with connect(url, subprotocols=protocols, compression=None, proxy=None) as socket, asyncio.timeout(60):
        assert json.loads(await socket.recv())["type"] == "broker.ready"
        yield socket


async def test_required_blocklist_unread_serves_nobody(azure: RunningSimulator, tmp_path: Path) -> None:
    settings = waiting(tmp_path, azure, require_blocklist="on")
    with away(settings) as restore:
        async with run_broker(settings) as broker:
            ready = await broker.client.get("/readyz")
            assert verdict(ready) == UNREAD
            assert int(ready.headers["retry-after"]) > 0
            assert verdict((await broker.token(**ANN)).response) == UNREAD
            assert verdict(await broker.client.post("/v1/realtime/client_secrets", json={}, headers=ANN)) == UNREAD
            offer = {**bearer(token_of(broker, ANNS)), "Content-Type": "application/sdp"}
            assert verdict(await broker.client.post("/realtime/calls", content=b"v=0", headers=offer)) == UNREAD
            ticket = broker.signer.ticket(Owner(SESSION, ANNS, 1), agent_id="elena", ttl_s=60)
            url = f"{broker.base_url.replace('http', 'ws')}/api/v1/voice/voicelive/{SESSION}"
            protocols = [Subprotocol("realtime"), Subprotocol(f"ticket.{ticket}")]
            async with connect(url, subprotocols=protocols, proxy=None) as socket:
                assert (await ending(socket)).code == 4503
            assert (await broker.client.get("/healthz")).status_code == 200
            restore()
            await asyncio.wait_for(broker.memory.ready(), 30)
            assert (await broker.client.get("/readyz")).status_code == 200
            assert (await broker.token(**ANN)).response.status_code == 200


@pytest.mark.slow
async def test_unread_blocklist_serves_nobody(
    azure: RunningSimulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that takes its time to open: the first request that is answered at all meets the list."""
    from token_broker.memory.drivers.sqlite import SqliteDatabase

    settings = waiting(tmp_path, azure, store_start_wait_s=30)
    await blocked(settings, ANNS)
    opening = SqliteDatabase.open

    async def slowly(self: SqliteDatabase) -> bool:
        await asyncio.sleep(1)
        return await opening(self)

    monkeypatch.setattr(SqliteDatabase, "open", slowly)
    async with run_broker(settings) as broker:
        assert verdict((await broker.token(**ANN)).response) == (403, "blocked")


@pytest.mark.parametrize("auth", ["none", "easyauth"])
async def test_restart_keeps_sessions_owned(auth: str, azure: RunningSimulator, tmp_path: Path) -> None:
    """Polled from the first moment, over restarts; in half of them the store is slow to open."""
    settings = waiting(tmp_path, azure, auth=auth, store_start_wait_s=0.05)
    ann, bob = (ANN, BOB) if auth == "easyauth" else ({}, {})
    async with run_broker(settings) as broker:
        await asyncio.wait_for(broker.memory.ready(), 30)
        plan = (await broker.token({"session_id": SESSION}, **ann)).plan
        assert (await say(broker, plan["session_token"])).status_code == 200
    refusals: list[tuple[int, str | None]] = []
    for number in range(6):
        async with contextlib.AsyncExitStack() as stack:
            restore = stack.enter_context(away(settings)) if number % 2 else None
            broker = await stack.enter_async_context(run_broker(settings))
            refusals += [verdict(await name(broker, **bob)) for _ in range(3)]
            if restore is not None:
                restore()
            opened = asyncio.ensure_future(broker.memory.ready())
            while not opened.done():
                refusals.append(verdict(await name(broker, **bob)))
            refusals.append(verdict(await name(broker, **bob)))
    assert set(refusals) == {AWAY, FOREIGN}


# --- talks


async def test_erasure_ends_talk_with_reason(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure)
    plan, others = await broker.plan({"session_id": SESSION}), await broker.plan()
    async with talk(broker, plan) as erased, talk(broker, others) as other:
        assert (await turns(broker, bearer(plan["session_token"]), "DELETE")).status_code == 200
        assert await ending(erased) == GONE
        await other.ping()


async def test_erasure_elsewhere_ends_talk_at_next_turn(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure)
    plan = await broker.plan({"session_id": SESSION})
    async with talk(broker, plan) as socket:
        async with open_maintenance(broker.settings) as admin:
            await admin.erase_session(SESSION)
        claims = broker.signer.read_session_token(plan["session_token"])
        said = turn("t1", by=claims.owner, source="proxy")
        assert broker.memory.ingest.offer(said)
        assert await ending(socket) == GONE


async def ending(socket: ClientConnection) -> Close:
    """How the broker closes the socket."""
    async with asyncio.timeout(30):
        while True:
            try:
                await socket.recv()
            except ConnectionClosed as closed:
                return closed.rcvd or Close(1006, "no close frame")


async def test_uncommitted_session_is_owned_already(azure: RunningSimulator, start_broker: StartBroker) -> None:
    """A session recorded here and not committed yet is its owner's already."""
    broker = await start_broker(azure, auth="easyauth")
    broker.memory.sessions.record(owner(SESSION, principal=ANNS), "elena")
    assert verdict(await name(broker, **BOB)) == FOREIGN
