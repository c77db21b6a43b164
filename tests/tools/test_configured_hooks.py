"""The secret that hooks are signed with: needed where any hook is, and in no log."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.hooks.support import SECRET
from tests.support.broker import make_settings
from tests.tools.support import agent, order_tool
from token_broker.bootstrap import build_broker
from token_broker.observability.events import Metrics
from token_broker.observability.logging import Redactor, own_secrets
from token_broker.server.drain import Drain
from token_broker.sessions.agent import Agent, Guardrail, SummaryHook
from token_broker.sessions.agent_tools import FunctionTool
from token_broker.settings import Settings, SettingsError
from token_broker.tools.configured_hooks import configured_hooks, hook_secrets

URL = "https://crm.example.com/x?code=canary-1"
CLIENT_TOOL = FunctionTool(type="function", name="show_map", run="client")


def settings(folder: Path, secret: str | None) -> Settings:
    return make_settings(folder, None, tools_secret=None if secret is None else SecretStr(secret))


@pytest.mark.parametrize(
    ("by", "name"),
    [
        (agent(order_tool(URL)), "elena: tool order_status"),
        (agent(guardrail=Guardrail(url=URL)), "elena: guardrail"),
        (agent(summary=SummaryHook(url=URL)), "elena: summary"),
    ],
)
def test_hook_needs_the_secret(by: Agent, name: str, tmp_path: Path) -> None:
    (hook,) = configured_hooks([by])
    assert hook.name == name
    assert "canary" not in repr(hook)
    with pytest.raises(SettingsError, match=f"BROKER_TOOLS_SECRET: missing; {name} is signed with it"):
        hook_secrets(settings(tmp_path, None), [by])
    assert len(hook_secrets(settings(tmp_path, f"{SECRET} {SECRET}"), [by])) == 2


def test_agents_without_hooks_need_none(tmp_path: Path) -> None:
    assert hook_secrets(settings(tmp_path, None), [agent(CLIENT_TOOL, guardrail=None)]) == ()


def test_malformed_secret_stops_without_a_hook_too(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="BROKER_TOOLS_SECRET: should be whsec_") as refused:
        hook_secrets(settings(tmp_path, "geheim!"), [])
    assert "geheim" not in str(refused.value)


def test_secrets_are_redacted(tmp_path: Path) -> None:
    other = f"{SECRET[:-4]}AAA="
    redact = Redactor(own_secrets(settings(tmp_path, f"{SECRET} {other}")))
    line = redact(f"{SECRET} {SECRET.removeprefix('whsec_')} {other}")
    assert SECRET[10:30] not in line


async def test_start_stops_without_the_secret(tmp_path: Path) -> None:
    path = tmp_path / "agents.toml"
    path.write_text("""
        default = "ann"
        [agents.ann]
        name = "Ann"
        voices = { ga = "marin", preview = "en-US-Ava:DragonHDLatestNeural" }
        instructions = "You are Ann."
        guardrail = { url = "https://guard.example.com/" }
    """)
    chosen = make_settings(tmp_path, None, agents_file=path)
    with pytest.raises(SettingsError, match="BROKER_TOOLS_SECRET: missing; ann: guardrail"):
        async with build_broker(chosen, Drain(), Metrics()):
            pass
