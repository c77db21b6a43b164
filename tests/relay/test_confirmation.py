"""Which field a refusal names, what is left of the session, and answers that came before the agent's settings."""

from typing import Any

import pytest

from strategies.session_model.refused_field import field_to_leave_out, shown_path, without
from token_broker.relay.confirmation.confirmation import Confirmation
from token_broker.relay.confirmation.early_answers import EarlyAnswers

Event = dict[str, Any]

TOOLS = [
    {"type": "function", "name": "book", "description": "Books.", "parameters": {"type": "object", "properties": {}}},
    {"type": "mcp", "server_label": "shop", "server_url": "https://mcp.example.com"},
    {"type": "function", "name": "look_up", "description": "Looks up."},
]
GA: Event = {
    "type": "realtime",
    "instructions": "You are Elena.",
    "output_modalities": ["audio"],
    "tools": TOOLS,
    "tool_choice": {"type": "function", "name": "look_up"},
    "reasoning": {"effort": "low"},
    "audio": {
        "input": {
            "transcription": {"model": "transcribe", "language": "de"},
            "turn_detection": {"type": "server_vad", "threshold": 0.6},
        },
        "output": {"voice": "marin", "speed": 1.2},
    },
}
FLAT: Event = {
    "instructions": "You are Elena.",
    "modalities": ["audio", "text"],
    "voice": {"type": "azure-standard", "name": "en-US-AvaNeural"},
    "input_audio_transcription": {"model": "whisper-1", "prompt": "Contoso"},
    "turn_detection": {"type": "azure_semantic_vad"},
    "tools": TOOLS,
}
UNKNOWN = {"type": "invalid_request_error", "code": "unknown_parameter"}
INVALID = {"type": "invalid_request_error", "code": "invalid_value"}
VOICES = "Invalid value: 'nova'. Supported values are: 'alloy', 'ash', 'marin', and 'cedar'."


@pytest.mark.parametrize(
    ("session", "error", "left_out"),
    [
        # as Azure and OpenAI have been seen to word them
        (GA, INVALID | {"message": VOICES, "param": "session.audio.output.voice"}, "session.audio.output.voice"),
        (FLAT, INVALID | {"message": VOICES, "param": "session.voice"}, "session.voice"),
        (
            GA,
            INVALID | {"message": "Turn detection is not supported for this transcription model.",
                       "param": "session.audio.input.turn_detection"},
            "session.audio.input.turn_detection",
        ),
        (
            FLAT,
            UNKNOWN | {"message": "Unknown parameter: 'session.input_audio_transcription.prompt'.",
                       "param": "session.input_audio_transcription.prompt"},
            "session.input_audio_transcription.prompt",
        ),
        (GA, UNKNOWN | {"message": "Unknown parameter: 'session.reasoning'.", "param": None}, "session.reasoning"),
        (GA, {"message": "Unknown parameter: 'session.tools[2].description'."}, "session.tools[2].description"),
        (
            GA,
            {"code": "missing_required_parameter",
             "message": "Missing required parameter: 'session.tools[2].parameters'.",
             "param": "session.tools[2].parameters"},
            "session.tools[2]",
        ),
        (
            FLAT,
            INVALID | {"message": "Invalid modalities: ['audio']. Supported combinations are: ['text'].",
                       "param": "session.modalities"},
            "session.modalities",
        ),
        (
            GA,
            {"code": "cannot_update_voice",
             "message": "Cannot update a conversation's voice if assistant audio is present."},
            "session.audio.output.voice",
        ),
        # what is essential goes with the whole of what it stands in
        (GA, {"param": "session.audio.input.transcription.model"}, "session.audio.input.transcription"),
        (GA, {"param": "session.audio.input.transcription.language"}, "session.audio.input.transcription.language"),
        (FLAT, {"param": "session.voice.name"}, "session.voice"),
        (FLAT, {"param": "session.turn_detection.type"}, "session.turn_detection"),
        (GA, {"param": "session.tools[0].parameters.properties"}, "session.tools[0]"),
        (GA, {"param": "session.tools.1.server_url"}, "session.tools[1]"),
        (GA, {"param": "tools[0].description"}, "session.tools[0].description"),
        (GA, {"param": "session.tools"}, "session.tools"),
        (GA, {"param": "session.reasoning.effort"}, "session.reasoning.effort"),
        (GA, {"param": "session.audio.output.voice.id"}, "session.audio.output.voice"),
        # nothing that may be left out is named
        (GA, {"param": "session.instructions"}, None),
        (FLAT, {"message": "Invalid type for 'session.instructions': too long."}, None),
        (GA, {"param": "session.type"}, None),
        (GA, {"param": "session"}, None),
        (GA, {"param": "session.audio"}, None),
        (GA, {"param": "session.audio.input.format"}, None),
        (GA, {"param": "session.voice"}, None),
        (GA, {"param": "session.tools[7].name"}, None),
        (GA, {"param": "item.content"}, None),
        (GA, {"param": "", "message": "The server is busy."}, None),
        (GA, {"param": 7, "message": None, "code": "DeploymentNotFound"}, None),
        (GA, {"param": "session" + ".a" * 40}, None),
        (GA, {}, None),
    ],
)  # fmt: skip
def test_refused_field_is_found(session: Event, error: Event, left_out: str | None) -> None:
    path = field_to_leave_out(error, session)
    assert (None if path is None else shown_path(path)) == left_out


