"""The outbound proxy: which hosts go through it, and what is said where it opens no way."""

import asyncio
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from pydantic import SecretStr

from strategies.azure_calls import AzureCalls
from strategies.base import EphemeralGrant
from strategies.credentials import Credentials, azure_identity_source
from strategies.errors import MintError, TransientError
from strategies.outbound_proxy import InvalidProxyError, OutboundProxy, ProxyFailedError, parse_proxy
from strategies.transport import make_transport
from strategies.upstream import Upstream
from tests.support.entra import IdentityEndpoint
from tests.support.forward_proxy import LOGIN, ForwardProxy, run_forward_proxy
from tests.support.sockets import refused_port
from tests.support.tls import tls_files
from tests.support.waiting import eventually
from token_broker.simulator import RunningSimulator, serve

HOST = "x.openai.azure.com"
CREDENTIALS = Credentials(key=SecretStr("simulated-key"), entra=None)
MINT = f"https://{HOST}/openai/v1/realtime/client_secrets"


@pytest.mark.parametrize(
    ("text", "url", "login"),
    [
        ("http://proxy.example:3128", "http://proxy.example:3128", None),
        ("proxy.example:3128", "http://proxy.example:3128", None),
        ("http://proxy.example", "http://proxy.example:80", None),
        (" http://PROXY.example:3128/ ", "http://proxy.example:3128", None),
        ("http://[fd00::1]:3128", "http://[fd00::1]:3128", None),
        ("http://user:p%40ss%3Aword@proxy.example:3128", "http://proxy.example:3128", "user:p@ss:word"),
        ("user:p@ss@proxy.example:3128", "http://proxy.example:3128", "user:p@ss"),
        ("http://user@proxy.example:3128", "http://proxy.example:3128", "user:"),
    ],
)
def test_proxys_url_is_parsed(text: str, url: str, login: str | None) -> None:
    proxy = parse_proxy(text)
    assert (proxy.url, proxy.login.get_secret_value() if proxy.login else None) == (url, login)
    assert parse_proxy(proxy.full_url.get_secret_value()) == proxy


@pytest.mark.parametrize(
    "text", ["", "http://", "socks5://proxy:1080", "https://proxy:443", "http://p:0", "http://p:x", "http://p/a", "a b"]
)
def test_unusable_proxy_is_refused(text: str) -> None:
    with pytest.raises(InvalidProxyError):
        parse_proxy(text)


@pytest.mark.parametrize(
    ("url", "no_proxy", "served"),
    [
        ("https://x.openai.azure.com/openai", "", True),
        ("wss://x.openai.azure.com/openai", "", True),
        ("https://x.openai.azure.com", "*", False),
        ("https://x.openai.azure.com", "azure.com", False),
        ("https://x.openai.azure.com", ".azure.com", False),
        ("https://x.openai.azure.com", "*.azure.com", False),
        ("https://x.openai.azure.com", "X.OpenAI.Azure.com", False),
        ("https://x.openai.azure.com", "x.openai.azure.com:443", False),
        ("https://x.openai.azure.com", "x.openai.azure.com:8443", True),
        ("https://x.openai.azure.com:8443", "x.openai.azure.com:8443", False),
        ("https://x.openai.azure.com", "zure.com", True),
        ("https://x.openai.azure.com", "openai.azure.com.example", True),
        ("https://x.openai.azure.com", ".", True),
        ("https://10.1.2.3", "10.0.0.0/8", False),
        ("https://10.1.2.3", "10.1.2.3", False),
        ("https://10.1.2.3:8443", "10.1.2.3:443", True),
        ("https://11.1.2.3", "10.0.0.0/8", True),
        ("https://[fd00::1]", "fd00::/8", False),
        ("https://[fd00::1]", "[fd00::1]:443", False),
        ("https://[fd00::1]", "fd00::1", False),
        # Loopback is this machine, and plain http is for loopback alone.
        ("https://127.0.0.1:8443", "", False),
        ("https://localhost", "", False),
        ("http://x.openai.azure.com", "", False),
    ],
)
def test_no_proxy_decides_by_host(url: str, no_proxy: str, served: bool) -> None:
    assert OutboundProxy("proxy.example", 3128, bypassed=tuple(no_proxy.split(","))).serves(url) is served


