"""Each HTTP fault does on a real socket what its name says."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.support.machine import retry_if_host_busy
from token_broker.simulator import RunningSimulator, serve
from token_broker.simulator.faults.fault_table import FaultsError, parse_faults

GA = "/openai/v1/realtime/client_secrets"
FLAT = "/openai/realtime/client_secrets?api-version=2025-10-01"
BODIES: dict[str, Any] = {
    GA: {"session": {"type": "realtime", "model": "gpt-realtime"}},
    FLAT: {"model": "gpt-realtime"},
}


async def _mint(client: httpx.AsyncClient, path: str = GA) -> httpx.Response:
    return await client.post(path, json=BODIES[path])


async def _raw(azure: RunningSimulator) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A mint sent by hand, for what happens below HTTP."""
    host, port = azure.base_url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps(BODIES[GA]).encode()
    head = f"POST {GA} HTTP/1.1\r\nHost: x\r\napi-key: simulated-key\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    return reader, writer


async def test_status_fault_answers_in_azures_shape(azure: RunningSimulator, keyed: httpx.AsyncClient) -> None:
    for code in (400, 401, 403, 404, 408, 429, 500, 502, 503, 504):
        with azure.fault("status", code=code):
            answer = await _mint(keyed)
        assert answer.status_code == code
        assert answer.headers["apim-request-id"]
        assert "error" in answer.json() or answer.json()["statusCode"] == code


@pytest.mark.parametrize(
    ("body", "received", "media_type"),
    [
        ("upstream error", "upstream error", "text/plain; charset=utf-8"),
        ({"statusCode": 429, "message": "slow down"}, {"statusCode": 429, "message": "slow down"}, "application/json"),
        ([1, 2], [1, 2], "application/json"),
        ("", "", "text/plain; charset=utf-8"),
    ],
)
async def test_status_fault_sends_given_body(
    azure: RunningSimulator, keyed: httpx.AsyncClient, body: object, received: object, media_type: str
) -> None:
    with azure.fault("status", code=429, headers={"Retry-After": "7", "retry-after-ms": "7000"}, body=body):
        answer = await _mint(keyed)
    assert (answer.status_code, answer.headers["retry-after"], answer.headers["retry-after-ms"]) == (429, "7", "7000")
    assert answer.headers["content-type"] == media_type
    assert (answer.text if isinstance(received, str) else answer.json()) == received


async def test_status_fault_sends_given_media_type(azure: RunningSimulator, keyed: httpx.AsyncClient) -> None:
    with azure.fault("status", code=502, headers={"Content-Type": "text/html"}, body="<html>"):
        assert (await _mint(keyed)).headers.get_list("content-type") == ["text/html"]


async def test_status_204_has_no_body(azure: RunningSimulator, keyed: httpx.AsyncClient) -> None:
    with azure.fault("status", code=204):
        answer = await _mint(keyed)
    assert (answer.status_code, answer.content) == (204, b"")


async def test_hang_ends_when_client_leaves(azure: RunningSimulator) -> None:
    with azure.fault("hang"):
        reader, writer = await _raw(azure)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.3)
        assert azure.running == 1
        writer.close()
        await azure.until(running=0)


async def test_hang_ends_when_simulator_stops() -> None:
    async with serve() as azure:
        azure.set_faults({"match": "/", "fault": "hang"})
        reader, writer = await _raw(azure)
        await azure.until(running=1)
    assert azure.running == 0
    assert await reader.read() == b""
    writer.close()


async def test_slow_start_delays_answer(azure: RunningSimulator, keyed: httpx.AsyncClient) -> None:
    with azure.fault("slow", seconds=0.3):
        began = time.monotonic()
        answer = await _mint(keyed)
    assert answer.status_code == 200
    assert time.monotonic() - began >= 0.3


@retry_if_host_busy()
async def test_slow_headers_make_a_whole_answer(azure: RunningSimulator) -> None:
    with azure.fault("slow", seconds=0.5, part="headers"):
        reader, writer = await _raw(azure)
        began = time.monotonic()
        first = await reader.read(1)
        first_after_s = time.monotonic() - began
        rest = await reader.read()
        took_s = time.monotonic() - began
        writer.close()
    head, _, body = (first + rest).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert b"x-simulated: true" in head
    assert json.loads(body)["value"]
    assert first_after_s < 0.4
    assert took_s >= 0.45


@retry_if_host_busy()
async def test_slow_body_sends_headers_at_once(azure: RunningSimulator, keyed: httpx.AsyncClient) -> None:
    with azure.fault("slow", seconds=0.5, part="body"):
        began = time.monotonic()
        async with keyed.stream("POST", GA, json=BODIES[GA]) as answer:
            headers_after_s = time.monotonic() - began
            body = await answer.aread()
    assert headers_after_s < 0.4
    assert time.monotonic() - began >= 0.45
    assert json.loads(body)["value"]


@pytest.mark.parametrize("part", ["start", "headers", "body"])
async def test_drip_ends_when_client_leaves(azure: RunningSimulator, part: str) -> None:
    with azure.fault("slow", seconds=3600, part=part):
        _reader, writer = await _raw(azure)
        await azure.until(running=1)
        writer.close()
        await azure.until(running=0)