@pytest.mark.parametrize("detection", [None, {"type": "server_vad", "create_response": False, "threshold": 0.5}])
@pytest.mark.parametrize("flat", [False, True])
def test_silence_by_choice_is_kept(detection: Event | None, *, flat: bool) -> None:
    session: Event = {"turn_detection": detection, "input_audio_transcription": {"model": "whisper-1"}}
    names = {"turn_detection": "session.turn_detection", "transcription": "session.input_audio_transcription"}
    if not flat:
        session = {"audio": {"input": {"turn_detection": detection, "transcription": {"model": "transcribe"}}}}
        names = {name: f"session.audio.input.{name}" for name in names}
    assert field_to_leave_out({"param": names["turn_detection"]}, session) is None
    if detection is not None:
        assert field_to_leave_out({"param": f"{names['turn_detection']}.create_response"}, session) is None
        assert field_to_leave_out({"param": names["transcription"]}, session) is None
        threshold = field_to_leave_out({"param": f"{names['turn_detection']}.threshold"}, session)
        assert threshold is not None
        assert threshold[-1] == "threshold"


def test_session_is_copied_without_field() -> None:
    assert without(GA, ("audio", "output", "speed"))["audio"]["output"] == {"voice": "marin"}
    assert "reasoning" not in without(GA, ("reasoning", "effort"))
    left = without(GA, ("tools", 2))
    assert [tool.get("name") for tool in left["tools"]] == ["book", None]
    assert "tool_choice" not in left, "it names the tool that is gone"
    assert without(GA, ("tools",))["tools"] == [], "another agent's tools do not stay"
    assert without(GA, ("tools", 0))["tool_choice"] == GA["tool_choice"]
    assert len(GA["tools"]) == 3
    assert GA["audio"]["output"]["speed"] == 1.2


def test_field_is_left_out_once() -> None:
    asked = Confirmation(GA, event_id="broker_session")
    assert not asked.disagreements(GA)
    assert asked.refused({"param": "session.audio.output.speed"})
    assert asked.left_out == ("session.audio.output.speed",)
    assert (asked.event_id, '"speed"' in asked.update) == ("broker_session_again", False)
    assert not asked.refused({"param": "session.reasoning"})
    assert asked.disagreements({"instructions": "You are a helpful AI."}) == ["instructions"]


@pytest.mark.parametrize("error", [None, "busy", {}, {"param": "session.instructions"}])
def test_refusal_without_field_is_final(error: object) -> None:
    assert not Confirmation(GA, event_id="broker_session").refused(error)


def test_early_answer_is_undone() -> None:
    early = EarlyAnswers()

    def take(kind: str, *, confirmed: bool = False, **fields: Any) -> list[str] | None:
        return early.take({"type": kind, **fields}, confirmed=confirmed)

    assert take("session.created", session={}) is None
    assert early.are_over
    (cancel,) = take("response.created", response={"id": "r"}) or []
    assert '"response.cancel"' in cancel
    item = {"id": "i", "role": "assistant"}
    assert take("response.output_item.added", response_id="r", item=item) == []
    assert take("conversation.item.created", item=item) == []
    assert take("response.audio.delta", response_id="r", item_id="i", delta="AAAA") == []
    assert take("session.updated", session={}) is None
    assert not early.are_over
    (delete,) = take("response.done", confirmed=True, response={"id": "r", "output": [item]}) or []
    assert '"conversation.item.delete"' in delete
    assert not early.are_over
    assert take("conversation.item.deleted", confirmed=True, item_id="i") == []
    assert early.are_over
    assert take("response.created", confirmed=True, response={"id": "s"}) is None


def test_refused_deletion_ends_the_wait() -> None:
    early = EarlyAnswers()
    early.take({"type": "response.created", "response": {"id": "r"}}, confirmed=False)
    early.take({"type": "response.done", "response": {"id": "r", "output": [{"id": "i"}]}}, confirmed=False)
    assert not early.are_over
    for event_id in ("broker_early_cancel", "broker_early_i"):
        assert early.take({"type": "error", "error": {"event_id": event_id}}, confirmed=True) == []
    assert early.are_over


def test_endless_early_answers_are_told() -> None:
    early = EarlyAnswers()
    for number in range(17):
        early.take({"type": "response.created", "response": {"id": str(number)}}, confirmed=False)
    assert early.are_too_many
