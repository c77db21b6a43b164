"""One POST, over real sockets: signed, bounded in time and size, never led elsewhere."""

import asyncio
import contextlib
import gzip
import json
import logging
import zlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from pydantic import SecretStr
from standardwebhooks import Webhook

from strategies.outbound_proxy import parse_proxy
from strategies.transport import make_transport
from tests.hooks.support import SECRET, Answer, answered, raw_server, secrets
from tests.hooks.test_addresses import Names
from tests.support.node import installed_modules, run_node
from tests.support.sockets import refused_port
from token_broker.hooks.addresses import GuardedResolver
from token_broker.hooks.secrets import parse_webhook_secrets
from token_broker.hooks.sender import HookAnswer, HookSender, hook_client

PAYLOAD = {"type": "tool.call", "arguments": {"name": "Zoë 👋", "n": 1.5}, "user_id": None}


@pytest_asyncio.fixture
async def sender() -> AsyncIterator[HookSender]:
    async with hook_client() as client:
        yield HookSender(client, secrets())


async def post(sender: HookSender, url: str, **options: Any) -> HookAnswer:
    chosen: dict[str, Any] = {"webhook_id": "call_1", "timeout_s": 10, "max_bytes": 1024}
    return await sender.post(url, PAYLOAD, **(chosen | options))


async def test_posted_bytes_are_those_signed(sender: HookSender) -> None:
    async with raw_server(answered(b'{"ok": true}')) as server:
        headers = {"Authorization": SecretStr("Bearer of a tool")}
        answer = await post(sender, f"{server.url}?code=1", headers=headers)
    assert answer == HookAnswer(200, '{"ok": true}', None, sent=True)
    assert answer.ok
    (got,) = server.received
    assert got.line == "POST /tool?code=1 HTTP/1.1"
    assert json.loads(got.body) == PAYLOAD
    assert Webhook(SECRET).verify(got.body, got.headers) == PAYLOAD
    assert got.headers["authorization"] == "Bearer of a tool"
    assert got.headers["content-type"] == "application/json"
    assert got.headers["webhook-id"] == "call_1"
    assert "transfer-encoding" not in got.headers
    assert "cookie" not in got.headers


async def test_bytes_are_posted_as_they_are(sender: HookSender) -> None:
    async with raw_server(answered()) as server:
        payload = b'{"b" : 1,\t"a":"\xc3\xbc"}'
        await sender.post(server.url, payload, webhook_id="m", timeout_s=10, max_bytes=1)
    assert server.received[0].body == payload
    Webhook(SECRET).verify(payload, server.received[0].headers)


async def test_each_secret_signs() -> None:
    other = f"{SECRET[:-4]}AAA="
    both = parse_webhook_secrets(SecretStr(f"{SECRET} {other}"))
    async with hook_client() as client, raw_server(answered()) as server:
        await post(HookSender(client, both), server.url)
    (got,) = server.received
    assert len(got.headers["webhook-signature"].split(" ")) == 2
    for secret in (SECRET, other):
        Webhook(secret).verify(got.body, got.headers)


async def test_each_attempt_has_its_own_time() -> None:
    times = iter([datetime(2026, 1, 1, 10, tzinfo=UTC), datetime(2026, 1, 1, 10, 5, tzinfo=UTC)])
    async with hook_client() as client, raw_server(answered()) as server:
        sender = HookSender(client, secrets(), now=lambda: next(times))
        for _ in range(2):
            await post(sender, server.url)
    first, second = (got.headers for got in server.received)
    assert first["webhook-id"] == second["webhook-id"]
    assert int(second["webhook-timestamp"]) - int(first["webhook-timestamp"]) == 300
    assert first["webhook-signature"] != second["webhook-signature"]


def test_sender_needs_a_secret() -> None:
    with pytest.raises(ValueError, match="at least one secret"):
        HookSender(httpx.AsyncClient(), ())


@pytest.mark.slow
async def test_npm_package_verifies(sender: HookSender) -> None:
    """The package of the specification's authors for Node, which shares no code with the one that signs."""
    folder = Path(__file__).parent
    installed_modules(folder)
    async with raw_server(answered()) as server:
        await post(sender, server.url)
    (got,) = server.received
    asked = json.dumps({"secret": SECRET, "headers": got.headers, "body": got.body.decode()})
    assert json.loads(await run_node("verify.mjs", cwd=folder, stdin=asked)) == PAYLOAD


