"""Admission: ticket, session, origin and limits; and the answers to a handshake."""

import asyncio
import http.client
import json
from typing import Any

import pytest
from pydantic import SecretStr
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.relay.support.azure import scripted_azure
from tests.relay.support.broker import PATH, Running, broker
from token_broker.security.tokens import Owner, TokenSigner
from token_broker.web.requests import uuid7


async def refused(running: Running, session_id: str, offered: list[str] | None, **options: Any) -> tuple[int, str]:
    """The close code and the subprotocol of a new connection."""
    arguments: dict[str, Any] = {"subprotocols": offered, "compression": None, "proxy": None} | options
    async with connect(running.url(session_id), **arguments) as socket:
        async with asyncio.timeout(5):
            await socket.wait_closed()
        assert socket.close_code is not None
        assert len((socket.close_reason or "").encode()) <= 123
        return socket.close_code, socket.subprotocol or ""


async def test_missing_ticket_reason_names_route() -> None:
    async with scripted_azure() as azure, broker(azure.url) as running:
        session = uuid7()
        async with connect(running.url(session), subprotocols=["realtime"], proxy=None) as socket:  # type: ignore[list-item]
            await socket.wait_closed()
            assert socket.close_code == 4401
            assert "ask POST /realtime/token first" in (socket.close_reason or "")
            assert socket.subprotocol == "realtime"
        assert await refused(running, session, None) == (4401, "")
        assert not azure.handshakes


@pytest.mark.parametrize(
    "fault", ["forged", "expired", "another session's", "a session token", "two", "garbage", "empty"]
)
async def test_bad_ticket_closes_4401(fault: str) -> None:
    async with scripted_azure() as azure, broker(azure.url) as running:
        session = uuid7()
        good = running.ticket(session)
        ticket = {
            "forged": TokenSigner([SecretStr("x" * 40)]).ticket(
                Owner(session, "anonymous", 1), agent_id="elena", ttl_s=60
            ),
            "expired": running.ticket(session, ttl_s=-61),
            "another session's": running.ticket(uuid7()),
            "a session token": running.signer.session_token(Owner(session, "anonymous", 1), ttl_s=60),
            "two": good,
            "garbage": "abc",
            "empty": "",
        }[fault]
        offered = ["realtime", f"ticket.{ticket}", *([f"ticket.{running.ticket(session)}"] if fault == "two" else [])]
        assert await refused(running, session, offered) == (4401, "realtime")
        assert not azure.handshakes


async def test_ticket_works_once() -> None:
    async with scripted_azure() as azure, broker(azure.url) as running:
        session = uuid7()
        ticket = running.ticket(session)
        async with running.client(session_id=session, ticket=ticket) as client:
            await client.ready()
            assert await refused(running, session, ["realtime", f"ticket.{ticket}"]) == (4401, "realtime")
        assert await refused(running, session, ["realtime", f"ticket.{ticket}"]) == (4401, "realtime")


async def test_ticket_is_never_echoed_as_subprotocol() -> None:
    async with scripted_azure() as azure, broker(azure.url) as running:
        session = uuid7()
        offered = [f"ticket.{running.ticket(session)}"]
        async with running.client(session_id=session, subprotocols=offered) as client:
            await client.ready()
            assert client.socket.subprotocol is None


@pytest.mark.parametrize(("origin", "code"), [("https://evil.example", 4403), ("null", 4403)])
async def test_foreign_origin_closes_4403(origin: str, code: int) -> None:
    async with scripted_azure() as azure, broker(azure.url) as running:
        running.origins = {"https://app.example"}
        session = uuid7()
        offered = ["realtime", f"ticket.{running.ticket(session)}"]
        assert await refused(running, session, offered, origin=origin) == (code, "realtime")
        async with running.client(origin="https://app.example") as client:
            await client.ready()


async def test_ticket_of_removed_agent_closes_4400() -> None:
    async with scripted_azure() as azure, broker(azure.url) as running:
        session = uuid7()
        offered = ["realtime", f"ticket.{running.ticket(session, agent_id='nobody')}"]
        assert (await refused(running, session, offered))[0] == 4400


@pytest.mark.parametrize(("in_all", "a_principal"), [(2, 0), (9, 2)])
async def test_talk_over_limit_closes_4429(in_all: int, a_principal: int) -> None:
    limits: dict[str, Any] = {"max_sessions": in_all, "max_sessions_per_principal": a_principal}
    async with scripted_azure() as azure, broker(azure.url, **limits) as running, running.client() as first:
        await first.ready()
        async with running.client() as second:
            await second.ready()
            session = uuid7()
            ticket = running.ticket(session)
            assert (await refused(running, session, ["realtime", f"ticket.{ticket}"]))[0] == 4429
        async with asyncio.timeout(3):
            while running.limits.active > 1:  # noqa: ASYNC110  # no event tells of it
                await asyncio.sleep(0.01)
        async with running.client(session_id=session, ticket=ticket) as third:
            await third.ready()


async def test_draining_broker_closes_4503() -> None:
    async with scripted_azure() as azure, broker(azure.url) as running:
        running.drain.begin()
        session = uuid7()
        assert (await refused(running, session, ["realtime", f"ticket.{running.ticket(session)}"]))[0] == 4503


def plain_get(port: int, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status, {name.lower(): value for name, value in response.getheaders()}


async def test_plain_get_answers_426() -> None:
    async with scripted_azure() as azure, broker(azure.url) as running:
        status, headers = await asyncio.to_thread(plain_get, running.port, f"{PATH}/{uuid7()}", {})
        assert status == 426
        assert headers["upgrade"] == "websocket"
        assert headers["content-type"] == "application/problem+json"


async def test_malformed_handshake_answers_400() -> None:
    async with scripted_azure() as azure, broker(azure.url) as running:
        broken = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        status, _ = await asyncio.to_thread(plain_get, running.port, f"{PATH}/{uuid7()}", broken)
        assert status == 400


@pytest.mark.parametrize(
    "fault",
    [
        {"Content-Length": "5"},
        {"Transfer-Encoding": "chunked"},
        {"Sec-WebSocket-Version": "8"},
        {"Sec-WebSocket-Protocol": "realtime, openai-insecure-api-key.can ary"},
    ],
    ids=["a body", "a chunked body", "another version", "an odd subprotocol"],
)
async def test_non_handshake_is_refused_unquoted(fault: dict[str, str]) -> None:
    async with scripted_azure() as azure, broker(azure.url) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        shake = {"Host": "localhost", "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
        lines = [f"{name}: {value}\r\n" for name, value in (shake | key | fault).items()]
        writer.write(f"GET /v1/realtime HTTP/1.1\r\n{''.join(lines)}\r\n".encode())
        async with asyncio.timeout(10):
            answer = (await reader.read()).decode()
        writer.close()
        head, _, body = answer.partition("\r\n\r\n")
        assert head.startswith("HTTP/1.1 400 ")
        document = json.loads(body)
        assert document["code"] == "malformed_handshake"
        assert f"x-request-id: {document['correlation_id']}" in head
        assert "ary" not in body


async def test_unknown_websocket_path_answers_404() -> None:
    async with scripted_azure() as azure, broker(azure.url) as running:
        with pytest.raises(InvalidStatus) as caught:
            await connect(f"ws://127.0.0.1:{running.port}/elsewhere", proxy=None)
        assert caught.value.response.status_code == 404
