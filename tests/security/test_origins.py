"""Which pages may ask, over real sockets: CORS, foreign origins, names borrowed by DNS rebinding."""

from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from tests.support.broker import plain_client
from tests.support.serving import serve_app
from token_broker.settings import Settings, SettingsError
from token_broker.web.middleware import OriginGuard, OriginRules

APP = "https://app.example.com"


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that answers whatever reaches it."""
    headers = [(b"vary", b"Accept"), (b"location", b"/x")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": scope["method"].encode()})


def settings(**values: Any) -> Settings:
    return Settings(_env_file=None, **values)


async def ask(settings: Settings, method: str, path: str = "/", **headers: str) -> httpx.Response:
    async with serve_app(OriginGuard(answer, settings)) as base, plain_client() as client:
        sent = {name.replace("_", "-"): value.replace("{self}", base) for name, value in headers.items()}
        return await client.request(method, base + path, headers=sent)


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT", "GET"])
async def test_request_without_origin_is_admitted(method: str) -> None:
    assert (await ask(settings(), method)).status_code == 200


@pytest.mark.parametrize("origin", ["{self}", APP, "HTTPS://APP.EXAMPLE.COM", "https://app.example.com:443"])
async def test_own_and_listed_origins_change_state(origin: str) -> None:
    reply = await ask(settings(allowed_origins=(APP,)), "POST", origin=origin)
    assert reply.status_code == 200
    assert reply.headers["access-control-allow-origin"] in {origin, str(reply.request.url).rstrip("/")}
    assert reply.headers["access-control-expose-headers"] == "Location, Retry-After, X-Request-ID"
    assert "access-control-allow-credentials" not in reply.headers
    assert {item.strip() for item in reply.headers["vary"].split(",")} == {"Accept", "Origin"}


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "https://evil.example",
        "http://app.example.com",  # another scheme is another origin
        "https://app.example.com:8443",
        "https://app.example.com.evil.example",
        "https://app.example.com/",
        "file://",
        "*",
        "",
        "http://127.0.0.1",  # the right host on another port
    ],
)
@pytest.mark.parametrize("listed", [(APP,), ()])
async def test_foreign_origin_changes_nothing(origin: str, listed: tuple[str, ...]) -> None:
    reply = await ask(settings(allowed_origins=listed), "POST", origin=origin)
    assert reply.status_code == 403
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json()["code"] == "origin_not_allowed"
    assert "access-control-allow-origin" not in reply.headers
    assert reply.headers["vary"] == "Origin"


async def test_null_origin_refused_despite_wildcard() -> None:
    everybody = settings(allowed_origins=("*",))
    assert (await ask(everybody, "POST", origin="https://any.example")).status_code == 200
    assert (await ask(everybody, "POST", origin="null")).status_code == 403


APP_ORIGINS = [
    "capacitor://localhost",
    "ionic://localhost",
    "tauri://localhost",
    "app://.",  # Electron
    "app://example.com",
    "chrome-extension://aapbdbdomjkkjkaonfhkkikfgjllcleb",
    "moz-extension://5f8a6a4e-1a0c-4b8e-9d53-0b1d6f2f7c11",
    "com.example.app+2://main:8080",
]


@pytest.mark.parametrize("origin", APP_ORIGINS)
async def test_origins_of_apps_can_be_listed(origin: str) -> None:
    for listed in ((APP, origin), ("*",)):
        chosen = Settings.load(_env_file=None, allowed_origins=listed)
        reply = await ask(chosen, "POST", origin=origin)
        assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (200, origin)
        assert OriginRules(chosen).refusal(handshake(origin)) is None
    assert (await ask(settings(allowed_origins=(APP, "other://localhost")), "POST", origin=origin)).status_code == 403


def handshake(origin: str) -> dict[str, Any]:
    headers = [(b"host", b"127.0.0.1:8080"), (b"origin", origin.encode())]
    return {"type": "websocket", "scheme": "ws", "path": "/", "server": ("127.0.0.1", 8080), "headers": headers}


@pytest.mark.parametrize(
    "origin",
    [
        "app.example.com",
        "localhost:3000",
        "https://",
        "capacitor://",
        "capacitor:localhost",
        "https://app.example.com/",
        "capacitor://localhost/index.html",
        "https://user@app.example.com",
        "https://*.example.com",
        "chrome-extension://*",
        "https://app.example.com:99999",
        "https://[::zz]",
        "https://müller.example",
        "wss://app.example.com",
        "file://",
        "file://localhost",
        "javascript://x",
        "null",
    ],
)
def test_start_refuses_what_is_no_origin(origin: str) -> None:
    with pytest.raises(SettingsError) as refused:
        Settings.load(_env_file=None, allowed_origins=(APP, origin))
    (line,) = refused.value.lines
    assert line.startswith(f"BROKER_ALLOWED_ORIGINS: {origin!r} ")
    assert "capacitor://localhost" in line


@pytest.mark.parametrize("origin", ["null", "file://", "javascript://x", "capacitor://", "nonsense"])
async def test_wildcard_admits_real_origins_alone(origin: str) -> None:
    assert (await ask(settings(allowed_origins=("*",)), "POST", origin=origin)).status_code == 403


async def test_two_origins_are_none_of_ours() -> None:
    async with serve_app(OriginGuard(answer, settings())) as base, plain_client() as client:
        reply = await client.post(base, headers=[("Origin", base), ("Origin", base)])
    assert reply.status_code == 403


async def test_foreign_page_cannot_read_a_get() -> None:
    reply = await ask(settings(), "GET", origin="https://evil.example")
    assert reply.status_code == 200
    assert "access-control-allow-origin" not in reply.headers


async def test_preflight_of_listed_origin_is_complete() -> None:
    reply = await ask(
        settings(allowed_origins=(APP,)),
        "OPTIONS",
        origin=APP,
        access_control_request_method="POST",
        access_control_request_headers="content-type, x-stainless-lang, x-ms-client-principal",
    )
    assert reply.status_code == 204
    assert reply.headers["access-control-allow-origin"] == APP
    assert "DELETE" in reply.headers["access-control-allow-methods"]
    allowed = {name.strip().lower() for name in reply.headers["access-control-allow-headers"].split(",")}
    assert {"authorization", "content-type", "x-session-token", "x-request-id", "x-stainless-lang"} <= allowed
    assert "x-ms-client-principal" not in allowed


async def test_preflight_of_foreign_origin_is_refused() -> None:
    reply = await ask(settings(), "OPTIONS", origin="https://evil.example", access_control_request_method="POST")
    assert reply.status_code == 403
    assert "access-control-allow-origin" not in reply.headers


async def test_plain_options_reaches_the_application() -> None:
    assert (await ask(settings(), "OPTIONS")).text == "OPTIONS"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8080", 200),
        ("app.localhost", 200),
        ("127.0.0.1", 200),
        ("[::1]:8080", 200),
        ("evil.example:8080", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.nip.io", 421),
        ("192.168.0.7:8080", 421),
    ],
)
async def test_loopback_broker_serves_loopback_names(host: str, status: int) -> None:
    for method in ("GET", "POST"):
        assert (await ask(settings(), method, host=host)).status_code == status


async def test_rebound_name_is_refused() -> None:
    reply = await ask(settings(), "POST", host="evil.example", origin="http://evil.example")
    assert (reply.status_code, reply.json()["code"]) == (421, "host_not_served")


@pytest.mark.parametrize(
    "known",
    [{"public_url": "https://voice.example"}, {"trusted_proxies": ("1",)}, {"host": "0.0.0.0"}],
)
async def test_reachable_broker_serves_any_name(known: dict[str, Any]) -> None:
    assert (await ask(settings(**known), "GET", host="voice.example")).status_code == 200


async def test_probes_ask_by_whatever_name() -> None:
    assert (await ask(settings(), "GET", "/healthz", host="10.0.0.9:8080")).status_code == 200


async def test_own_origin_follows_trusted_proxy() -> None:
    reply = await ask(
        settings(trusted_proxies=("1",)),
        "POST",
        origin="https://voice.example",
        x_forwarded_proto="https",
        x_forwarded_host="voice.example",
    )
    assert reply.status_code == 200


async def test_public_url_is_own_origin_for_any_host() -> None:
    reply = await ask(settings(public_url="https://voice.example/base"), "POST", origin="https://voice.example")
    assert reply.status_code == 200


@pytest.mark.parametrize(
    ("origin", "code"),
    [(None, None), ("http://localhost:8080", None), ("https://evil.example", 403), ("null", 403)],
)
def test_a_websocket_asks_the_same_rules(origin: str | None, code: int | None) -> None:
    headers = [(b"host", b"localhost:8080"), *([(b"origin", origin.encode())] if origin else [])]
    scope = {"type": "websocket", "scheme": "ws", "path": "/api/v1/voice/voicelive/x", "headers": headers}
    problem = OriginRules(settings()).refusal(scope | {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8080)})
    assert (problem.status if problem else None) == code
