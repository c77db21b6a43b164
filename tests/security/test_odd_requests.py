"""Odd numbers, times, encodings and paths in requests: refused with a clear problem, never a 500."""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
import structlog

from tests.support.broker import RunningBroker, make_settings, run_broker
from tests.support.waiting import eventually
from token_broker.memory.delivery.zep import retry_after_s
from token_broker.simulator import serve

pytestmark = pytest.mark.asyncio(loop_scope="module")

SESSION = "0123456789abcdef"
ZEROS, NINES = "0" * 5_000, "9" * 5_000  # more digits than Python's int() reads


class CompatEndpoint:
    """A broker that is sent raw bytes, and the token of one of its sessions."""

    def __init__(self, broker: RunningBroker, session_token: str) -> None:
        self.broker = broker
        self.bearer = f"Authorization: Bearer {session_token}"

    async def ask(self, line: str, *headers: str, body: bytes = b"") -> tuple[int, str]:
        """Status and, of a problem, code."""
        named = (
            headers if any(header.lower().startswith("host:") for header in headers) else ("Host: localhost", *headers)
        )
        head = "\r\n".join([f"{line} HTTP/1.1", *named, "Connection: close", "", ""])
        return await self.send(head.encode("latin-1") + body)

    async def post(self, path: str, body: str | bytes, *headers: str) -> tuple[int, str]:
        content = body.encode() if isinstance(body, str) else body
        kind = ("Content-Type: application/json", f"Content-Length: {len(content)}")
        return await self.ask(f"POST {path}", *kind, *headers, body=content)

    async def upgrade(self, path: str, *headers: str) -> tuple[int, str]:
        handshake = (
            "Host: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
        )
        head = "\r\n".join([f"GET {path} HTTP/1.1", handshake, *headers, "", ""])
        return await self.send(head.encode("latin-1"))

    async def send(self, request: bytes) -> tuple[int, str]:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(self.broker.base_url.rpartition(":")[2]))
        try:
            writer.write(request)
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 15)
            status = int(head.split(b" ", 2)[1])
            body = b"{}" if status == 101 else await asyncio.wait_for(reader.read(), 15)
        finally:
            writer.close()
        with contextlib.suppress(ValueError):
            document = json.loads(body)
            return status, document.get("code", "") if isinstance(document, dict) else ""
        return status, ""


async def is_open(broker: RunningBroker) -> bool:
    return broker.memory.status().store == "open"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def compat(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[CompatEndpoint]:
    """One broker for all tests of the module: none of their requests leaves anything behind that another sees."""
    async with (
        serve() as azure,
        run_broker(make_settings(tmp_path_factory.mktemp("odd"), azure.base_url)) as broker,
    ):
        await eventually(lambda: is_open(broker))
        plan = await broker.plan({"session_id": SESSION})
        yield CompatEndpoint(broker, plan["session_token"])


@pytest.fixture(autouse=True)
def _nothing_fails(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No exception reached the broker's last handler or uvicorn."""
    with structlog.testing.capture_logs() as logged:
        yield
    assert [entry for entry in logged if entry["event"] == "request_failed" or entry.get("exc_info")] == []
    assert [record for record in caplog.records if record.exc_info] == []


@pytest.mark.parametrize(
    "line", ["POST /realtime/token", "POST /conversation/turn", "POST /v1/realtime/calls", "GET /healthz", "GET /no"]
)
async def test_invalid_content_length_is_malformed(line: str, compat: CompatEndpoint) -> None:
    for length in (ZEROS, f"{ZEROS}2", NINES, "18446744073709551616", "0" * 21, "+2", "-1", "0x2", "1_0"):
        answer = await compat.ask(line, compat.bearer, f"Content-Length: {length}", body=b"{}")
        assert answer == (400, "malformed_request"), length[:30]


async def test_content_length_may_have_leading_zeros(compat: CompatEndpoint) -> None:
    assert (await compat.ask("POST /realtime/token", "Content-Length: 0000000000002", body=b"{}"))[0] == 200


@pytest.mark.parametrize(
    ("chunks", "status"),
    [("f" * 5_000, 400), ("ffffffffffffffffff", 400), ("2;x\r\n{}\r\n0\r\n\r\n", 200), ("-2", 400)],
)
async def test_chunk_sizes_are_numbers_of_bytes(chunks: str, status: int, compat: CompatEndpoint) -> None:
    got, _ = await compat.ask("POST /realtime/token", "Transfer-Encoding: chunked", body=f"{chunks}\r\n".encode())
    assert got == status


@pytest.mark.parametrize(
    ("query", "status"),
    [
        (f"limit={NINES}", 200),
        (f"limit={ZEROS}1", 200),
        (f"limit={ZEROS}", 422),
        ("limit=%C2%B2", 422),
        ("limit=%D9%A3", 422),
        ("limit=%ff", 422),
        ("limit=1e3", 422),
        ("limit=-1", 422),
        ("after=%00", 404),
        ("after=%ed%a0%80", 404),
        (f"after={'x' * 50_000}", 404),
    ],
)
async def test_turn_page_validates_its_query(query: str, status: int, compat: CompatEndpoint) -> None:
    assert (await compat.ask(f"GET /memory/sessions/{SESSION}/turns?{query}", compat.bearer))[0] == status


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("sequence", NINES, "invalid_json"),
        ("sequence", "1e400", "invalid_request"),
        ("sequence", "1e308", "invalid_request"),
        ("sequence", "NaN", "invalid_request"),
        ("sequence", "-Infinity", "invalid_request"),
        ("created_at", '"9999-12-31T23:59:59-23:00"', "invalid_request"),
        ("created_at", '"0001-01-01T00:00:00+23:00"', "invalid_request"),
        ("created_at", f'"{NINES}"', "invalid_request"),
        ("created_at", "1e300", "invalid_request"),
        ("created_at", "-1", "invalid_request"),
    ],
)
async def test_json_numbers_and_times_are_bounded(field: str, value: str, code: str, compat: CompatEndpoint) -> None:
    turn = json.dumps({"session_id": SESSION, "agent_id": "elena", "role": "user", "content": "Hello"})
    answer = await compat.post("/conversation/turn", f'{turn[:-1]}, "{field}": {value}}}', compat.bearer)
    assert answer == (400 if code == "invalid_json" else 422, code)


