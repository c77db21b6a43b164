"""The memory routes over real sockets, on SQLite and on PostgreSQL."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.memory.conftest import MakeSettings
from tests.memory.support.app import bearer, make_app
from tests.memory.support.turns import SESSION, owner
from tests.support.easyauth import signed_in
from tests.support.serving import serve_app
from tests.support.waiting import eventually
from token_broker.memory.service import Memory
from token_broker.security.authentication import EasyAuthAuthenticator
from token_broker.security.tokens import Owner
from token_broker.settings import Settings

TURNS = f"/api/v1/memory/sessions/{SESSION}/turns"


@dataclass
class Caller:
    """A browser with a session's token."""

    http: httpx.AsyncClient
    settings: Settings
    memory: Memory

    async def post(self, path: str, body: Any, by: Owner | None = None) -> httpx.Response:
        return await self.http.post(path, json=body, headers=bearer(self.settings, by or owner()))

    async def say(self, **fields: Any) -> httpx.Response:
        said = {"session_id": SESSION, "agent_id": "elena", "role": "user", "content": "hello", **fields}
        return await self.post("/conversation/turn", said)

    async def turns(self, by: Owner | None = None, **query: Any) -> httpx.Response:
        return await self.http.get(TURNS, params=query, headers=bearer(self.settings, by or owner()))


@contextlib.asynccontextmanager
async def calling(settings: Settings) -> AsyncIterator[Caller]:
    async with Memory.open(settings) as memory:
        await memory.ready()
        async with serve_app(make_app(settings, memory)) as base_url, httpx.AsyncClient(base_url=base_url) as http:
            yield Caller(http, settings, memory)


@pytest.fixture
async def caller(make_settings: MakeSettings) -> AsyncIterator[Caller]:
    async with calling(make_settings()) as caller:
        yield caller


async def test_turn_is_read_back_with_receipt(caller: Caller) -> None:
    answer = await caller.say(turn_id="t1", sequence=3, created_at="2026-11-23T10:00:00+02:00", interrupted=True)
    assert answer.status_code == 200
    assert answer.json() == {"status": "success", "message": "Turn persisted", "turn_id": "t1", "duplicate": False}
    page = (await caller.turns()).json()
    assert page == {
        "session_id": SESSION,
        "turns": [
            {
                "turn_id": "t1",
                "agent_id": "elena",
                "role": "user",
                "content": "hello",
                "sequence": 3,
                "created_at": "2026-11-23T08:00:00Z",
                "interrupted": True,
                "channel": None,
                "source": "browser",
                "delivery": "delivered",
            }
        ],
        "next": None,
    }


async def test_repeated_turn_keeps_first_content(caller: Caller) -> None:
    await caller.say(turn_id="t1", content="first")
    again = await caller.say(turn_id="t1", content="second")
    assert (again.status_code, again.json()["duplicate"]) == (200, True)
    assert [turn["content"] for turn in (await caller.turns()).json()["turns"]] == ["first"]


async def test_turn_without_id_gets_fresh_one(caller: Caller) -> None:
    first, second = (await caller.say()).json(), (await caller.say()).json()
    assert first["turn_id"] != second["turn_id"]
    assert len((await caller.turns()).json()["turns"]) == 2


async def test_turn_on_both_routes_is_stored_once(caller: Caller) -> None:
    await caller.say(turn_id="t1")
    said = {"text": "hello", "session_id": SESSION, "speaker": "user", "turn_id": "t1"}
    answer = await caller.post("/memory/enrich", said)
    assert answer.status_code == 202
    assert answer.json() == {"success": True, "session_id": SESSION, "accepted": 0, "duplicates": 1}


async def test_transcripts_are_stored_in_order(caller: Caller) -> None:
    said = [{"text": f"line {n}", "session_id": SESSION, "speaker": ("user", "elena")[n % 2]} for n in range(100)]
    answer = await caller.post("/memory/enrich", {"transcripts": said})
    assert (answer.status_code, answer.json()["accepted"]) == (202, 100)
    turns = (await caller.turns(limit=100)).json()["turns"]
    assert [turn["content"] for turn in turns] == [f"line {n}" for n in range(100)]
    assert {turn["role"] for turn in turns[::2]} == {"user"}
    assert {turn["role"] for turn in turns[1::2]} == {"assistant"}