# --- what goes wrong


def _slow(*pieces: bytes, pause_s: float) -> Answer:
    async def write(writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return write


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"


async def _closed(_writer: asyncio.StreamWriter) -> None:
    """Closes without a word."""


async def _halfway(writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"x" * 50)
    await writer.drain()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param(_slow(b"", pause_s=60), HookAnswer(failure="timeout", sent=True), id="hangs"),
        pytest.param(_slow(HEAD, *[b"x"] * 90, pause_s=0.1), HookAnswer(failure="timeout", sent=True), id="drip"),
        pytest.param(_closed, HookAnswer(failure="broken", sent=True), id="closed"),
        pytest.param(_halfway, HookAnswer(failure="broken", sent=True), id="cut"),
        pytest.param(_slow(b"ICAP/1.0 200\r\n\r\n", pause_s=0), HookAnswer(failure="broken", sent=True), id="not HTTP"),
        pytest.param(answered(b"x" * 1025), HookAnswer(200, failure="too_large", sent=True), id="1025"),
        pytest.param(answered(b"x" * 1024), HookAnswer(200, "x" * 1024, sent=True), id="1024"),
        pytest.param(answered(b"", status=204), HookAnswer(204, sent=True), id="empty"),
        pytest.param(answered(b"no", status=500), HookAnswer(500, sent=True), id="500"),
        pytest.param(
            answered(status=429, headers="Retry-After: 7\r\n"), HookAnswer(429, sent=True, retry_after_s=7), id="429"
        ),
        pytest.param(
            answered(status=307, headers="Location: http://127.0.0.1:9/\r\n"),
            HookAnswer(307, failure="redirect", sent=True),
            id="redirect",
        ),
        pytest.param(
            answered(gzip.compress(b"small"), headers="Content-Encoding: gzip\r\n"),
            HookAnswer(200, "small", sent=True),
            id="gzip",
        ),
        pytest.param(
            answered(zlib.compress(b"small"), headers="Content-Encoding: deflate\r\n"),
            HookAnswer(200, "small", sent=True),
            id="deflate",
        ),
        pytest.param(
            answered(gzip.compress(b"small")[:-9], headers="Content-Encoding: gzip\r\n"),
            HookAnswer(200, failure="broken", sent=True),
            id="half a gzip",
        ),
        pytest.param(
            answered(b"plain", headers="Content-Encoding: gzip\r\n"),
            HookAnswer(200, failure="broken", sent=True),
            id="no gzip",
        ),
        pytest.param(
            answered(b"x", headers="Content-Encoding: br\r\n"), HookAnswer(200, failure="broken", sent=True), id="br"
        ),
        pytest.param(answered("ü".encode("latin-1")), HookAnswer(200, "\ufffd", sent=True), id="latin-1"),
    ],
)
async def test_answer(sender: HookSender, answer: Answer, expected: HookAnswer) -> None:
    async with raw_server(answer) as server:
        # The clock runs against answers that never end; all others come at once.
        timeout_s = 0.5 if expected.failure == "timeout" else 20
        assert await post(sender, server.url, timeout_s=timeout_s) == expected
    assert len(server.received) == 1


async def test_bomb_is_stopped_at_the_limit(sender: HookSender) -> None:
    """200 MB in 200 KB: what is unpacked stays within the limit, however much one chunk holds."""
    unpacked: list[int] = []
    packer = zlib.compressobj(1, wbits=31)
    bomb = b"".join([*(packer.compress(bytes(1_000_000)) for _ in range(200)), packer.flush()])
    real = zlib.decompressobj

    class Counted:
        def __init__(self, wbits: int) -> None:
            self.inner = real(wbits)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def decompress(self, data: bytes, limit: int) -> bytes:
            found = self.inner.decompress(data, limit)
            unpacked.append(len(found))
            return found

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("token_broker.hooks.sender.zlib.decompressobj", Counted)
        async with raw_server(answered(bomb, headers="Content-Encoding: gzip\r\n")) as server:
            answer = await post(sender, server.url, timeout_s=20)
    assert answer == HookAnswer(200, failure="too_large", sent=True)
    assert sum(unpacked) <= 2 * 1025


async def test_nothing_was_sent_where_nobody_listens(sender: HookSender) -> None:
    with refused_port() as port:
        assert await post(sender, f"http://127.0.0.1:{port}/") == HookAnswer(failure="unreachable")


