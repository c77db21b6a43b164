"""The turns that events make, in both dialects; no I/O, and time is a number."""

from typing import Any

import pytest

from token_broker.relay.transcripts.assembler import NOT_TRANSCRIBED, FinishedTurn, TurnAssembler

Event = dict[str, Any]

DIALECTS = {
    "preview": ("response.audio_transcript", "response.text", "conversation.item.created"),
    "ga": ("response.output_audio_transcript", "response.output_text", "conversation.item.added"),
}


def committed(item: str, previous: str | None = None) -> Event:
    return {"type": "input_audio_buffer.committed", "item_id": item, "previous_item_id": previous}


def heard(item: str, text: str) -> Event:
    return {"type": "conversation.item.input_audio_transcription.completed", "item_id": item, "transcript": text}


def failed(item: str) -> Event:
    return {"type": "conversation.item.input_audio_transcription.failed", "item_id": item, "error": {}}


def answered(item: str, text: str, *, kind: str = "response.audio_transcript", index: int = 0) -> Event:
    name = "text" if kind.endswith("text") else "transcript"
    return {"type": f"{kind}.done", "response_id": "r", "item_id": item, "content_index": index, name: text}


def delta(item: str, text: str, *, kind: str = "response.audio_transcript") -> Event:
    return {"type": f"{kind}.delta", "response_id": "r", "item_id": item, "content_index": 0, "delta": text}


def done(status: str = "completed", response: str = "r") -> Event:
    return {"type": "response.done", "response": {"id": response, "status": status}}


def made(item: str, previous: str | None, *, kind: str = "conversation.item.created", **fields: Any) -> Event:
    about = {"type": "message", "role": "assistant", "content": []} | fields
    return {"type": kind, "previous_item_id": previous, "item": {"id": item, **about}}


def run(*events: Event, now_s: float = 0.0) -> list[FinishedTurn]:
    """All turns that these events make, those of `flush` included, in the order of `sequence`."""
    assembler = TurnAssembler()
    turns = [turn for event in events for turn in assembler.feed(event, now_s)]
    return sorted([*turns, *assembler.flush()], key=lambda turn: turn.sequence)


def said(turns: list[FinishedTurn]) -> list[tuple[str, str, int]]:
    return [(turn.role, turn.content, turn.sequence) for turn in turns]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_late_transcript_sorts_before_answer(dialect: str) -> None:
    spoken, _, item_made = DIALECTS[dialect]
    turns = run(
        committed("u1"),
        made("a1", "u1", kind=item_made),
        answered("a1", "Good morning.", kind=spoken),
        done(),
        heard("u1", "Hello?"),
        committed("u2", "a1"),
        heard("u2", "How are you?"),
    )
    assert said(turns) == [("user", "Hello?", 0), ("assistant", "Good morning.", 1), ("user", "How are you?", 2)]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_written_answer_is_a_turn(dialect: str) -> None:
    written = DIALECTS[dialect][1]
    assert said(run(answered("a", "In writing.", kind=written), done())) == [("assistant", "In writing.", 0)]


def test_early_answer_sorts_after_question() -> None:
    turns = run(made("a1", "u1"), answered("a1", "Yes."), committed("u1"), heard("u1", "Really?"), done())
    assert said(turns) == [("user", "Really?", 0), ("assistant", "Yes.", 1)]


def test_turn_is_returned_once() -> None:
    turns = run(
        committed("u"),
        heard("u", "Hi."),
        heard("u", "Hi."),
        answered("a", "Hey."),
        done(),
        answered("a", "Hey."),
        done(),
    )
    assert said(turns) == [("user", "Hi.", 0), ("assistant", "Hey.", 1)]


@pytest.mark.parametrize("status", ["cancelled", "failed", "incomplete"])
def test_incomplete_response_is_interrupted(status: str) -> None:
    (turn,) = run(delta("a", "Let me "), delta("a", "expl"), done(status))
    assert (turn.content, turn.interrupted) == ("Let me expl", True)


def test_truncated_answer_is_interrupted() -> None:
    assembler = TurnAssembler()
    assembler.heard(640_000, 0.0)  # ten seconds of audio, sent at once
    assert assembler.feed(answered("a", "A long story."), 0.1) == []
    (turn,) = assembler.feed(done(), 0.2)
    assert (turn.content, turn.interrupted) == ("A long story.", False)
    (again,) = assembler.feed({"type": "conversation.item.truncated", "item_id": "a", "audio_end_ms": 2000}, 2.0)
    assert (again.item_id, again.interrupted, again.again) == ("a", True, True)
    assert assembler.feed({"type": "conversation.item.truncated", "item_id": "a", "audio_end_ms": 1000}, 2.1) == []


