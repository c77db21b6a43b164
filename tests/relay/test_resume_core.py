"""The core of a resume: what was open, what the next session is told, and one answer to each utterance."""

import base64
import json
import random
from typing import Any

import pytest

from strategies.base import Dialect
from tests.relay.support.model_azure import CHUNKS, ModelTalk, append
from token_broker.relay.resume.held_audio import HeldAudio
from token_broker.relay.resume.ledger import TalkLedger
from token_broker.relay.resume.replay import NewSession, replay
from token_broker.relay.resume.restored import Restored
from token_broker.relay.resume.steps import Ask, Handover, Listen, Resend, Say, Speech, Step

Event = dict[str, Any]
SPOKEN, SILENT = 12, 10  # appends: 1.2 s of speech, and more silence than ends it


def spoken(talk: ModelTalk, utterance: int = 1) -> None:
    """The user says something, and the session has heard that it is over."""
    for _ in range(SPOKEN):
        talk.say(utterance)
    for _ in range(SILENT):
        talk.say(0)


def deliver_until(talk: ModelTalk, kind: str, *, nth: int = 1) -> None:
    while talk.deliver():
        if sum(event["type"] == kind for event in talk.shown) == nth:
            return
    raise AssertionError(f"no {kind} came")


def steps_of(handover: Handover, *kinds: type[Step]) -> list[Any]:
    return [step for step in handover.steps if isinstance(step, kinds)]


def ended(talk: ModelTalk) -> list[str]:
    return [event["response"]["id"] for event in talk.shown if event["type"] == "response.done"]


# --- an answer that is cut (P03)


def test_answer_nobody_heard_is_asked_again() -> None:
    talk = ModelTalk()
    spoken(talk)
    deliver_until(talk, "response.created")
    handover = talk.cut()
    assert [event["response"]["status"] for event in handover.endings] == ["cancelled"]
    assert steps_of(handover, Ask) == [Ask()]


def test_answer_cut_in_sound_is_asked_to_go_on() -> None:
    talk = ModelTalk()
    spoken(talk)
    deliver_until(talk, "response.audio.delta", nth=2)
    handover = talk.cut()
    assert len(handover.endings) == 1
    assert [(step.item.kind, step.item.text) for step in steps_of(handover, Say)][-1] == ("assistant", "word0 word1")
    assert steps_of(handover, Ask) == [Ask(go_on=True)]


@pytest.mark.parametrize("last", ["response.audio.done", "response.audio_transcript.done", "response.output_item.done"])
def test_answer_that_was_heard_whole_asks_nothing(last: str) -> None:
    talk = ModelTalk()
    spoken(talk)
    deliver_until(talk, last)
    handover = talk.cut()
    assert len(handover.endings) == 1
    assert steps_of(handover, Ask) == []


def test_first_item_is_not_repeated() -> None:
    talk = ModelTalk()
    spoken(talk)
    deliver_until(talk, "response.output_item.done")
    second = {"id": "item_second", "type": "message", "role": "assistant", "content": []}
    response_id = next(iter(talk.azure.answers))
    talk.ledger.azure_sent({"type": "response.output_item.added", "response_id": response_id, "item": second}, 0.0)
    handover = talk.cut()
    assert steps_of(handover, Ask) == [Ask(go_on=True)]
    assert "word3" in [step.item.text for step in steps_of(handover, Say)][-1]


def test_ending_has_ids_and_comes_once() -> None:
    talk = ModelTalk()
    spoken(talk)
    deliver_until(talk, "response.audio.delta")
    first = talk.cut()
    (ending,) = first.endings
    assert ending["response"]["id"] == "resp_s0_2"
    assert [item["id"] for item in ending["response"]["output"]] == ["item_s0_3"]
    assert talk.cut().endings == ()


def test_unheard_answer_is_no_turn() -> None:
    talk = ModelTalk()
    spoken(talk)
    deliver_until(talk, "response.audio_transcript.delta")
    assert talk.cut().unsaid == {"item_s0_3"}


# --- what the user said (P04)


@pytest.mark.parametrize("last", ["input_audio_buffer.committed", "response.created", "response.audio.delta"])
def test_speech_without_transcript_is_heard_again(last: str) -> None:
    talk = ModelTalk()
    spoken(talk)
    deliver_until(talk, last)
    (speech,) = steps_of(talk.cut(), Speech)
    assert len([payload for payload in speech.appends if payload == append(1)]) == SPOKEN
    assert speech.told


