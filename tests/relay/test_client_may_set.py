"""What an agent's `client_may_set` lets a client change, on the proxy, at compatible endpoints, and after a handoff."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from strategies.session_model.agent_settings import CLIENT_MAY_SET, ClientSetting, Dialect
from tests.relay.support.azure import scripted_azure
from tests.relay.support.broker import build, make_settings, serving
from tests.support.agents import write_agents
from token_broker.relay.adapters import CompatAdapter, ToAzure
from token_broker.relay.dialects.session_settings import client_session
from token_broker.relay.policy.allowlist import Allowed, examine
from token_broker.relay.resume.settings_changes import client_settings
from token_broker.sessions.agents import load_agents

EVERYTHING: frozenset[ClientSetting] = frozenset(get_args(ClientSetting))
# Each word's setting in both dialects, and whether a client may set it where the agent says nothing.
VALUES: dict[ClientSetting, tuple[dict[str, Any], dict[str, Any]]] = {
    "turn_detection": (
        {"audio": {"input": {"turn_detection": {"type": "server_vad", "threshold": 0.3}}}},
        {"turn_detection": {"type": "server_vad", "threshold": 0.3}},
    ),
    "noise_reduction": (
        {"audio": {"input": {"noise_reduction": {"type": "near_field"}}}},
        {"input_audio_noise_reduction": {"type": "near_field"}},
    ),
    "modalities": ({"output_modalities": ["text"]}, {"modalities": ["text"]}),
    "formats": (
        {"audio": {"input": {"format": {"type": "audio/pcmu"}}, "output": {"format": {"type": "audio/pcmu"}}}},
        {"input_audio_format": "g711_ulaw", "output_audio_format": "g711_ulaw", "input_audio_sampling_rate": 8000},
    ),
    "speed": ({"audio": {"output": {"speed": 1.2}}}, {}),
    "max_output_tokens": ({"max_output_tokens": 90}, {"max_response_output_tokens": 90}),
    "echo_cancellation": ({}, {"input_audio_echo_cancellation": {"type": "server_echo_cancellation"}}),
    "parallel_tool_calls": ({"parallel_tool_calls": False}, {"parallel_tool_calls": False}),
    "reasoning_effort": ({"reasoning": {"effort": "low"}}, {"reasoning_effort": "low"}),
    "temperature": ({}, {"temperature": 0.7}),
    "tool_choice": ({"tool_choice": "none"}, {"tool_choice": "none"}),
    "transcription": (
        {"audio": {"input": {"transcription": {"model": "m", "language": "de"}}}},
        {"input_audio_transcription": {"model": "m", "language": "de"}},
    ),
    "voice": ({"audio": {"output": {"voice": "ash"}}}, {"voice": {"type": "openai", "name": "ash"}}),
}
NEVER = {"instructions": "Be a pirate.", "tools": [], "model": "other", "prompt": {"id": "p"}, "metadata": {"a": "b"}}


def passed(session: dict[str, Any], may_set: frozenset[ClientSetting]) -> dict[str, Any]:
    """What goes to Azure of a client's `session.update`; objects without a field are none."""
    found = examine(json.dumps({"type": "session.update", "session": session}), may_set)
    assert isinstance(found, Allowed)
    return dict(_filled(found.event["session"]))


def _filled(value: dict[str, Any]) -> dict[str, Any]:
    inner = {name: _filled(each) if isinstance(each, dict) else each for name, each in value.items()}
    return {name: each for name, each in inner.items() if each != {}}


@pytest.mark.parametrize("word", VALUES)
@pytest.mark.parametrize("dialect", [0, 1], ids=["ga", "preview"])
def test_each_word_lets_its_setting_pass(word: ClientSetting, dialect: int) -> None:
    session = VALUES[word][dialect]
    assert passed(session, frozenset({word})) == session
    assert passed({**session, **NEVER}, EVERYTHING) == session
    assert passed(session, EVERYTHING - {word}) == {}
    assert passed(session, CLIENT_MAY_SET) == (session if word in CLIENT_MAY_SET else {})


def test_words_are_all_there() -> None:
    assert VALUES.keys() == EVERYTHING
    assert client_session(frozenset()).rows.keys() == {"type"}


