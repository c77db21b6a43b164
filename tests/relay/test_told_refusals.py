"""No field of a client's is dropped in silence: what it is told, and what goes to Azure instead."""

import json
from typing import Any

import pytest

from strategies.base import Dialect
from tests.relay.support.official_models import ga_client_event, ga_server_event, preview_client_event
from token_broker.relay.adapters import Answered, CompatAdapter, ProtocolAdapter, ProxyAdapter, ToAzure
from token_broker.relay.policy.allowlist import Refused

Event = dict[str, Any]


def taken(adapter: ProtocolAdapter, event: Event, upstream: Dialect) -> tuple[list[Event], list[Event]]:
    """What Azure gets of a client's event, and the errors that the client gets."""
    verdict = adapter.from_client(json.dumps(event), upstream)
    assert isinstance(verdict, ToAzure)
    errors = [json.loads(text) for text in verdict.told]
    assert verdict.left_out >= len(errors)
    return [json.loads(text) for text in verdict.texts], errors


def update(adapter: ProtocolAdapter, session: Event, upstream: Dialect = "ga") -> tuple[list[Event], dict[str, str]]:
    """The sessions that Azure gets, and the errors' messages by their `param`."""
    sent, errors = taken(adapter, {"type": "session.update", "event_id": "mine", "session": session}, upstream)
    about = [each.get("error", each) for each in errors]
    return [each["session"] for each in sent], {each["param"]: each["message"] for each in about}


# --- fields that do not come into force

FLAT = {
    "modalities": ["text", "audio"],
    "input_audio_format": "g711_ulaw",
    "output_audio_format": "g711_ulaw",
    "turn_detection": {"type": "server_vad", "threshold": 0.4},
    "voice": "alloy",
    "instructions": "Be brief.",
}
NESTED = {
    "modalities": "output_modalities",
    "input_audio_format": "audio.input.format",
    "output_audio_format": "audio.output.format",
    "turn_detection": "audio.input.turn_detection",
    "voice": "audio.output.voice",
}


@pytest.mark.parametrize("upstream", ["ga", "preview"])
def test_flat_fields_are_named_as_in_ga(upstream: Dialect) -> None:
    sent, told = update(CompatAdapter("ga"), FLAT, upstream)
    assert sent == []  # `session.updated` would be a yes
    assert set(told) == {f"session.{name}" for name in NESTED}
    for flat, nested in NESTED.items():
        assert told[f"session.{flat}"].endswith(f"on this endpoint it is 'session.{nested}'.")


def test_flat_fields_come_into_force_for_beta_client() -> None:
    (sent,), told = update(CompatAdapter("preview"), FLAT, "ga")
    detection = {"type": "server_vad", "threshold": 0.4}
    ulaw = {"format": {"type": "audio/pcmu"}}
    audio = {"input": {**ulaw, "turn_detection": detection}, "output": ulaw}
    assert sent == {"type": "realtime", "output_modalities": ["audio"], "audio": audio}
    assert told == {}
    (sent,), told = update(CompatAdapter("preview"), FLAT, "preview")
    assert sent == {name: value for name, value in FLAT.items() if name not in {"voice", "instructions"}}
    assert told == {}


@pytest.mark.parametrize("upstream", ["ga", "preview"])
def test_nested_fields_are_named_as_in_voice_live(upstream: Dialect) -> None:
    audio = {"input": {"turn_detection": None, "format": {"type": "audio/pcmu"}}, "output": {"speed": 1.5}}
    sent, told = update(CompatAdapter("preview"), {"type": "realtime", "temperature": 0.7, "audio": audio}, upstream)
    assert sent == []
    assert told["session.audio.input.format"].endswith("it is 'session.input_audio_format'.")
    assert told["session.audio.output.speed"] == "Unknown parameter: 'session.audio.output.speed'. It was left out."
    assert set(told) == {"session.audio.input.format", "session.audio.output.speed"}  # null says nothing


