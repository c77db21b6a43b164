"""The talk as a state machine: every event, in every dialect, in order."""

import base64
from typing import Any

import pytest

from tests.simulator.scene import Scene, by_dialect, names_of, user_text
from tests.simulator.support import silence, speech
from token_broker.simulator.config import TranscriptTiming
from token_broker.simulator.realtime.dialects import GA, PREVIEW, VOICE_LIVE, Dialect
from token_broker.simulator.realtime.responses import SpeechRate
from token_broker.simulator.realtime.simulated_talk import ServerClose

GA_TURN = [
    "input_audio_buffer.speech_started",
    "input_audio_buffer.speech_stopped",
    "input_audio_buffer.committed",
    "conversation.item.added",
    "conversation.item.done",
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_audio_transcript.delta",
    "response.output_audio.delta",
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "conversation.item.done",
    "response.output_item.done",
    "response.done",
]
PREVIEW_TURN = [
    "input_audio_buffer.speech_started",
    "input_audio_buffer.speech_stopped",
    "input_audio_buffer.committed",
    "conversation.item.created",
    "response.created",
    "response.output_item.added",
    "conversation.item.created",
    "response.content_part.added",
    "response.audio_transcript.delta",
    "response.audio.delta",
    "response.audio.done",
    "response.audio_transcript.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.done",
    "rate_limits.updated",
]
# Voice Live tells that the user's audio is complete, under GA's name, and of no other item.
VOICE_LIVE_TURN = [*PREVIEW_TURN[:4], "conversation.item.done", *PREVIEW_TURN[4:-1]]


@pytest.mark.parametrize(
    ("dialect", "expected"),
    [(GA, GA_TURN), (PREVIEW, PREVIEW_TURN), (VOICE_LIVE, VOICE_LIVE_TURN)],
    ids=lambda value: getattr(value, "name", None),
)
def test_spoken_turn_in_dialects_events(dialect: Dialect, expected: list[str]) -> None:
    scene = Scene(dialect)
    came = scene.say(speech(0.1) + silence(1)) + scene.wait(5)
    assert names_of(came) == expected


@by_dialect
def test_speech_is_answered_with_itself(dialect: Dialect) -> None:
    scene = Scene(dialect)
    pcm = silence(0.5) + speech(1.5) + silence(1)
    scene.say(pcm)
    scene.wait(5)
    returned = b"".join(base64.b64decode(event["delta"]) for event in scene.all("response.output_audio.delta"))
    assert returned == pcm[200 * 48 :][: len(returned)]
    assert len(returned) / 48 == pytest.approx(2000, abs=20)
    assert scene.only("response.output_audio_transcript.done")["transcript"] == "[simulated] you said 2.0 s of speech"


def test_answer_comes_at_its_speech_rate() -> None:
    scene = Scene(speech_rate=SpeechRate(thinking_s=0.2, speed=4))
    scene.say(speech(2) + silence(1))
    scene.wait(0.19)
    assert scene.all("response.output_audio.delta") == []
    scene.wait(0.27)  # 0.46 s: 0.2 of thinking, then one piece of 100 ms every 25 ms
    assert len(scene.all("response.output_audio.delta")) == 11
    scene.wait(0.35)
    assert scene.only("response.done")["response"]["status"] == "completed"


@by_dialect
def test_events_have_ids_and_deltas_places(dialect: Dialect) -> None:
    scene = Scene(dialect)
    scene.say(speech(0.5) + silence(1))
    scene.wait(5)
    ids = [event["event_id"] for event in scene.events]
    assert len(set(ids)) == len(ids)
    item_id = scene.only("response.output_item.added")["item"]["id"]
    response_id = scene.only("response.created")["response"]["id"]
    for name in ("response.output_audio.delta", "response.output_audio_transcript.delta"):
        for delta in scene.all(name):
            assert (delta["item_id"], delta["response_id"]) == (item_id, response_id)
            assert (delta["output_index"], delta["content_index"]) == (0, 0)


@by_dialect
def test_user_audio_has_null_transcript(dialect: Dialect) -> None:
    scene = Scene(dialect)
    scene.say(speech(0.5) + silence(1))
    item = scene.all("conversation.item.added")[0]["item"]
    assert item["content"] == [{"type": "input_audio", "transcript": None}]
    assert item["id"] == scene.only("input_audio_buffer.committed")["item_id"]
    assert item["id"] == scene.only("input_audio_buffer.speech_started")["item_id"]