async def test_unknown_name_is_unreachable(sender: HookSender) -> None:
    assert await post(sender, "http://no-such-name.invalid/") == HookAnswer(failure="unreachable")


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data", "http://[::ffff:169.254.169.254]/", "http://[fe80::1]/",
        "http://[fd00:ec2::254]/", "http://168.63.129.16/", "http://0xa9fea9fe/", "http://2852039166/", "/relative",
        "http://", "ftp:///x", "http://x:99999/", "http://a b/",
    ],
)  # fmt: skip
async def test_address_is_never_called(sender: HookSender, url: str) -> None:
    answer = await post(sender, url)
    assert answer.failure in {"refused", "unreachable"}
    assert not answer.sent


async def test_name_of_a_metadata_service_is_refused() -> None:
    transport = make_transport(resolver=GuardedResolver(Names("169.254.169.254")))
    async with httpx.AsyncClient(transport=transport) as client:
        answer = await post(HookSender(client, secrets()), "http://innocent.example.com/")
    assert answer == HookAnswer(failure="refused")


async def test_redirect_gets_no_header(sender: HookSender) -> None:
    async with raw_server(answered(b"caught")) as other:
        told = f"Location: {other.url}\r\n"
        for status in (301, 302, 303, 307, 308):
            async with raw_server(answered(status=status, headers=told)) as server:
                answer = await post(sender, server.url, headers={"Authorization": SecretStr("secret of a tool")})
            assert (answer.failure, answer.status) == ("redirect", status)
    assert not other.received


async def test_cookies_are_not_kept(sender: HookSender) -> None:
    async with raw_server(answered(headers="Set-Cookie: user=ann\r\n")) as server:
        for _ in range(2):
            await post(sender, server.url)
    assert all("cookie" not in got.headers for got in server.received)


async def test_proxy_of_the_settings_is_asked() -> None:
    async with raw_server(answered(status=502)) as proxy:
        way = parse_proxy(f"http://127.0.0.1:{proxy.port}")
        async with hook_client(proxy=way) as client:
            answer = await post(HookSender(client, secrets()), "https://crm.example.com/tools")
            with refused_port() as port:
                bypassed = await post(HookSender(client, secrets()), f"http://127.0.0.1:{port}/")
    assert (answer.failure, answer.sent) == ("unreachable", False)
    assert [got.line for got in proxy.received] == ["CONNECT crm.example.com:443 HTTP/1.1"]
    assert bypassed == HookAnswer(failure="unreachable")


async def test_wait_for_a_connection_counts() -> None:
    """A full pool: the deadline ends the wait, and nothing was sent."""
    async with raw_server(_slow(b"", pause_s=60)) as server:
        transport = make_transport(connections=1)
        async with httpx.AsyncClient(transport=transport) as client:
            sender = HookSender(client, secrets())
            first = asyncio.create_task(post(sender, server.url, timeout_s=30))
            await asyncio.wait_for(server.asked.wait(), 20)
            assert await post(sender, server.url, timeout_s=0.3) == HookAnswer(failure="timeout")
            first.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await first
    assert server.connections == 1


async def test_cancelled_post_leaves_no_connection(sender: HookSender) -> None:
    async with raw_server(_slow(b"", pause_s=60)) as server:
        task = asyncio.create_task(post(sender, server.url))
        await asyncio.wait_for(server.asked.wait(), 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_query_is_in_no_log(sender: HookSender, caplog: pytest.LogCaptureFixture) -> None:
    canary = "canary-4711"
    servers: list[tuple[Answer, str]] = [(answered(), "/ok"), (_closed, "/closed"), (answered(status=500), "/500")]
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("httpx").setLevel(logging.WARNING)  # as the broker's root logger has it for libraries
        for answer, path in servers:
            async with raw_server(answer) as server:
                url = f"http://127.0.0.1:{server.port}{path}?code={canary}"
                found = await post(sender, url, headers={"X-Key": SecretStr(canary)})
                assert canary not in repr(found)
        await post(sender, f"http://169.254.169.254/?code={canary}", headers={"X-Key": SecretStr(canary)})
        await post(sender, f"http://x:99999/?code={canary}", headers={"X-Key": SecretStr(f"{canary}\n")})
    assert canary not in caplog.text
