"""Faults of Azure: the client is closed in time, and no task or socket is left over (`serving` checks that)."""

import asyncio
import contextlib
import functools
import json
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trustme
from aiohttp.abc import AbstractResolver, ResolveResult
from pydantic import SecretStr
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response

from strategies.credentials import AccessToken, Credentials, EntraTokens
from strategies.transport import BoundedResolver
from tests.relay.support.azure import AzureTalk, answer, converse, scripted_azure, silent_server
from tests.relay.support.broker import (
    ENTRA_TOKEN,
    KEY,
    FixedEntra,
    Running,
    broker,
    build,
    make_settings,
    serving,
)
from tests.support.machine import retry_if_host_busy
from token_broker.relay.azure.dns_cache import DnsCache

LIMIT_S = 0.4


async def hang_after_handshake(talk: AzureTalk) -> None:
    async for message in talk.connection:
        talk.arrived(message)


class HangingResolver(AbstractResolver):
    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        await asyncio.Event().wait()
        return []

    async def close(self) -> None:
        pass


class HangingEntra:
    async def fetch(self) -> AccessToken:
        await asyncio.Event().wait()
        raise AssertionError

    async def aclose(self) -> None:
        pass


@contextlib.asynccontextmanager
async def hanging(stage: str) -> AsyncIterator[Running]:
    """A broker whose Azure hangs at this stage."""
    limit: dict[str, Any] = {"proxy_connect_timeout_s": LIMIT_S}
    if stage in {"connected", "tls"}:
        async with silent_server() as (address, _):
            scheme = "https" if stage == "tls" else "http"
            async with broker(f"{scheme}://{address}", **limit) as running:
                yield running
    elif stage == "half a handshake":
        async with (
            silent_server(greet=b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: web") as (address, _),
            broker(f"http://{address}", **limit) as running,
        ):
            yield running
    elif stage == "name":
        prepared = build(make_settings("http://127.0.0.1:9", **limit))
        prepared.connector._names = DnsCache(HangingResolver())
        async with serving(prepared) as running:
            yield running
    elif stage == "credential":
        prepared = build(make_settings("http://127.0.0.1:9", **limit))
        entra = EntraTokens(HangingEntra(), timeout_s=30)
        prepared.connector._credentials = {"default": Credentials(key=None, entra=entra)}
        async with serving(prepared) as running:
            yield running
        await entra.aclose()
    else:
        async with scripted_azure(hang_after_handshake) as azure, broker(azure.url, **limit) as running:
            azure.hang_in_handshake = stage == "handshake"
            yield running


@pytest.mark.parametrize(
    "stage", ["credential", "name", "connected", "tls", "handshake", "half a handshake", "after the handshake"]
)
@retry_if_host_busy()
async def test_hanging_azure_closes_4408_in_time(stage: str) -> None:
    async with hanging(stage) as running, running.client() as client:
        began = time.monotonic()
        code = await client.closed()
        assert time.monotonic() - began < LIMIT_S + 1
        assert code == 4408
        assert client.events == []


@retry_if_host_busy()
async def test_hanging_upstream_leaves_half_the_time() -> None:
    async def script(talk: AzureTalk) -> None:
        await (hang_after_handshake if talk.dialect == "preview" else converse)(talk)

    async with scripted_azure(script) as azure, broker(azure.url, proxy_connect_timeout_s=1.0) as running:
        began = time.monotonic()
        async with running.client() as client:
            ready = await client.ready()
            assert ready["upstream"] == "openai_realtime"
            assert 0.4 < time.monotonic() - began < 0.9


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 429, 500, 503])
async def test_refusal_closes_4502_and_counts_in_breaker(status: int) -> None:
    async with scripted_azure() as azure, broker(azure.url) as running:
        azure.refuse = lambda _: answer(
            status, b'{"error":{"code":"x","message":"secret of Azure"}}', Location="/elsewhere"
        )
        async with running.client() as client:
            assert await client.closed() == 4502
            assert "secret of Azure" not in str(client.socket.close_reason)
        assert [request.path.partition("?")[0] for request in azure.handshakes] == [
            "/voice-live/realtime",
            "/openai/v1/realtime",
        ]
        outcomes = {breaker.name: breaker.snapshot().last_status for breaker in running.connector.breakers.values()}
        assert outcomes == {"voice_live": status, "openai_realtime": status}