@by_dialect
def test_items_name_their_predecessor(dialect: Dialect) -> None:
    scene = Scene(dialect)
    for _ in range(2):
        scene.say(speech(0.3) + silence(1))
        scene.wait(3)
    added = scene.all("conversation.item.added")
    assert [event["previous_item_id"] for event in added] == [None, *(event["item"]["id"] for event in added[:-1])]
    commits = scene.all("input_audio_buffer.committed")
    assert commits[1]["previous_item_id"] == added[1]["item"]["id"]


@by_dialect
def test_usage_is_complete(dialect: Dialect) -> None:
    scene = Scene(dialect)
    scene.say(speech(2) + silence(1))
    scene.wait(5)
    usage = scene.only("response.done")["response"]["usage"]
    inputs, outputs = usage["input_token_details"], usage["output_token_details"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["input_tokens"] == inputs["text_tokens"] + inputs["audio_tokens"]
    assert usage["output_tokens"] == outputs["text_tokens"] + outputs["audio_tokens"]
    assert inputs["audio_tokens"] > 0
    assert outputs["audio_tokens"] > 0
    assert {"cached_tokens", "cached_tokens_details", "image_tokens"} <= set(inputs)


# --- Text -------------------------------------------------------------------------------------------------------


@by_dialect
def test_text_is_quoted_over_a_tone(dialect: Dialect) -> None:
    scene = Scene(dialect)
    scene.send("conversation.item.create", item=user_text("Good morning"))
    scene.send("response.create")
    scene.wait(5)
    transcript = scene.only("response.output_audio_transcript.done")["transcript"]
    assert transcript == "[simulated] you wrote: Good morning"
    deltas = scene.all("response.output_audio_transcript.delta")
    assert "".join(delta["delta"] for delta in deltas) == transcript
    assert len(scene.all("response.output_audio.delta")) > 2


@pytest.mark.parametrize(
    ("dialect", "asked"),
    [
        (GA, {"output_modalities": ["text"]}),
        (PREVIEW, {"modalities": ["text"]}),
        (VOICE_LIVE, {"modalities": ["text"]}),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_text_response_has_no_audio(dialect: Dialect, asked: dict[str, Any]) -> None:
    scene = Scene(dialect)
    scene.send("conversation.item.create", item=user_text("Hello"))
    scene.send("response.create", response=asked | {"metadata": {"turn": "1"}})
    scene.wait(5)
    assert scene.only("response.output_text.done")["text"] == "[simulated] you wrote: Hello"
    assert scene.all("response.output_audio.delta") == []
    response = scene.only("response.done")["response"]
    assert response["metadata"] == {"turn": "1"}
    assert response["output"][0]["content"] == [
        {"type": dialect.text_part, "text": "[simulated] you wrote: Hello"},
    ]


def test_response_outside_conversation() -> None:
    scene = Scene()
    asked = {"conversation": "none", "input": [user_text("aside")], "output_modalities": ["text"]}
    scene.send("response.create", response=asked)
    scene.wait(5)
    response = scene.only("response.done")["response"]
    assert response["conversation_id"] is None
    assert response["output"][0]["content"][0]["text"] == "[simulated] you wrote: aside"
    assert scene.all("conversation.item.added") == []


def test_function_output_is_answered() -> None:
    scene = Scene()
    scene.send("conversation.item.create", item=user_text("What is the time?"))
    scene.send(
        "conversation.item.create",
        item={"type": "function_call", "name": "clock", "arguments": "{}", "call_id": "call_1"},
    )
    scene.send("conversation.item.create", item={"type": "function_call_output", "call_id": "call_1", "output": "noon"})
    scene.send("response.create")
    scene.wait(5)
    assert scene.only("response.output_audio_transcript.done")["transcript"] == "[simulated] the function gave: noon"


# --- Manual turns ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dialect", "patch"),
    [
        (GA, {"type": "realtime", "audio": {"input": {"turn_detection": None}}}),
        (PREVIEW, {"turn_detection": None}),
        (VOICE_LIVE, {"turn_detection": None}),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_client_commits_without_turn_detection(dialect: Dialect, patch: dict[str, Any]) -> None:
    scene = Scene(dialect)
    scene.send("session.update", session=patch)
    pcm = speech(1) + silence(1)
    assert scene.say(pcm) == []
    assert names_of(scene.send("input_audio_buffer.commit"))[0] == "input_audio_buffer.committed"
    assert scene.wait(5) == []
    scene.send("response.create")
    scene.wait(5)
    returned = b"".join(base64.b64decode(event["delta"]) for event in scene.all("response.output_audio.delta"))
    assert returned == pcm


def test_empty_commit_is_an_error() -> None:
    scene = Scene()
    scene.send("session.update", session={"type": "realtime", "audio": {"input": {"turn_detection": None}}})
    scene.say(speech(1))
    assert names_of(scene.send("input_audio_buffer.clear")) == ["input_audio_buffer.cleared"]
    scene.send("input_audio_buffer.commit")
    assert scene.error()["code"] == "input_audio_buffer_commit_empty"


def test_turn_without_create_response() -> None:
    scene = Scene()
    detection = {"type": "server_vad", "create_response": False}
    scene.send("session.update", session={"type": "realtime", "audio": {"input": {"turn_detection": detection}}})
    scene.say(speech(0.5) + silence(1))
    scene.wait(5)
    assert scene.only("input_audio_buffer.committed")
    assert scene.all("response.created") == []


# --- Interruption ------------------------------------------------------------------------------------------------


@by_dialect
def test_barge_in_cancels_answer(dialect: Dialect) -> None:
    scene = Scene(dialect)
    scene.say(speech(3) + silence(1))
    scene.wait(0.3)
    came = scene.say(speech(0.2))
    assert names_of(came)[0] == "input_audio_buffer.speech_started"
    response = scene.only("response.done")["response"]
    assert response["status"] == "cancelled"
    assert response["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
    assert response["output"][0]["status"] == "incomplete"
    assert response["usage"]["total_tokens"] > 0
    said = scene.only("response.output_audio_transcript.done")["transcript"]
    assert said
    assert said != "[simulated] you said 3.2 s of speech"
    before = len(scene.all("response.output_audio.delta"))
    scene.wait(3)
    assert len(scene.all("response.output_audio.delta")) == before


def test_answer_goes_on_without_interruption() -> None:
    scene = Scene()
    detection = {"type": "server_vad", "interrupt_response": False}
    scene.send("session.update", session={"type": "realtime", "audio": {"input": {"turn_detection": detection}}})
    scene.say(speech(3) + silence(1))
    scene.wait(0.3)
    scene.say(speech(0.2))
    scene.wait(5)
    assert scene.only("response.done")["response"]["status"] == "completed"


@by_dialect
def test_cancel_ends_answer_or_is_an_error(dialect: Dialect) -> None:
    scene = Scene(dialect)
    scene.send("response.cancel")
    assert scene.error()["code"] == "response_cancel_not_active"
    scene.say(speech(3) + silence(1))
    scene.wait(0.3)
    scene.send("response.cancel", response_id=scene.only("response.created")["response"]["id"])
    response = scene.only("response.done")["response"]
    assert response["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}


def test_second_active_response_is_an_error() -> None:
    scene = Scene()
    scene.send("response.create")
    scene.send("response.create")
    assert scene.error()["code"] == "conversation_already_has_active_response"


@by_dialect
def test_truncation_is_limited_to_sent_audio(dialect: Dialect) -> None:
    scene = Scene(dialect)
    scene.say(speech(3) + silence(1))
    scene.wait(0.3)
    scene.send("response.cancel")
    sent_ms = 100 * len(scene.all("response.output_audio.delta"))
    item_id = scene.only("response.done")["response"]["output"][0]["id"]
    cut = {"item_id": item_id, "content_index": 0}
    scene.send("conversation.item.truncate", **cut, audio_end_ms=sent_ms + 1, event_id="mine")
    assert (scene.error()["code"], scene.error()["param"]) == ("invalid_value", "audio_end_ms")
    assert scene.error()["event_id"] == "mine"
    assert f"{sent_ms}ms is already shorter than {sent_ms + 1}ms" in scene.error()["message"]
    scene.send("conversation.item.truncate", **cut, audio_end_ms=sent_ms - 50)
    assert scene.only("conversation.item.truncated") | cut == scene.only("conversation.item.truncated")
    scene.send("conversation.item.retrieve", item_id=item_id)
    (part,) = scene.only("conversation.item.retrieved")["item"]["content"]
    assert part["transcript"] == ""


def test_only_answers_audio_is_truncated() -> None:
    scene = Scene()
    scene.send("conversation.item.create", item=user_text("hi") | {"id": "item_mine"})
    scene.send("conversation.item.truncate", item_id="item_mine", content_index=0, audio_end_ms=0)
    assert scene.error()["param"] == "content_index"


# --- Playback at the server, as over WebRTC ------------------------------------------------------------------------


def _playback(scene: Scene) -> list[str]:
    return [event["type"] for event in scene.events if event["type"].startswith("output_audio_buffer.")]


def test_server_playback_tells_start_and_end() -> None:
    scene = Scene(server_plays=True)
    scene.send("response.create")
    scene.wait(5)
    assert _playback(scene) == ["output_audio_buffer.started"]
    names = [event["type"] for event in scene.events]
    assert names.index("response.content_part.added") < names.index("output_audio_buffer.started")
    assert names.index("output_audio_buffer.started") < names.index("response.output_audio.delta")
    scene.hear_all()
    scene.hear_all()
    assert _playback(scene) == ["output_audio_buffer.started", "output_audio_buffer.stopped"]


def test_playback_goes_on_after_underrun() -> None:
    scene = _underrun()
    scene.wait(0.1)
    scene.hear_all()
    assert _playback(scene) == ["output_audio_buffer.started"]
    scene.wait(5)
    assert _playback(scene) == ["output_audio_buffer.started"]
    scene.hear_all()
    assert _playback(scene) == ["output_audio_buffer.started", "output_audio_buffer.stopped"]


def test_playback_that_is_empty_ends_with_its_answer() -> None:
    scene = _underrun()
    while not scene.all("response.done"):
        scene.wait(0.1)
        scene.hear_all()
    names = [event["type"] for event in scene.events]
    assert names.index("response.done") < names.index("output_audio_buffer.stopped")
    assert _playback(scene) == ["output_audio_buffer.started", "output_audio_buffer.stopped"]


def test_playback_is_cleared_in_an_underrun() -> None:
    scene = _underrun()
    scene.send("output_audio_buffer.clear")
    scene.send("response.cancel")
    assert _playback(scene) == ["output_audio_buffer.started", "output_audio_buffer.cleared"]
    scene.hear_all()
    assert _playback(scene) == ["output_audio_buffer.started", "output_audio_buffer.cleared"]


def _underrun() -> Scene:
    """An answer that comes as slowly as it is played: its buffer is empty between two pieces, as it is now."""
    scene = Scene(server_plays=True, speech_rate=SpeechRate(speed=1))
    scene.script({"say": "word " * 20})
    scene.send("response.create")
    scene.wait(0.2)
    scene.hear_all()
    return scene


def test_late_barge_in_clears_playback() -> None:
    scene = Scene(server_plays=True)
    scene.say(speech(2) + silence(1))
    scene.wait(5)
    assert scene.only("response.done")["response"]["status"] == "completed"
    scene.say(speech(0.2))
    assert _playback(scene) == ["output_audio_buffer.started", "output_audio_buffer.cleared"]
    response_id = scene.only("response.done")["response"]["id"]
    assert scene.only("output_audio_buffer.cleared")["response_id"] == response_id


def test_server_playback_truncates_to_what_was_heard() -> None:
    scene = Scene(server_plays=True)
    scene.say(speech(2) + silence(1))
    scene.wait(0.65)  # 50 ms of thinking, so 600 ms of the answer were heard
    scene.say(speech(0.2))
    truncated = scene.only("conversation.item.truncated")
    item_id = scene.only("response.done")["response"]["output"][0]["id"]
    assert (truncated["item_id"], truncated["audio_end_ms"]) == (item_id, 600)
    assert _playback(scene) == ["output_audio_buffer.started", "output_audio_buffer.cleared"]
    scene.send("conversation.item.retrieve", item_id=item_id)
    assert scene.only("conversation.item.retrieved")["item"]["content"][0]["transcript"] == ""


def test_playback_goes_on_without_interruption() -> None:
    scene = Scene(server_plays=True)
    detection = {"type": "server_vad", "interrupt_response": False}
    scene.send("session.update", session={"type": "realtime", "audio": {"input": {"turn_detection": detection}}})
    scene.say(speech(1) + silence(1))
    scene.wait(5)
    scene.say(speech(0.2))
    assert _playback(scene) == ["output_audio_buffer.started"]


# --- Transcripts of the user -------------------------------------------------------------------------------------

TRANSCRIBE: dict[str, dict[str, Any]] = {
    "ga": {"type": "realtime", "audio": {"input": {"transcription": {"model": "whisper-1"}}}},
    "preview": {"input_audio_transcription": {"model": "whisper-1"}},
    "voice_live": {"input_audio_transcription": {"model": "azure-speech"}},
}
COMPLETED = "conversation.item.input_audio_transcription.completed"


@by_dialect
@pytest.mark.parametrize("timing", ["before_answer", "during_answer", "after_answer"])
def test_transcript_comes_when_the_options_say(dialect: Dialect, timing: TranscriptTiming) -> None:
    scene = Scene(dialect, transcript_timing=timing)
    scene.send("session.update", session=TRANSCRIBE[dialect.name])
    scene.say(speech(1) + silence(1))
    scene.wait(5)
    completed = scene.only(COMPLETED)
    assert completed["transcript"] == "[simulated] 1.2 s of speech"
    assert completed["item_id"] == scene.only("input_audio_buffer.committed")["item_id"]
    deltas = scene.all("conversation.item.input_audio_transcription.delta")
    assert "".join(delta["delta"] for delta in deltas) == completed["transcript"]
    assert len(deltas) == 5
    names = [event["type"] for event in scene.events]
    done, first = names.index("response.done"), names.index("response.content_part.added")
    assert {
        "before_answer": names.index(COMPLETED) < first,
        "during_answer": first < names.index(COMPLETED) < done,
        "after_answer": names.index(COMPLETED) > done,
    }[timing]


def test_transcript_may_come_after_next_turn() -> None:
    scene = Scene(transcript_timing="after_next_turn")
    scene.send("session.update", session=TRANSCRIBE["ga"])
    for _ in range(2):
        scene.say(speech(1) + silence(1))
        scene.wait(5)
    names = [event["type"] for event in scene.events if event["type"] in (COMPLETED, "input_audio_buffer.committed")]
    assert names == ["input_audio_buffer.committed", "input_audio_buffer.committed", COMPLETED]
    assert scene.only(COMPLETED)["item_id"] == scene.all("input_audio_buffer.committed")[0]["item_id"]


def test_streaming_transcription_begins_before_commit() -> None:
    scene = Scene()
    transcription = {"model": "gpt-realtime-whisper"}
    scene.send("session.update", session={"type": "realtime", "audio": {"input": {"transcription": transcription}}})
    scene.say(speech(1))
    begun = scene.only("conversation.item.input_audio_transcription.delta")
    assert begun["item_id"] == scene.only("input_audio_buffer.speech_started")["item_id"]
    assert scene.all("input_audio_buffer.committed") == []
    scene.say(silence(1))
    scene.wait(5)
    deltas = [event["delta"] for event in scene.all("conversation.item.input_audio_transcription.delta")]
    assert "".join(deltas) == scene.only(COMPLETED)["transcript"] == "[simulated] 1.2 s of speech"


@by_dialect
def test_voice_live_bills_no_transcript(dialect: Dialect) -> None:
    scene = Scene(dialect)
    scene.send("session.update", session=TRANSCRIBE[dialect.name])
    scene.say(speech(1) + silence(1))
    scene.wait(5)
    usage = scene.only(COMPLETED).get("usage")
    assert usage == (None if dialect is VOICE_LIVE else {"type": "duration", "seconds": 1.2})


@by_dialect
def test_transcript_stands_in_its_item(dialect: Dialect) -> None:
    scene = Scene(dialect)
    scene.send("session.update", session=TRANSCRIBE[dialect.name])
    scene.say(speech(1) + silence(1))
    scene.wait(5)
    completed = scene.only(COMPLETED)
    scene.send("conversation.item.retrieve", item_id=completed["item_id"])
    content = scene.only("conversation.item.retrieved")["item"]["content"]
    assert content == [{"type": "input_audio", "transcript": completed["transcript"]}]


@by_dialect
def test_no_transcript_unless_asked(dialect: Dialect) -> None:
    scene = Scene(dialect)
    scene.say(speech(1) + silence(1))
    scene.wait(5)
    assert scene.all(COMPLETED) == []


def test_missing_transcription_deployment_fails() -> None:
    scene = Scene(transcription_models=frozenset({"whisper-eu"}))
    scene.send("session.update", session=TRANSCRIBE["ga"])
    scene.say(speech(1) + silence(1))
    scene.wait(5)
    failed = scene.only("conversation.item.input_audio_transcription.failed")
    assert failed["error"]["code"] == "DeploymentNotFound"
    assert scene.only("response.done")["response"]["status"] == "completed"


# --- The session -------------------------------------------------------------------------------------------------

UPDATES = [
    (GA, {"type": "realtime", "instructions": "Be kind.", "audio": {"output": {"voice": "cedar"}}}),
    (PREVIEW, {"instructions": "Be kind.", "voice": "sage", "input_audio_transcription": {"model": "whisper-1"}}),
    (
        VOICE_LIVE,
        {
            "instructions": "Be kind.",
            "modalities": ["text", "audio"],
            "voice": {"type": "azure-standard", "name": "en-US-Ava:DragonHDLatestNeural"},
            "input_audio_format": "pcm16",
            "input_audio_sampling_rate": 24000,
            "turn_detection": {"type": "azure_semantic_vad", "threshold": 0.5, "remove_filler_words": True},
            "input_audio_noise_reduction": {"type": "azure_deep_noise_suppression"},
            "input_audio_echo_cancellation": {"type": "server_echo_cancellation"},
            "input_audio_transcription": {"model": "azure-speech"},
        },
    ),
]
updates = pytest.mark.parametrize(("dialect", "patch"), UPDATES, ids=lambda value: getattr(value, "name", None))


def _contains(whole: Any, part: Any) -> bool:
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(_contains(whole.get(name), value) for name, value in part.items())
    return bool(whole == part)


@updates
def test_update_changes_named_fields(dialect: Dialect, patch: dict[str, Any]) -> None:
    scene = Scene(dialect)
    created = scene.only("session.created")["session"]
    scene.send("session.update", session=patch)
    updated = scene.only("session.updated")["session"]
    assert _contains(updated, patch)
    assert updated["id"] == created["id"]
    assert updated["id"].startswith("sess_")
    assert updated["model"] == created["model"]
    assert updated["tools"] == created["tools"]


@by_dialect
def test_bare_vad_has_recorded_defaults(dialect: Dialect) -> None:
    """A client's bare `server_vad` replaces an agent's own values, by those of the API."""
    scene = Scene(dialect)
    detection = {"type": "server_vad"}
    scene.update(
        **({"audio": {"input": {"turn_detection": detection}}} if dialect is GA else {"turn_detection": detection})
    )

    def values(event: dict[str, Any]) -> tuple[float, int, int]:
        session = event["session"]
        told = (session["audio"]["input"] if dialect is GA else session)["turn_detection"]
        return told["threshold"], told["prefix_padding_ms"], told["silence_duration_ms"]

    assert values(scene.only("session.created")) == (0.5, 300, 200)
    assert values(scene.only("session.updated")) == ((0.5, 400, 500) if dialect is VOICE_LIVE else (0.5, 300, 200))


@by_dialect
def test_empty_instructions_keep_persona(dialect: Dialect) -> None:
    scene = Scene(dialect)
    persona = scene.only("session.created")["session"]["instructions"]
    assert persona.startswith("Your knowledge cutoff")
    scene.update(instructions="Be kind.")
    scene.update(instructions="")
    told = [event["session"]["instructions"] for event in scene.all("session.updated")]
    assert told == ["Be kind.", persona]


def test_ga_echo_leaves_transcription_hints_out() -> None:
    scene = Scene()
    hints = {"model": "gpt-realtime-whisper", "language": "de", "delay": "low", "keywords": ["Elena"]}
    scene.update(audio={"input": {"transcription": hints}})
    echo = scene.only("session.updated")["session"]["audio"]["input"]["transcription"]
    assert echo == {"model": "gpt-realtime-whisper", "language": "de", "prompt": None}


@pytest.mark.parametrize("voice", ["marin", {"type": "openai", "name": "marin"}])
def test_voice_live_states_voice_as_object(voice: Any) -> None:
    scene = Scene(VOICE_LIVE)
    scene.update(voice=voice)
    assert scene.only("session.updated")["session"]["voice"] == {"name": "marin", "type": "openai"}


def test_ga_audio_is_updated_by_field() -> None:
    scene = Scene()
    scene.send("session.update", session={"type": "realtime", "audio": {"output": {"voice": "cedar"}}})
    scene.send("session.update", session={"type": "realtime", "audio": {"output": {"speed": 1.2}}})
    audio = scene.all("session.updated")[1]["session"]["audio"]
    assert (audio["output"]["voice"], audio["output"]["speed"]) == ("cedar", 1.2)
    assert audio["input"]["turn_detection"]["type"] == "server_vad"


TOOL = {"type": "function", "name": "clock", "description": "The time.", "parameters": {"type": "object"}}


@by_dialect
def test_tools_are_taken(dialect: Dialect) -> None:
    scene = Scene(dialect)
    patch: dict[str, Any] = {"tools": [TOOL], "tool_choice": "auto"}
    scene.send("session.update", session=patch | ({"type": "realtime"} if dialect is GA else {}))
    assert _contains(scene.only("session.updated")["session"]["tools"][0], TOOL)


@pytest.mark.parametrize(
    ("dialect", "session", "code", "param"),
    [
        (GA, {"instructions": "x"}, "missing_required_parameter", "session.type"),
        (GA, {"type": "realtime", "voice": "marin"}, "unknown_parameter", "session.voice"),
        (GA, {"type": "realtime", "modalities": ["text"]}, "unknown_parameter", "session.modalities"),
        (
            GA,
            {"type": "realtime", "audio": {"output": {"voice": "en-US-Ava:DragonHDLatestNeural"}}},
            "invalid_value",
            "session.audio.output.voice",
        ),
        (
            GA,
            {"type": "realtime", "audio": {"input": {"format": {"type": "audio/pcm", "rate": 16000}}}},
            "invalid_value",
            "session.audio.input.format.rate",
        ),
        (GA, {"type": "realtime", "model": "other"}, "invalid_value", "session.model"),
        (PREVIEW, {"type": "realtime"}, "unknown_parameter", "session.type"),
        (PREVIEW, {"audio": {}}, "unknown_parameter", "session.audio"),
        (PREVIEW, {"input_audio_format": "opus"}, "invalid_value", "session.input_audio_format"),
        (VOICE_LIVE, {"audio": {}}, "unknown_parameter", "session.audio"),
        (VOICE_LIVE, {"voice": "en-US-AvaNeural"}, "invalid_value", "session.voice"),
        (VOICE_LIVE, {"voice": {"type": "azure-standard", "name": "marin"}}, "invalid_value", "session.voice.name"),
        (VOICE_LIVE, {"voice": {"type": "azure-standard"}}, "missing_required_parameter", "session.voice.name"),
        (VOICE_LIVE, {"input_audio_sampling_rate": 12000}, "invalid_value", "session.input_audio_sampling_rate"),
        (VOICE_LIVE, {"turn_detection": {"type": "none"}}, "invalid_value", "session.turn_detection.type"),
    ],
)
def test_invalid_update_changes_nothing(dialect: Dialect, session: dict[str, Any], code: str, param: str) -> None:
    scene = Scene(dialect)
    scene.send("session.update", session=session, event_id="event_mine")
    assert (scene.error()["code"], scene.error()["param"]) == (code, param)
    assert scene.error()["event_id"] == "event_mine"
    assert scene.all("session.updated") == []


@pytest.mark.parametrize(
    ("dialect", "voice", "param"),
    [
        (GA, {"type": "realtime", "audio": {"output": {"voice": "cedar"}}}, "session.audio.output.voice"),
        (PREVIEW, {"voice": "sage"}, "session.voice"),
        (VOICE_LIVE, {"voice": {"type": "azure-standard", "name": "en-US-GuyNeural"}}, "session.voice"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_voice_is_fixed_after_speech(dialect: Dialect, voice: dict[str, Any], param: str) -> None:
    scene = Scene(dialect)
    scene.send("response.create")
    scene.wait(5)
    scene.send("session.update", session=voice | {"instructions": "New."})
    assert (scene.error()["code"], scene.error()["param"]) == ("cannot_update_voice", param)
    assert scene.all("session.updated") == []
    same = {name: value for name, value in voice.items() if name == "type"}
    scene.send("session.update", session=same | {"instructions": "New."})
    assert scene.only("session.updated")["session"]["instructions"] == "New."


def test_text_answer_leaves_voice_free() -> None:
    scene = Scene()
    scene.send("response.create", response={"output_modalities": ["text"]})
    scene.wait(5)
    scene.send("session.update", session={"type": "realtime", "audio": {"output": {"voice": "cedar"}}})
    assert scene.only("session.updated")


def test_talk_expires_at_its_longest() -> None:
    scene = Scene(longest_s=1800)
    scene.wait(1799)
    assert scene.talk.ending is None
    scene.wait(1)
    assert scene.error()["code"] == "session_expired"
    assert "30 minutes" in scene.error()["message"]
    assert scene.talk.ending == ServerClose(1001, "session_expired")


# --- What is wrong is answered, and is not fatal -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        ("nonsense", "invalid_json", None),
        ("[]", "invalid_event", None),
        (b"\x00\x01", "invalid_event", None),
        ("{}", "missing_required_parameter", "type"),
        ('{"type": 7}', "invalid_value", "type"),
        ('{"type": "response.shout"}', "invalid_value", "type"),
        ('{"type": "session.update"}', "missing_required_parameter", "session"),
        ('{"type": "input_audio_buffer.append"}', "missing_required_parameter", "audio"),
        ('{"type": "input_audio_buffer.append", "audio": "%%%"}', "invalid_value", "audio"),
        ('{"type": "input_audio_buffer.append", "audio": 1}', "invalid_type", "audio"),
        ('{"type": "input_audio_buffer.commit", "now": true}', "unknown_parameter", "now"),
        ('{"type": "conversation.item.create"}', "missing_required_parameter", "item"),
        ('{"type": "conversation.item.create", "item": {"type": "song"}}', "invalid_value", "item"),
        ('{"type": "conversation.item.delete", "item_id": "none"}', "item_delete_invalid_item_id", "item_id"),
        ('{"type": "conversation.item.retrieve", "item_id": "none"}', "item_retrieve_invalid_item_id", "item_id"),
        ('{"type": "response.create", "response": {"voice": "marin"}}', "unknown_parameter", "response.voice"),
        (
            '{"type": "response.create", "response": {"input": [{}]}}',
            "missing_required_parameter",
            "response.input[0].type",
        ),
        ('{"type": "output_audio_buffer.clear"}', "invalid_event", "type"),
    ],
)
def test_talk_goes_on_after_bad_event(message: str | bytes, code: str, param: str | None) -> None:
    scene = Scene()
    scene.receive(message)
    assert (scene.error()["code"], scene.error()["param"]) == (code, param)
    assert scene.error()["type"] == "invalid_request_error"
    scene.send("response.create")
    scene.wait(5)
    assert scene.only("response.done")


@pytest.mark.parametrize(
    ("dialect", "role", "kind", "fits"),
    [
        (GA, "assistant", "output_text", True),
        (GA, "assistant", "text", False),
        (PREVIEW, "assistant", "text", True),
        (VOICE_LIVE, "assistant", "output_text", True),
        (VOICE_LIVE, "assistant", "text", True),
        (PREVIEW, "assistant", "output_text", False),
        (GA, "user", "output_text", False),
        (GA, "system", "input_text", True),
        (GA, "system", "input_audio", False),
    ],
)
def test_item_content_fits_role_and_dialect(dialect: Dialect, role: str, kind: str, fits: bool) -> None:
    scene = Scene(dialect)
    item = {"type": "message", "role": role, "content": [{"type": kind, "text": "x"}]}
    scene.send("conversation.item.create", item=item)
    if fits:
        stated = dialect.text_part if role == "assistant" else kind
        assert scene.only("conversation.item.added")["item"]["content"] == [{"type": stated, "text": "x"}]
    else:
        assert scene.error()["param"] == "item.content[0].type"


def test_items_keep_ids_and_places() -> None:
    scene = Scene()
    for name, after in [("a", None), ("b", None), ("c", "a"), ("d", "root")]:
        scene.send("conversation.item.create", item=user_text(name) | {"id": name}, previous_item_id=after)
    assert [event["previous_item_id"] for event in scene.all("conversation.item.added")] == [None, "a", "a", None]
    scene.send("conversation.item.create", item=user_text("again") | {"id": "a"})
    assert scene.error()["param"] == "item.id"
    scene.events.clear()
    scene.send("conversation.item.create", item=user_text("lost"), previous_item_id="nowhere")
    assert scene.error()["param"] == "previous_item_id"
    scene.send("conversation.item.delete", item_id="a")
    assert scene.only("conversation.item.deleted")["item_id"] == "a"


def test_long_talks_memory_is_bounded() -> None:
    scene = Scene()
    for number in range(250):
        scene.send("conversation.item.create", item=user_text(str(number)) | {"id": f"item_{number}"})
    scene.events.clear()
    scene.send("conversation.item.retrieve", item_id="item_49")
    assert scene.error()["code"] == "item_retrieve_invalid_item_id"
    scene.send("conversation.item.retrieve", item_id="item_50")
    assert scene.only("conversation.item.retrieved")


# --- Beside the audio ------------------------------------------------------------------------------------------------


def test_words_and_lips_are_timed() -> None:
    scene = Scene(VOICE_LIVE)
    scene.update(animation={"outputs": ["viseme_id"]}, output_audio_timestamp_types=["word"])
    scene.ask("to you")
    words = scene.all("response.audio_timestamp.delta")
    assert [word["text"] for word in words] == ["[simulated]", "you", "wrote:", "to", "you"]
    offsets = [word["audio_offset_ms"] for word in words]
    assert offsets == sorted(offsets)
    assert {word["timestamp_type"] for word in words} == {"word"}
    assert [lips["audio_offset_ms"] for lips in scene.all("response.animation_viseme.delta")] == offsets
    scene.only("response.audio_timestamp.done")
    scene.only("response.animation_viseme.done")


@by_dialect
def test_no_times_unless_asked(dialect: Dialect) -> None:
    scene = Scene(dialect)
    scene.ask("to you")
    assert not [event for event in scene.events if "timestamp" in event["type"] or "viseme" in event["type"]]


# --- What instructions do --------------------------------------------------------------------------------------------


@by_dialect
def test_response_quotes_its_instructions(dialect: Dialect) -> None:
    scene = Scene(dialect)
    scene.send("conversation.item.create", item=user_text("What colour is it?"))
    scene.send("response.create", response={"instructions": "Say exactly: pineapple"})
    scene.wait(20)
    said = scene.only("response.output_audio_transcript.done")["transcript"]
    assert said == "[simulated] you wrote: What colour is it?; told: Say exactly: pineapple"