@pytest.mark.parametrize("seconds", [NINES, "1e999", "NaN", "1e18", "-1"])
async def test_client_secret_lifetime_is_bounded(seconds: str, compat: CompatEndpoint) -> None:
    status, _ = await compat.post("/v1/realtime/client_secrets", f'{{"expires_after": {{"seconds": {seconds}}}}}')
    assert status in {400, 422}


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text; version=abc",
        f"application/openmetrics-text; version={NINES}.{NINES}",
        "application/openmetrics-text; version=1.x.0; escaping=zzz",
        "text/plain; version=; escaping",
        "application/openmetrics-text; version=\xb2",
        ";;;=,=;version",
    ],
)
async def test_metrics_answer_any_accept(accept: str, compat: CompatEndpoint) -> None:
    assert (await compat.ask("GET /metrics", f"Accept: {accept}"))[0] == 200


ODD_HEADERS = [
    f"Range: bytes={NINES}-{NINES}",
    "Range: bytes=\xb2-",
    "Range: bytes=" + ",".join(["0-1"] * 5_000),
    f"If-Modified-Since: Mon, {NINES} Jan {NINES} {NINES}:{NINES}:{NINES} GMT",
    f"If-Modified-Since: Mon, 01 Jan 2020 00:00:00 +{NINES}",
    "If-None-Match: \xff\x80",
    f"X-Forwarded-For: {NINES}",
    f"Origin: http://localhost:{NINES}",
    "Origin: \xff",
    "X-Request-ID: \xff",
    "traceparent: 00-" + "a" * 32 + "-" + "b" * 16 + "-01\r\ntracestate: \xff\xfe",
    f"Authorization: Bearer \xff{NINES}",
]


@pytest.mark.parametrize("path", ["/client/voice-session.js", "/", "/status"])
async def test_odd_headers_cause_no_500(path: str, compat: CompatEndpoint) -> None:
    for header in ODD_HEADERS:
        status, _ = await compat.ask(f"GET {path}", header)
        assert status < 500, header[:60]


@pytest.mark.parametrize("host", [f"localhost:{NINES}", "localhost:99999", "\xff\xe9", "localhost:\xb2"])
async def test_invalid_port_is_no_host(host: str, compat: CompatEndpoint) -> None:
    assert await compat.ask("POST /realtime/token", f"Host: {host}", "Content-Length: 2", body=b"{}") == (
        421,
        "host_not_served",
    )


def token(header: bytes) -> str:
    return f"{base64.urlsafe_b64encode(header).rstrip(b'=').decode()}.e30.e30"