@pytest.mark.parametrize("client", ["ga", "preview"])
def test_unknown_field_is_told_with_its_path(client: Dialect) -> None:
    known = {"type": "server_vad", "unheard_of": 1}
    session = {"audio": {"input": {"turn_detection": known}}} if client == "ga" else {"turn_detection": known}
    sent, told = update(CompatAdapter(client), {**session, "odd": {"x": 1}, "nothing": None}, client)
    assert len(sent) == 1
    assert "unheard_of" not in json.dumps(sent)
    path = "audio.input.turn_detection" if client == "ga" else "turn_detection"
    assert set(told) == {f"session.{path}.unheard_of", "session.odd"}


AGENTS: dict[Dialect, Event] = {
    "ga": {
        "type": "realtime", "model": "m", "instructions": "i", "tools": [], "tool_choice": "auto", "tracing": "auto",
        "prompt": {"id": "p"}, "truncation": "auto", "include": [], "reasoning": {"effort": "low"},
        "parallel_tool_calls": True, "audio": {"input": {"transcription": {"model": "w"}}, "output": {"voice": "v"}},
    },
    "preview": {
        "model": "m", "instructions": "i", "tools": [], "tool_choice": "auto", "voice": "v", "temperature": 0.7,
        "input_audio_transcription": {"model": "w"}, "input_audio_echo_cancellation": {}, "avatar": {}, "metadata": {},
        "animation": {}, "interim_response": {}, "include": [], "reasoning_effort": "low", "parallel_tool_calls": True,
        "output_audio_timestamp_types": [],
    },
}  # fmt: skip


@pytest.mark.parametrize("client", ["ga", "preview"])
@pytest.mark.parametrize("upstream", ["ga", "preview"])
def test_agents_settings_raise_no_error(client: Dialect, upstream: Dialect) -> None:
    """Official clients send them with every session, and some end their talk at the first error."""
    sent, told = update(CompatAdapter(client), AGENTS[client], upstream)
    assert told == {}
    assert sent == [{"type": "realtime"} if upstream == "ga" else {}]  # its sender waits for `session.updated`


OPUS, ODD = {"type": "audio/opus"}, {"type": "unheard_of"}


@pytest.mark.parametrize(
    ("client", "upstream", "session", "code", "param"),
    [
        ("ga", "preview", {"audio": {"output": {"speed": 1.4}}}, "unsupported_parameter", "audio.output.speed"),
        ("ga", "ga", {"audio": {"input": {"format": OPUS}}}, "invalid_value", "audio.input.format"),
        ("ga", "preview", {"audio": {"input": {"format": OPUS}}}, "invalid_value", "audio.input.format"),
        ("ga", "ga", {"audio": {"input": {"turn_detection": ODD}}}, "invalid_value", "audio.input.turn_detection"),
        ("preview", "ga", {"output_audio_format": "opus"}, "invalid_value", "output_audio_format"),
        ("preview", "preview", {"input_audio_noise_reduction": ODD}, "invalid_value", "input_audio_noise_reduction"),
    ],
)
def test_impossible_value_is_told(client: Dialect, upstream: Dialect, session: Event, code: str, param: str) -> None:
    sent, (error,) = taken(
        CompatAdapter(client), {"type": "session.update", "event_id": "mine", "session": session}, upstream
    )
    assert sent == []
    ga_server_event(error)
    assert (error["error"]["code"], error["error"]["param"]) == (code, f"session.{param}")
    assert (error["error"]["type"], error["error"]["event_id"]) == ("invalid_request_error", "mine")


@pytest.mark.parametrize(
    ("client", "upstream", "session"),
    [
        ("ga", "preview", {"audio": {"output": {"speed": 1}}}),
        ("preview", "ga", {"input_audio_format": "pcm16", "input_audio_sampling_rate": 16000}),
        ("ga", "preview", {"audio": {"input": {"format": {"type": "audio/pcm", "rate": 16000}}}}),
        ("preview", "ga", {"max_response_output_tokens": 9, "turn_detection": {"type": "azure_semantic_vad"}}),
        ("ga", "preview", {"audio": {"input": {"turn_detection": {"type": "semantic_vad", "eagerness": "low"}}}}),
    ],
)
def test_what_comes_into_force_is_not_told(client: Dialect, upstream: Dialect, session: Event) -> None:
    sent, told = update(CompatAdapter(client), session, upstream)
    assert len(sent) == 1
    assert told == {}