def test_answer_is_returned_when_completed() -> None:
    """Not when it has been played: the process may be killed before."""
    assembler = TurnAssembler()
    assembler.heard(640_000, 0.0)
    assert assembler.feed(answered("a", "A story."), 0.1) == []
    (turn,) = assembler.feed(done(), 0.2)
    assert (turn.content, turn.interrupted, turn.again) == ("A story.", False, False)
    assert assembler.due_s is None
    assert assembler.feed(committed("u", "a"), 3.0) == []
    assert assembler.flush() == []


def test_truncation_after_playback_changes_nothing() -> None:
    assembler = TurnAssembler()
    assembler.heard(64_000, 0.0)
    assembler.feed(answered("a", "Short."), 0.1)
    assembler.feed(done(), 0.2)
    assert assembler.feed({"type": "conversation.item.truncated", "item_id": "a"}, 9.0) == []


def test_late_cancellation_marks_the_answer() -> None:
    """The words were complete for long while the audio still came; then the user cut in."""
    assembler = TurnAssembler()
    assembler.feed(answered("a", "A long story."), 0.0)
    (turn,) = assembler.due(1.0)
    assert not turn.interrupted
    (again,) = assembler.feed(done("cancelled"), 2.0)
    assert (again.content, again.interrupted, again.again) == ("A long story.", True, True)


def test_running_response_is_waited_for() -> None:
    assembler = TurnAssembler()
    assembler.feed({"type": "response.created", "response": {"id": "r"}}, 0.0)
    assembler.feed(answered("a", "One."), 0.0)
    assert assembler.due(5.0) == []
    assembler.feed(delta("a", "Tw", kind="response.text") | {"content_index": 1}, 6.0)
    assert assembler.due(60.0) == [], "its second part has begun"
    assembler.feed(answered("a", "Two.", index=1), 61.0)
    assert [turn.content for turn in assembler.feed(done(), 62.0)] == ["One. Two."]


def test_words_after_done_are_waited_for() -> None:
    assembler = TurnAssembler()
    assembler.feed(delta("a", "Good mor"), 0.0)
    assert assembler.feed(done(), 0.1) == []
    assembler.feed(answered("a", "Good morning."), 0.2)
    assert [turn.content for turn in assembler.due(1.2)] == ["Good morning."]


@pytest.mark.parametrize("response", [{"response_id": "r"}, {}, {"response_id": {}}])
def test_cleared_playback_is_an_interruption(response: Event) -> None:
    """Over WebRTC Azure plays the audio, and says itself that it stopped."""
    assembler = TurnAssembler()
    assembler.feed({"type": "output_audio_buffer.started", **response}, 0.0)
    assembler.feed(answered("a", "A long story."), 0.1)
    assert [turn.interrupted for turn in assembler.feed(done(), 0.2)] == [False]
    cleared = {"type": "output_audio_buffer.cleared", **response}
    assert [(turn.interrupted, turn.again) for turn in assembler.feed(cleared, 20.0)] == [(True, True)]
    assert assembler.feed({"type": "conversation.item.truncated", "item_id": "a"}, 20.1) == []


def test_stopped_playback_is_no_interruption() -> None:
    assembler = TurnAssembler()
    assembler.feed({"type": "output_audio_buffer.started", "response_id": "r"}, 0.0)
    assembler.feed(answered("a", "Short."), 0.1)
    assembler.feed(done(), 0.2)
    assembler.feed({"type": "output_audio_buffer.stopped", "response_id": "r"}, 2.0)
    assert assembler.feed({"type": "output_audio_buffer.cleared", "response_id": "r"}, 9.0) == []


def test_answering_lasts_until_it_was_played() -> None:
    assembler = TurnAssembler()
    assert not assembler.is_answering(0.0)
    assembler.feed({"type": "response.created", "response": {"id": "r"}}, 0.0)
    assert assembler.is_answering(100.0)
    assembler.heard(640_000, 100.0)
    assembler.feed(done(), 101.0)
    assert assembler.is_answering(109.0)
    assert not assembler.is_answering(111.0)


def test_answer_without_done_ends_after_a_second() -> None:
    assembler = TurnAssembler()
    assert assembler.feed(answered("a", "Hm."), 5.0) == []
    assert assembler.due_s == 6.0
    assert [turn.content for turn in assembler.due(6.0)] == ["Hm."]


def test_flush_keeps_unfinished_turns() -> None:
    turns = run(
        committed("u"),
        {"type": "conversation.item.input_audio_transcription.delta", "item_id": "u", "delta": "Could you"},
        delta("a", "Of cou"),
    )
    assert said(turns) == [("user", "Could you", 0), ("assistant", "Of cou", 1)]
    assert [turn.interrupted for turn in turns] == [True, True], "both were cut"


