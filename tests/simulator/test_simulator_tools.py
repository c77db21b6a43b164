"""Tools: functions that the client runs, MCP servers that the service calls, and responses that end otherwise."""

import json
from typing import Any

import pytest

from tests.simulator.scene import Scene, by_dialect, names_of, user_text
from tests.simulator.support import silence, speech
from token_broker.simulator.faults.fault_table import FaultTable, parse_faults
from token_broker.simulator.faults.talk_behaviour import TalkBehaviour
from token_broker.simulator.realtime.dialects import GA, PREVIEW, VOICE_LIVE, Dialect

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Look up the weather for a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "F"]}},
        "required": ["city"],
    },
}
CLOCK = {"type": "function", "name": "clock", "description": "The time.", "parameters": {"type": "object"}}
DOCS = {"type": "mcp", "server_label": "docs", "server_url": "https://mcp.example/docs", "allowed_tools": ["search"]}
OPEN_DOCS = DOCS | {"require_approval": "never"}
with_mcp = pytest.mark.parametrize("dialect", [GA, VOICE_LIVE], ids=lambda dialect: dialect.name)


def _calling(dialect: Dialect, *tools: dict[str, Any], **session: Any) -> Scene:
    """A talk with these tools, whose servers have been listed."""
    scene = Scene(dialect)
    scene.update(tools=list(tools), **session)
    scene.wait(1)
    return scene


# --- Functions -----------------------------------------------------------------------------------------------------


@by_dialect
def test_marker_calls_function(dialect: Dialect) -> None:
    scene = _calling(dialect, WEATHER)
    came = scene.ask('What is it like? [call get_weather {"city": "London"}]')
    created, added = dialect.wire_name("response.created"), dialect.wire_name("conversation.item.added")
    done = ["conversation.item.done"] if dialect is GA else []
    assert names_of(came) == [
        created,
        "response.output_item.added",
        added,
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        *done,
        "response.output_item.done",
        "response.done",
        *(["rate_limits.updated"] if dialect.name == "preview" else []),
    ]
    finished = scene.only("response.function_call_arguments.done")
    assert (finished["name"], json.loads(finished["arguments"])) == ("get_weather", {"city": "London"})
    deltas = scene.all("response.function_call_arguments.delta")
    assert "".join(delta["delta"] for delta in deltas) == finished["arguments"]
    assert {delta["call_id"] for delta in deltas} == {finished["call_id"]}
    (item,) = scene.only("response.done")["response"]["output"]
    assert (item["type"], item["status"], item["call_id"]) == ("function_call", "completed", finished["call_id"])
    assert scene.only("response.done")["response"]["usage"]["output_tokens"] > 0


@by_dialect
def test_function_output_is_taken_up(dialect: Dialect) -> None:
    scene = _calling(dialect, WEATHER)
    scene.ask("[call get_weather]")
    call_id = scene.only("response.function_call_arguments.done")["call_id"]
    output = {"type": "function_call_output", "call_id": call_id, "output": "Foggy."}
    scene.events.clear()
    scene.send("conversation.item.create", item=output)
    assert "status" not in scene.only("conversation.item.added")["item"]
    scene.send("response.create")
    scene.wait(5)
    said = scene.only("response.output_audio_transcript.done")["transcript"]
    assert said == "[simulated] the function gave: Foggy."


def test_arguments_are_made_up_from_schema() -> None:
    scene = _calling(GA, WEATHER)
    scene.ask("[call get_weather]")
    arguments = json.loads(scene.only("response.function_call_arguments.done")["arguments"])
    assert arguments == {"city": "London", "days": 1, "unit": "C"}


def test_two_markers_call_two_functions() -> None:
    scene = _calling(GA, WEATHER, CLOCK)
    scene.ask("[call get_weather {}] and [call clock {}]")
    output = scene.only("response.done")["response"]["output"]
    assert [item["name"] for item in output] == ["get_weather", "clock"]
    assert [event["output_index"] for event in scene.all("response.output_item.done")] == [0, 1]


@pytest.mark.parametrize(
    "text", ["[call unknown {}]", "[call get_weather {broken]", "[call get_weather {} never closed", "[calling]"]
)
def test_other_text_is_no_marker(text: str) -> None:
    scene = _calling(GA, WEATHER)
    scene.ask(text)
    assert scene.all("response.function_call_arguments.done") == []
    assert scene.only("response.output_audio_transcript.done")["transcript"] == f"[simulated] you wrote: {text}"