async def test_missing_route_is_not_asked_again() -> None:
    async with scripted_azure() as azure, broker(azure.url) as running:
        azure.refuse = lambda request: answer(404) if "voice-live" in request.path else None
        for _ in range(3):
            async with running.client() as client:
                await client.ready()
        assert sum("voice-live" in request.path for request in azure.handshakes) == 1


@pytest.mark.parametrize("body", [b'{"error":{"code":"AuthenticationTypeDisabled","message":"x"}}', b""])
async def test_disabled_keys_fall_back_to_entra(body: bytes) -> None:
    def refuse(request: Request) -> Response | None:
        return answer(403, body) if request.headers.get("api-key") else None

    async with scripted_azure() as azure, broker(azure.url, azure_auth="auto") as running:
        azure.refuse = refuse
        async with running.client() as client:
            await client.ready()
        assert azure.talks[0].headers["Authorization"] == f"Bearer {ENTRA_TOKEN}"


async def test_refused_session_tries_next_upstream() -> None:
    async def script(talk: AzureTalk) -> None:
        if talk.dialect == "ga":
            await converse(talk)
        else:
            await talk.connection.recv()
            await talk.send({"type": "error", "error": {"code": "invalid_value", "message": "secret of Azure"}})
            await talk.connection.wait_closed()

    async with scripted_azure(script) as azure, broker(azure.url) as running, running.client() as client:
        assert (await client.ready())["upstream"] == "openai_realtime"


async def test_leaving_client_cancels_attempt() -> None:
    async with scripted_azure(hang_after_handshake) as azure, broker(azure.url, proxy_connect_timeout_s=30) as running:
        async with running.client() as client:
            talk = await azure.talk()
            await client.socket.close()
        async with asyncio.timeout(3):
            await talk.closed.wait()


async def drop(talk: AzureTalk) -> None:
    talk.connection.transport.abort()


async def close(talk: AzureTalk) -> None:
    await talk.connection.close(1001, "session_expired")


async def text_garbage(talk: AzureTalk) -> None:
    await talk.connection.send("<html>hello</html>")


async def half_json(talk: AzureTalk) -> None:
    await talk.connection.send('{"type":"response.done","resp')


async def a_list(talk: AzureTalk) -> None:
    await talk.connection.send('["response.done"]')


async def a_number_that_is_not_finite(talk: AzureTalk) -> None:
    await talk.connection.send('{"type":"response.done","response":{"usage":{"total_tokens":1e999}}}')


async def binary(talk: AzureTalk) -> None:
    await talk.connection.send(b"\x00\x01")


async def not_utf8(talk: AzureTalk) -> None:
    talk.connection.transport.write(Frame(Opcode.TEXT, b"\xff\xfe").serialize(mask=False))


async def a_bad_opcode(talk: AzureTalk) -> None:
    talk.connection.transport.write(b"\x83\x00")


async def one_huge_frame(talk: AzureTalk) -> None:
    await talk.connection.send(json.dumps({"type": "response.audio.delta", "delta": "A" * 20_000_000}))


async def huge_in_fragments(talk: AzureTalk) -> None:
    async def fragments() -> AsyncIterator[str]:
        yield '{"type":"response.audio.delta","delta":"'
        for _ in range(200):
            yield "A" * 100_000
        yield '"}'

    await talk.connection.send(fragments())


async def a_stray_continuation(talk: AzureTalk) -> None:
    talk.connection.transport.write(Frame(Opcode.CONT, b"{}").serialize(mask=False))


@pytest.mark.parametrize(
    "fault",
    [
        drop, close, text_garbage, half_json, a_list, a_number_that_is_not_finite, binary, not_utf8, a_bad_opcode,
        one_huge_frame, huge_in_fragments, a_stray_continuation,
    ],
)  # fmt: skip
async def test_broken_upstream_closes_4502_keeps_turn(fault: Any) -> None:
    limit: dict[str, Any] = {"proxy_connect_timeout_s": LIMIT_S}
    async with scripted_azure() as azure, broker(azure.url, **limit) as running, running.client() as client:
        await client.ready()
        azure.refuse = lambda _: answer(503)  # no other session can be had
        talk = await azure.talk()
        await talk.send(
            {"type": "response.audio_transcript.delta", "item_id": "item_a", "response_id": "r", "delta": "I was say"}
        )
        await client.until("response.audio_transcript.delta")
        with contextlib.suppress(ConnectionError, ConnectionClosed):
            await fault(talk)
        assert await client.closed() == 4502
        await running.quiet()
        assert running.ingest.said == [("assistant", "I was say")]
        assert running.ingest.turns[0].interrupted