def test_failed_transcription_keeps_its_sequence() -> None:
    turns = run(committed("u"), failed("u"), answered("a", "Pardon?"), done())
    assert said(turns) == [("user", NOT_TRANSCRIBED, 0), ("assistant", "Pardon?", 1)]
    assert [turn.transcribed for turn in turns] == [False, True]


def test_silence_and_tool_calls_are_no_turns() -> None:
    turns = run(
        committed("u"),
        heard("u", "  "),
        made("f", "u", type="function_call"),
        made("o", "f", type="function_call_output"),
        made("a", "o"),
        answered("a", "It rains."),
        done(),
    )
    assert said(turns) == [("assistant", "It rains.", 1)]


def test_answer_in_parts_is_one_turn() -> None:
    turns = run(answered("a", "One.", index=0), answered("a", "Two.", index=1), done())
    assert said(turns) == [("assistant", "One. Two.", 0)]


def test_typed_item_is_one_turn() -> None:
    content = [{"type": "input_text", "text": "Typed."}]
    turns = run(
        made("u", None, kind="conversation.item.added", role="user", content=content),
        made("u", None, kind="conversation.item.done", role="user", content=content),
    )
    assert said(turns) == [("user", "Typed.", 0)]


def typed(item: str, text: str) -> Event:
    content = [{"type": "input_text", "text": text}]
    return made(item, None, kind="conversation.item.added", role="user", content=content)


def replaying() -> TurnAssembler:
    return TurnAssembler(expects_history=True)


STARTED: Event = {"type": "response.created", "response": {"id": "r"}}
OUT_OF_BAND: Event = {"type": "response.created", "response": {"id": "r", "conversation_id": None}}


def test_texts_before_the_talk_may_be_history() -> None:
    assembler = replaying()
    turns = [turn for number in range(3) for turn in assembler.feed(typed(f"u{number}", "Hello"), 0.0)]
    assert [(turn.put_back, turn.again) for turn in turns] == [(True, False)] * 3
    assert assembler.feed(OUT_OF_BAND, 0.0) == []
    assert assembler.feed(STARTED, 0.0) == []
    assert [turn.put_back for turn in assembler.feed(typed("u9", "And now?"), 0.0)] == [False]


def test_single_text_that_is_answered_is_no_history() -> None:
    assembler = replaying()
    assert [turn.put_back for turn in assembler.feed(typed("u", "Hello"), 0.0)] == [True]
    (turn,) = assembler.feed(STARTED, 0.0)
    assert (turn.item_id, turn.put_back, turn.again, turn.interrupted) == ("u", False, True, False)
    assert assembler.feed(STARTED, 0.0) == []


@pytest.mark.parametrize(
    "event", [committed("u"), {"type": "conversation.item.input_audio_transcription.delta", "item_id": "u"}]
)
def test_text_after_somebody_spoke_is_no_history(event: Event) -> None:
    assembler = replaying()
    assembler.feed(event, 0.0)
    assert [turn.put_back for turn in assembler.feed(typed("v", "Hello"), 0.0)] == [False]


def test_no_text_is_history_unless_expected() -> None:
    assembler = TurnAssembler()
    assert [turn.put_back for turn in assembler.feed(typed("u", "Hello"), 0.0)] == [False]
    assert assembler.feed(STARTED, 0.0) == []


def test_sequence_continues_on_next_upstream() -> None:
    assembler = TurnAssembler()
    assembler.feed(committed("u1"), 0.0)
    first = assembler.feed(heard("u1", "One."), 0.0)
    assembler.cut(frozenset(), 0.0)
    assembler.feed(committed("u2", "u1"), 0.0)
    second = assembler.feed(heard("u2", "Two."), 0.0)
    assert [turn.sequence for turn in first + second] == [0, 1]


@pytest.mark.parametrize(
    "event",
    [
        {"type": "response.done"},
        {"type": "response.done", "response": []},
        {"type": "response.audio_transcript.done", "item_id": 7, "transcript": None},
        {"type": "conversation.item.created", "item": None},
        {"type": "conversation.item.created", "item": {"id": "x", "role": "user", "content": [None, {"type": 1}]}},
        {"type": "input_audio_buffer.committed"},
        {"type": "conversation.item.truncated", "item_id": None},
        {"type": 7},
        {},
    ],
)
def test_malformed_events_are_ignored(event: Event) -> None:
    assert run(event) == []


def test_assembler_state_is_bounded() -> None:
    assembler = TurnAssembler()
    for number in range(2_100):  # a commit scans all open answers: the cost is quadratic
        assembler.feed(committed(f"u{number}"), 0.0)
        assembler.feed(delta(f"a{number}", "x"), 0.0)
    sizes = [len(value) for value in vars(assembler).values() if hasattr(value, "__len__")]
    assert max(sizes) == 2048