@by_dialect
@pytest.mark.parametrize(
    ("choice", "called"),
    [
        ("required", ["get_weather"]),
        ({"type": "function", "name": "clock"}, ["clock"]),
        ("auto", []),
        ("none", []),
    ],
)
def test_tool_choice_decides(dialect: Dialect, choice: Any, called: list[str]) -> None:
    if dialect is PREVIEW and not isinstance(choice, str):
        choice = choice["name"]  # the preview's `tool_choice` is a word
    scene = _calling(dialect, WEATHER, CLOCK, tool_choice=choice)
    scene.ask("Hello" if choice != "none" else "[call clock {}]")
    assert [event["name"] for event in scene.all("response.function_call_arguments.done")] == called


def test_scripted_call_answers_speech() -> None:
    scene = _calling(GA, WEATHER)
    scene.script({"say": "One moment.", "calls": [{"name": "get_weather", "arguments": {"city": "Oslo"}}]})
    scene.say(speech(1) + silence(1))
    scene.wait(5)
    message, call = scene.only("response.done")["response"]["output"]
    assert message["content"] == [{"type": "output_audio", "transcript": "One moment."}]
    assert (call["name"], call["arguments"]) == ("get_weather", '{"city": "Oslo"}')
    scene.ask("And now?")
    assert scene.all("response.done")[1]["response"]["output"][0]["type"] == "message"


def test_barge_in_cuts_call_off() -> None:
    scene = _calling(GA, WEATHER)
    scene.send("conversation.item.create", item=user_text('[call get_weather {"city": "London"}]'))
    scene.send("response.create")
    scene.wait(0.1)
    scene.say(speech(0.3))
    response = scene.only("response.done")["response"]
    (item,) = response["output"]
    assert (response["status"], item["status"]) == ("cancelled", "incomplete")
    assert item["arguments"] == scene.only("response.function_call_arguments.done")["arguments"] != ""


@by_dialect
@pytest.mark.parametrize("parameters", [None, [], {"properties": []}, {"properties": {"a": 1, "b": {"enum": {}}}}])
def test_odd_schema_is_no_obstacle(dialect: Dialect, parameters: Any) -> None:
    scene = _calling(dialect, CLOCK | {"parameters": parameters})
    scene.ask("[call clock]")
    assert isinstance(json.loads(scene.only("response.function_call_arguments.done")["arguments"]), dict)


@by_dialect
@pytest.mark.parametrize("asked", [{"tools": [{}]}, {"tools": [{"type": "function"}]}, {"tool_choice": 1}])
def test_response_with_wrong_tools_is_refused(dialect: Dialect, asked: dict[str, Any]) -> None:
    scene = Scene(dialect)
    scene.send("response.create", response=asked)
    assert scene.error()["param"].startswith(f"response.{next(iter(asked))}")


def test_response_brings_its_own_tools() -> None:
    scene = _calling(GA, WEATHER)
    scene.send("conversation.item.create", item=user_text("Hello"))
    scene.send("response.create", response={"tools": [CLOCK], "tool_choice": "required"})
    scene.wait(5)
    assert scene.only("response.function_call_arguments.done")["name"] == "clock"


def test_required_call_answers_speech_too() -> None:
    scene = _calling(GA, CLOCK, tool_choice="required")
    scene.say(speech(0.5) + silence(1))
    scene.wait(5)
    assert scene.only("response.function_call_arguments.done")["name"] == "clock"


@by_dialect
def test_empty_message_is_taken(dialect: Dialect) -> None:
    scene = Scene(dialect)
    scene.send("conversation.item.create", item={"type": "message", "role": "user", "content": []})
    assert scene.only("conversation.item.added")["item"]["content"] == []


# --- MCP -------------------------------------------------------------------------------------------------------------


@with_mcp
def test_mcp_tools_are_listed_once(dialect: Dialect) -> None:
    scene = Scene(dialect)
    came = scene.update(tools=[OPEN_DOCS]) + scene.wait(1)
    added = dialect.wire_name("conversation.item.added")
    done = ["conversation.item.done"] if dialect is GA else []
    listed = [added, "mcp_list_tools.in_progress", "mcp_list_tools.completed", *done]
    assert [event["type"] for event in came] == ["session.updated", *listed]
    assert scene.only("conversation.item.added")["item"]["type"] == "mcp_list_tools"
    assert [event["type"] for event in scene.update(tools=[OPEN_DOCS]) + scene.wait(1)] == ["session.updated"]
    scene.send("conversation.item.retrieve", item_id=scene.only("mcp_list_tools.completed")["item_id"])
    assert [tool["name"] for tool in scene.only("conversation.item.retrieved")["item"]["tools"]] == ["search"]


