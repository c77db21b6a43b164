"""`/openapi.json` has every route of the application, and real answers are what it says."""

import ast
import asyncio
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
from starlette.routing import Mount, Route, WebSocketRoute

import token_broker
from tests.conftest import StartBroker
from tests.support.broker import RunningBroker
from tests.support.offers import OFFER
from token_broker.app import create_app
from token_broker.sessions.plans import PlanMaker
from token_broker.simulator import RunningSimulator

SESSION = "0123456789abcdef"
# Codes that belong to no operation: the info text names them.
ELSEWHERE = {
    "not_found",
    "method_not_allowed",
    "http_error",
    "upgrade_required",
    "sideband_not_served",
    "sideband_elsewhere",
    "transcription_not_served",
    "speaks_live",
    "malformed_request",
    "malformed_handshake",
    "head_timeout",
    "head_too_large",
}


class Document:
    """The document as served, and what checks answers against it."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.seen: set[tuple[str, str, int]] = set()

    def responses(self, path: str, method: str) -> dict[str, Any]:
        responses: dict[str, Any] = self.document["paths"][path][method]["responses"]
        return responses

    def check(self, path: str, answer: httpx.Response) -> None:
        """The answer's status, media type, headers and body are as described."""
        method = answer.request.method.lower()
        described = self.responses(path, method).get(str(answer.status_code))
        assert described is not None, f"{method} {path} answers {answer.status_code}, which is not described"
        for name in described["headers"]:
            header = self.document["components"]["headers"][name]
            if header.get("required"):
                assert name in answer.headers, f"{method} {path} {answer.status_code} lacks {name}"
        content = described.get("content", {})
        if content:
            media_type = answer.headers["content-type"].partition(";")[0]
            assert media_type in content
            if media_type.endswith("json"):
                self._validator(content[media_type]["schema"]).validate(answer.json())
        else:
            assert answer.content == b""
        self.seen.add((path, method, answer.status_code))

    def _validator(self, schema: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
        rooted = {**schema, "components": self.document["components"]}
        return jsonschema_rs.Draft202012Validator(rooted, validate_formats=True)


async def document_of(broker: RunningBroker) -> Document:
    answer = await broker.client.get("/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    return Document(answer.json())


async def test_exactly_the_routes_are_described(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure)
    routes: set[tuple[str, str]] = set()
    for route in create_app(broker.settings).routes:
        match route:
            case WebSocketRoute(path=path):
                routes.add((path, "x-websocket"))
            case Route(path=path, methods=None):
                pass  # a WebSocket's path, where a plain request is answered 426
            case Route(path=path, methods=set() as methods):
                routes |= {(path, method.lower()) for method in methods - {"HEAD"}}
            case Mount(path=path):
                routes.add((f"{path}/{{file}}", "get"))
            case _:
                pytest.fail(f"a route of another kind: {route}")
    paths = (await document_of(broker)).document["paths"]
    kinds = {"get", "post", "put", "delete", "x-websocket"}
    described = {(path, method) for path, item in paths.items() for method in item if method in kinds}
    assert described == routes


async def test_document_is_valid_openapi_3_1(azure: RunningSimulator, start_broker: StartBroker) -> None:
    document = (await document_of(await start_broker(azure))).document
    assert document["openapi"] == "3.1.0"
    operations = [
        op for item in document["paths"].values() for op in item.values() if isinstance(op, dict) and "tags" in op
    ]
    ids = [operation["operationId"] for operation in operations]
    assert len(ids) == len(set(ids))
    for schema in document["components"]["schemas"].values():
        jsonschema_rs.meta.validate(schema)
    for reference in _references(document):
        part: Any = document
        for step in reference.removeprefix("#/").split("/"):
            part = part[step]
    for operation in operations:
        for described in [*operation["responses"].values(), operation.get("requestBody", {})]:
            for content in described.get("content", {}).values():
                if "example" in content:
                    Document(document)._validator(content["schema"]).validate(content["example"])


def _references(part: Any) -> list[str]:
    if isinstance(part, dict):
        own = [part["$ref"]] if "$ref" in part else []
        return own + [reference for value in part.values() for reference in _references(value)]
    return [reference for value in part for reference in _references(value)] if isinstance(part, list) else []


async def test_every_raised_code_is_described(azure: RunningSimulator, start_broker: StartBroker) -> None:
    document = (await document_of(await start_broker(azure))).document
    described = {
        (int(status), code)
        for item in document["paths"].values()
        for operation in item.values()
        if isinstance(operation, dict) and "responses" in operation
        for status, answer in operation["responses"].items()
        for content in answer.get("content", {}).values()
        if "allOf" in content["schema"]
        for code in content["schema"]["allOf"][1]["properties"]["code"]["enum"]
    }
    raised = _raised()
    assert len(raised) > 25
    assert {found for found in raised ^ described if found[1] not in ELSEWHERE} == set()


def _raised() -> set[tuple[int, str]]:
    """Status and code of every `Problem(…)`, `_refused(…)` and `_unauthorized(…)` in the source."""
    found = set()
    for file in Path(token_broker.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name("Problem"), args=[ast.Constant(int() as status), ast.Constant(code), *_]):
                    found.add((status, str(code)))
                case ast.Call(func=ast.Name("Problem"), args=[ast.Constant(503), ast.Name("code"), *_]):
                    found |= {(503, "store_busy"), (503, "store_away")}
                case ast.Call(
                    func=ast.Name("_refused"), args=[_, _, ast.Constant(int() as status), ast.Constant(code), *_]
                ):
                    found.add((status, str(code)))
                case ast.Call(func=ast.Name("_unauthorized"), args=[ast.Constant(code), *_]):
                    found.add((401, str(code)))
    return found


@pytest.mark.slow
async def test_token_answers_are_as_described(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, rate_limit_per_minute=9, max_body_bytes=2000, body_timeout_s=0.3)
    document = await document_of(broker)
    path = "/realtime/token"
    plan = await broker.client.post(path, json={"session_id": SESSION})
    document.check(path, plan)
    azure.set_faults({"match": "/", "fault": "status", "code": 503})
    document.check(path, await broker.client.post(path, json={}))
    document.check(path, await broker.client.post(path, content=b"{"))
    document.check(path, await broker.client.post(path, json={"agent_id": "nobody"}))
    document.check(path, await broker.client.post(path, json={"what": 1}))
    document.check(path, await broker.client.post(path, json={"session_id": SESSION}))
    document.check(path, await broker.client.post(path, json={"user_id": "x" * 3000}))
    document.check(path, await broker.client.post(path, content=_slowly()))
    for _ in range(2):
        last = await broker.client.post(path, json={})
    document.check(path, last)
    document.check(path, await broker.client.post(path, json={}, headers={"Host": "elsewhere.example.com"}))
    statuses = {status for _, _, status in document.seen}
    assert statuses == {200, 400, 403, 404, 408, 413, 421, 422, 429}


async def _slowly() -> Any:
    yield b"{"
    await asyncio.sleep(1)
    yield b"}"


async def test_503_is_as_described(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, token_strategies=("ga",), retry_attempts=1)
    document = await document_of(broker)
    azure.set_faults({"match": "/", "fault": "status", "code": 503})
    answer = await broker.client.post("/realtime/token", json={})
    assert answer.status_code == 503
    document.check("/realtime/token", answer)


async def test_401_is_as_described(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, auth="easyauth")
    document = await document_of(broker)
    answer = await broker.client.post("/realtime/token", json={})
    assert answer.status_code == 401
    document.check("/realtime/token", answer)


async def test_500_is_as_described(
    azure: RunningSimulator, start_broker: StartBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = await start_broker(azure)
    document = await document_of(broker)
    monkeypatch.setattr(PlanMaker, "make", lambda *_args, **_more: 1 / 0)
    answer = await broker.client.post("/realtime/token", json={})
    assert answer.status_code == 500
    document.check("/realtime/token", answer)


async def test_call_answers_are_as_described(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, max_body_bytes=2000, misconfigured_retry_s=0.001)
    document = await document_of(broker)
    path = "/realtime/calls"
    plan = await broker.plan()
    proof = {"Authorization": f"Bearer {plan['session_token']}"}
    sdp = proof | {"Content-Type": "application/sdp"}

    async def offer(content: str = OFFER, headers: dict[str, str] = sdp, query: str = "") -> int:
        answer = await broker.client.post(f"{path}{query}", content=content, headers=headers)
        document.check(path, answer)
        return answer.status_code

    assert await offer("hello") == 400
    assert await offer(headers={"Content-Type": "application/sdp"}) == 401
    assert await offer(query=f"?session_id={SESSION}") == 403
    assert await offer(query="?agent_id=nobody") == 404
    assert await offer(OFFER + "a=x\r\n" * 1000) == 413
    assert await offer(headers=proof) == 415
    azure.set_faults({"match": "/openai/v1/realtime/calls", "fault": "status", "code": 400})
    assert await offer() == 502
    azure.set_faults({"match": "/openai/v1/realtime/calls", "fault": "hang"})
    assert await offer() == 504
    azure.set_faults({"match": "/", "fault": "status", "code": 401})
    assert await offer() == 503
    for headers in (proof, {}):
        document.check(f"{path}/{{call_id}}", await broker.client.delete(f"{path}/none", headers=headers))
    assert {status for at, _, status in document.seen if at != path} == {401, 404}


async def test_memory_answers_are_as_described(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, max_turn_bytes=1000)
    document = await document_of(broker)
    await broker.memory.ready()
    plan = await broker.plan({"session_id": SESSION})
    proof = {"Authorization": f"Bearer {plan['session_token']}"}
    turn = {"session_id": SESSION, "agent_id": "elena", "role": "user", "content": "Hello", "turn_id": "t1"}

    async def ask(method: str, url: str, path: str, **options: Any) -> int:
        answer = await broker.client.request(method, url, **({"headers": proof} | options))
        document.check(path, answer)
        return answer.status_code

    path = "/conversation/turn"
    assert await ask("POST", path, path, json=turn) == 200
    assert await ask("POST", path, path, content="{") == 400
    assert await ask("POST", path, path, json=turn, headers={}) == 401
    assert await ask("POST", path, path, json=turn | {"session_id": "f" * 16}) == 403
    assert await ask("POST", path, path, json=turn | {"content": "x" * 1001}) == 413
    assert await ask("POST", path, path, json=turn | {"interrupted": 0}) == 422
    path = "/memory/enrich"
    said = {"session_id": SESSION, "speaker": "user", "text": "Hello"}
    assert await ask("POST", path, path, json=said) == 202
    assert await ask("POST", path, path, json={"transcripts": [said, said]}) == 202
    assert await ask("POST", path, path, json={"transcripts": []}) == 422
    path, url = "/memory/sessions/{session_id}/turns", f"/memory/sessions/{SESSION}/turns"
    assert await ask("GET", url, path) == 200
    assert await ask("GET", f"{url}?limit=99999999999999", path) == 200
    assert await ask("GET", f"{url}?limit=0", path) == 422
    assert await ask("GET", f"{url}?after=none", path) == 404
    assert await ask("GET", url, path, headers={}) == 401
    assert await ask("GET", "/memory/sessions/ffffffffffffffff/turns", path) == 403
    assert await ask("DELETE", url, path) == 200


async def test_other_answers_are_as_described(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure, metrics_token="metrics-secret")
    document = await document_of(broker)
    for headers in ({}, {"Authorization": "Bearer metrics-secret"}):
        for path in ("/", "/docs", "/openapi.json", "/healthz", "/readyz", "/metrics", "/status"):
            document.check(path, await broker.client.get(path, headers=headers))
    document.check("/docs/{file}", await broker.client.get("/docs/swagger-ui.css"))
    document.check("/docs/{file}", await broker.client.get("/docs/README.md"))
    document.check("/config/{agent_id}", await broker.client.get("/config/elena"))
    document.check("/config/{agent_id}", await broker.client.get("/config/nobody"))
    document.check("/client/{file}", await broker.client.get("/client/voice-session.js"))
    document.check("/client/{file}", await broker.client.get("/client/none.js"))
    page = await broker.client.get("/")
    document.check("/", await broker.client.get("/", headers={"If-None-Match": page.headers["etag"]}))
    broker.drain.begin()
    draining = await broker.client.get("/readyz")
    assert draining.status_code == 503
    document.check("/readyz", draining)


async def test_405_names_all_allowed_methods(azure: RunningSimulator, start_broker: StartBroker) -> None:
    broker = await start_broker(azure)
    answer = await broker.client.put(f"/memory/sessions/{SESSION}/turns")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "DELETE, GET, HEAD"
    assert answer.json()["code"] == "method_not_allowed"
