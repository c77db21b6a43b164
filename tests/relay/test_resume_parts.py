"""The clocks of a resume, what is held in the gap, and the settings that a new session has to confirm."""

import random
from typing import Any

import pytest

from strategies.session_model.session_paths import merged
from tests.relay.support.model_azure import ModelTalk, append
from tests.relay.test_resume_core import call, deliver_until, spoken
from token_broker.relay.confirmation.agreement import disagreements
from token_broker.relay.resume.clocks import ExpiryClock, Resumes, SilenceClock
from token_broker.relay.resume.gap import Gap
from token_broker.relay.resume.held_audio import HeldAudio, first_loud_ms
from token_broker.relay.resume.ledger import Due
from token_broker.relay.resume.steps import Listen

Event = dict[str, Any]

# --- silence


def looked(
    clock: SilenceClock,
    now_s: float,
    *,
    due: Due = "answer",
    events: int = 7,
    reasons: bool = False,
    held_up: bool = False,
    spoken: bool = False,
) -> str:
    return clock.look(now_s, due=due, events=events, reasons=reasons, held_up=held_up, spoken=lambda: spoken)


@pytest.mark.parametrize(
    ("due", "reasons", "silent_after_s"),
    [
        ("answer", False, 10.0),
        ("answer", True, 30.0),
        ("content", False, 10.0),
        ("content", True, 10.0),
        ("end", False, 30.0),
        ("nothing", False, None),
    ],
)
def test_silence_has_its_time(due: Due, reasons: bool, silent_after_s: float | None) -> None:
    clock = SilenceClock()
    looks = [looked(clock, float(now_s), due=due, reasons=reasons) for now_s in range(100)]
    assert (float(looks.index("silent")) if "silent" in looks else None) == silent_after_s