async def test_reset_at_start_is_tcp_reset(azure: RunningSimulator) -> None:
    with azure.fault("reset"):
        reader, writer = await _raw(azure)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


@pytest.mark.parametrize("at", ["headers", "body"])
async def test_later_reset_comes_after_headers(azure: RunningSimulator, at: str) -> None:
    with azure.fault("reset", at=at):
        reader, writer = await _raw(azure)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        if at == "body":
            assert await reader.readexactly(10)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


@pytest.mark.parametrize("form", ["truncated", "html", "text", "empty"])
async def test_malformed_json_is_200_without_json(azure: RunningSimulator, keyed: httpx.AsyncClient, form: str) -> None:
    with azure.fault("malformed_json", form=form):
        answer = await _mint(keyed)
    assert answer.status_code == 200
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        answer.json()


@pytest.mark.parametrize("path", [GA, FLAT])
@pytest.mark.parametrize(
    ("form", "value"),
    [("null", None), ("empty", ""), ("blank", "   "), ("number", 42), ("object", {"token": "ek_x"})],
)
async def test_missing_value_changes_value_alone(
    azure: RunningSimulator, keyed: httpx.AsyncClient, path: str, form: str, value: object
) -> None:
    with azure.fault("missing_value", form=form):
        answer = await _mint(keyed, path)
    assert answer.json()["value"] == value
    assert "expires_at" in answer.json()
    with azure.fault("missing_value"):
        assert "value" not in (await _mint(keyed, path)).json()


async def test_expired_fault_expires_secret_too(azure: RunningSimulator, keyed: httpx.AsyncClient) -> None:
    with azure.fault("expired", seconds_ago=30):
        unix = (await _mint(keyed, GA)).json()
        iso = (await _mint(keyed, FLAT)).json()
    assert -32 < unix["expires_at"] - time.time() < -29
    assert iso["expires_at"].endswith("Z")
    assert azure.simulator.resource.secrets.find(unix["value"]) is None


@pytest.mark.parametrize("value", [None, "soon", -1, 1e300, {"at": 1}, "2999-01-01T00:00:00Z"])
async def test_expires_at_fault_sends_any_value(
    azure: RunningSimulator, keyed: httpx.AsyncClient, value: object
) -> None:
    with azure.fault("expires_at", value=value):
        assert (await _mint(keyed)).json()["expires_at"] == value
    with azure.fault("expires_at"):
        assert "expires_at" not in (await _mint(keyed)).json()


async def test_grant_fault_leaves_refusal_alone(azure: RunningSimulator) -> None:
    with azure.fault("missing_value"):
        async with httpx.AsyncClient(base_url=azure.base_url) as client:
            assert (await _mint(client)).status_code == 401


async def test_redirect_points_where_told(azure: RunningSimulator, keyed: httpx.AsyncClient) -> None:
    with azure.fault("redirect", location="http://127.0.0.1:1/elsewhere"):
        answer = await _mint(keyed)
    assert (answer.status_code, answer.headers["location"]) == (307, "http://127.0.0.1:1/elsewhere")


async def test_huge_body_is_50_mb_by_default(azure: RunningSimulator, keyed: httpx.AsyncClient) -> None:
    (default,) = parse_faults([{"match": "/", "fault": "huge_body"}])
    assert default.model_dump()["bytes"] == 50_000_000
    with azure.fault("huge_body", bytes=1_000_001):
        answer = await _mint(keyed)
    assert len(answer.content) == 1_000_001


async def test_huge_body_ends_when_client_leaves(azure: RunningSimulator) -> None:
    with azure.fault("huge_body", bytes=10_000_000_000):
        reader, writer = await _raw(azure)
        await reader.readexactly(100_000)
        writer.close()
        await azure.until(running=0)


async def test_fault_applies_as_often_as_told(azure: RunningSimulator, keyed: httpx.AsyncClient) -> None:
    azure.set_faults({"match": "/openai/v1", "fault": "status", "code": 503, "times": 2})
    assert [(await _mint(keyed)).status_code for _ in range(3)] == [503, 503, 200]


async def test_fault_matches_path_method_credential(azure: RunningSimulator, keyed: httpx.AsyncClient) -> None:
    azure.set_faults({"match": "/openai/realtime", "fault": "status", "code": 418})
    assert [(await _mint(keyed, path)).status_code for path in (GA, FLAT)] == [200, 418]
    azure.set_faults({"match": "/", "fault": "status", "code": 418, "method": "GET"})
    assert (await _mint(keyed)).status_code == 200
    azure.set_faults({"match": "/", "fault": "status", "code": 418, "auth": "key"})
    entra = {"authorization": "Bearer simulated-entra-token"}
    async with httpx.AsyncClient(base_url=azure.base_url, headers=entra) as by_entra:
        assert [(await _mint(client)).status_code for client in (keyed, by_entra)] == [418, 200]


