"""Which host names the broker answers to: a page whose own name points at it (DNS rebinding) gets nothing."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.security.test_origins import ask, settings
from tests.support.broker import RunningBroker, make_settings, run_broker
from token_broker.simulator import RunningSimulator
from token_broker.web.middleware import OriginRules

PUBLIC = "https://voice.example"
METRICS_TOKEN = "metrics-secret-0123456789"
SESSION = "0123456789abcdef"

SERVED = [
    "voice.example",
    "VOICE.example",
    "voice.example.",
    "voice.example:443",
    "voice.example:80",  # what a proxy listens on inside
    "localhost",
    "localhost:8080",
    "LOCALHOST.:8080",
    "app.localhost",
    "127.0.0.1:8080",
    "[::1]:8080",
    "[0:0:0:0:0:0:0:1]",
]
FOREIGN = [
    "evil.example",
    "voice.example.evil.example",
    "evil-voice.example",
    "xvoice.example",
    "voice.example:8443",
    "voice.example..",
    "voice.example@evil.example",
    "evil.example@voice.example",
    "voice.example, evil.example",
    "voice.example evil.example",
    "localhost.evil.example",
    "127.0.0.1.nip.io",
    "10.0.0.9:8080",
    "[2001:db8::1]:8080",
    "[::1",
    "",
]


def rules(**values: Any) -> OriginRules:
    return OriginRules(settings(**values))


def scope(*headers: tuple[str, str], kind: str = "http", path: str = "/", method: str = "GET") -> dict[str, Any]:
    return {
        "type": kind,
        "scheme": "ws" if kind == "websocket" else "http",
        "method": method,
        "path": path,
        "client": ("10.0.0.1", 4711),
        "server": ("10.0.0.9", 8080),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers],
    }


def status(problem: Any) -> int:
    return 200 if problem is None else int(problem.status)


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize("listens_on", ["127.0.0.1", "0.0.0.0"])
def test_public_url_and_loopback_names_are_served(kind: str, listens_on: str) -> None:
    guard = rules(public_url=f"{PUBLIC}/base", host=listens_on)
    got = {host: status(guard.refusal(scope(("Host", host), kind=kind))) for host in [*SERVED, *FOREIGN]}
    assert got == dict.fromkeys(SERVED, 200) | dict.fromkeys(FOREIGN, 421)


@pytest.mark.parametrize(
    ("public", "host", "expected"),
    [
        ("https://voice.example:8443", "voice.example:8443", 200),
        ("https://voice.example:8443", "voice.example", 200),  # nginx's $host has no port
        ("https://voice.example:8443", "voice.example:9443", 421),
        ("https://VOICE.Example./", "voice.example", 200),
        ("https://voice.example:443", "voice.example", 200),
        ("https://voice.example:", "voice.example", 200),
        ("https://[2001:DB8:0::1]:8443", "[2001:db8::1]:8443", 200),
        ("https://[2001:db8::1]", "[2001:0db8:0:0::0001]", 200),
        ("https://[2001:db8::1]", "[2001:db8::2]", 421),
        ("http://127.0.0.1:8080", "127.0.0.1:8080", 200),
        ("http://127.0.0.1:8080", "evil.example", 421),
        ("https://bücher.example", "bücher.example", 421),  # which the settings refuse: nothing is guessed here
    ],
)
def test_host_comparison_normalizes(public: str, host: str, expected: int) -> None:
    asked = scope(("Host", host.encode().decode("latin-1")))
    assert status(rules(public_url=public, host="0.0.0.0").refusal(asked)) == expected


@pytest.mark.parametrize("hosts", [["voice.example", "evil.example"], ["voice.example", "voice.example"]])
def test_two_host_headers_get_421(hosts: list[str]) -> None:
    asked = scope(*(("Host", host) for host in hosts))
    assert status(rules(public_url=PUBLIC).refusal(asked)) == 421


@pytest.mark.parametrize(("server", "expected"), [("127.0.0.1", 200), ("10.0.0.9", 421)])
def test_missing_host_uses_server_address(server: str, expected: int) -> None:
    asked = scope() | {"server": (server, 8080)}
    assert status(rules(public_url=PUBLIC, host="0.0.0.0").refusal(asked)) == expected


@pytest.mark.parametrize(
    ("trusted", "headers", "expected"),
    [
        (("1",), [("Host", "broker:8080"), ("X-Forwarded-Host", "voice.example")], 200),
        (("1",), [("Host", "broker:8080"), ("X-Forwarded-Host", "Voice.Example:443")], 200),
        (("1",), [("Host", "voice.example")], 200),  # a proxy that keeps the Host
        (("1",), [("Host", "voice.example"), ("X-Forwarded-Host", "evil.example")], 421),
        (("1",), [("Host", "broker:8080"), ("X-Forwarded-Host", "voice.example, evil.example")], 421),
        (
            ("1",),
            [("Host", "broker:8080"), ("X-Forwarded-Host", "evil.example, voice.example")],
            200,
        ),  # the proxy's own
        (("1",), [("Host", "evil.example"), ("X-Forwarded-Host", "../")], 421),
        (("10.0.0.0/8",), [("Host", "broker:8080"), ("X-Forwarded-Host", "voice.example")], 200),
        (("192.0.2.0/24",), [("Host", "evil.example"), ("X-Forwarded-Host", "voice.example")], 421),  # not its word
        ((), [("Host", "evil.example"), ("X-Forwarded-Host", "voice.example")], 421),
        ((), [("Host", "evil.example"), ("Forwarded", "host=voice.example")], 421),
    ],
)
def test_host_comes_from_trusted_proxies(
    trusted: tuple[str, ...], headers: list[tuple[str, str]], expected: int
) -> None:
    guard = rules(public_url=PUBLIC, trusted_proxies=trusted, host="0.0.0.0")
    assert status(guard.refusal(scope(*headers))) == expected


@pytest.mark.parametrize(
    ("host", "origin", "admitted"),
    [
        ("voice.example", "https://voice.example", True),
        ("voice.example", "https://voice.example:443", True),
        ("voice.example", "https://voice.example.", True),
        ("127.0.0.1:8080", "https://voice.example", True),
        ("localhost:8080", "http://localhost:8080", True),  # an operator at the machine
        ("[::1]:8080", "http://[::1]:8080", True),
        ("localhost:8080", "http://localhost:3000", False),  # somebody else's page at the machine
        ("voice.example", "http://voice.example", False),  # whoever sits on the wire writes that page
        ("voice.example", "https://voice.example:8443", False),
        ("evil.example", "http://evil.example", False),
        ("evil.example", "https://evil.example", False),
        ("voice.example", "null", False),
        ("voice.example", "https://listed.example", True),
    ],
)
def test_own_origin_is_the_public_url(host: str, origin: str, admitted: bool) -> None:
    guard = rules(public_url=PUBLIC, allowed_origins=("https://listed.example",), host="0.0.0.0")
    for kind in ("http", "websocket"):
        assert guard.admits(scope(("Host", host), ("Origin", origin), kind=kind, method="POST")) is admitted


async def test_rebound_page_gets_421_without_cors() -> None:
    reply = await ask(settings(public_url=PUBLIC), "POST", host="evil.example", origin="http://evil.example")
    assert (reply.status_code, reply.json()["code"]) == (421, "host_not_served")
    assert "access-control-allow-origin" not in reply.headers


async def test_refusal_names_only_the_public_url() -> None:
    reply = await ask(settings(public_url=f"{PUBLIC}/inner/path", host="0.0.0.0"), "GET", host="evil.example")
    detail = reply.json()["detail"]
    assert PUBLIC in detail
    assert "BROKER_PUBLIC_URL" in detail
    assert "inner" not in detail
    assert "evil" not in detail


@contextlib.asynccontextmanager
async def published(azure: RunningSimulator, directory: Path, **values: Any) -> AsyncIterator[RunningBroker]:
    chosen = {"public_url": PUBLIC, "host": "0.0.0.0", **values}
    async with run_broker(make_settings(directory, azure.base_url, **chosen)) as broker:
        yield broker


async def raw(broker: RunningBroker, request: bytes) -> tuple[int, bytes]:
    """The status of the answer to these very bytes, and the whole answer; the connection is closed behind it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(broker.base_url.rpartition(":")[2]))
    try:
        writer.write(request)
        answer = await asyncio.wait_for(reader.read(), 15)
    finally:
        writer.close()
    return int(answer.split(b" ", 2)[1]), answer