async def test_unanswered_ping_ends_talk() -> None:
    async with (
        scripted_azure() as azure,
        broker(azure.url, ping_interval_s=0.3, proxy_connect_timeout_s=LIMIT_S) as running,
        running.client() as client,
    ):
        await client.ready()
        azure.refuse = lambda _: answer(503)
        talk = await azure.talk()
        talk.connection.transport.pause_reading()
        assert await client.closed() == 4502
        talk.connection.transport.resume_reading()


async def test_untrusted_certificate_closes_4502() -> None:
    authority = trustme.CA()
    served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(served)
    async with scripted_azure(tls=served) as azure, broker(azure.url) as running, running.client() as client:
        assert await client.closed() == 4502


async def test_talk_runs_over_tls() -> None:
    authority = trustme.CA()
    served, trusting = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(served)
    authority.configure_trust(trusting)
    async with (
        scripted_azure(tls=served) as azure,
        broker(azure.url, tls=trusting) as running,
        running.client() as client,
    ):
        await client.ready()
        await client.send({"type": "response.create"})
        await (await azure.talk()).next_event("response.create")


def refuse_with_the_key(status: int | None, request: Request) -> Response | None:
    return None if status is None else answer(status, KEY.encode())


async def test_azure_credentials_never_leak(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(1)
    logging.getLogger("picows").setLevel(1)
    seen: list[str] = []
    async with scripted_azure() as azure, broker(azure.url, azure_auth="auto", proxy_connect_timeout_s=1) as running:
        for status in (None, 401, 403, 429, 500):
            azure.refuse = functools.partial(refuse_with_the_key, status)
            async with running.client() as client:
                if status is None:
                    await client.ready()
                    azure.refuse = functools.partial(refuse_with_the_key, 500)
                    await drop(await azure.talk())
                await client.closed()
                seen += [json.dumps(client.events), str(client.socket.close_reason)]
        # The fake Azure itself may log what it received.
        logged = [record.getMessage() for record in caplog.records if not record.name.startswith("websockets")]
        seen += [repr(running.relay.snapshot()), *logged, repr(running.connector), repr(running.relay)]
    assert not any(secret in text for text in seen for secret in (KEY, ENTRA_TOKEN, "api-key: "))


async def test_azure_gets_key_in_header() -> None:
    """The credentials that the test above looks for are really in use."""
    async with scripted_azure() as azure, broker(azure.url, key=SecretStr(KEY)) as running, running.client() as client:
        await client.ready()
        assert azure.handshakes[0].headers["api-key"] == KEY


class CountingResolver(BoundedResolver):
    def __init__(self) -> None:
        super().__init__(limit=1)
        self.lookups = 0
        self.broken = False

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.lookups += 1
        if self.broken:
            raise OSError("no such name")
        return await super().resolve(host, port, family)


async def test_burst_of_talks_makes_one_dns_lookup() -> None:
    names = DnsCache(resolver := CountingResolver())
    found = await asyncio.gather(*(names.resolve("localhost", 80) for _ in range(50)))
    assert resolver.lookups == 1
    assert all(addresses == found[0] and addresses for addresses in found)


async def test_failed_lookup_keeps_last_addresses() -> None:
    now_s = 0.0
    names = DnsCache(resolver := CountingResolver(), monotonic=lambda: now_s)
    first = await names.resolve("localhost", 80)
    resolver.broken = True
    now_s = 31.0
    assert await names.resolve("localhost", 80) == first
    await names.aclose()
    with pytest.raises(OSError, match="no such name"):
        await names.resolve("another", 80)


async def test_silent_entra_is_no_resources_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(_self: FixedEntra) -> AccessToken:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(FixedEntra, "fetch", hang)
    options: dict[str, Any] = {
        "key": None,
        "azure_auth": "entra",
        "breaker_failures": 1,
        "proxy_connect_timeout_s": 0.3,
    }
    async with scripted_azure() as azure, broker(azure.url, **options) as running:
        async with running.client() as client:
            assert await client.closed() == 4408
        (resource,) = running.connector.pool.snapshot()
        assert resource.health.value == "good"
        assert all(breaker.would_admit for breaker in running.connector.breakers.values())
