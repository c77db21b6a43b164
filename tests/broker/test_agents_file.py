"""The agents' file: every key, what is inherited, and what stops the start."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest

from strategies.session_model.agent_settings import CLIENT_MAY_SET, AgentSettings, ClientSetting
from strategies.session_model.azure_schema import schema_faults, schema_source
from tests.broker.test_settings import written
from tests.strategies import published_sessions
from token_broker.sessions.agent import AgentKeys
from token_broker.sessions.agents import AgentsFileError, load_agents

HEAD = """
default = "a"
[agents.a]
name = "A"
voices = { ga = "marin", preview = "en-US-GuyNeural" }
instructions = "Be A."
"""
FULL = f"""{HEAD}
greeting = "Say hello."
language = "de-AT"
model = "talker"
model_family = "gpt-realtime-2"
zones = ["eu"]
resources = ["swe*"]
turn_detection = {{ type = "semantic_vad", eagerness = "low", interrupt_response = true }}
transcription = {{ model = "gpt-4o-transcribe", language = ["de", "en"], prompt = "Streets.", phrases = ["Zürich"] }}
noise_reduction = "far_field"
echo_cancellation = "off"
temperature = 0.8
max_output_tokens = 500
speed = 1.1
tool_choice = "auto"
parallel_tool_calls = true
reasoning_effort = "low"
client_may_set = ["speed", "temperature"]
handoff_to = ["b"]
control = "required"
guardrail = {{ url = "https://guard.example.com/check", timeout_ms = 400, fail = "closed" }}
builtin_tools = ["recall", "handoff", "end_talk"]
recall = "every_turn"
summary = {{ url = "https://sum.example.com" }}
foundry_agent = {{ project = "p", name = "helper" }}
tools = [{{ type = "function", name = "f", run = "client" }}]
[agents.a.session.ga]
truncation = "disabled"
[agents.a.session.preview]
avatar = {{ character = "lisa", customized = false }}
[agents.b]
name = "B"
inherits = "a"
"""


def fault_of(tmp_path: Path, text: str) -> str:
    path = written(tmp_path, text)
    with pytest.raises(AgentsFileError) as refused:
        load_agents(path)
    lines = str(refused.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    return "\n".join(line.removeprefix(f"{path}: ") for line in lines)


def test_every_key_is_read_and_inherited(tmp_path: Path) -> None:
    a, b = load_agents(written(tmp_path, FULL)).values()
    # `handoff_ids` leaves the agent itself out.
    own = {"id", "name", "handoff_ids"}
    assert a.model_dump(exclude=own) == b.model_dump(exclude=own)
    assert set(AgentKeys.model_fields) <= a.model_fields_set
    assert (a.greeting, a.language, a.speed, a.control, a.recall) == (
        "Say hello.",
        "de-AT",
        1.1,
        "required",
        "every_turn",
    )
    assert a.transcription
    assert (a.transcription.language, a.transcription.phrases) == (("de", "en"), ("Zürich",))
    assert a.guardrail is not None
    assert (a.guardrail.timeout_ms, a.guardrail.fail) == (400, "closed")
    assert a.client_may_set == {"speed", "temperature"}
    assert a.session == {
        "ga": {"truncation": "disabled"},
        "preview": {"avatar": {"character": "lisa", "customized": False}},
    }
    assert (a.handoff_ids, b.handoff_ids) == (("b",), ())
    assert [tool["name"] for tool in a.declared_tools] == ["f", "recall", "handoff", "end_talk"]
    assert [tool["name"] for tool in b.declared_tools] == ["f", "recall", "end_talk"], "b has nobody to hand over to"
    assert a.settings == AgentSettings(**{name: getattr(a, name) for name in AgentSettings.model_fields})


def test_defaults(tmp_path: Path) -> None:
    (a,) = load_agents(written(tmp_path, HEAD)).values()
    assert a.settings == AgentSettings()
    assert a.client_may_set == CLIENT_MAY_SET
    assert (a.greeting, a.guardrail, a.summary, a.foundry_agent, a.handoff_to) == (None,) * 5
    assert (a.control, a.recall, a.builtin_tools, a.tools) == ("auto", "start", (), ())
    assert (a.sockets_only, a.is_seen) == ("", False)


@pytest.mark.parametrize(
    ("parent", "child", "name", "merged"),
    [
        # Tables go key by key …
        (
            'turn_detection = { type = "server_vad", threshold = 0.3 }',
            "turn_detection = { silence_duration_ms = 500 }",
            "turn_detection",
            {"type": "server_vad", "threshold": 0.3, "silence_duration_ms": 500},
        ),
        # … unless what they describe is another thing.
        (
            'turn_detection = { type = "server_vad", threshold = 0.3 }',
            'turn_detection = { type = "semantic_vad", eagerness = "high" }',
            "turn_detection",
            {"type": "semantic_vad", "eagerness": "high"},
        ),
        (
            'transcription = { language = "de", phrases = ["Zürich"] }',
            'transcription = { prompt = "Streets." }',
            "transcription",
            {"language": "de", "phrases": ["Zürich"], "prompt": "Streets."},
        ),
        ('transcription = { language = "de" }', "transcription = false", "transcription", False),
        ("transcription = false", 'transcription = { language = "de" }', "transcription", {"language": "de"}),
        (
            'guardrail = { url = "https://g.example.com", timeout_ms = 900 }',
            'guardrail = { fail = "closed" }',
            "guardrail",
            {"url": "https://g.example.com", "timeout_ms": 900, "fail": "closed"},
        ),
        ('guardrail = { url = "https://g.example.com" }', "guardrail = false", "guardrail", None),
        ('greeting = "Hi."', "greeting = false", "greeting", None),
        ('voices.ga = "marin"', 'voices = { ga = { id = "voice_1" } }', "voices", {"ga": {"id": "voice_1"}}),
        (
            "session = { ga = { audio = { input = { turn_detection = { idle_timeout_ms = 6000 } } } } }",
            'session = { ga = { truncation = "disabled" }, preview = { metadata = { team = "x" } } }',
            "session",
            {
                "ga": {"audio": {"input": {"turn_detection": {"idle_timeout_ms": 6000}}}, "truncation": "disabled"},
                "preview": {"metadata": {"team": "x"}},
            },
        ),
        ('client_may_set = ["speed"]', "client_may_set = []", "client_may_set", []),
        ('builtin_tools = ["recall"]', "builtin_tools = []", "builtin_tools", []),
    ],
)  # fmt: skip
def test_tables_are_inherited_by_key(tmp_path: Path, parent: str, child: str, name: str, merged: Any) -> None:
    parent = "" if name == "voices" else parent
    text = f'{HEAD}{parent}\n[agents.b]\nname = "B"\ninherits = "a"\n{child}\n'
    b = load_agents(written(tmp_path, text))["b"]
    found = b.model_dump(mode="json", exclude_unset=True)[name]
    assert found == ({**merged, "preview": "en-US-GuyNeural"} if name == "voices" else merged)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('langauge = "de"', "langauge: there is no such key; language is meant, perhaps; permitted are "),
        ('turn_detection = { typ = "none" }', "turn_detection.typ: there is no such key; type is meant, perhaps"),
        ('transcription = { phrase = ["x"] }', "transcription.phrase: there is no such key; phrases is meant, perhaps"),
        ('guardrail = { url = "https://g.example.com", fails = "open" }', "guardrail.fails: there is no such key"),
        ('tools = [{ type = "function", name = "f", descriptoin = "x" }]', "tools.f.descriptoin: there is no such"),
        (
            'tools = [{ type = "function", name = "f", run = { url = "https://t.example.com", idempotnt = true } }]',
            "tools.f.run.idempotnt: there is no such key; idempotent is meant",
        ),
        (
            'tools = [{ type = "mcp", server_label = "d", server_url = "https://m.example.com", headrs = {} }]',
            "tools.d.headrs: there is no such key; headers is meant",
        ),
        ('tools = [{ type = "fnction", name = "f" }]', "tools.f: "),
        ('tools = [{ name = "f" }]', "tools.f: "),
        ('tools = [{ type = "function", name = "f" }, { type = "function", name = "f" }]', "tools.f: the name"),
        ('tools = [{ type = "function", name = "recall" }]', "tools.recall: is the name of a built-in tool"),
        (
            'tools = [{ type = "function", name = "f", run = "page" }]',
            'tools.f.run: should be "client", or a table with the url that the broker calls',
        ),
        ('zones = "eu"', "zones: should be a list"),
        ("zones = []", "zones: should have an entry at least"),
        ('summary = "https://sum.example.com"', "summary: should be a table"),
        ("greeting = true", "greeting: should be a text"),
        ('parallel_tool_calls = "perhaps"', "parallel_tool_calls: should be true or false"),
        ('language = "german"', "language: "),
        ('language = "de_DE"', "language: "),
        ("transcription = true", "transcription: "),
        ("transcription = { language = 3 }", "transcription.language: should be a language tag (BCP 47)"),
        ('turn_detection = { type = "azure_vad" }', "turn_detection.type: "),
        ("turn_detection = { threshold = 1.5 }", "turn_detection.threshold: "),
        ("turn_detection = { silence_duration_ms = 11000 }", "turn_detection.silence_duration_ms: "),
        ("temperature = 1.5", "temperature: "),
        ('temperature = "hot"', "temperature: "),
        ("max_output_tokens = 5000", 'max_output_tokens: should be a number from 1 to 4096, or "inf"'),
        ("max_output_tokens = true", 'max_output_tokens: should be a number from 1 to 4096, or "inf"'),
        ("speed = 2", "speed: "),
        ('noise_reduction = "on"', "noise_reduction: "),
        ('tool_choice = "f"', 'tool_choice: should be "auto", "none", "required", or a table'),
        ('tool_choice = { type = "function", name = "f" }', "tool_choice: there is no function 'f'"),
        ('tool_choice = { type = "mcp", server_label = "d" }', "tool_choice: there is no MCP server 'd'"),
        (f'greeting = "{"x" * 4097}"', "greeting: "),
        ('client_may_set = ["instructions"]', "client_may_set"),
        ('handoff_to = ["zoe"]', "handoff_to: there is no agent 'zoe'; there are a"),
        ('control = "strict"', "control: "),
        ('recall = "never"', "recall: "),
        ('builtin_tools = ["hangup"]', "builtin_tools.1: "),
        ('guardrail = { url = "ftp://g.example.com" }', "guardrail.url: "),
        ('guardrail = { url = "https://169.254.169.254/x" }', "guardrail.url: "),
        ('transcription = false\nguardrail = { url = "https://g.example.com" }', "transcription: is false, and"),
        (
            'client_may_set = ["transcription"]\nguardrail = { url = "https://g.example.com" }',
            "client_may_set: has transcription, and the guardrail",
        ),
        ('foundry_agent = { project = "p" }', "foundry_agent.name: field required"),
        ("guardrail = { timeout_ms = 300 }", "guardrail.url: field required"),
        ("session = { ga = { truncaton = 1 } }", "session.ga.truncaton: Azure has no such field; truncation is meant"),
        ("session = { ga = { truncation = 1 } }", 'session.ga.truncation: should be one of "auto", "disabled"'),
        ("session = { gaa = {} }", "session.gaa"),
        (
            "session = { preview = { turn_detection = { remove_filler_wrds = true } } }",
            "session.preview.turn_detection.remove_filler_wrds: Azure has no such field; remove_filler_words is meant",
        ),
        (
            "session = { ga = { tracing = { metadata = { day = 2026-01-01 } } } }",
            "session.ga: has a value that JSON has not",
        ),
        ('session = { ga = { instructions = "Be B." } }', "session.ga.instructions: say it by the key instructions"),
        ("session = { preview = { tools = [] } }", "session.preview.tools: say it by the key tools"),
        ('session = { ga = { audio = { output = { voice = "ash" } } } }', "audio.output.voice: say it by the key"),
    ],
)  # fmt: skip
def test_faults_name_place_and_remedy(tmp_path: Path, line: str, says: str) -> None:
    fault = fault_of(tmp_path, f"{HEAD}{line}\n")
    assert f"agents.a.{says}" in fault.replace("agents.a.a.", "agents.a.") or says in fault, fault
    assert "agents.a" in fault
    assert len(fault.splitlines()) == 1, fault


@pytest.mark.parametrize(
    ("voices", "says"),
    [
        ('{ ga = "en-US-AvaNeural", preview = "alloy" }', "voices.ga: en-US-AvaNeural is a voice of Azure's"),
        ('{ ga = "", preview = "alloy" }', "voices.ga: should be a name, or a table"),
        ('{ ga = { name = "x" }, preview = "alloy" }', "voices.ga.id: missing; a table has it"),
        ('{ ga = "marin", preview = { name = "x" } }', "voices.preview.type: missing; a table has it"),
        ('{ ga = "marin", preview = { type = "azure-custom", name = "x" } }', "voices.preview.endpoint_id: missing"),
        (
            '{ ga = "marin", preview = { type = "azure-standard", name = "x", raet = "1.2" } }',
            "voices.preview.raet: Azure has no such field; rate is meant, perhaps",
        ),
        ('{ ga = "marin" }', "voices.preview: missing, and none is inherited"),
    ],
)
def test_voice_faults(tmp_path: Path, voices: str, says: str) -> None:
    text = HEAD.replace('{ ga = "marin", preview = "en-US-GuyNeural" }', voices)
    assert says in fault_of(tmp_path, text)


def test_sockets_only_and_seen(tmp_path: Path) -> None:
    for line, sockets_only, is_seen in (
        ('control = "required"', False, True),
        ('guardrail = { url = "https://g.example.com" }', False, True),
        ('guardrail = { url = "https://g.example.com", fail = "closed" }', True, True),
    ):
        (agent,) = load_agents(written(tmp_path, f"{HEAD}{line}\n")).values()
        assert (bool(agent.sockets_only), agent.is_seen) == (sockets_only, is_seen)


def test_vendored_schema_is_the_packages() -> None:
    assert published_sessions.FILE.read_text(encoding="utf-8") == published_sessions.text()
    assert schema_source("ga").startswith("openai ")
    assert schema_faults({}, "ga") == schema_faults({}, "preview") == []


def test_docs_have_every_key_and_word() -> None:
    page = (Path(__file__).parents[2] / "docs" / "agents.md").read_text(encoding="utf-8")
    named = {name for each in re.findall(r"`([a-z_.]+)`", page) for name in each.split(".")}
    assert set(AgentKeys.model_fields) - {"session"} <= named
    assert "[agents.x.session.ga]" in page
    assert set(get_args(ClientSetting)) <= named
