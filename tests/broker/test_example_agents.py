"""The agents of `examples/agents/`: each has a talk on GA and on Voice Live, in one broker of all of them."""

import re
from pathlib import Path

import pytest

from strategies.session_model.session_fields import Body
from tests.compat.conftest import SIGNING_KEY, CompatBroker
from tests.strategies.test_session_fields import body_of
from tests.support.agents import write_agents
from tests.support.resources import run_resources
from token_broker.sessions.agents import AgentRegistry, load_agents
from token_broker.sessions.plans import session_spec
from token_broker.settings import Settings

FOLDER = Path(__file__).parents[2] / "examples" / "agents"
FILES = sorted(FOLDER.glob("*.toml"))


@pytest.fixture(autouse=True)
def crm_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRM_TOKEN", "Bearer a-token-of-the-crm")


def all_examples(folder: Path) -> Path:
    """One file of all of them: one start is enough for all talks."""
    texts = [path.read_text(encoding="utf-8") for path in FILES]
    together = "\n".join(re.sub(r"^default = .*$", "", text, flags=re.MULTILINE) for text in texts)
    return write_agents(folder, f'default = "support"\n{together}')


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_example_fits_every_body(path: Path) -> None:
    agents = load_agents(path)
    assert agents.default in agents
    bodies: tuple[Body, ...] = ("ga_mint", "ga_socket", "voice_live", "flat_mint")
    for agent in agents.values():
        spec = session_spec(agent, Settings(_env_file=None))
        for body in bodies:
            assert body_of(spec, body)["instructions"] == agent.instructions


def test_there_are_five() -> None:
    assert len(FILES) == 5
    assert all(path.name in (FOLDER / "README.md").read_text(encoding="utf-8") for path in FILES)


async def test_each_example_talks_in_both_dialects(tmp_path: Path) -> None:
    options = {
        name: {"zone": zone, "transcription_model": "gpt-4o-mini-transcribe", "api_version": "2026-07-15"}
        for name, zone in (("one", "eu"), ("two", "us"))
    }
    async with run_resources(
        tmp_path,
        *options,
        options=options,
        agents_file=all_examples(tmp_path),
        signing_keys=SIGNING_KEY,
        direct_websocket="on",
        tools_secret="whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    ) as several:
        agents: AgentRegistry = several.broker.agents
        compat = CompatBroker(several.broker, several.azures["one"])
        for agent in agents.values():
            for path in ("/v1/realtime", "/voice-live/realtime"):
                secret = await compat.secret({"metadata": {"agent_id": agent.id}})
                async with compat.connect(path, secret=secret) as caller:
                    created = await caller.hear("session.created")
                    assert ("type" in created["session"]) is (path == "/v1/realtime")
            plan = await several.broker.plan({"agent_id": agent.id})
            unseen = {"webrtc", "websocket"} & {each["transport"] for each in plan["connections"]}
            assert bool(unseen) is not agent.is_seen, agent.id
            assert (plan["token"] is None) is agent.is_seen
        relay = several.broker.relay.snapshot()
        assert (relay.settings_left_out, relay.sessions_refused) == ({}, {}), "Azure took each session as it is"
        kept = agents["berater"]
        assert [each.name for each in several.broker.state["minting"].pool.allowed(kept.wanted(""))] == ["one"]
