"""GPT-Live's session as it is made of an agent: what each key becomes, and what is said of the others."""

from typing import Any

import pytest
from openai.types.live import MediaSessionConfigParam, SessionConfig
from pydantic import TypeAdapter, ValidationError

from strategies.base import SessionSpec
from strategies.session_model.agent_settings import AgentSettings
from strategies.session_model.live_session import LIVE_KEYS, live_losses, live_session, web_session
from token_broker.sessions.agent import Agent

BACKEND = {"delegation": {"type": "responses", "responses": {"model": "gpt-5.4"}}}
TOOL = {"type": "function", "name": "order_status", "description": "Looks up.", "parameters": {"type": "object"}}
# Each key with a value, and where the session has it with a backend; None: it is left out.
KEYS: dict[str, tuple[Any, dict[str, Any] | None]] = {
    "language": ("pt-BR", None),
    "turn_detection": ({"type": "semantic_vad"}, None),
    "transcription": (False, None),
    "noise_reduction": ("near_field", None),
    "echo_cancellation": ("on", None),
    "temperature": (0.7, None),
    "speed": (1.2, None),
    "max_output_tokens": (512, {"max_output_tokens": 512}),
    "tool_choice": (
        {"type": "function", "name": "order_status"},
        {"tool_choice": {"type": "function", "name": "order_status"}},
    ),
    "parallel_tool_calls": (True, {"parallel_tool_calls": True}),
    "reasoning_effort": ("low", {"reasoning": {"effort": "low"}}),
}


def spec_of(backend: bool = True, tools: tuple[Any, ...] = (), **settings: Any) -> SessionSpec:
    session = {"session": {"live": BACKEND}} if backend else {}
    return SessionSpec(
        model="gpt-live-1",
        instructions="Be brief.",
        voices={"ga": "cedar", "preview": "en-US-Ava"},
        settings=AgentSettings.model_validate({**settings, **session}),
        tools=tools,
    )


def official(session: dict[str, Any]) -> None:
    """Raises where the session is not as the official types have it."""
    SessionConfig.model_validate(session)
    TypeAdapter(MediaSessionConfigParam).validate_python(session)


def test_every_setting_of_an_agent_is_in_the_table() -> None:
    settings = set(AgentSettings.model_fields)
    assert settings <= {row.key for row in LIVE_KEYS}
    assert settings - {"session"} == set(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_key_in_the_session_or_reported(key: str) -> None:
    value, found = KEYS[key]
    spec = spec_of(**{key: value})
    session = live_session(spec)
    official(session)
    assert session["delegation"]["responses"] == {"model": "gpt-5.4", **(found or {})}
    assert [line.split()[0] for line in live_losses(spec)] == ([] if found else [key])
    without = spec_of(backend=False, **{key: value})
    assert live_session(without) == {
        "model": "gpt-live-1",
        "instructions": "Be brief.",
        "audio": {"output": {"voice": "cedar"}},
        "delegation": {"type": "client"},
    }
    assert [line.split()[0] for line in live_losses(without)] == [key]


def test_tools_are_the_backends() -> None:
    session = live_session(spec_of(tools=(TOOL,)))
    official(session)
    assert session["delegation"]["responses"]["tools"] == [TOOL]
    assert [line.split()[0] for line in live_losses(spec_of(backend=False, tools=(TOOL,)))] == ["tools"]


def test_page_has_few_rights() -> None:
    session = web_session(live_session(spec_of()))
    official(session)
    channel = session["client"]["data_channel"]
    heard = {each["type"] for each in channel["allowed_server_events"]}
    assert heard.isdisjoint({"session.started", "session.updated", "session.closed", "response.event"})
    sends = {"session.input_audio.mute", "session.input_audio.unmute", "session.close"}
    assert set(channel["allowed_client_events"]) == sends, "nothing that the broker would have to know"


def test_official_types_are_strict_here() -> None:
    with pytest.raises(ValidationError):
        official({"instructions": "no model"})


@pytest.mark.parametrize(
    ("keys", "is_live"),
    [
        ({"model": "gpt-live-1"}, True),
        ({"model": "gpt-live-1-mini"}, True),
        ({"model": "mine", "model_family": "gpt-live"}, True),
        ({"model": "gpt-live-1", "model_family": "other"}, False),
        ({"model": "gpt-realtime"}, False),
        ({}, False),
    ],
)
def test_whose_model_is_live(keys: dict[str, Any], is_live: bool) -> None:
    agent = Agent(id="ann", name="Ann", voices={"ga": "cedar", "preview": "x"}, instructions="Be brief.", **keys)
    assert agent.speaks_live(()) is is_live
