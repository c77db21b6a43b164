"""The transport that ships: names looked up beside the loop, no redirect followed, no cookie kept."""

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

import strategies
from strategies.errors import MintError, TransientError
from strategies.transport import BoundedResolver, make_tls_context, make_transport
from strategies.upstream import Upstream
from tests.strategies.fakes import key_credentials
from tests.support.serving import serve_app
from tests.support.sockets import listening_socket, refused_port
from tests.support.waiting import eventually


class Lookups:
    """A name lookup that hangs until it is released."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.calls = 0

    def __call__(self, host: str, port: int, **_options: Any) -> list[tuple[Any, ...]]:
        self.calls += 1
        self.released.wait(30)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]


@pytest.fixture
def lookups() -> Iterator[Lookups]:
    hanging = Lookups()
    yield hanging
    hanging.released.set()


async def test_name_is_looked_up_in_a_thread() -> None:
    def look_up(host: str, port: int, **_options: Any) -> list[tuple[Any, ...]]:
        assert threading.current_thread() is not threading.main_thread()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port))]

    (found,) = await BoundedResolver(lookup=look_up).resolve("x.example.com", 443)
    assert (found["hostname"], found["host"], found["port"]) == ("x.example.com", "192.0.2.1", 443)


@pytest.mark.parametrize(
    "error", [socket.gaierror(socket.EAI_NONAME, "no"), OSError("no"), UnicodeError("label too long")]
)
async def test_unknown_name_raises_oserror(error: Exception) -> None:
    def look_up(*_arguments: Any, **_options: Any) -> list[tuple[Any, ...]]:
        raise error

    with pytest.raises(OSError, match="no"):
        await BoundedResolver(lookup=look_up).resolve("x.example.com")


async def test_hanging_lookups_are_limited(lookups: Lookups) -> None:
    resolver = BoundedResolver(limit=3, lookup=lookups)
    waiting = [asyncio.create_task(resolver.resolve(f"{number}.example.com")) for number in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(OSError, match="as many name lookups"):
        await resolver.resolve("3.example.com")
    for task in waiting:  # who waited may leave; the thread's place is free only when it comes back
        task.cancel()
    await asyncio.wait(waiting)
    with pytest.raises(OSError, match="as many name lookups"):
        await resolver.resolve("4.example.com")
    lookups.released.set()

    async def all_have_come_back() -> bool:
        return resolver._running == 0

    await eventually(all_have_come_back)
    assert await resolver.resolve("5.example.com")


def test_late_lookup_survives_a_closed_loop(lookups: Lookups) -> None:
    resolver = BoundedResolver(lookup=lookups)

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(resolver.resolve("x.example.com"), 0.05)

    asyncio.run(give_up())
    lookups.released.set()
    deadline_s = time.monotonic() + 5
    while resolver._running and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert resolver._running == 0


async def test_hanging_lookup_blocks_no_other_host(lookups: Lookups) -> None:
    async with serve_app(Starlette(routes=[Route("/", _plain)])) as url:
        transport = make_transport(resolver=BoundedResolver(lookup=lookups))
        async with transport:
            hanging = asyncio.create_task(
                transport.handle_async_request(httpx.Request("GET", "http://slow.example.com/"))
            )
            await asyncio.sleep(0)
            async with asyncio.timeout(5):
                assert (await transport.handle_async_request(httpx.Request("GET", url))).status_code == 200
            hanging.cancel()
            await asyncio.wait({hanging})


async def _plain(request: Request) -> Response:
    return PlainTextResponse(request.headers.get("cookie", "no cookie"), headers={"Set-Cookie": "a=b"})


async def test_redirect_is_not_followed() -> None:
    elsewhere: list[str] = []

    async def note(request: Request) -> Response:
        elsewhere.append(request.url.path)
        return PlainTextResponse("here")

    async with serve_app(Starlette(routes=[Route("/{path:path}", note, methods=["GET", "POST"])])) as other:

        async def redirect(_request: Request) -> Response:
            return RedirectResponse(f"{other}/taken", status_code=307)

        app = Starlette(routes=[Route("/", redirect, methods=["POST"])])
        async with serve_app(app) as url, make_transport() as transport:
            answer = await transport.handle_async_request(httpx.Request("POST", url, content=b"{}"))
            assert answer.status_code == 307
    assert elsewhere == []


async def test_no_cookie_is_kept() -> None:
    async with serve_app(Starlette(routes=[Route("/", _plain)])) as url, make_transport() as transport:
        for _ in range(2):
            answer = await transport.handle_async_request(httpx.Request("GET", url))
            assert await answer.aread() == b"no cookie"


async def test_environment_proxies_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    with refused_port() as port:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        async with serve_app(Starlette(routes=[Route("/", _plain)])) as url, make_transport() as transport:
            assert (await transport.handle_async_request(httpx.Request("GET", url))).status_code == 200


@pytest.mark.parametrize(
    "answer",
    [
        b"",  # closed without a word
        b"garbage\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nBad Header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
    ],
    ids=range(9),
)
async def test_broken_peer_raises_mint_error(answer: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    with listening_socket() as listener:
        server = await asyncio.start_server(talk, sock=listener)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/openai/v1/realtime/client_secrets"
        async with server, make_transport() as transport:
            with pytest.raises(MintError):
                await Upstream(transport, key_credentials()).mint(url, {}, timeout_s=5)


async def test_refused_connection_is_named() -> None:
    with refused_port() as port:
        async with make_transport() as transport:
            with pytest.raises(TransientError, match="refused"):
                await Upstream(transport, key_credentials()).mint(f"http://127.0.0.1:{port}/", {}, timeout_s=5)


def test_imported_strategies_is_ours() -> None:
    """PyPI has a package of that name: two wheels that own one folder overwrite each other in silence."""
    root = Path(__file__).parents[2]
    assert strategies.__file__ is not None
    assert Path(strategies.__file__).parent == root / "strategies"


# --- trusted authorities


def trusted(context: ssl.SSLContext) -> set[bytes]:
    return set(context.get_ca_certs(binary_form=True))


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    path = tmp_path / "authority.pem"
    trustme.CA().cert_pem.write_to_path(path)
    return path


def test_ssl_cert_file_is_trusted_alone(authority: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    context = make_tls_context()
    assert trusted(context) == {ssl.PEM_cert_to_DER_cert(authority.read_text())}
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


def test_missing_ssl_cert_file_trusts_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nothing"))
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: NO_AUTHORITIES)
    assert trusted(make_tls_context()) == set()


def test_system_authorities_are_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    paths = ssl.get_default_verify_paths()
    if paths.cafile is None:
        pytest.skip("this system keeps no file of authorities")
    assert trusted(make_tls_context()) == trusted(ssl.create_default_context(cafile=paths.cafile))


NO_AUTHORITIES = ssl.DefaultVerifyPaths(
    None,  # type: ignore[arg-type]  # as it is where OpenSSL's file and directory are not there
    None,  # type: ignore[arg-type]
    "SSL_CERT_FILE",
    "/nowhere",
    "SSL_CERT_DIR",
    "/nowhere",
)


def test_certifi_is_used_without_system_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: NO_AUTHORITIES)
    certifis = httpx.create_ssl_context(trust_env=False)
    assert trusted(make_tls_context()) == trusted(certifis) != set()
