"""Faults that change what a talk does: updates refused, kept or late, strict history, failed or silent answers."""

from typing import Any

import pytest

from tests.simulator.scene import Scene, by_dialect, user_text
from token_broker.simulator.faults.fault_table import FaultTable, parse_faults
from token_broker.simulator.faults.talk_behaviour import TalkBehaviour
from token_broker.simulator.realtime.dialects import GA, PREVIEW, VOICE_LIVE, Dialect
from token_broker.simulator.realtime.simulated_talk import ServerClose
from token_broker.simulator.session_bodies.persona import DEFAULT_PERSONA

PATH = "/voice-live/realtime"


def faulty(dialect: Dialect, *faults: dict[str, Any]) -> Scene:
    """A talk for which these faults are set."""
    table = FaultTable()
    table.replace(parse_faults([{"match": "/voice-live"} | fault for fault in faults]))
    return Scene(dialect, behaviour=TalkBehaviour(table, PATH))


def instructions(scene: Scene) -> str:
    """As the session states them now."""
    stated: str = scene.talk.session_object()["instructions"]
    return stated


@by_dialect
def test_refused_update_changes_nothing(dialect: Dialect) -> None:
    field = "audio.output.voice" if dialect is GA else "voice"
    scene = faulty(dialect, {"fault": "refuse_update", "field": field})
    voice = {"audio": {"output": {"voice": "echo"}}} if dialect is GA else {"voice": "echo"}
    scene.update(instructions="You are Elena.", **voice)
    assert scene.error()["param"] == f"session.{field}"
    assert scene.error()["code"] == "invalid_value"
    assert scene.all("session.updated") == []
    assert instructions(scene) == DEFAULT_PERSONA
    scene.update(instructions="You are Elena.")
    assert instructions(scene) == "You are Elena."


def test_refused_update_by_value_and_with_close() -> None:
    odd = {"fault": "refuse_update", "field": "voice", "contains": "verse", "code": "server_error"}
    scene = faulty(VOICE_LIVE, odd | {"type": "server_error", "close": 1011})
    scene.update(voice="echo")
    assert len(scene.all("session.updated")) == 1
    scene.update(voice="verse")
    assert scene.error()["type"] == "server_error"
    assert scene.talk.ending == ServerClose(1011, "server_error")


def test_refusal_ends_with_its_times() -> None:
    scene = faulty(VOICE_LIVE, {"fault": "refuse_update", "times": 1})
    scene.update(instructions="You are Elena.")
    scene.update(instructions="You are Elena.")
    assert (len(scene.all("error")), len(scene.all("session.updated"))) == (1, 1)


def test_ignored_update_is_confirmed_with_persona() -> None:
    scene = faulty(GA, {"fault": "ignore_update", "fields": ["instructions", "audio.output.voice"]})
    scene.update(instructions="You are Elena.", audio={"output": {"voice": "echo", "speed": 1.2}})
    confirmed = scene.only("session.updated")["session"]
    assert confirmed["instructions"] == DEFAULT_PERSONA
    assert confirmed["audio"]["output"]["voice"] == "alloy"
    assert confirmed["audio"]["output"]["speed"] == 1.2


def test_late_update_takes_effect_late() -> None:
    scene = faulty(VOICE_LIVE, {"fault": "late_update", "seconds": 3})
    scene.update(instructions="You are Elena.")
    scene.wait(2.9)
    assert scene.all("session.updated") == []
    assert instructions(scene) == DEFAULT_PERSONA
    scene.wait(0.2)
    assert scene.only("session.updated")["session"]["instructions"] == "You are Elena."


def assistant(part_type: str, **fields: Any) -> dict[str, Any]:
    """An assistant's item as a client gives history back."""
    return {"type": "message", "role": "assistant", "content": [{"type": part_type, "text": "Yes."}], **fields}


@pytest.mark.parametrize(
    ("dialect", "own", "foreign"),
    [(GA, "output_text", "text"), (VOICE_LIVE, "text", "output_text"), (PREVIEW, "text", "output_text")],
)
def test_strict_history_by_dialect(dialect: Dialect, own: str, foreign: str) -> None:
    scene = faulty(dialect, {"fault": "strict_history"})
    scene.send("conversation.item.create", item=assistant(own))
    assert scene.all("error") == []
    scene.send("conversation.item.create", item=assistant(foreign))
    assert scene.error()["param"] == "item.content[0].type"


@by_dialect
def test_strict_history_refuses_assistants_audio(dialect: Dialect) -> None:
    audio = "output_audio" if dialect is GA else "audio"
    item = {"type": "message", "role": "assistant", "content": [{"type": audio, "transcript": "Yes."}]}
    scene = faulty(dialect, {"fault": "strict_history"})
    scene.send("conversation.item.create", item=item)
    assert scene.error()["param"] == "item.content[0].type"


