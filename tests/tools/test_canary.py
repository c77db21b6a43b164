"""A tool's credentials, the query of its URL, and what users said are in no log, event, metric or exception."""

import asyncio
import logging

import pytest
from prometheus_client import generate_latest
from structlog.testing import capture_logs

from strategies.outbound_proxy import parse_proxy
from tests.hooks.support import SECRET, Answer, answered, hangs, raw_server, secrets
from tests.support.sockets import refused_port
from tests.tools.support import MemoryClaims, agent, call, order_tool
from token_broker.hooks.sender import HookSender, hook_client
from token_broker.observability.events import Event, Metrics, Observer, observe_with
from token_broker.sessions.agent import Guardrail
from token_broker.tools.guardrail import HttpGuardrail
from token_broker.tools.http_runner import HttpToolRunner

HEADER, QUERY, SAID, ANSWERED = "canary-header-1", "canary-query-2", "canary-argument-3", "canary-output-4"
CREDENTIALS = (HEADER, QUERY, SECRET, SECRET.removeprefix("whsec_"))


async def _closed(_writer: asyncio.StreamWriter) -> None:
    """Closes without a word."""


async def _garbage(writer: asyncio.StreamWriter) -> None:
    writer.write(f"{ANSWERED} {HEADER}\r\n\r\n".encode())


ANSWERS: tuple[Answer, ...] = (
    answered(ANSWERED.encode()),
    answered(ANSWERED.encode(), status=500),
    answered(ANSWERED.encode(), status=404),
    answered(status=307, headers=f"Location: http://127.0.0.1:1/?code={QUERY}\r\n"),
    answered(ANSWERED.encode(), headers="Content-Encoding: gzip\r\n"),
    answered(ANSWERED.encode() * 100),
    _closed,
    _garbage,
    hangs,
)


@pytest.mark.slow
async def test_nothing_leaks(caplog: pytest.LogCaptureFixture) -> None:
    """Our own lines are looked at before the redactor; of libraries all but httpx's, whose lines the root drops."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.WARNING, logger="httpx")
    metrics, events = Metrics(), list[Event]()
    observe = observe_with(metrics, events.append)
    shown: list[str] = []
    with refused_port() as refused, capture_logs() as lines:
        async with hook_client() as direct, hook_client(proxy=parse_proxy(f"http://127.0.0.1:{refused}")) as proxied:
            for answer in ANSWERS:
                async with raw_server(answer) as server:
                    await _drive(HookSender(direct, secrets()), server.url, observe, shown)
            for url in (f"http://127.0.0.1:{refused}/", "https://no-such-name.invalid/"):
                await _drive(HookSender(direct, secrets()), url, observe, shown)
            await _drive(HookSender(proxied, secrets()), "https://crm.example.com/", observe, shown)
    assert {"tool_ran", "guardrail_failed"} <= {line["event"] for line in lines}
    logged = [str(lines), caplog.text]
    everything = "\n".join([*logged, *map(repr, events), *shown, generate_latest(metrics.registry).decode()])
    for canary in (*CREDENTIALS, SAID, ANSWERED):
        assert canary not in everything
    assert 'token_broker_tool_calls_total{agent="elena",outcome="done",tool="order_status"} 1.0' in everything


async def _drive(sender: HookSender, url: str, observe: Observer, shown: list[str]) -> None:
    """A call and a check, whose outcome must not have the credentials either; `repr`s are kept."""
    by = agent(
        order_tool(f"{url}?code={QUERY}", headers={"X-Key": HEADER}, timeout_s=0.4, max_output_bytes=1024),
        guardrail=Guardrail(url=f"{url}?code={QUERY}", timeout_ms=400),
    )
    runner = HttpToolRunner(sender, MemoryClaims(), None, observe=observe)
    asked = call(by, f'{{"number": "{SAID}"}}')
    output = await runner.run(asked)
    wrong = await runner.run(call(by, f'{{"number": 1, "{SAID}": "{SAID}"}}', call_id="call_2"))
    unknown = await runner.run(call(by, "{}", name=SAID, call_id="call_3"))
    verdict = await HttpGuardrail(sender, observe=observe).check(by, asked.owner, SAID, "typed")
    for credential in CREDENTIALS:
        assert credential not in f"{output}{wrong}{unknown}{verdict}"
    shown += [repr(runner), repr(sender), repr(by.tools), repr(by.guardrail), repr(verdict)]
