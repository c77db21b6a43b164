"""The doctor's pings: signed, without arguments, and what refuses them is named."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from pydantic import SecretStr
from standardwebhooks import Webhook

from tests.doctor.support import diagnose, named, settings_for
from tests.hooks.support import SECRET, Answer, RawServer, answered, raw_server
from tests.support.agents import write_agents
from token_broker.doctor.checks import CheckStatus
from token_broker.doctor.verdicts import judge_hook
from token_broker.hooks.sender import HookAnswer, HookFailure
from token_broker.settings import Settings
from token_broker.simulator import RunningSimulator, run_in_thread

AGENTS = """
default = "ann"
[agents.ann]
name = "Ann"
voices = {{ ga = "marin", preview = "en-US-Ava:DragonHDLatestNeural" }}
instructions = "You are Ann."
guardrail = {{ url = "{url}/guardrail" }}
summary = {{ url = "{url}/summary" }}
[[agents.ann.tools]]
type = "function"
name = "order_status"
run = {{ url = "{url}/order?code=canary-query-1", headers = {{ X-Key = "canary-header-2" }} }}
[[agents.ann.tools]]
type = "function"
name = "show_map"
run = "client"
"""


@pytest.fixture
def azure() -> Iterator[RunningSimulator]:
    with run_in_thread() as running:
        yield running


@pytest_asyncio.fixture
async def server() -> AsyncIterator[RawServer]:
    async with raw_server(answered(b"canary-body-3")) as running:
        yield running


def settings(azure: RunningSimulator, server: RawServer, folder: Path, secret: str | None = SECRET) -> Settings:
    path = write_agents(folder, AGENTS.format(url=f"http://127.0.0.1:{server.port}"))
    tools_secret = None if secret is None else SecretStr(secret)
    return settings_for(azure.base_url, agents_file=path, tools_secret=tools_secret)


async def test_every_hook_gets_a_signed_ping(azure: RunningSimulator, server: RawServer, tmp_path: Path) -> None:
    report = await diagnose(settings(azure, server, tmp_path), pings_hooks=True)
    for name in ("tool order_status", "guardrail", "summary"):
        assert named(report, f"hook ann: {name}").status is CheckStatus.OK
    assert {got.line.split()[1] for got in server.received} == {"/order?code=canary-query-1", "/guardrail", "/summary"}
    for got in server.received:
        assert Webhook(SECRET).verify(got.body, got.headers) == {"type": "ping"}
    assert [got.headers.get("x-key") for got in server.received].count("canary-header-2") == 1
    assert "canary" not in json.dumps(report.as_json())


async def test_without_the_option_nothing_is_sent(azure: RunningSimulator, server: RawServer, tmp_path: Path) -> None:
    await diagnose(settings(azure, server, tmp_path))
    assert not server.received


@pytest.mark.parametrize("secret", [None, "geheim!"])
async def test_secret_that_cannot_sign(
    azure: RunningSimulator, server: RawServer, tmp_path: Path, secret: str | None
) -> None:
    report = await diagnose(settings(azure, server, tmp_path, secret), pings_hooks=True)
    check = named(report, "hooks")
    assert check.status is CheckStatus.FAILED
    assert check.finding.startswith("BROKER_TOOLS_SECRET: ")
    assert "geheim" not in check.finding
    assert not server.received


async def test_agents_without_hooks(azure: RunningSimulator) -> None:
    report = await diagnose(settings_for(azure.base_url), pings_hooks=True)
    assert named(report, "hooks").status is CheckStatus.NOTE


@pytest.mark.parametrize(
    ("answer", "finding"),
    [
        (answered(status=401), "refuses the ping (HTTP 401)"),
        (answered(status=404), "answers the ping with HTTP 404"),
        (answered(status=301, headers="Location: https://canary.example.com/\r\n"), "answers with a redirect"),
    ],
)
async def test_refused_ping_is_named(
    azure: RunningSimulator, server: RawServer, tmp_path: Path, answer: Answer, finding: str
) -> None:
    server.answer = answer
    report = await diagnose(settings(azure, server, tmp_path), pings_hooks=True)
    check = named(report, "hook ann: tool order_status")
    assert check.status is CheckStatus.FAILED
    assert check.finding.startswith(finding)
    assert "canary" not in json.dumps(report.as_json())


@pytest.mark.parametrize("failure", ["refused", "unreachable", "timeout", "redirect", "too_large", "broken"])
def test_every_failure_has_a_remediation(failure: HookFailure) -> None:
    check = judge_hook("ann: guardrail", HookAnswer(failure=failure), "3 ms")
    assert (check.name, check.status) == ("hook ann: guardrail", CheckStatus.FAILED)
    assert check.finding
    assert check.remediation