@with_mcp
def test_unreachable_mcp_server_fails_to_list(dialect: Dialect) -> None:
    scene = _calling(dialect, OPEN_DOCS | {"server_url": "https://mcp.invalid/"})
    assert scene.only("mcp_list_tools.failed")
    scene.ask("[call search {}]")
    assert scene.all("response.mcp_call.in_progress") == []


@with_mcp
def test_mcp_call_is_carried_out_and_answered(dialect: Dialect) -> None:
    scene = _calling(dialect, OPEN_DOCS)
    came = names_of(scene.ask('[call search {"q": "vad"}]'))
    order = [
        "response.mcp_call_arguments.delta",
        "response.mcp_call_arguments.done",
        "response.mcp_call.in_progress",
        "response.mcp_call.completed",
        "response.output_item.done",
        "response.content_part.added",
        "response.done",
    ]
    assert [came.index(name) for name in order] == sorted(came.index(name) for name in order)
    call, message = scene.only("response.done")["response"]["output"]
    assert (call["type"], call["server_label"], call["arguments"]) == ("mcp_call", "docs", '{"q": "vad"}')
    assert message["content"][0]["transcript"] == call["output"]


@with_mcp
def test_approved_mcp_call_is_made(dialect: Dialect) -> None:
    scene = _calling(dialect, DOCS)
    scene.ask("[call search {}]")
    (request,) = scene.only("response.done")["response"]["output"]
    assert (request["type"], request["name"]) == ("mcp_approval_request", "search")
    scene.events.clear()
    approval = {"type": "mcp_approval_response", "approval_request_id": request["id"], "approve": True}
    scene.send("conversation.item.create", item=approval)
    scene.wait(5)
    call = scene.only("response.done")["response"]["output"][0]
    assert (call["type"], call["approval_request_id"]) == ("mcp_call", request["id"])


@pytest.mark.parametrize(
    "odd",
    [
        {"server_url": "http://["},
        {"allowed_tools": {"read_only": True}},
        {"allowed_tools": {"tool_names": 1}},
        {"require_approval": {"never": 1}},
    ],
)
def test_odd_mcp_server_is_listed(odd: dict[str, Any]) -> None:
    assert _calling(GA, OPEN_DOCS | odd).only("mcp_list_tools.completed")


def test_refused_mcp_call_is_not_made() -> None:
    scene = _calling(GA, DOCS)
    scene.ask("[call search {}]")
    request = scene.only("response.done")["response"]["output"][0]["id"]
    refusal = {"type": "mcp_approval_response", "approval_request_id": request, "approve": False}
    scene.send("conversation.item.create", item=refusal)
    scene.wait(5)
    assert len(scene.all("response.created")) == 1
    scene.send("conversation.item.create", item=refusal | {"approval_request_id": "mcpr_none"})
    assert scene.error()["param"] == "item.approval_request_id"


@pytest.mark.parametrize(
    "approval", [{"never": {"tool_names": ["search"]}}, {"never": ["search"], "always": ["delete"]}]
)
def test_approval_filters_exempt_tools(approval: Any) -> None:
    dialect = GA if isinstance(approval["never"], dict) else VOICE_LIVE
    scene = _calling(dialect, DOCS | {"allowed_tools": ["search", "delete"], "require_approval": approval})
    scene.ask("[call search {}] [call delete {}]")
    kinds = [item["type"] for item in scene.only("response.done")["response"]["output"]]
    assert kinds == ["mcp_call", "message", "mcp_approval_request"]


@with_mcp
def test_late_mcp_call_outlasts_its_answer(dialect: Dialect) -> None:
    table = FaultTable()
    table.replace(parse_faults([{"fault": "late_mcp", "match": "/", "seconds": 6}]))
    scene = Scene(dialect, behaviour=TalkBehaviour(table, "/"))
    scene.update(tools=[OPEN_DOCS])
    scene.wait(1)
    scene.send("conversation.item.create", item=user_text("[call search {}]"))
    scene.send("response.create")
    scene.wait(3)
    (call,) = scene.only("response.done")["response"]["output"]
    assert (call["type"], call["output"], scene.all("response.mcp_call.completed")) == ("mcp_call", None, [])
    scene.wait(4)
    assert scene.only("response.mcp_call.completed")["item_id"] == call["id"]
    assert scene.only("response.output_item.done")["item"]["output"] == "[simulated] search was called with {}"
    scene.wait(20)
    assert len(scene.all("response.created")) == 1
    scene.send("response.create")
    scene.wait(5)
    said = scene.only("response.output_audio_transcript.done")["transcript"]
    assert said.startswith("[simulated] the function gave: [simulated] search was called")