async def test_turns_are_paged(caller: Caller) -> None:
    for number in range(5):
        await caller.say(turn_id=f"t{number}", sequence=number)
    first = (await caller.turns(limit=3)).json()
    second = (await caller.turns(limit=3, after=first["next"])).json()
    assert [turn["turn_id"] for page in (first, second) for turn in page["turns"]] == [f"t{n}" for n in range(5)]
    assert second["next"] is None
    assert (await caller.turns(after="unknown")).json()["code"] == "unknown_turn"
    assert (await caller.turns(limit="-1")).status_code == 422


async def test_concurrent_turns_get_own_answers(caller: Caller) -> None:
    answers = await asyncio.gather(*(caller.say(turn_id=f"t{number % 40}") for number in range(80)))
    assert [answer.status_code for answer in answers] == [200] * 80
    assert sum(answer.json()["duplicate"] for answer in answers) == 40
    assert caller.memory.status().commits < 80


@pytest.mark.parametrize(
    ("by", "status", "code"),
    [
        (owner("another-session-01"), 403, "foreign_session"),
        (owner(principal="mallory"), 403, "foreign_session"),
    ],
    ids=["another session's token", "another principal's token for the same session"],
)
async def test_foreign_session_takes_no_turn(caller: Caller, by: Owner, status: int, code: str) -> None:
    await caller.say(turn_id="t1")
    said = {"session_id": SESSION, "agent_id": "elena", "role": "user", "content": "forged"}
    answer = await caller.post("/conversation/turn", said, by)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    batch = {"transcripts": [{"text": "forged", "session_id": SESSION, "speaker": "user"}]}
    assert (await caller.post("/memory/enrich", batch, by)).status_code == status
    assert [turn["turn_id"] for turn in (await caller.turns()).json()["turns"]] == ["t1"]


async def test_invalid_session_token_is_refused(caller: Caller) -> None:
    said = {"session_id": SESSION, "agent_id": "elena", "role": "user", "content": "hello"}
    expired = bearer(caller.settings, owner(), ttl_s=-61)
    for headers in ({}, {"Authorization": "Bearer nonsense"}, {"Authorization": "Basic x"}, expired):
        for answer in (
            await caller.http.post("/conversation/turn", json=said, headers=headers),
            await caller.http.post("/memory/enrich", json={"transcripts": []}, headers=headers),
            await caller.http.get(TURNS, headers=headers),
            await caller.http.delete(TURNS, headers=headers),
        ):
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"


WRONG_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"role": "system"}, "role"),
    ({"content": ""}, "content"),
    ({"content": "a\x00b"}, "content"),
    ({"content": 5}, "content"),
    ({"sequence": -1}, "sequence"),
    ({"sequence": 2**31}, "sequence"),
    ({"turn_id": ""}, "turn_id"),
    ({"turn_id": "x" * 129}, "turn_id"),
    ({"turn_id": "a\x00"}, "turn_id"),
    ({"session_id": "short"}, "session_id"),
    ({"created_at": "yesterday"}, "created_at"),
    ({"created_at": "9999-12-31T23:59:59Z"}, "created_at"),
    ({"colour": "red"}, "colour"),
]
MALFORMED = [b"{", b"[]", b'"transcripts"', b"null", b'{"transcripts": 5}', b'{"transcripts": []}', b"", b"\xff"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_wrong_fields_are_named(caller: Caller) -> None:
    for fields, named in WRONG_FIELDS:
        answer = await caller.say(**fields)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), fields
        assert answer.json()["errors"][0]["field"] == named, fields


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_malformed_body_is_refused(caller: Caller) -> None:
    for body in MALFORMED:
        for path in ("/memory/enrich", "/conversation/turn"):
            answer = await caller.http.post(path, content=body, headers=bearer(caller.settings, owner()))
            assert answer.status_code in {400, 422}, body
            assert answer.headers["content-type"] == "application/problem+json", body


