"""What the relay leans on in picows and uvicorn, whose versions are pinned: whoever raises one sees here what changed.

Each trap is shown as the library sets it, beside what the relay does about it.
"""

import asyncio
import logging
import socket
import ssl
from importlib.metadata import version
from typing import Any

import picows
import pytest
import uvicorn
from starlette.types import Scope
from websockets.asyncio.client import connect as plain_connect
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from strategies.transport import BoundedResolver
from tests.relay.support.azure import AzureTalk, answer, scripted_azure, silent_server
from tests.relay.support.broker import KEY
from tests.support.serving import run_server, server_config
from token_broker.relay.azure.dns_cache import DnsCache
from token_broker.relay.azure.socket import AzureSocket, connect


class Collector(picows.WSListener):
    def __init__(self) -> None:
        self.frames: list[tuple[Any, bool, int]] = []

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        self.frames.append((frame.msg_type, frame.fin, frame.payload_size))


async def opened(
    url: str, *, headers: dict[str, str] | None = None, log_to: logging.Logger | None = None
) -> AzureSocket:
    return await connect(
        url,
        headers or {},
        names=DnsCache(BoundedResolver()),
        tls=ssl.create_default_context(),
        max_message_bytes=100_000,
        deadline_s=asyncio.get_running_loop().time() + 5,
        log_to=log_to or logging.getLogger("token_broker.relay.picows"),
    )


def test_library_versions_are_the_examined_ones() -> None:
    assert (version("picows"), version("uvicorn")) == ("2.3.1", "0.54.0")


async def test_relay_follows_no_redirect() -> None:
    async with scripted_azure() as elsewhere, scripted_azure() as azure:
        target = elsewhere.url.replace("http", "ws") + "/stolen"

        def redirect(request: Request) -> Response:
            return answer(302, Location=target)

        azure.refuse = redirect
        url = azure.url.replace("http", "ws")
        transport, _ = await picows.ws_connect(Collector, url, extra_headers={"api-key": KEY})
        assert elsewhere.handshakes[0].headers["api-key"] == KEY
        transport.disconnect()
        with pytest.raises(picows.WSHandshakeError):
            await opened(azure.url, headers={"api-key": KEY})
        assert len(elsewhere.handshakes) == 1


async def test_relay_limits_fragmented_messages() -> None:
    async def fragments(talk: AzureTalk) -> None:
        await talk.connection.send(["x" * 60_000, "x" * 60_000])

    async with scripted_azure(fragments) as azure:
        transport, listener = await picows.ws_connect(
            Collector, azure.url.replace("http", "ws"), max_frame_size=100_000
        )
        await transport.wait_disconnected()
        assert isinstance(listener, Collector)
        assert [size for kind, _, size in listener.frames[:2]] == [60_000, 60_000]
        ours = await opened(azure.url)
        await ours.wait()
        assert (ours.failure, len(ours.frames)) == ("Azure sent a message that is too large", 0)
        await ours.aclose()


async def test_relay_bounds_its_pongs() -> None:
    async def ping(talk: AzureTalk) -> None:
        await talk.connection.ping(b"one")
        await talk.connection.wait_closed()

    async with scripted_azure(ping) as azure:
        transport, listener = await picows.ws_connect(Collector, azure.url.replace("http", "ws"))
        assert isinstance(listener, Collector)
        ours = await opened(azure.url)
        await asyncio.wait_for(azure.talks[1].connection.ping(), 5)
        await asyncio.sleep(0.1)
        assert listener.frames == []  # the listener sees no ping, and cannot hold the pong back
        transport.disconnect()
        await ours.aclose()


async def test_relay_silences_picows_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(1)
    async with scripted_azure() as azure:
        loud = logging.getLogger("loud")
        loud.setLevel(1)
        for log_to, printed in ((loud, True), (None, False)):
            caplog.clear()
            quiet = logging.getLogger("token_broker.relay.picows")
            quiet.setLevel(logging.CRITICAL)  # as UpstreamConnector sets it
            ours = await opened(azure.url, headers={"api-key": KEY}, log_to=log_to)
            await ours.aclose()
            # The fake Azure's own library may log what it received.
            logged = [record.getMessage() for record in caplog.records if not record.name.startswith("websockets")]
            assert any(KEY in text for text in logged) is printed


async def test_close_in_handshake_raises() -> None:
    async def close_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(close_at_once, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    _, listener = await picows.ws_connect(Collector, f"ws://127.0.0.1:{port}/")
    assert listener is None
    with pytest.raises(ConnectionResetError):
        await opened(f"http://127.0.0.1:{port}/")
    server.close()


async def test_cancelled_handshake_is_closed() -> None:
    async with silent_server() as (address, connections):
        left = asyncio.create_task(picows.ws_connect(Collector, f"ws://{address}/", websocket_handshake_timeout=2))
        async with asyncio.timeout(5):
            while not connections:  # noqa: ASYNC110  # no event tells of it
                await asyncio.sleep(0.01)
        left.cancel()
        await asyncio.wait({left})
        await asyncio.sleep(0.2)
        assert len(connections) == 1
        ours = asyncio.create_task(opened(f"http://{address}/"))
        async with asyncio.timeout(5):
            while len(connections) < 2:  # noqa: ASYNC110  # no event tells of it
                await asyncio.sleep(0.01)
            ours.cancel()
            await asyncio.wait({ours})
            while len(connections) == 2:  # noqa: ASYNC110  # no event tells of it
                await asyncio.sleep(0.01)


async def test_picows_read_buffer_stays_small() -> None:
    async with scripted_azure() as azure:
        ours = await opened(azure.url)
        assert ours._transport is not None
        raw = ours._transport.underlying_transport.get_extra_info("socket")
        assert raw.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) <= 2 * 131_072  # Linux doubles the requested size
        await ours.aclose()


async def test_uvicorn_closes_websockets_with_1012() -> None:
    async def application(scope: Scope, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()

    server = uvicorn.Server(server_config(application))
    async with run_server(server) as url, plain_connect(url.replace("http", "ws", 1), proxy=None) as client:
        server.handle_exit(15, None)
        with pytest.raises(ConnectionClosed) as closed:
            await client.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