def test_response_settings_are_told_likewise() -> None:
    asked = {"type": "response.create", "response": {"modalities": ["text"], "instructions": "i", "odd": 1}}
    (sent,), errors = taken(CompatAdapter("ga"), asked, "ga")
    assert sent == {"type": "response.create", "response": {}}
    assert {each["error"]["param"] for each in errors} == {"response.modalities", "response.odd"}
    otherwise = {"commit": False, "append_input_items": [], "max_response_output_tokens": 9, "cancel_previous": True}
    _, errors = taken(CompatAdapter("preview"), {"type": "response.create", "response": otherwise}, "ga")
    assert [each["error"]["param"] for each in errors] == ["response.cancel_previous"]


def test_proxy_tells_what_it_takes_out() -> None:
    session = {"greeting": "Hello", "handoff": {"to": "x"}, "instructions": "i", "turn_detection": None}
    sent, errors = taken(ProxyAdapter(), {"type": "session.update", "session": session}, "preview")
    assert sent == [{"type": "session.update", "session": {"turn_detection": None}}]
    assert {each["type"] for each in errors} == {"broker.error"}
    assert [each["param"] for each in errors] == ["session.greeting", "session.handoff", "session.instructions"]


@pytest.mark.parametrize("adapter", [ProxyAdapter(), CompatAdapter("ga"), CompatAdapter("preview")])
def test_errors_about_one_message_are_few(adapter: ProtocolAdapter) -> None:
    odd = {f"field {number}\n\u2028": number for number in range(20_000)}
    for event in ({"type": "session.update", "session": odd}, {"type": "response.create", **odd, "response": odd}):
        verdict = adapter.from_client(json.dumps(event), "ga")
        assert isinstance(verdict, ToAzure)
        assert 0 < len(verdict.told) <= 16
        assert all(len(text) < 600 and text.isascii() for text in verdict.told)


def test_refused_event_names_field_and_event() -> None:
    event = {"type": "response.create", "event_id": "mine", "response": {"conversation": "both"}}
    verdict = CompatAdapter("ga").from_client(json.dumps(event), "ga")
    assert isinstance(verdict, Refused)
    assert (verdict.param, verdict.event_id) == ("response.conversation", "mine")
    error = json.loads(CompatAdapter("ga").error(verdict))
    assert (error["error"]["param"], error["error"]["event_id"]) == ("response.conversation", "mine")
    assert json.loads(ProxyAdapter().error(Refused("c", "m", "p")))["param"] == "p"


# --- tools, turn detection and history

TOOLS = {
    "tools": [{"type": "function", "name": "look_up", "parameters": {}}],
    "tool_choice": {"type": "function", "name": "look_up"},
}


@pytest.mark.parametrize("adapter", [ProxyAdapter(), CompatAdapter("ga"), CompatAdapter("preview")])
@pytest.mark.parametrize("upstream", ["ga", "preview"])
def test_tool_choice_never_goes_without_tools(adapter: ProtocolAdapter, upstream: Dialect) -> None:
    for event in ({"type": "session.update", "session": TOOLS}, {"type": "response.create", "response": TOOLS}):
        (sent,), _ = taken(adapter, event, upstream)
        assert "tool" not in json.dumps(sent)


@pytest.mark.parametrize("upstream", ["ga", "preview"])
@pytest.mark.parametrize("off", [{"type": "none"}, {"type": "none", "threshold": 0.5, "odd": 1}, None])
def test_type_none_switches_off(upstream: Dialect, off: Any) -> None:
    nested = {"audio": {"input": {"turn_detection": off, "noise_reduction": off}}}
    flat = {"turn_detection": off, "input_audio_noise_reduction": off}
    whole = {"ga": {"turn_detection": None, "noise_reduction": None}, "preview": dict.fromkeys(flat)}
    for client, session in (("ga", nested), ("preview", flat)):
        (sent,), told = update(CompatAdapter("ga" if client == "ga" else "preview"), session, upstream)
        assert told == {}
        assert (sent["audio"]["input"] if upstream == "ga" else sent) == whole[upstream]
    (sent,), told = update(ProxyAdapter(), nested if upstream == "ga" else flat, upstream)
    assert told == {}
    assert (sent["audio"]["input"] if upstream == "ga" else sent) == whole[upstream]