def test_speech_with_transcript_is_text() -> None:
    talk = ModelTalk()
    spoken(talk)
    deliver_until(talk, "conversation.item.input_audio_transcription.completed")
    handover = talk.cut()
    assert steps_of(handover, Speech) == []
    assert steps_of(handover, Say)[0].item.text == "question 1"


def test_speech_under_way_is_listened_to() -> None:
    talk = ModelTalk()
    for _ in range(5):
        talk.say(1)
    deliver_until(talk, "input_audio_buffer.speech_started")
    handover = talk.cut()
    assert handover.steps == (Listen((append(1),) * 5, "item_s0_1"),)


def test_quiet_room_is_not_handed_over() -> None:
    talk = ModelTalk()
    for _ in range(30):
        talk.say(0)
    assert talk.cut().steps == ()


def test_held_audio_is_bounded() -> None:
    talk = ModelTalk()
    for number in range(400):
        talk.say(1)
        if number == 5:
            deliver_until(talk, "input_audio_buffer.speech_started")
    (listen,) = talk.cut().steps
    assert isinstance(listen, Listen)
    assert 140 <= len(listen.appends) <= 151


# --- what the client sent


def test_unconfirmed_events_are_sent_again_in_order() -> None:
    talk = ModelTalk()
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "typed 7"}]}
    talk.send({"type": "conversation.item.create", "item": item})
    talk.send({"type": "response.create", "event_id": "mine"})
    handover = talk.cut()
    (resent,) = steps_of(handover, Resend)
    assert json.loads(resent.text)["item"] == item
    assert [step.request["event_id"] for step in steps_of(handover, Ask)] == ["mine"]


def test_confirmed_item_is_history() -> None:
    talk = ModelTalk()
    item = {"id": "mine", "role": "user", "content": [{"type": "input_text", "text": "typed 7"}]}
    talk.send({"type": "conversation.item.create", "item": item})
    deliver_until(talk, "conversation.item.created")
    handover = talk.cut()
    assert [step.item.item_id for step in steps_of(handover, Say)] == ["mine"]
    assert steps_of(handover, Resend) == []


def test_cancelled_answer_is_not_asked_again() -> None:
    talk = ModelTalk()
    spoken(talk)
    deliver_until(talk, "response.created")
    talk.send({"type": "response.cancel"})
    handover = talk.cut()
    assert len(handover.endings) == 1
    assert steps_of(handover, Ask) == []


def test_answer_that_was_talked_over_is_not_asked() -> None:
    talk = ModelTalk()
    spoken(talk)
    deliver_until(talk, "response.audio.delta")
    talk.ledger.azure_sent({"type": "input_audio_buffer.speech_started", "item_id": "item_2"}, 0.0)
    handover = talk.cut()
    assert steps_of(handover, Ask) == []
    assert len(handover.endings) == 1


def test_pushed_talk_is_committed_once() -> None:
    talk = ModelTalk()
    talk.ledger.facts.note({"turn_detection": None, "input_audio_transcription": {"model": "m"}})
    talk.azure.detects = False
    for _ in range(5):
        talk.say(1)
    talk.send({"type": "input_audio_buffer.commit"})
    talk.send({"type": "response.create"})
    handover = talk.cut()
    assert [len(step.appends) for step in steps_of(handover, Speech)] == [5]
    assert len(steps_of(handover, Ask)) == 1
    talk.azure.detects = False
    deliver_until(talk, "response.done", nth=1)
    assert steps_of(talk.cut(), Speech, Ask, Listen) == []


def test_held_button_is_listened_to() -> None:
    talk = ModelTalk()
    talk.ledger.facts.note({"turn_detection": None})
    talk.azure.detects = False
    for _ in range(5):
        talk.say(0)  # without turn detection silence is part of what is committed
    assert [len(step.appends) for step in steps_of(talk.cut(), Listen)] == [5]