def test_every_event_moves_the_clock() -> None:
    clock = SilenceClock()
    assert {looked(clock, float(now_s), due="content", events=now_s // 9) for now_s in range(300)} == {"wait"}


def test_clock_stands_while_we_do_not_read() -> None:
    clock = SilenceClock()
    assert {looked(clock, float(now_s), held_up=now_s % 9 == 0) for now_s in range(300)} == {"wait"}


def test_clock_begins_anew_after_a_stall_of_ours() -> None:
    clock = SilenceClock()
    looks = [looked(clock, now_s) for now_s in (0.0, 1.0, 60.0, 61.0, 62.0)]
    assert set(looks) == {"wait"}


def test_speech_without_notice_is_probed_first() -> None:
    clock = SilenceClock()
    looks = [looked(clock, float(now_s), due="nothing", spoken=now_s > 2) for now_s in range(12)]
    assert looks == ["wait"] * 5 + ["probe"] + ["wait"] * 4 + ["silent"] * 2
    assert looked(clock, 12.0, due="nothing", events=8) == "wait", "it has answered"


def test_user_who_speaks_for_long_is_no_silence() -> None:
    clock, events = SilenceClock(), 0
    for now_s in range(40):
        look = looked(clock, float(now_s), due="nothing", events=events, spoken=True)
        assert look != "silent"
        events += look == "probe"  # Azure confirms


def test_unnoticed_speech_is_seen_and_kept() -> None:
    talk = ModelTalk()
    talk.ledger.azure_sent({"type": "rate_limits.updated"}, 0.0)
    for number in range(100):
        talk.say(1 if 10 <= number < 20 else 0)
    assert talk.ledger.may_have_spoken()
    (listen,) = talk.cut().steps
    assert isinstance(listen, Listen)
    assert listen.appends.count(append(1)) == 10


def test_unnoticed_speech_is_seen_when_the_client_is_still() -> None:
    talk = ModelTalk()
    for number in range(20):
        talk.say(1 if number < 8 else 0)
    seen = []
    for now_s in (3.0, 5.0):
        talk.ledger.trim(now_s)
        seen.append(talk.ledger.may_have_spoken())
    assert seen == [False, True]


def test_quiet_room_is_not_probed() -> None:
    talk = ModelTalk()
    for _ in range(200):
        talk.say(0)
    assert not talk.ledger.may_have_spoken()
    assert talk.ledger.audio.end - talk.ledger.audio.start < 6_000 * 64


def test_commit_without_automatic_answer_owes_nothing() -> None:
    talk = ModelTalk()
    talk.ledger.facts.note({"turn_detection": {"type": "server_vad", "create_response": False}})
    spoken(talk)
    deliver_until(talk, "input_audio_buffer.committed")
    due: list[Due] = [talk.ledger.due]
    talk.ledger.client_sent("response.create", "{}", {"type": "response.create"})
    due.append(talk.ledger.due)
    assert due == ["nothing", "answer"]


def test_answer_owes_its_content_then_its_end() -> None:
    talk = ModelTalk()
    spoken(talk)
    owed: list[Due] = []
    for kind in (
        "input_audio_buffer.committed", "response.created", "response.audio.delta", "response.audio.done",
        "response.done",
    ):  # fmt: skip
        deliver_until(talk, kind)
        owed.append(talk.ledger.due)
    assert owed == ["answer", "answer", "content", "end", "nothing"]


@pytest.mark.parametrize("holding", ["speech", "push to talk", "tool of Azure's", "client's tool"])
def test_clock_is_stopped_by(holding: str) -> None:
    talk = ModelTalk()
    if holding != "client's tool":
        talk.send({"type": "response.create"})
    if holding == "speech":
        talk.ledger.azure_sent({"type": "input_audio_buffer.speech_started", "item_id": "item_1"}, 0.0)
    elif holding == "push to talk":
        talk.ledger.facts.note({"turn_detection": None})
        talk.azure.detects = False
        talk.say(1)
    elif holding == "tool of Azure's":
        item = {"id": "mcp_1", "type": "mcp_call"}
        talk.ledger.azure_sent({"type": "response.output_item.added", "response_id": "resp_x", "item": item}, 0.0)
    else:
        call(talk, "call_1")
        talk.ledger.azure_sent({"type": "response.done", "response": {"id": "resp_call"}}, 0.0)
    assert talk.ledger.due == "nothing"


@pytest.mark.parametrize(
    ("session", "reasons"),
    [
        ({"model": "gpt-realtime"}, False),
        ({"model": "gpt-realtime-2"}, True),
        ({"model": "x", "reasoning": {"effort": "low"}}, True),
        ({"model": "x", "reasoning_effort": "high"}, True),
    ],
)
def test_reasoning_is_seen_in_the_session(session: Event, reasons: bool) -> None:
    talk = ModelTalk()
    talk.ledger.facts.note(session)
    assert talk.ledger.facts.reasons is reasons


# --- the end of a session (P19)


@pytest.mark.parametrize("expires_s", [None, 3_600.0, 1_800.0])
def test_talk_moves_a_minute_before_the_end(expires_s: float | None) -> None:
    end_s = 3_600.0 if expires_s is None else expires_s
    latest = set()
    for seed in range(50):
        clock = ExpiryClock(rng=random.Random(seed))
        clock.begin(0.0, expires_s)
        near = next(now_s for now_s in range(4_000) if clock.is_near(float(now_s)))
        last = next(now_s for now_s in range(4_000) if clock.is_latest(float(now_s)))
        assert near < last <= end_s - 60
        latest.add(last)
    assert len(latest) > 20, "they do not all move at once"


def test_session_that_ends_soon_is_left_at_once() -> None:
    clock = ExpiryClock()
    clock.begin(100.0, 120.0)
    assert clock.is_near(100.0)
    assert clock.is_latest(100.0)


def test_short_sessions_make_no_storm_of_moves() -> None:
    clock, moves = ExpiryClock(), 0
    clock.begin(0.0, 20.0)
    for now_s in range(600):
        if clock.is_near(float(now_s)):
            moves += 1
            clock.moved(float(now_s))
            clock.begin(float(now_s), now_s + 20.0)
    assert moves == 10


def test_failed_move_is_tried_again_later() -> None:
    clock = ExpiryClock()
    clock.begin(0.0, 300.0)
    assert clock.failed(230.0) is None
    assert [clock.failed(250.0), clock.failed(250.0)] == [50.0, None]
    assert not clock.is_near(260.0)
    assert clock.is_near(271.0)


def test_fourth_resume_within_a_minute_is_refused() -> None:
    resumes = Resumes()
    began = [resumes.begin(now_s, completed=0) for now_s in (0.0, 10.0, 20.0, 30.0, 61.0)]
    assert began == [True, True, True, False, True]


def test_completed_answer_is_a_success() -> None:
    resumes = Resumes()
    assert all(resumes.begin(float(count), completed=count // 3) for count in range(30))


@pytest.mark.parametrize("last", ["response.created", "input_audio_buffer.speech_started"])
def test_pause_is_when_nothing_is_open(last: str) -> None:
    talk = ModelTalk()
    assert talk.ledger.at_rest
    spoken(talk)
    deliver_until(talk, last)
    at_rest = [talk.ledger.at_rest]
    deliver_until(talk, "response.done")
    at_rest.append(talk.ledger.at_rest)
    assert at_rest == [False, True]


# --- the gap (P05)


def test_gap_keeps_the_order() -> None:
    gap = Gap(audio_chars=10_000)
    for text in ("a1", "e1", "a2", "a3", "e2"):
        assert gap.add_audio(text) if text[0] == "a" else gap.add(text)
    assert [gap.take() for _ in range(6)] == ["a1", "e1", "a2", "a3", "e2", None]


def test_gap_drops_the_oldest_audio() -> None:
    gap = Gap(audio_chars=25)
    assert [gap.add_audio(f"append {number}.") for number in range(4)] == [True, True, False, False]
    assert (gap.take(), gap.audio_dropped) == ("append 2.", 2)


def test_gap_takes_two_megabytes_and_one_image() -> None:
    gap = Gap(audio_chars=0)
    image = '{"image_url":"' + "x" * 3_000_000 + '"}'
    took = [gap.add(image), gap.add(image), *(gap.add("x" * 500_000) for _ in range(5))]
    assert took == [True, False, True, True, True, True, False]
    assert [len(text) for text in iter(gap.take, None)] == [len(image), *[500_000] * 4]
    assert gap.add("x" * 2_000_000), "what was taken makes room"


def test_gap_takes_no_endless_row_of_empty_events() -> None:
    gap = Gap(audio_chars=0)
    assert sum(gap.add("{}") for _ in range(5_000)) == 1_000


# --- the client's audio


def test_audio_is_found_by_its_position() -> None:
    audio = HeldAudio(1_000_000)
    for utterance in (1, 2, 3):
        audio.append(append(utterance))
    assert audio.end == 3 * 6_400
    assert audio.between(6_401, 12_800) == [append(2)]
    assert audio.between(0, 6_401) == [append(1), append(2)]
    audio.drop_before(12_799)
    assert audio.between(0, audio.end) == [append(2), append(3)]


@pytest.mark.parametrize(
    ("appends", "skip_ms", "at_ms"),
    [
        ([append(0)] * 3, 0, None),
        ([append(0), append(1)], 0, 100),
        ([append(1), append(0)], 150, None),
        (['{"type":"input_audio_buffer.append","audio":"!"}'], 0, 0),
    ],
)
def test_loud_audio_is_found(appends: list[str], skip_ms: int, at_ms: int | None) -> None:
    assert first_loud_ms(appends, skip_ms=skip_ms) == at_ms


# --- settings (P01)

AGENT: Event = {"instructions": "Be Elena.", "turn_detection": {"type": "server_vad"}, "tools": [{"name": "book"}]}


@pytest.mark.parametrize(
    ("confirmed", "wrong"),
    [
        (AGENT, []),
        ({}, []),
        (None, ["session"]),
        (AGENT | {"instructions": "You are a helpful assistant."}, ["instructions"]),
        (AGENT | {"tools": []}, ["tools"]),
        (AGENT | {"turn_detection": None}, ["turn_detection"]),
        (AGENT | {"turn_detection": {"type": "server_vad", "create_response": True, "threshold": 0.5}}, []),
        (AGENT | {"turn_detection": {"type": "server_vad", "create_response": False}}, ["turn_detection"]),
        (AGENT | {"instructions": " Be\nElena. "}, []),
        (AGENT | {"turn_detection": {"type": "azure_semantic_vad"}}, []),
        (AGENT | {"tools": [{"name": "book"}, {"type": "mcp", "server_label": "foreign"}]}, ["tools"]),
    ],
)
def test_other_settings_than_the_agents_are_seen(confirmed: Any, wrong: list[str]) -> None:
    assert disagreements(AGENT, confirmed) == wrong


def test_changes_are_merged_as_azure_does() -> None:
    session = {"audio": {"input": {"turn_detection": {"type": "server_vad", "threshold": 0.6}}, "output": {"speed": 1}}}
    changes = {"audio": {"input": {"turn_detection": {"type": "semantic_vad"}}}}
    assert merged(session, changes) == {
        "audio": {"input": {"turn_detection": {"type": "semantic_vad"}}, "output": {"speed": 1}}
    }


# --- what counts as an answer

TEXT_ONLY = {"type": "response.create", "response": {"modalities": ["text"]}}


@pytest.mark.parametrize(
    ("request_", "sounds", "status", "says", "is_success"),
    [
        (None, True, "completed", True, True),
        (None, False, "completed", True, False),  # text where sound was due
        (TEXT_ONLY, False, "completed", True, True),
        (None, False, "completed", False, True),  # a call of a tool alone
        (None, True, "failed", True, False),
        (None, True, "cancelled", True, False),
    ],
)
def test_text_where_sound_was_due_is_no_success(
    request_: Event | None, sounds: bool, status: str, says: bool, is_success: bool
) -> None:
    ledger = ModelTalk().ledger
    created = {"id": "resp_1", "status": "in_progress", "output": []}
    if request_ is not None:
        ledger.client_sent("response.create", "", request_)
    ledger.azure_sent({"type": "response.created", "response": created}, 1.0)
    if sounds:
        ledger.sounded(640)
    output = [{"type": "message" if says else "function_call", "role": "assistant"}]
    # Azure may say that it answers in text: that is what it did, and not what was due.
    done = {"id": "resp_1", "status": status, "output": output, "modalities": ["audio" if sounds else "text"]}
    ledger.azure_sent({"type": "response.done", "response": done}, 2.0)
    assert ledger.is_success(done) is is_success