def test_strict_history_refuses_long_ids() -> None:
    scene = faulty(GA, {"fault": "strict_history"})
    scene.send("conversation.item.create", item=user_text("a") | {"id": "i" * 32})
    assert scene.all("error") == []
    scene.send("conversation.item.create", item=user_text("b") | {"id": "i" * 33})
    assert (scene.error()["code"], scene.error()["param"]) == ("string_above_max_length", "item.id")


def test_strictness_can_be_chosen() -> None:
    scene = faulty(VOICE_LIVE, {"fault": "strict_history", "refuses": ["long_ids"]})
    scene.send("conversation.item.create", item=assistant("output_text"))
    assert scene.all("error") == []


def restored(scene: Scene, turns: int = 3) -> Scene:
    """The scene with so many text turns of the assistant's given back, and a question after them."""
    own = "output_text" if scene.dialect is GA else "text"
    for _ in range(turns):
        scene.send("conversation.item.create", item=user_text("And?"))
        scene.send("conversation.item.create", item=assistant(own))
    scene.send("conversation.item.create", item=user_text("And then?"))
    return scene


@by_dialect
def test_answer_is_text_after_text_history(dialect: Dialect) -> None:
    few, many = (faulty(dialect, {"fault": "text_answers"}) for _ in range(2))
    for scene, turns in ((few, 2), (many, 3)):
        restored(scene, turns).send("response.create")
        scene.wait(10)
    assert few.all("response.output_audio.delta") != []
    assert many.all("response.output_audio.delta") == []
    assert many.only("response.output_text.done")["text"].endswith("And then?")


@pytest.mark.parametrize(
    ("unless_said", "in_update", "in_response", "sounds"),
    [
        ("anywhere", True, False, True),
        ("anywhere", False, True, True),
        ("response", True, False, False),
        ("response", False, True, True),
        ("nowhere", True, True, False),
    ],
)
def test_said_modalities_bring_sound(unless_said: str, in_update: bool, in_response: bool, sounds: bool) -> None:
    scene = faulty(VOICE_LIVE, {"fault": "text_answers", "unless_said": unless_said})
    if in_update:
        scene.update(modalities=["text", "audio"])
    restored(scene).send("response.create", response={"modalities": ["text", "audio"]} if in_response else {})
    scene.wait(10)
    assert bool(scene.all("response.output_audio.delta")) is sounds


def test_each_answer_fails_then_closes() -> None:
    scene = faulty(VOICE_LIVE, {"fault": "failed_answers"})
    scene.ask("a question")
    response = scene.only("response.done")["response"]
    assert (response["status"], response["output"]) == ("failed", [])
    assert response["status_details"]["error"]["code"] == "insufficient_quota"
    assert scene.talk.ending == ServerClose(1011, "simulated")


def test_failed_answers_without_close_go_on() -> None:
    scene = faulty(GA, {"fault": "failed_answers", "close": None, "times": 1})
    scene.ask("a question")
    scene.ask("another")
    assert [event["response"]["status"] for event in scene.all("response.done")] == ["failed", "completed"]


def test_slow_answer_takes_its_seconds() -> None:
    scene = faulty(GA, {"fault": "slow_answers", "seconds": 2.5})
    scene.send("conversation.item.create", item=user_text("a question"))
    scene.send("response.create")
    scene.wait(2.4)
    assert scene.all("response.output_item.added") == []
    scene.wait(0.2)
    assert scene.all("response.output_item.added") != []


def test_fault_is_met_by_running_talk() -> None:
    table = FaultTable()
    scene = Scene(GA, behaviour=TalkBehaviour(table, PATH))
    scene.ask("a question")
    table.replace(parse_faults([{"match": "/", "fault": "failed_answers"}]))
    scene.ask("another")
    assert [event["response"]["status"] for event in scene.all("response.done")] == ["completed", "failed"]


def test_fault_of_another_path_is_not_met() -> None:
    table = FaultTable()
    table.replace(parse_faults([{"match": "/openai", "fault": "failed_answers"}]))
    scene = Scene(VOICE_LIVE, behaviour=TalkBehaviour(table, PATH))
    scene.ask("a question")
    assert scene.only("response.done")["response"]["status"] == "completed"


@by_dialect
def test_restored_answer_is_gone_on_with(dialect: Dialect) -> None:
    scene = Scene(dialect)
    scene.send("conversation.item.create", item=user_text("Tell me a story, #4"))
    scene.send("conversation.item.create", item=assistant("output_text" if dialect is GA else "text"))
    scene.send("response.create")
    scene.wait(10)
    assert scene.only("response.output_audio_transcript.done")["transcript"] == "[simulated] going on after: Yes."
