"""Any JSON, any bytes, any headers get 200 or a 4xx problem document, never a 500."""

import asyncio
import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.broker import RunningBroker, make_settings, run_broker
from tests.support.plans import assert_usable
from token_broker.simulator import RunningSimulator, run_in_thread

PROBLEM_MEMBERS = {"type", "title", "status", "code", "detail", "correlation_id"}

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)
# Bodies that are nearly right reach further in than any JSON does.
nearly_right = st.fixed_dictionaries(
    {},
    optional={
        "agent_id": st.sampled_from(["elena", "marcus", "sage", "hal", ""]) | json_values,
        "session_id": st.from_regex(r"[A-Za-z0-9_-]{16,64}") | json_values,
        "modalities": st.lists(st.sampled_from(["audio", "text", "video"]), max_size=3) | json_values,
        "user_id": st.text(max_size=300) | json_values,
    },
)
header_text = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=200)

FUZZ = settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)


class Loop:
    """A broker and a simulated Azure, driven from synchronous tests."""

    def __init__(self, broker: RunningBroker, azure: RunningSimulator, runner: asyncio.Runner) -> None:
        self.broker = broker
        self.azure = azure
        self._runner = runner

    def post(self, content: bytes, headers: dict[bytes, bytes] | None = None) -> httpx.Response:
        return self._runner.run(
            self.broker.client.post("/realtime/token", content=content, headers=list((headers or {}).items()))
        )


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    with asyncio.Runner() as runner, tempfile.TemporaryDirectory() as directory, run_in_thread() as azure:
        stack = contextlib.AsyncExitStack()
        broker = runner.run(stack.enter_async_context(run_broker(make_settings(Path(directory), azure.base_url))))
        yield Loop(broker, azure, runner)
        runner.run(stack.aclose())


def check(answer: httpx.Response, loop: Loop) -> None:
    if answer.status_code == 200:
        plan = answer.json()
        assert_usable(plan, loop.broker, loop.azure)
        assert plan["correlation_id"] == answer.headers["x-request-id"]
        return
    assert 400 <= answer.status_code < 500
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document.keys() >= PROBLEM_MEMBERS
    assert document["status"] == answer.status_code
    assert document["correlation_id"] == answer.headers["x-request-id"]
    assert len(answer.content) < 20_000, "a problem does not give back all that it was sent"


@FUZZ
@given(body=json_values | nearly_right, escaped=st.booleans())
@example(body={"agent_id": "elena", "x" * 10_000: {"y": [1] * 100}}, escaped=True)
@example(body={f"field-{number}": number for number in range(500)}, escaped=True)
@example(body={"\ud800": 1}, escaped=True)
@example(body={"\ud800": 1}, escaped=False)
@example(body={"user_id": "\ud800"}, escaped=True)
@example(body={"user_id": "\ud800"}, escaped=False)
def test_any_json_gets_plan_or_problem(loop: Loop, *, body: Any, escaped: bool) -> None:
    check(loop.post(json.dumps(body, ensure_ascii=escaped).encode("utf-8", "surrogatepass")), loop)


@FUZZ
@given(body=st.binary(max_size=2000))
def test_any_bytes_get_plan_or_problem(loop: Loop, body: bytes) -> None:
    check(loop.post(body), loop)


@FUZZ
@given(session_token=header_text, request_id=header_text, authorization=header_text)
@example(session_token="e30.e30.", request_id="", authorization="Bearer")
@example(session_token="eyJhbGciOiJub25lIn0.e30.", request_id="a\xa0b", authorization="Bearer \xff")
def test_any_headers_get_plan_or_problem(loop: Loop, session_token: str, request_id: str, authorization: str) -> None:
    headers = {"X-Session-Token": session_token, "X-Request-ID": request_id, "Authorization": authorization}
    sent = {name.encode(): value.strip().encode("latin-1") for name, value in headers.items()}
    check(loop.post(b'{"session_id": "0123456789abcdef"}', sent), loop)


@FUZZ
@given(path=st.text(st.characters(exclude_categories=["Cs"]), max_size=60), method=st.sampled_from(["GET", "POST"]))
def test_any_path_gets_no_server_error(loop: Loop, path: str, method: str) -> None:
    answer = loop._runner.run(loop.broker.client.request(method, f"/{quote(path.lstrip('/'))}"))
    assert answer.status_code < 500
    assert answer.headers["x-request-id"]