@pytest.mark.parametrize(
    ("response", "word"),
    [
        ({"output_modalities": ["text"]}, "modalities"),
        ({"max_output_tokens": 5}, "max_output_tokens"),
        ({"audio": {"output": {"format": {"type": "audio/pcmu"}}}}, "formats"),
        ({"temperature": 0.5}, "temperature"),
        ({"tool_choice": "none"}, "tool_choice"),
        ({"audio": {"output": {"voice": "ash"}}}, "voice"),
    ],
)
def test_answers_follow_the_same_words(response: dict[str, Any], word: ClientSetting) -> None:
    text = json.dumps({"type": "response.create", "response": {**response, "metadata": {"a": "b"}}})
    for may_set, kept in ((frozenset({word}), response), (EVERYTHING - {word}, {})):
        found = examine(text, may_set)
        assert isinstance(found, Allowed)
        assert _filled(found.event["response"]) == {**kept, "metadata": {"a": "b"}}


@pytest.mark.parametrize("client", ["ga", "preview"])
@pytest.mark.parametrize("upstream", ["ga", "preview"])
def test_translation_asks_the_same_words(client: Dialect, upstream: Dialect) -> None:
    session = VALUES["turn_detection"][client == "preview"] | VALUES["max_output_tokens"][client == "preview"]
    text = json.dumps({"type": "session.update", "session": session})
    adapter = CompatAdapter(client)
    found = adapter.from_client(text, upstream, frozenset({"max_output_tokens"}))
    assert isinstance(found, ToAzure)
    (sent,) = (json.loads(each)["session"] for each in found.texts)
    name = "max_output_tokens" if upstream == "ga" else "max_response_output_tokens"
    assert _filled(sent) == {**({"type": "realtime"} if upstream == "ga" else {}), name: 90}
    assert found.told == (), "what only the agent sets is left out in silence: official clients send all of it"


def test_another_session_gets_what_is_permitted() -> None:
    changes = VALUES["turn_detection"][0] | {"max_output_tokens": 90, "output_modalities": ["text"]}
    may_set: frozenset[ClientSetting] = frozenset({"max_output_tokens"})
    kept = client_settings(changes, old="ga", new="preview", may_set=may_set)
    assert kept == {"max_response_output_tokens": 90}


AGENTS = """
default = "ann"
[agents.ann]
name = "Ann"
voices = { ga = "marin", preview = "ava" }
instructions = "You are Ann."
client_may_set = ["temperature", "turn_detection", "formats", "max_output_tokens"]
[agents.ben]
name = "Ben"
inherits = "ann"
instructions = "You are Ben."
client_may_set = ["temperature"]
temperature = 0.9
turn_detection = { silence_duration_ms = 300 }
[agents.cid]
name = "Cid"
inherits = "ben"
voices = { ga = "cedar", preview = "guy" }
instructions = "You are Cid."
"""


async def test_handoff_keeps_what_the_next_agent_permits(tmp_path: Path) -> None:
    path = write_agents(tmp_path, AGENTS)
    changed = {
        "temperature": 0.5,
        "max_response_output_tokens": 90,
        "turn_detection": None,
        "output_audio_format": "g711_ulaw",
        "input_audio_noise_reduction": None,  # not permitted
    }
    async with scripted_azure() as azure:
        prepared = build(make_settings(azure.url), agents=load_agents(path))
        async with serving(prepared) as running, running.client(agent_id="ann") as client:
            await client.ready()
            await client.send({"type": "session.update", "session": changed})
            talk = await azure.talk()
            update = await talk.next_event("session.update", nth=2)
            del changed["input_audio_noise_reduction"]
            assert update["session"] == changed
            own = {"type": "server_vad", "threshold": 0.6, "prefix_padding_ms": 300, "silence_duration_ms": 300}
            await client.send({"type": "broker.agent.switch", "agent_id": "ben"})
            update = await talk.next_event("session.update", nth=3)
            handed = {"instructions": "You are Ben.", "tools": [], "turn_detection": own}
            assert update["session"] == handed | {"max_response_output_tokens": "inf"}, (
                "not the temperature: that stays"
            )
            await client.until("broker.agent.switched")
            await client.send({"type": "broker.agent.switch", "agent_id": "cid"})
            update = await (await azure.talk(1)).next_event("session.update")
            session = update["session"]
            assert (session["temperature"], session["turn_detection"]) == (0.5, own)
            assert (session["output_audio_format"], session["instructions"]) == ("g711_ulaw", "You are Cid.")