@by_dialect
def test_output_of_no_call_is_refused(dialect: Dialect) -> None:
    scene = Scene(dialect)
    output = {"type": "function_call_output", "call_id": "call_none", "output": "{}"}
    scene.send("conversation.item.create", item=output)
    assert scene.error()["code"] == "invalid_tool_call_id"


# --- Responses that end otherwise ------------------------------------------------------------------------------------


@by_dialect
@pytest.mark.parametrize("scripted", [False, True])
def test_response_can_fail(dialect: Dialect, scripted: bool) -> None:
    scene = Scene(dialect)
    if scripted:
        scene.script({"status": "failed"})
    scene.ask("Hello" if scripted else "Hello [fail]")
    response = scene.only("response.done")["response"]
    assert (response["status"], response["output"]) == ("failed", [])
    error = response["status_details"]["error"]
    assert (error["type"], error["code"]) == ("server_error", None)
    assert scene.only("session.created")["session"]["id"] in error["message"]
    assert response["usage"]["total_tokens"] == 0
    scene.ask("Hello again")
    assert scene.all("response.done")[1]["response"]["status"] == "completed"


@by_dialect
@pytest.mark.parametrize("reason", ["max_output_tokens", "content_filter"])
def test_response_can_be_incomplete(dialect: Dialect, reason: str) -> None:
    scene = Scene(dialect)
    scene.script({"say": "one two three four five six", "status": "incomplete", "reason": reason})
    scene.ask("Hello")
    response = scene.only("response.done")["response"]
    assert response["status_details"] == {"type": "incomplete", "reason": reason}
    (item,) = response["output"]
    assert (response["status"], item["status"]) == ("incomplete", "incomplete")
    assert "one two three four five six".startswith(item["content"][0]["transcript"])
    assert 0 < len(item["content"][0]["transcript"]) < 27


@by_dialect
def test_early_cancel_has_no_output_nor_usage(dialect: Dialect) -> None:
    scene = Scene(dialect)
    scene.send("response.create")
    came = names_of(scene.send("response.cancel"))
    assert came[0] == "response.done"
    response = scene.only("response.done")["response"]
    assert (response["status"], response["output"], response["usage"]["total_tokens"]) == ("cancelled", [], 0)


def test_refused_response_keeps_script() -> None:
    scene = Scene()
    scene.send("response.create")
    scene.script({"say": "kept"})
    scene.send("response.create")
    assert scene.error()["code"] == "conversation_already_has_active_response"
    scene.wait(5)
    scene.ask("Hello")
    assert scene.all("response.output_audio_transcript.done")[1]["transcript"] == "kept"


# --- Instructions ----------------------------------------------------------------------------------------------------


@by_dialect
def test_instructions_may_ask_for_a_call(dialect: Dialect) -> None:
    scene = _calling(dialect, WEATHER, CLOCK, instructions="If you are asked, call the clock function.")
    scene.say(speech(1.0) + silence(1.5))
    scene.wait(20)
    assert scene.only("response.function_call_arguments.done")["name"] == "clock"
    call_id = scene.only("response.function_call_arguments.done")["call_id"]
    output = {"type": "function_call_output", "call_id": call_id, "output": "noon"}
    scene.send("conversation.item.create", item=output)
    scene.send("response.create")
    scene.wait(20)
    # Answered, and not called for ever.
    assert scene.only("response.output_audio_transcript.done")["transcript"].endswith("noon")


def test_response_may_be_told_the_only_tool() -> None:
    scene = _calling(GA, WEATHER)
    scene.send("response.create", response={"instructions": "What is the weather? Use the tool."})
    scene.wait(20)
    finished = scene.only("response.function_call_arguments.done")
    assert (finished["name"], finished["arguments"]) == ("get_weather", '{"city":"London","days":1,"unit":"C"}')


@pytest.mark.parametrize("instructions", ["Use a tool.", "Call the other function.", "Do not function."])
def test_unclear_instructions_call_nothing(instructions: str) -> None:
    scene = _calling(GA, WEATHER, CLOCK, instructions=instructions)
    scene.ask("hello")
    assert not scene.all("response.function_call_arguments.done")
