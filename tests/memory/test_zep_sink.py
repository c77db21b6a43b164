"""The Zep sink against the fake: what it sends, what it finds out before it repeats, what each failure means."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import trustme
from pydantic import SecretStr

from strategies.outbound_proxy import parse_proxy
from tests.memory.support.faults import Fault
from tests.memory.support.turns import SESSION, owner
from tests.memory.support.zep import KEY, Zep, running_zep
from tests.support.forward_proxy import LOGIN, run_forward_proxy
from tests.support.tls import tls_files
from token_broker.memory.delivery.zep import ZepMemory, retry_after_s, split_text, zep_user_id
from token_broker.memory.types import Delivery, DeliveryBatch, Failure, Position, SinkErasure, SinkError, StoredTurn


@pytest.fixture
async def sink(zep: Zep) -> AsyncIterator[ZepMemory]:
    sink = ZepMemory(SecretStr(KEY), zep.base_url, timeout_s=5)
    yield sink
    await sink.aclose()


def stored(turn_id: str, sequence: int = 1, content: str = "hello") -> StoredTurn:
    return StoredTurn(
        turn_id=turn_id,
        position=Position(1, sequence, sequence),
        agent_id="elena",
        role="user" if sequence % 2 else "assistant",
        content=content,
        created_at=datetime(2026, 11, 23, 12, 0, 0, 250_000, tzinfo=UTC),
        source="proxy",
        interrupted=False,
        channel=None,
        delivery=Delivery.QUEUED,
    )


def batch_of(*turn_ids: str, uncertain: bool = False, principal: str = "anonymous") -> DeliveryBatch:
    turns = [stored(turn_id, number) for number, turn_id in enumerate(turn_ids, start=1)]
    return DeliveryBatch(SESSION, principal, "Ann", turns, uncertain)


async def failure_of(sink: ZepMemory, sent: DeliveryBatch) -> Failure:
    with pytest.raises(SinkError) as caught:
        await sink.deliver(sent)
    return caught.value.failure


async def test_delivery_makes_session_once(sink: ZepMemory, zep: Zep) -> None:
    await sink.deliver(batch_of("t1", "t2"))
    await sink.deliver(batch_of("t3"))
    assert zep.requests.count("POST /users") == 1
    assert zep.requests.count("POST /sessions") == 1
    assert zep.turn_ids(SESSION) == ["t1", "t2", "t3"]
    first, second = zep.messages[SESSION][:2]
    assert (first["role"], first["role_type"], second["role"], second["role_type"]) == (
        "Ann",
        "user",
        "elena",
        "assistant",
    )
    assert first["created_at"] == "2026-11-23T12:00:00.250000Z"
    assert first["metadata"] == {
        "turn_id": "t1",
        "sequence": 1,
        "agent_id": "elena",
        "source": "proxy",
        "interrupted": False,
    }


async def test_existing_user_and_session_are_fine(sink: ZepMemory, zep: Zep) -> None:
    await sink.deliver(batch_of("t1"))
    another = ZepMemory(SecretStr(KEY), zep.base_url, timeout_s=5)
    await another.deliver(batch_of("t2"))
    await another.aclose()
    assert zep.turn_ids(SESSION) == ["t1", "t2"]


async def test_uncertain_turns_are_not_repeated(sink: ZepMemory, zep: Zep) -> None:
    zep.faults.append(Fault("reset", "/memory", "POST", stored=True))
    assert (await failure_of(sink, batch_of("t1", "t2"))).uncertain
    await sink.deliver(batch_of("t1", "t2", "t3", uncertain=True))
    assert zep.turn_ids(SESSION) == ["t1", "t2", "t3"]


async def test_long_turns_are_split_in_order(sink: ZepMemory, zep: Zep) -> None:
    long = replace(stored("t2", 2), content="word " * 2_000)
    sent = DeliveryBatch(SESSION, "anonymous", None, [stored("t1"), long, stored("t3", 3)], uncertain=False)
    await sink.deliver(sent)
    assert list(dict.fromkeys(zep.turn_ids(SESSION))) == ["t1", "t2", "t3"]
    assert all(len(message["content"]) <= 2_500 for message in zep.messages[SESSION])
    before = len(zep.messages[SESSION])
    del zep.messages[SESSION][-3:]  # of five messages, as a call that broke off leaves them
    await sink.deliver(replace(sent, uncertain=True))
    assert len(zep.messages[SESSION]) == before


@pytest.mark.parametrize("text", ["", "short", "word " * 999, "x" * 5_001, "üöß" * 1_700, "a" * 2_500, "a" * 2_501])
def test_split_text_keeps_every_word(text: str) -> None:
    parts = split_text(text, 2_500)
    assert all(len(part) <= 2_500 for part in parts)
    assert len(parts) == 1 or all(part.endswith("…") for part in parts[:-1])
    whole = "".join(part.strip("…") for part in parts) if " " not in text else " ".join(p.strip("…") for p in parts)
    assert whole == text


async def test_lookup_reads_all_pages(sink: ZepMemory, zep: Zep) -> None:
    for begin in range(0, 240, 30):
        await sink.deliver(batch_of(*(f"t{number}" for number in range(begin, begin + 30))))
    await sink.deliver(batch_of("t239", "t240", uncertain=True))
    assert zep.turn_ids(SESSION)[-2:] == ["t239", "t240"]
    assert len(zep.turn_ids(SESSION)) == 241


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault("status", status=429, headers={"Retry-After": "7"}), Failure("zep: 429", retry_after_s=7)),
        (Fault("status", status=503), Failure("zep: 503")),
        (Fault("status", status=502), Failure("zep: 502", uncertain=True)),
        (Fault("status", status=401), Failure("zep: 401")),
        (Fault("status", status=500), Failure("zep: 500", counts=True, uncertain=True)),
        (Fault("status", status=500, body="no JSON"), Failure("zep: 500", counts=True, uncertain=True)),
        (Fault("status", status=302), Failure("zep: 302", counts=True)),
        (Fault("status", status=400), Failure("zep: 400", permanent=True)),
        (Fault("status", status=413), Failure("zep: 413", permanent=True)),
        (Fault("malformed"), Failure("zep: malformed answer (JSONDecodeError)", counts=True, uncertain=True)),
        (Fault("hang"), Failure("zep: ReadTimeout", uncertain=True)),
        (Fault("reset"), Failure("zep: RemoteProtocolError", uncertain=True)),
    ],
    ids=lambda value: (
        value.kind + str(value.status if value.kind == "status" else "") if isinstance(value, Fault) else ""
    ),
)
async def test_failures_are_mapped(zep: Zep, fault: Fault, expected: Failure) -> None:
    sink = ZepMemory(SecretStr(KEY), zep.base_url, timeout_s=0.3)
    await sink.deliver(batch_of("t0"))
    fault = replace(fault, path="/memory", method="POST")
    with zep.fails(fault):
        assert await failure_of(sink, batch_of("t1")) == expected
    await sink.aclose()


async def test_refused_connection_is_certain(zep: Zep) -> None:
    sink = ZepMemory(SecretStr(KEY), "http://127.0.0.1:1", timeout_s=1)
    assert await failure_of(sink, batch_of("t1")) == Failure("zep: ConnectError")
    await sink.aclose()


async def test_turns_leave_by_the_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    files = tls_files(authority, tmp_path, "zep.example.com")
    async with running_zep(ssl_certfile=files.certificate, ssl_keyfile=files.key) as zep:
        port = int(zep.base_url.rpartition(":")[2])
        async with run_forward_proxy({"zep.example.com": port}, login=LOGIN) as running:
            proxy = parse_proxy(running.url_with_login)
            sink = ZepMemory(SecretStr(KEY), "https://zep.example.com", timeout_s=5, proxy=proxy)
            await sink.deliver(batch_of("t1"))
            await sink.aclose()
        assert zep.turn_ids(SESSION) == ["t1"]
    assert set(running.asked) == {"zep.example.com:443"}


async def test_failing_proxy_is_named_and_certain(monkeypatch: pytest.MonkeyPatch) -> None:
    async with run_forward_proxy(login=LOGIN) as running:
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")  # the settings decide, not httpx
        sink = ZepMemory(SecretStr(KEY), None, timeout_s=5, proxy=parse_proxy(running.url))
        expected = Failure(f"zep: ProxyError through the proxy {running.url}")
        assert await failure_of(sink, batch_of("t1")) == expected
        await sink.aclose()
    assert running.asked == ["api.getzep.com:443"]


async def test_failure_reveals_no_text_or_key(sink: ZepMemory, zep: Zep) -> None:
    zep.faults.append(Fault("status", "/memory", body='{"message": "hello is not allowed, key zep-canary-key-5518"}'))
    failure = await failure_of(sink, batch_of("t1"))
    assert "hello" not in failure.reason
    assert KEY not in failure.reason


async def test_lost_session_is_made_again(sink: ZepMemory, zep: Zep) -> None:
    await sink.deliver(batch_of("t1"))
    zep.sessions.clear()
    assert (await failure_of(sink, batch_of("t2"))).counts
    await sink.deliver(batch_of("t2"))
    assert zep.turn_ids(SESSION) == ["t2"]


async def test_erased_session_is_made_again(sink: ZepMemory, zep: Zep) -> None:
    await sink.deliver(batch_of("t1", principal="ann"))
    await sink.erase(SinkErasure("zep", "ann", SESSION))
    await sink.erase(SinkErasure("zep", "ann", SESSION))  # what is not there is forgotten
    assert zep.messages == {}
    await sink.deliver(batch_of("t2", principal="ann"))
    assert zep.turn_ids(SESSION) == ["t2"]


async def test_user_erasure_includes_sessions(sink: ZepMemory, zep: Zep) -> None:
    await sink.deliver(batch_of("t1", principal="entra:tenant:ann"))
    await sink.erase(SinkErasure("zep", "entra:tenant:ann", ""))
    assert (zep.users, zep.sessions, zep.messages) == ({}, {}, {})


async def test_session_facts_come_before_user_facts(sink: ZepMemory, zep: Zep) -> None:
    await sink.deliver(batch_of("t1", principal="ann"))
    zep.facts = {SESSION: ["likes tea", "is Ann"], "ann": ["is Ann", "lives in Bergen"]}
    assert await sink.facts(owner(principal="ann"), of_session=True) == ["likes tea", "is Ann", "lives in Bergen"]


async def test_unproven_session_is_not_asked(sink: ZepMemory, zep: Zep) -> None:
    await sink.deliver(batch_of("t1", principal="ann"))
    zep.facts = {SESSION: ["likes tea"], "bob": ["lives in Rome"]}
    assert await sink.facts(owner(principal="bob"), of_session=False) == []  # Zep has no bob
    assert await sink.facts(owner(), of_session=False) == []
    assert f"GET /sessions/{SESSION}/memory" not in zep.requests


async def test_anonymous_facts_stay_in_session(sink: ZepMemory, zep: Zep) -> None:
    await sink.deliver(batch_of("t1"))
    zep.facts = {SESSION: ["likes tea"], "anonymous": ["somebody else's"]}
    assert await sink.facts(owner(), of_session=True) == ["likes tea"]
    assert await sink.facts(owner("a-session-zep-lacks"), of_session=True) == []
    assert not any("search" in request for request in zep.requests)


@pytest.mark.parametrize("principal", ["anonymous", "ann", "entra:tenant:oid", "a/b?c", "ü" * 200])
def test_zep_user_id_is_stable_and_unique(principal: str) -> None:
    user_id = zep_user_id(principal, SESSION)
    assert httpx.URL(f"http://x/users/{user_id}").raw_path.decode() == f"/users/{user_id}"
    assert user_id == zep_user_id(principal, SESSION)
    assert user_id != zep_user_id(principal + "x", SESSION)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("12", 12),
        ("0", 0),
        ("999999", 3600),
        ("", None),
        ("soon", None),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("-1", None),
    ],
)
def test_retry_after_formats(value: str, seconds: float | None) -> None:
    assert retry_after_s({"retry-after": value}) == seconds
