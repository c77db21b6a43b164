"""Turns and waits that are made of GPT-Live's timed fragments, and the seconds that count."""

from typing import Any

from token_broker.relay.live.spoken_turns import TYPED_EVENT, LiveTurns
from token_broker.security.tokens import ANONYMOUS, Owner
from token_broker.usage.days import StoreClock
from token_broker.usage.talk_usage import TalkUsage

NAMES = {"u": "session.input_transcript.delta", "a": "session.output_transcript.delta"}


def told(turns: LiveTurns, *fragments: tuple[float, str, str, int, int]) -> list[tuple[str, str, bool]]:
    """What becomes of fragments (when, whose, text, from, to), and of a long silence after them."""
    turns.begin("sess_1")
    found = []
    for now_s, who, text, start_ms, end_ms in fragments:
        event = {"type": NAMES[who], "delta": text, "start_ms": start_ms, "end_ms": end_ms}
        found += turns.feed(event, now_s)
    found += turns.due(1e6)
    return [(turn.role, turn.content, turn.interrupted) for turn in sorted(found, key=lambda each: each.sequence)]


def test_question_and_answer() -> None:
    turns = LiveTurns()
    assert told(
        turns,
        (1.0, "u", "What is", 500, 900),
        (1.2, "u", " the time?", 900, 1400),
        (2.0, "a", "It is", 2000, 2300),
        (2.3, "a", " noon.", 2300, 2900),
    ) == [("user", "What is the time?", False), ("assistant", "It is noon.", False)]
    assert [(wait.wait_s, wait.begins) for wait in turns.latencies] == [(0.6, "transcript_end")]
    assert turns.history == [("user", "What is the time?"), ("assistant", "It is noon.")]


def test_late_words_belong_to_the_question() -> None:
    assert told(
        LiveTurns(),
        (1.0, "u", "What is", 500, 900),
        (2.0, "a", "It is noon.", 2000, 2600),
        (2.2, "u", " the time?", 900, 1400),
    ) == [("user", "What is the time?", False), ("assistant", "It is noon.", False)]


def test_interruption_and_backchannel() -> None:
    assert told(
        LiveTurns(),
        (1.0, "a", "Once upon a time there was", 0, 2000),
        (2.0, "u", "Stop it.", 1500, 2200),
    ) == [("assistant", "Once upon a time there was", True), ("user", "Stop it.", False)]
    assert told(
        LiveTurns(),
        (1.0, "a", "Once upon a time", 0, 2000),
        (1.5, "u", "Mhm.", 500, 700),
        (2.0, "a", " there was a king.", 2000, 4000),
    ) == [("assistant", "Once upon a time there was a king.", False), ("user", "Mhm.", False)]


def test_typed_text_is_a_turn_between_what_the_agent_says() -> None:
    """Without sound Azure's timeline may stand still."""
    turns = LiveTurns()
    turns.begin("sess_1")
    found = []
    for number in (1, 2):
        found += turns.feed({"type": TYPED_EVENT, "text": f"Question {number}", "item_id": f"item_{number}"}, number)
        for word in ("Answer", f" {number}."):
            found += turns.feed({"type": NAMES["a"], "delta": word, "start_ms": 0, "end_ms": 100}, number)
    found += turns.flush()
    said = [(turn.role, turn.content) for turn in sorted(found, key=lambda each: each.sequence)]
    assert said == [
        ("user", "Question 1"), ("assistant", "Answer 1."), ("user", "Question 2"), ("assistant", "Answer 2."),
    ]  # fmt: skip
    assert turns.history == said
    assert turns.latencies == []
    assert len({turn.sequence for turn in found}) == 4


def test_another_session_goes_on_behind() -> None:
    turns = LiveTurns()
    turns.begin("sess_1")
    turns.feed({"type": NAMES["u"], "delta": "One.", "start_ms": 0, "end_ms": 500}, 1.0)
    (first,) = turns.flush()
    turns.begin("sess_2")
    turns.feed({"type": NAMES["u"], "delta": "Two.", "start_ms": 0, "end_ms": 500}, 2.0)
    (second,) = turns.flush()
    assert first.sequence < second.sequence
    assert first.item_id != second.item_id


def test_odd_fragments_are_no_turns() -> None:
    turns = LiveTurns()
    assert told(turns, (1.0, "u", "", 0, 100)) == []
    odd: list[Any] = [{"type": NAMES["u"]}, {"type": NAMES["u"], "delta": 7}, {"type": "error"}]
    assert [turns.feed(event, 2.0) for event in odd] == [[], [], []]
    turns.feed({"type": NAMES["u"], "delta": "Hm.", "start_ms": float("nan"), "end_ms": "x"}, 3.0)
    assert [turn.content for turn in turns.flush()] == ["Hm."]


def test_highest_finite_seconds_count() -> None:
    usage = TalkUsage(
        Owner("session-of-a-live-talk", ANONYMOUS, 1), agent_id="ann", transport="websocket_proxy", dialect="live",
        seen=True, part="p", clock=StoreClock(),
    )  # fmt: skip
    usage.went_live("default", "live")
    assert usage.values(usage.rows[0])["live_ms"] is None
    for seconds in (3, 2.5, float("nan"), float("inf"), -1, True, "9", None, 12):
        usage.azure_billed("sess_1", seconds, resource="default", dialect="live")
    usage.azure_billed("sess_2", 4, resource="default", dialect="live")
    assert usage.rows[0].billed_ms == {"sess_1": 12_000, "sess_2": 4000}
    assert usage.values(usage.rows[0])["input_tokens"] is None