ROUTES = [
    ("GET", "/"),
    ("GET", "/client/voice-session.js"),
    ("GET", "/status"),
    ("GET", "/api/v1/voice/status"),
    ("GET", "/config/elena"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("GET", "/metrics"),
    ("GET", "/nowhere"),
    ("POST", "/realtime/token"),
    ("POST", "/v1/realtime/client_secrets"),
    ("OPTIONS", "/realtime/token"),
    ("GET", f"/api/v1/voice/voicelive/{SESSION}"),
    ("DELETE", f"/memory/sessions/{SESSION}/turns"),
]


async def test_every_route_but_probes_refuses_foreign_host(azure: RunningSimulator, tmp_path: Path) -> None:
    async with published(azure, tmp_path) as broker:
        for method, path in ROUTES:
            reply = await broker.client.request(method, path, headers={"Host": "evil.example"})
            assert (reply.status_code, reply.json()["code"]) == (421, "host_not_served"), path
            own = await broker.client.request(method, path, headers={"Host": "voice.example"})
            assert own.status_code != 421, path
        for path in ("/healthz", "/readyz"):  # Container Apps asks by the replica's address
            assert (await broker.client.get(path, headers={"Host": "10.0.3.4:8080"})).status_code == 200


async def test_websocket_for_foreign_host_is_refused(azure: RunningSimulator, tmp_path: Path) -> None:
    async with published(azure, tmp_path) as broker:
        port = int(broker.base_url.rpartition(":")[2])
        for path in (f"/api/v1/voice/voicelive/{SESSION}", "/v1/realtime", "/voice-live/realtime"):
            with pytest.raises(InvalidStatus) as refused:
                async with connect(f"ws://evil.example:{port}{path}", host="127.0.0.1", port=port, proxy=None):
                    pass
            answer = refused.value.response
            document = json.loads(answer.body or b"")
            assert (answer.status_code, document["code"]) == (421, "host_not_served"), path
            assert answer.headers["X-Request-ID"] == document["correlation_id"]


REQUEST_TARGETS: list[tuple[str, str | None, int]] = [
    ("GET http://evil.example/status HTTP/1.1", "voice.example", 421),  # RFC 9112 §3.2.2: it counts before Host
    ("GET HTTPS://evil.example/status HTTP/1.1", "voice.example", 421),
    ("GET http://voice.example/status HTTP/1.1", "evil.example", 200),
    ("GET http://user@voice.example/status HTTP/1.1", "voice.example", 421),
    ("GET ftp://voice.example/status HTTP/1.1", "voice.example", 400),
    ("GET http:///status HTTP/1.1", "voice.example", 400),
    ("CONNECT voice.example:443 HTTP/1.1", "voice.example", 400),
    ("OPTIONS * HTTP/1.1", "evil.example", 421),
    ("GET /status HTTP/1.1", "voice.example\r\nHost: evil.example", 400),  # RFC 9112 §3.2
    ("GET /status HTTP/1.1", "voice.example\r\nhost: voice.example", 400),
    ("GET http://voice.example/status HTTP/1.1", "voice.example\r\nHost: evil.example", 400),
    ("GET /status HTTP/1.0", "evil.example", 421),
    ("GET /status HTTP/1.0", None, 200),  # no browser, and connected to a loopback address
    ("GET /healthz HTTP/1.0", None, 200),
]


async def test_request_target_and_host_are_unambiguous(azure: RunningSimulator, tmp_path: Path) -> None:
    async with published(azure, tmp_path) as broker:
        for request_line, host, expected in REQUEST_TARGETS:
            named = "" if host is None else f"Host: {host}\r\n"
            got, answer = await raw(broker, f"{request_line}\r\n{named}Connection: close\r\n\r\n".encode())
            assert got == expected, (request_line, host, answer)


async def test_scraper_with_token_asks_by_address(azure: RunningSimulator, tmp_path: Path) -> None:
    by_address = {"Host": "10.0.3.4:8080"}
    async with published(azure, tmp_path, metrics_token=METRICS_TOKEN) as broker:
        bearer = {"Authorization": f"Bearer {METRICS_TOKEN}"}
        assert (await broker.client.get("/metrics", headers=by_address | bearer)).status_code == 200
        refused = await broker.client.get("/metrics", headers=by_address | {"Origin": "http://10.0.3.4:8080"})
        assert (refused.status_code, refused.json()["code"]) == (401, "metrics_token_needed")
        assert "access-control-allow-origin" not in refused.headers
        assert (await broker.client.get("/status", headers=by_address | bearer)).status_code == 421
    async with published(azure, tmp_path) as broker:  # nothing proves that it is no page: it asks by name
        assert (await broker.client.get("/metrics", headers=by_address)).status_code == 421
        assert (await broker.client.get("/metrics")).status_code == 200