def said(role: str, *content: Event, **fields: Any) -> Event:
    return {"type": "message", "role": role, "content": list(content), **fields}


HISTORY = [
    (
        said("assistant", {"type": "output_audio", "transcript": "Good day.", "audio": None}, id="item_1", status=None),
        said("assistant", {"type": "output_text", "text": "Good day."}, id="item_1"),
    ),
    (
        said("user", {"type": "input_audio", "transcript": "Hello.", "audio": None}, previous=None),
        said("user", {"type": "input_text", "text": "Hello."}),
    ),
    # nothing was understood of it
    (
        said("user", {"type": "input_audio", "transcript": None}, {"type": "input_text", "text": "And?"}),
        said("user", {"type": "input_text", "text": "And?"}),
    ),
    # audio that is there stays
    (
        said("user", {"type": "input_audio", "audio": "AAAA", "transcript": None}),
        said("user", {"type": "input_audio", "audio": "AAAA"}),
    ),
    ({"type": "function_call_output", "call_id": "c", "output": "{}", "id": None, "status": None},
     {"type": "function_call_output", "call_id": "c", "output": "{}"}),
]  # fmt: skip


@pytest.mark.parametrize("adapter", [ProxyAdapter(), CompatAdapter("ga"), CompatAdapter("preview")])
@pytest.mark.parametrize(("item", "put_back"), HISTORY)
def test_history_is_put_back_as_text(adapter: ProtocolAdapter, item: Event, put_back: Event) -> None:
    created = {"type": "conversation.item.create", "previous_item_id": "root", "item": item}
    (sent,), errors = taken(adapter, created, "ga")
    assert errors == []
    assert sent == {**created, "item": put_back}
    ga_client_event(sent)
    (sent,), _ = taken(adapter, created, "preview")
    preview_client_event(sent)
    assert "null" not in json.dumps(sent)
    (sent,), _ = taken(ProxyAdapter(), {"type": "response.create", "response": {"input": [item]}}, "ga")
    assert sent["response"] == {"input": [put_back]}


# --- retrieving an item


def spoken(item_id: str, **part: Any) -> Event:
    content = [{"type": "input_audio", "transcript": "Hello.", **part}]
    return {"id": item_id, "object": "realtime.item", "type": "message", "role": "user", "content": content}


def retrieve(adapter: ProtocolAdapter, item_id: str) -> Any:
    return adapter.from_client(json.dumps({"type": "conversation.item.retrieve", "item_id": item_id}), "ga")


@pytest.mark.parametrize("adapter", [ProxyAdapter, lambda: CompatAdapter("ga")], ids=["proxy", "ga"])
def test_retrieved_item_comes_without_audio(adapter: Any) -> None:
    talk: ProtocolAdapter = adapter()
    talk.to_client({"type": "conversation.item.added", "event_id": "e", "item": spoken("item_1", audio="AAAA")}, "ga")
    answer = retrieve(talk, "item_1")
    assert isinstance(answer, Answered)
    event = json.loads(answer.text)
    assert event["event_id"]
    assert (event["type"], event["item"]) == ("conversation.item.retrieved", spoken("item_1"))
    assert isinstance(retrieve(talk, "item_nobody_knows"), ToAzure)


@pytest.mark.parametrize("adapter", [ProxyAdapter, lambda: CompatAdapter("ga")], ids=["proxy", "ga"])
def test_old_spoken_item_is_not_retrieved(adapter: Any) -> None:
    talk: ProtocolAdapter = adapter()
    for number in range(300):
        event = {"type": "conversation.item.added", "event_id": "e", "item": spoken(f"item_{number}")}
        talk.to_client(event, "ga")
    refused = retrieve(talk, "item_3")
    assert isinstance(refused, Refused)
    assert (refused.code, refused.param) == ("item_not_kept", "item_id")