def test_failed_answer_before_the_end_is_asked_again() -> None:
    talk = ModelTalk()
    spoken(talk)
    deliver_until(talk, "response.created")
    error = {"code": "insufficient_quota"}
    response = {"id": "resp_s0_2", "status": "failed", "status_details": {"type": "failed", "error": error}}
    talk.ledger.azure_sent({"type": "response.done", "response": response}, talk.now_s)
    late = {
        "type": "conversation.item.input_audio_transcription.completed",
        "item_id": "item_s0_1",
        "transcript": "question 1",
    }
    talk.ledger.azure_sent(late, talk.now_s)
    handover = talk.cut()
    assert handover.endings == ()
    assert steps_of(handover, Ask) == [Ask()]
    assert talk.ledger.fault == "insufficient_quota"


def test_refused_ask_is_due_no_more() -> None:
    talk = ModelTalk()
    talk.send({"type": "response.create", "event_id": "mine"})
    before = talk.ledger.due
    talk.ledger.azure_sent({"type": "error", "error": {"event_id": "mine", "code": "invalid_value"}}, 0.0)
    assert (before, talk.ledger.due) == ("answer", "nothing")


def test_answer_outside_is_no_history() -> None:
    talk = ModelTalk()
    talk.send({"type": "response.create", "response": {"conversation": "none"}})
    created = {"id": "resp_out", "status": "in_progress", "conversation_id": None}
    item = {"id": "item_out", "type": "message", "role": "assistant", "content": []}
    talk.ledger.azure_sent({"type": "response.created", "response": created}, 0.0)
    talk.ledger.azure_sent({"type": "response.output_item.added", "response_id": "resp_out", "item": item}, 0.0)
    about = {"response_id": "resp_out", "item_id": "item_out", "content_index": 0}
    talk.ledger.azure_sent({"type": "response.text.delta", **about, "delta": "a note"}, 0.0)
    handover = talk.cut()
    assert len(handover.endings) == 1
    assert handover.steps == ()


# --- calls


def call(talk: ModelTalk, call_id: str) -> None:
    item = {
        "id": f"item_{call_id}", "type": "function_call", "status": "completed",
        "call_id": call_id, "name": "book", "arguments": "{}",
    }  # fmt: skip
    talk.ledger.azure_sent({"type": "response.created", "response": {"id": "resp_call"}}, 0.0)
    talk.ledger.azure_sent({"type": "response.output_item.added", "response_id": "resp_call", "item": item}, 0.0)
    talk.ledger.azure_sent({"type": "response.output_item.done", "response_id": "resp_call", "item": item}, 0.0)


def output(call_id: str) -> Event:
    item = {"id": f"out_{call_id}", "type": "function_call_output", "call_id": call_id, "output": "done"}
    return {"type": "conversation.item.create", "item": item}


def test_open_call_is_told_before_its_output() -> None:
    talk = ModelTalk()
    call(talk, "call_1")
    assert not talk.ledger.at_rest
    assert [step.item.kind for step in steps_of(talk.cut(), Say, Ask)] == ["call"]
    talk.ledger.client_sent("conversation.item.create", "{}", output("call_1"))
    talk.ledger.azure_sent({"type": "conversation.item.created", "item": output("call_1")["item"]}, 0.0)
    assert [step.item.kind for step in steps_of(talk.cut(), Say)] == ["call", "output"]


def test_old_call_is_told_as_long_as_it_runs() -> None:
    talk = ModelTalk()
    call(talk, "call_1")
    for number in range(25):
        item = {
            "id": f"u{number}",
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": f"typed {number}"}],
        }
        talk.ledger.azure_sent({"type": "conversation.item.created", "item": item}, 0.0)
    assert [step.item.kind for step in steps_of(talk.cut(), Say)] == ["call", *["user"] * 20]


def test_answer_with_a_call_is_not_gone_on_with() -> None:
    talk = ModelTalk()
    call(talk, "call_1")
    said = {"id": "item_2", "type": "function_call", "status": "in_progress", "call_id": "call_2", "name": "book"}
    talk.ledger.azure_sent({"type": "response.output_item.added", "response_id": "resp_call", "item": said}, 0.0)
    handover = talk.cut()
    assert (len(handover.endings), steps_of(handover, Ask)) == (1, [])


def test_words_for_a_wait_are_not_asked_again() -> None:
    talk = ModelTalk()
    talk.ledger.client_sent("response.create", "{}", {"type": "response.create", "event_id": "broker_say_1"})
    assert [talk.ledger.due] == ["nothing"]
    talk.ledger.azure_sent({"type": "response.created", "response": {"id": "resp_say"}}, 0.0)
    assert [talk.ledger.due] == ["answer"]
    handover = talk.cut()
    assert (len(handover.endings), steps_of(handover, Ask)) == (1, [])