@pytest.fixture
async def azure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningSimulator]:
    """An Azure whose certificate is for HOST, a name that only the proxy knows the way to."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    async with serve(tls=tls_files(authority, tmp_path, HOST)) as running:
        yield running


def port_of(azure: RunningSimulator) -> int:
    return int(azure.base_url.rpartition(":")[2])


async def mint(proxy: OutboundProxy, url: str = MINT) -> str:
    body = {"session": {"type": "realtime", "model": "gpt-realtime"}}
    async with make_transport(proxy=proxy) as transport:
        minted = await Upstream(transport, CREDENTIALS).mint(url, body, timeout_s=10)
    return minted.token.get_secret_value()


async def test_mint_goes_through_the_proxy(azure: RunningSimulator) -> None:
    async with run_forward_proxy({HOST: port_of(azure)}, login=LOGIN) as proxy:
        assert (await mint(parse_proxy(proxy.url_with_login))).startswith("ek_")
    assert proxy.asked == [f"{HOST}:443"]
    assert "proxy-authorization" not in {name.lower() for seen in azure.requests for name in seen.header_names}


async def test_connection_through_the_proxy_is_kept(azure: RunningSimulator) -> None:
    body = {"session": {"type": "realtime", "model": "gpt-realtime"}}
    async with (
        run_forward_proxy({HOST: port_of(azure)}) as proxy,
        make_transport(proxy=parse_proxy(proxy.url)) as transport,
    ):
        upstream = Upstream(transport, CREDENTIALS)
        for _ in range(3):
            await upstream.mint(MINT, body, timeout_s=10)
    assert len(proxy.asked) == 1


async def test_loopback_is_asked_without_the_proxy(azure: RunningSimulator) -> None:
    async with run_forward_proxy() as proxy:
        loopback = f"{azure.base_url}/openai/v1/realtime/client_secrets"
        assert (await mint(parse_proxy(proxy.url), loopback)).startswith("ek_")
    assert proxy.asked == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "opens no way to the host (HTTP 403)"),
        ({"login": LOGIN}, "asks for a user and a password (HTTP 407)"),
        ({"answer": b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"}, "opens no way to the host (HTTP 502)"),
    ],
)
async def test_refusal_names_the_proxy(options: dict[str, Any], says: str) -> None:
    async with run_forward_proxy(**options) as proxy:
        with pytest.raises(TransientError) as refused:
            await mint(parse_proxy(proxy.url))
    assert str(refused.value) == f"the proxy {proxy.url} {says}"


async def test_wrong_login_is_told_without_it(azure: RunningSimulator) -> None:
    async with run_forward_proxy({HOST: port_of(azure)}, login="other:login") as proxy:
        with pytest.raises(TransientError, match="refuses its user or password") as refused:
            await mint(parse_proxy(proxy.url_with_login))
    assert "canary" not in str(refused.value)


async def test_unreached_proxy_is_named() -> None:
    with refused_port() as port, pytest.raises(TransientError) as refused:
        await mint(parse_proxy(f"http://user:canary@127.0.0.1:{port}"))
    assert str(refused.value) == f"the proxy http://127.0.0.1:{port} can't be reached"


async def test_offer_names_a_refusing_proxy() -> None:
    grant = EphemeralGrant("ga", SecretStr("ek_x"), datetime.now(UTC), 60, 0, f"https://{HOST}", "ga", "marin", None)
    async with run_forward_proxy() as proxy:
        transport = make_transport(proxy=parse_proxy(proxy.url))
        async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
            with pytest.raises(MintError, match="the proxy http"):
                await AzureCalls(client, CREDENTIALS).offer(grant, b"v=0", filtered=False, timeout_s=5)
    assert proxy.asked == [f"{HOST}:443"]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "asks for a user"),
        (b"HTTP/1.1 403\r\n\r\n", "HTTP 403"),
        (b"HTTP/1.1 200 Yes\r\n", "answers as no HTTP proxy does"),
        (b"SSH-2.0-OpenSSH_9\r\n\r\n", "answers as no HTTP proxy does"),
        (b"HTTP/1.1 200 Yes\r\n" + b"x: y\r\n" * 4000, "answers as no HTTP proxy does"),
        (b"", "answers as no HTTP proxy does"),
    ],
    ids=["407", "no reason", "unfinished", "ssh", "endless", "closed"],
)
async def test_tunnel_is_refused_by_name(answer: bytes, says: str) -> None:
    async with run_forward_proxy(answer=answer) as running:
        with pytest.raises(ProxyFailedError, match=says):
            await open_tunnel(running)


async def open_tunnel(running: ForwardProxy) -> None:
    proxy = parse_proxy(running.url)
    loop = asyncio.get_running_loop()
    with socket.socket() as connected:
        connected.setblocking(False)
        await loop.sock_connect(connected, (proxy.host, proxy.port))
        async with asyncio.timeout(10):
            await proxy.open_tunnel(connected, HOST, 443)


async def test_entra_is_asked_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_TENANT_ID", "11111111-2222-3333-4444-555555555555")
    monkeypatch.setenv("AZURE_CLIENT_ID", "11111111-2222-3333-4444-666666666666")
    monkeypatch.setenv("AZURE_CLIENT_SECRET", "canary-secret")
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
    async with run_forward_proxy() as proxy:
        source = azure_identity_source(
            "https://ai.azure.us/.default",
            authority="https://login.microsoftonline.us",
            proxy=parse_proxy(proxy.url),
        )
        fetching = asyncio.create_task(source.fetch())

        async def is_asked() -> bool:
            return bool(proxy.asked)

        await eventually(is_asked)
        fetching.cancel()  # azure-identity would try again for seconds
        await asyncio.wait({fetching})
        await source.aclose()
    assert set(proxy.asked) == {"login.microsoftonline.us:443"}


async def test_machines_identity_bypasses_the_proxy(
    identity: IdentityEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with run_forward_proxy() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        source = azure_identity_source("https://ai.azure.com/.default", proxy=parse_proxy(proxy.url))
        assert (await source.fetch()).secret.get_secret_value() == identity.token
        await source.aclose()
    assert proxy.asked == []