@pytest.mark.parametrize(
    "credential",
    [
        token(b'{"alg":"HS256","typ":' + b"[" * 6_000 + b"]" * 6_000 + b"}"),
        token(b'{"alg":"HS256","typ":' + b"[" * 1_000 + b"]" * 1_000 + b"}"),
        token(b'{"alg":"HS256","typ":' + b"9" * 2_500 + b"}"),
        token(b'{"alg":"HS256","typ":' + b"9" * 5_000 + b"}"),
        token(b"\xff\xfe"),
        "\xff.\xfe.\xed",
    ],
    ids=["deep", "less deep", "digits", "too many digits", "no text", "no base64"],
)
async def test_odd_tokens_are_refused(credential: str, compat: CompatEndpoint) -> None:
    bearer = f"Authorization: Bearer {credential}"
    turn = json.dumps({"session_id": SESSION, "agent_id": "elena", "role": "user", "content": "Hello"})
    assert (await compat.post("/conversation/turn", turn, bearer))[0] == 401
    session_token = f"X-Session-Token: {credential}"
    assert (await compat.post("/realtime/token", f'{{"session_id": "{SESSION}"}}', session_token))[0] == 403
    assert (await compat.ask("POST /v1/realtime/calls", bearer, "Content-Length: 0"))[0] == 401
    assert (await compat.post("/v1/realtime/client_secrets", "{}", f"api-key: {credential}"))[0] in {200, 401}
    if credential.isascii():
        assert (await compat.ask(f"DELETE /realtime/calls/{credential}", compat.bearer))[0] == 404
        offered = (await compat.upgrade("/v1/realtime", f"Sec-WebSocket-Protocol: realtime, ticket.{credential}"))[0]
        assert offered in {400, 401}  # 400: longer than a handshake's line may be


@pytest.mark.parametrize(
    "header",
    [
        "Sec-WebSocket-Protocol: \xff",
        f"Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits={NINES}",
        "Sec-WebSocket-Extensions: \xff",
        f"Sec-WebSocket-Version: {NINES}",
        "Sec-WebSocket-Key: \xff",
        f"Last-Event-ID: {NINES}",
    ],
)
async def test_odd_handshakes_cause_no_500(header: str, compat: CompatEndpoint) -> None:
    assert (await compat.upgrade(f"/api/v1/voice/voicelive/{SESSION}", header))[0] in {101, 400}


@pytest.mark.parametrize("path", ["/v1/realtime\xff", "/v1/realtime?api-key=\xff", "/v1/realtime%ff", "/%"])
async def test_non_text_paths_get_404(path: str, compat: CompatEndpoint) -> None:
    assert (await compat.upgrade(path))[0] in {400, 404}
    assert (await compat.ask(f"GET {path}"))[0] in {400, 404}


DISGUISED = [
    "/realtime%2ftoken",
    "/realtime%2Ftoken",
    "/realtime%252ftoken",
    "/realtime%25252Ftoken",
    "/api/v1%2fvoice/realtime/token",
    "/api%2Fv1/voice/realtime/token",
    "/v1%2frealtime/client_secrets",
    "/realtime/calls/a%2fb",
    f"/memory/sessions/a%2f{SESSION}/turns",
    f"/memory/sessions/{SESSION}%2fturns",
    f"/memory/sessions/{SESSION}%00/turns",
    f"/memory/sessions/{SESSION}%5c..%5cx/turns",
    "/config/elena%2f",
    "/config%2felena",
    "/config/%2e%2e",
    "/config/..",
    "/config/elena%00",
    "/config/%0d%0ax",
    "/client%2fvoice-session.js",
    "/client/transports%2fwebrtc.js",
    "/client/transports%252fwebrtc.js",
    "/client/transports%5cwebrtc.js",
    "/client/transports\\webrtc.js",
    "/client/%2e%2e/pyproject.toml",
    "/client/..%2f..%2fetc/passwd",
    "/client/transports/../voice-session.js",
    "/client/transports/%2e%2e/voice-session.js",
    "/client/./voice-session.js",
    "/client/voice-session.js%00",
    "/client/voice-session.js%2500",
    "/docs/%2e%2e/status",
    "/healthz%2f",
    "/%2fhealthz",
]


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "HEAD"])
async def test_disguised_path_gets_404(method: str, compat: CompatEndpoint) -> None:
    for path in DISGUISED:
        status, code = await compat.ask(f"{method} {path}", compat.bearer, "Content-Length: 0")
        assert (status, code) == (404, "" if method == "HEAD" else "not_found"), path