def test_silence_of_a_held_button_is_no_speech() -> None:
    ledger = TalkLedger(HeldAudio(1_000_000))
    ledger.facts.detects = False
    ledger.audio.append(append_of(bytes(960)))
    assert (ledger.holds, ledger.holds_speech) == (True, False)
    ledger.audio.append(append_of(b"\x00\x40" * 480))
    assert (ledger.holds, ledger.holds_speech) == (True, True)
    ledger.client_sent("input_audio_buffer.commit", "{}", {})
    assert (ledger.holds, ledger.holds_speech) == (False, False)


def append_of(pcm: bytes) -> str:
    return '{"type":"input_audio_buffer.append","audio":"' + base64.b64encode(pcm).decode() + '"}'


def test_clock_stands_while_a_tool_runs() -> None:
    talk = ModelTalk()
    talk.ledger.azure_sent({"type": "response.created", "response": {"id": "resp_1"}}, 0.0)
    talk.ledger.acting = lambda: True
    assert (talk.ledger.due, talk.ledger.at_rest) == ("nothing", False)


def test_unconfirmed_output_brings_its_call() -> None:
    talk = ModelTalk()
    call(talk, "call_1")
    talk.ledger.azure_sent({"type": "response.done", "response": {"id": "resp_call"}}, 0.0)
    text = json.dumps(output("call_1"))
    talk.ledger.client_sent("conversation.item.create", text, output("call_1"))
    assert [type(step) for step in talk.cut().steps] == [Say, Resend]


# --- what the new session is sent


@pytest.mark.parametrize(("dialect", "kind"), [("ga", "output_text"), ("preview", "text")])
def test_history_has_the_targets_content_types(dialect: Dialect, kind: str) -> None:
    talk = ModelTalk()
    spoken(talk)
    deliver_until(talk, "response.done")
    talk.ledger.cut(0.0)
    session = NewSession(dialect, {})
    messages = [
        json.loads(text) for text in replay(talk.ledger.steps(), session, old="preview", restored=Restored()).messages
    ]
    assert [message["item"]["content"][0]["type"] for message in messages] == ["input_text", kind]
    assert [message["item"]["id"] for message in messages] == ["item_s0_1", "item_s0_3"]


def test_long_id_is_mapped_both_ways() -> None:
    talk, long = ModelTalk(), "x" * 40
    item = {"id": long, "type": "message", "role": "user", "content": [{"type": "input_text", "text": "typed 7"}]}
    talk.ledger.azure_sent({"type": "conversation.item.created", "item": item}, 0.0)
    talk.cut()
    created = talk.azure.events[0]["item"]["id"]
    assert len(created) <= 32
    text = json.dumps({"type": "conversation.item.delete", "item_id": long})
    assert json.loads(talk.restored.for_azure(text))["item_id"] == created
    assert long in talk.restored.for_client(json.dumps({"previous_item_id": created}))
    assert talk.deliver()
    assert talk.shown == [], "the client knows the item"


def test_items_without_text_are_left_out() -> None:
    talk = ModelTalk()
    spoken(talk)
    deliver_until(talk, "input_audio_buffer.committed")
    failed = "conversation.item.input_audio_transcription.failed"
    talk.ledger.azure_sent({"type": failed, "item_id": "item_s0_1", "error": {}}, 0.0)
    deliver_until(talk, "response.output_item.added")
    talk.ledger.azure_sent({"type": "response.done", "response": {"id": "resp_s0_2", "status": "completed"}}, 0.0)
    assert talk.cut().steps == ()


def test_truncated_answer_is_shortened() -> None:
    talk = ModelTalk()
    spoken(talk)
    about = {"item_id": "item_s0_3", "content_index": 0}
    deliver_until(talk, "response.output_item.added")
    talk.ledger.sounded(3_700 * 64)
    said = "one two three four five six seven"
    talk.ledger.azure_sent({"type": "response.audio_transcript.delta", **about, "delta": said}, 0.0)
    talk.ledger.azure_sent({"type": "response.audio.done", **about}, 0.0)
    talk.cut()
    assert talk.restored.answers_truncate("item_s0_3")
    assert talk.ledger.truncate({**about, "audio_end_ms": 1_400})
    text = next(step.item.text for step in talk.cut().steps if isinstance(step, Say) and step.item.kind == "assistant")
    assert text == "one two"