# What a body has within its quotes, and what is kept of it.
HALVES = [
    (rb"cut \ud83d", "cut \ufffd"),
    (rb"\ude00\uD83D\uDE00\uD83D\uD83D\uDE00\uDE00", "\ufffd\U0001f600\ufffd\U0001f600\ufffd"),
    (rb"C:\\ud83d \"\\\ud83d\"", 'C:\\ud83d "\\\ufffd"'),
    (b"cut \xed\xa0\xbd", "cut \ufffd"),  # as Python's `surrogatepass` writes it
]


async def test_half_characters_lose_no_turn(caller: Caller) -> None:
    headers = bearer(caller.settings, owner())
    ids = b'"session_id": "%b"' % SESSION.encode()
    for said, _ in HALVES:
        turn = b'{%b, "agent_id": "elena", "role": "user", "content": "%b"}' % (ids, said)
        assert (await caller.http.post("/conversation/turn", content=turn, headers=headers)).status_code == 200, said
        transcript = b'{%b, "speaker": "user", "text": "%b", "channel": "\\ud83d"}' % (ids, said)
        for body in (transcript, b'{"transcripts": [%b]}' % transcript):
            assert (await caller.http.post("/memory/enrich", content=body, headers=headers)).status_code == 202, said
    kept = [turn["content"] for turn in (await caller.turns()).json()["turns"]]
    assert kept == [text for _, text in HALVES for _ in range(3)]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_large_requests_are_refused(caller: Caller) -> None:
    limit = caller.settings.max_turn_bytes
    assert (await caller.say(content="x" * limit)).status_code == 200
    assert (await caller.say(content="ü" * (limit // 2 + 1))).json()["code"] == "turn_too_large"
    assert (await caller.say(content="x" * caller.settings.max_memory_body_bytes)).status_code == 413
    said = [{"text": "hi", "session_id": SESSION, "speaker": "user"}] * 101
    assert (await caller.post("/memory/enrich", {"transcripts": said})).status_code == 422


async def test_leaving_caller_cancels_nothing(caller: Caller) -> None:
    """As a closing tab does, with `keepalive`: the body is sent, and nobody reads the answer."""
    body = json.dumps({"session_id": SESSION, "agent_id": "elena", "role": "user", "content": "bye", "turn_id": "last"})
    token = bearer(caller.settings, owner())["Authorization"]
    reader, writer = await asyncio.open_connection("127.0.0.1", caller.http.base_url.port)
    head = (
        f"POST /conversation/turn HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body.encode())
    await writer.drain()
    writer.close()
    del reader

    async def turns() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await caller.turns()).json()["turns"]
        return found

    assert (await eventually(turns))[0]["turn_id"] == "last"


async def test_erased_session_refuses_turns(caller: Caller) -> None:
    await caller.say(turn_id="t1")
    answer = await caller.http.delete(TURNS, headers=bearer(caller.settings, owner()))
    assert (answer.status_code, answer.json()["turns"]) == (200, 1)
    assert (await caller.turns()).json()["turns"] == []
    again = await caller.say(turn_id="t1", content="anew")
    assert (again.status_code, again.json()["code"]) == (403, "session_erased")
    assert (await caller.turns()).json()["turns"] == []
    answer = await caller.http.delete(TURNS, headers=bearer(caller.settings, owner()))
    assert (answer.status_code, answer.json()["turns"]) == (200, 0)


async def test_signed_in_owner_needs_no_session_token(
    make_settings: MakeSettings,
) -> None:
    async with calling(make_settings(auth="easyauth")) as caller:
        scope = {"type": "http", "headers": [(k.lower().encode(), v.encode()) for k, v in signed_in("ann").items()]}
        authenticator = EasyAuthAuthenticator()
        principal = (await authenticator.authenticate(scope)).id
        said = {"session_id": SESSION, "agent_id": "elena", "role": "user", "content": "hello"}
        await caller.post("/conversation/turn", said, owner(principal=principal))
        assert len((await caller.http.get(TURNS, headers=signed_in("ann"))).json()["turns"]) == 1
        assert (await caller.http.get(TURNS, headers=signed_in("bob"))).status_code == 403
        assert (await caller.http.get(TURNS)).status_code == 401
        assert (await caller.http.delete(TURNS, headers=signed_in("bob"))).status_code == 403
        assert (await caller.http.delete(TURNS, headers=signed_in("ann"))).json()["turns"] == 1