DISGUISED_SOCKETS = [
    f"/api/v1/voice%2fvoicelive/{SESSION}",
    f"/api/v1/voice/voicelive/{SESSION}%2f",
    f"/api/v1/voice/voicelive/a%2f{SESSION}",
    f"/api/v1/voice/voicelive/{SESSION}%00",
    f"/api/v1/voice/voicelive/{SESSION}%2frealtime",
    "/api/v1/voice/voicelive/%2e%2e",
    "/v1%2frealtime",
    "/v1%252Frealtime",
    "/openai%2fv1/realtime",
    "/voice-live%5crealtime",
]


async def test_disguised_socket_path_gets_404(compat: CompatEndpoint) -> None:
    for path in [*DISGUISED_SOCKETS, *DISGUISED]:
        assert (await compat.upgrade(path, "Sec-WebSocket-Protocol: realtime"))[0] == 404, path


@pytest.mark.parametrize("path", ["/client/voice%2Dsession.js", "/%73tatus", "/config/el%65na"])
async def test_encoded_letters_reach_the_route(path: str, compat: CompatEndpoint) -> None:
    assert (await compat.ask(f"GET {path}"))[0] == 200


@pytest.mark.parametrize(
    "value", [f"Mon, 01 Jan 2020 00:00:00 +{'9' * 400}", f"Mon, {'9' * 20} Jan 2020 00:00:00 GMT", NINES, "\xb2", ""]
)
async def test_invalid_retry_after_is_none_or_bounded(value: str) -> None:
    wait_s = retry_after_s({"retry-after": value})
    assert wait_s is None or 0 <= wait_s <= 3600


@pytest.mark.parametrize(
    "path",
    ["/realtime/token", "/conversation/turn", "/memory/enrich", "/memory/enrich batch", "/v1/realtime/client_secrets"],
)
async def test_too_many_values_refused_before_validation(path: str, compat: CompatEndpoint) -> None:
    path, _, batch = path.partition(" ")
    count = 80_000 if path in {"/conversation/turn", "/memory/enrich"} else 6_000
    hostile = [
        ",".join(f'"k{number}":1' for number in range(count)),
        ",".join(['"a":1'] * count),
        f'"a":[{",".join(["1"] * count)}]',
        f'"a":[{",".join(["{}"] * count)}]',
        f'"a":[{",".join([chr(34) * 2] * count)}]',
    ]
    for inner in hostile:
        body = f'{{"transcripts":[{{{inner}}}]}}' if batch else f"{{{inner}}}"
        reply = await compat.broker.client.post(path, content=body, headers=dict([compat.bearer.split(": ", 1)]))
        assert reply.status_code == 422, inner[:30]
        document: dict[str, Any] = reply.json()
        assert document["code"] == "invalid_request"
        assert document["errors"] == [{"field": "body", "message": "has more than 5000 keys and values"}]
        assert len(reply.content) < 500


async def test_batch_of_unknown_keys_is_one_refusal(compat: CompatEndpoint) -> None:
    keys = ",".join(f'"k{number}":1' for number in range(900))
    said = f'{{"text":"Hello","session_id":"{SESSION}","speaker":"user",{keys}}}'
    status, code = await compat.post("/memory/enrich", f'{{"transcripts":[{",".join([said] * 100)}]}}', compat.bearer)
    assert (status, code) == (422, "invalid_request")


async def test_text_may_hold_many_commas_and_quotes(compat: CompatEndpoint) -> None:
    text = 'He said: "yes", and \\ "no", and: ' * 200
    said = [
        {"text": text, "session_id": SESSION, "speaker": "user", "turn_id": f"t{number}", "agent_id": "elena"}
        for number in range(100)
    ]
    assert (await compat.post("/memory/enrich", json.dumps({"transcripts": said}), compat.bearer))[0] == 202


async def test_answer_names_few_wrong_fields(compat: CompatEndpoint) -> None:
    body = json.dumps({f"{'x' * 500}{number}": 1 for number in range(100)})
    reply = await compat.broker.client.post("/realtime/token", content=body)
    document = reply.json()
    assert reply.status_code == 422
    assert len(document["errors"]) == 8
    assert "and 92 more" in document["detail"]
    assert len(reply.content) < 3_000