async def test_first_matching_fault_is_met(azure: RunningSimulator, keyed: httpx.AsyncClient) -> None:
    azure.set_faults(
        {"match": "/", "fault": "drop_after", "frames": 1},
        {"match": "/openai", "fault": "status", "code": 500, "times": 1},
        {"match": "/openai", "fault": "status", "code": 502},
    )
    assert [(await _mint(keyed)).status_code for _ in range(2)] == [500, 502]


@pytest.fixture
async def control(azure: RunningSimulator) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"{azure.base_url}/_simulator") as client:
        yield client


async def test_faults_are_set_and_deleted_over_http(control: httpx.AsyncClient, keyed: httpx.AsyncClient) -> None:
    put = await control.put("/faults", json=[{"match": "/openai", "fault": "status", "code": 503, "times": 2}])
    assert put.status_code == 200
    assert (await _mint(keyed)).status_code == 503
    (listed,) = (await control.get("/faults")).json()
    assert (listed["fault"], listed["times"]) == ("status", 1)
    assert put.headers["x-simulated"] == "true"
    assert "access-control-allow-origin" not in put.headers
    assert (await control.delete("/faults")).status_code == 204
    assert (await control.get("/faults")).json() == []
    assert (await _mint(keyed)).status_code == 200


async def test_control_routes_ignore_faults(control: httpx.AsyncClient) -> None:
    await control.put("/faults", json=[{"match": "/", "fault": "hang"}])
    assert (await control.get("/faults", timeout=2)).status_code == 200


@pytest.mark.parametrize(
    ("faults", "named"),
    [
        ({}, "list"),
        ([{"match": "/", "fault": "earthquake"}], "earthquake"),
        ([{"match": "/"}], "[0].fault"),
        ([{"fault": "hang"}], "match"),
        ([{"match": "openai", "fault": "hang"}], "match"),
        ([{"match": "/", "fault": "status", "code": 99}], "code"),
        ([{"match": "/", "fault": "status", "cod": 500}], "[0].cod"),
        ([{"match": "/", "fault": "status", "times": -1}], "times"),
        ([{"match": "/", "fault": "status", "headers": {"a b": "c"}}], "a b"),
        ([{"match": "/", "fault": "status", "headers": {"a": "b\r\nc: d"}}], "headers"),
        ([{"match": "/", "fault": "status", "headers": {"Content-Length": "3"}}], "Content-Length"),
        ([{"match": "/", "fault": "redirect"}], "location"),
        ([{"match": "/", "fault": "slow", "seconds": "long"}], "seconds"),
        ([{"match": "/", "fault": "hang"}, {"match": "/", "fault": "drop_after"}], "[1].frames"),
    ],
)
async def test_invalid_fault_is_refused_and_named(control: httpx.AsyncClient, faults: object, named: str) -> None:
    answer = await control.put("/faults", json=faults)
    assert answer.status_code == 400
    assert named in answer.json()["error"]["message"]
    assert (await control.get("/faults")).json() == []


async def test_all_invalid_faults_are_named(control: httpx.AsyncClient) -> None:
    answer = await control.put("/faults", json=[{"match": "x", "fault": "hang"}, {"match": "/", "fault": "nope"}])
    assert len(answer.json()["error"]["problems"]) == 2
    assert (await control.put("/faults", content=b"[")).status_code == 400
    with pytest.raises(FaultsError):
        parse_faults("hang")


async def test_request_log_holds_no_secret(
    azure: RunningSimulator, control: httpx.AsyncClient, keyed: httpx.AsyncClient
) -> None:
    minted = (await _mint(keyed)).json()["value"]
    await keyed.post(f"{GA}?api-key=simulated-key&x=1", json={"note": minted, "key": "simulated-key"})
    await keyed.get("/none", headers={"authorization": f"Bearer {minted}"})
    with azure.fault("reset"), pytest.raises(httpx.TransportError):
        await _mint(keyed)
    await azure.until(running=0)
    seen = (await control.get("/requests")).json()
    assert [(entry["path"], entry["status"], entry["auth"], entry["fault"]) for entry in seen] == [
        (GA, 200, "key", None),
        (GA, 400, "key", None),
        ("/none", 404, "key", None),
        (GA, None, "key", "reset"),
    ]
    assert seen[0]["body"] == BODIES[GA]
    assert "api-key" in seen[0]["header_names"]
    assert seen[1]["query"] == "api-key=[redacted]&x=1"
    assert all(entry["ended"] for entry in seen)
    assert "simulated-key" not in json.dumps(seen)
    assert minted not in json.dumps(seen)
    assert (await control.delete("/requests")).status_code == 204
    assert azure.requests == []


async def test_request_log_keeps_unpaired_surrogates(control: httpx.AsyncClient, keyed: httpx.AsyncClient) -> None:
    await keyed.post(GA, content=b'{"\\ud800": "\xff\xfe"}', headers={"content-type": "application/json"})
    assert len((await control.get("/requests")).json()) == 1


async def test_simulator_describes_itself(control: httpx.AsyncClient) -> None:
    about = (await control.get(f"{control.base_url}".rstrip("/"))).json()
    assert about["simulated"] is True
    assert "simulation" in about["what"]
    assert (about["running"], about["calls"]) == (0, 0)
    assert about["kinds"] == ["direct", "project", "unified"]