@pytest.mark.parametrize(
    ("dialect", "settings", "modalities"),
    [
        ("ga", {"output_modalities": ["audio"]}, {"output_modalities": ["audio"]}),
        ("preview", {"modalities": ["audio", "text"]}, {"modalities": ["audio", "text"]}),
    ],
)
def test_asking_says_modalities_and_agent(dialect: Dialect, settings: Event, modalities: Event) -> None:
    session = NewSession(dialect, settings | {"instructions": "Be Elena."})
    (text,) = session.asking(Ask(), dialect)
    assert json.loads(text)["response"] == modalities
    (text,) = session.asking(Ask(go_on=True), dialect)
    assert json.loads(text)["response"]["instructions"].startswith("Be Elena.\n\n")
    assert json.loads(text)["response"].items() >= modalities.items()


def test_detection_is_off_while_speech_is_committed() -> None:
    vad = {"type": "server_vad", "threshold": 0.4}
    session = NewSession("ga", {"audio": {"input": {"turn_detection": vad}}})
    speech, listen = Speech("item_1", (append(1),), told=True), Listen((append(2),))
    messages = replay([speech, Ask(), listen], session, old="ga", restored=Restored()).messages
    kinds = [json.loads(message)["type"] for message in messages]
    assert kinds == [
        "session.update", "input_audio_buffer.append", "input_audio_buffer.commit", "response.create",
        "session.update", "input_audio_buffer.append",
    ]  # fmt: skip
    set_to = [json.loads(messages[number])["session"]["audio"]["input"]["turn_detection"] for number in (0, 4)]
    assert set_to == [None, vad]


# --- one answer to one utterance (P07)


@pytest.mark.slow
def test_thousand_random_cuts_give_one_answer_each() -> None:
    for seed in range(1_000):
        rng = random.Random(seed)
        talk = ModelTalk()
        cuts = sorted(rng.randrange(150) for _ in range(rng.choice((1, 1, 2, 3))))
        step = 0

        def advance(talk: ModelTalk = talk, cuts: list[int] = cuts) -> None:
            nonlocal step
            while cuts and cuts[0] <= step:
                cuts.pop(0)
                talk.cut()
            step += 1

        for utterance in (1, 2):
            for number in range(SPOKEN + SILENT):
                talk.say(utterance if number < SPOKEN else 0)
                for _ in range(rng.randrange(4)):
                    advance()
                    talk.deliver()
            while talk.deliver():
                advance()
            for _ in range(_SETTLING):  # silence, in which an utterance that was heard anew ends
                talk.say(0)
            while talk.deliver():
                advance()
        answers = [answer for session in talk.sessions for answer in session.answers.values() if answer.delivered]
        for utterance in (1, 2):
            begun = [each for each in answers if each.utterance == utterance and not each.goes_on]
            assert len(begun) == 1, f"seed {seed}: {len(begun)} answers to utterance {utterance}"
            gone_on = [each for each in answers if each.utterance == utterance and each.goes_on]
            assert gone_on or begun[0].delivered == CHUNKS, f"seed {seed}: no end of the answer to {utterance}"
            assert not (gone_on and begun[0].whole), f"seed {seed}: the answer to {utterance} was heard, and asked for"
        assert len(ended(talk)) == len(set(ended(talk))), f"seed {seed}: an answer ended twice"
        created = [event["response"]["id"] for event in talk.shown if event["type"] == "response.created"]
        assert sorted(created) == sorted(ended(talk)), f"seed {seed}: an answer is open"
        named = {
            event["item_id"]: event["transcript"]
            for event in talk.shown
            if event["type"] == "conversation.item.input_audio_transcription.completed"
        }
        started, committed = (
            {event["item_id"] for event in talk.shown if event["type"] == f"input_audio_buffer.{kind}"}
            for kind in ("speech_started", "committed")
        )
        assert started <= committed, f"seed {seed}: an utterance has two names"
        assert sorted(named.values()) == ["question 1", "question 2"], f"seed {seed}: {named}"


_SETTLING = 12
