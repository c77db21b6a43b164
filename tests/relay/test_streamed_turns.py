"""Turns of streamed transcripts, of responses outside the conversation, and by the sound's format; no I/O."""

from collections.abc import Sequence
from typing import Any

import pytest

from token_broker.memory.types import Interruption, Turn
from token_broker.relay.counters import TalkCounters
from token_broker.relay.transcripts.assembler import FinishedTurn, TurnAssembler
from token_broker.relay.transcripts.recorder import TurnRecorder
from token_broker.security.tokens import Owner

Event = dict[str, Any]
OWNER = Owner(session_id="019aaf0e-7c1b-7d5e-9a43-1f6f0f6a2b11", principal="anonymous", epoch=1, user_id=None)


def partly(item: str, text: str) -> Event:
    return {"type": "conversation.item.input_audio_transcription.delta", "item_id": item, "delta": text}


def heard(item: str, text: str) -> Event:
    return {"type": "conversation.item.input_audio_transcription.completed", "item_id": item, "transcript": text}


def committed(item: str, previous: str | None = None) -> Event:
    return {"type": "input_audio_buffer.committed", "item_id": item, "previous_item_id": previous}


def created(response: str, conversation: str | None = "conv_1") -> Event:
    return {"type": "response.created", "response": {"id": response, "conversation_id": conversation}}


def spoken(response: str, item: str, text: str, *, kind: str = "response.output_audio_transcript") -> list[Event]:
    about = {"response_id": response, "item_id": item, "content_index": 0}
    name = "text" if kind.endswith("text") else "transcript"
    return [{"type": f"{kind}.delta", **about, "delta": text}, {"type": f"{kind}.done", **about, name: text}]


def done(response: str, conversation: str | None = "conv_1") -> Event:
    about = {"id": response, "conversation_id": conversation, "status": "completed"}
    return {"type": "response.done", "response": about}


# As streaming transcription was recorded: words before the commit, between an answer's, and after it.
STREAMED = [
    partly("user_1", "Hello, my"),
    partly("user_1", " name is"),
    committed("user_1"),
    created("resp_1"),
    partly("user_1", " Robin."),
    *spoken("resp_1", "agent_1", "Hello, Robin."),
    heard("user_1", "Hello, my name is Robin."),
    done("resp_1"),
    partly("user_2", "And"),
    partly("user_2", " yours?"),
    committed("user_2", "agent_1"),
    created("resp_2"),
    *spoken("resp_2", "agent_2", "Elena."),
    done("resp_2"),
    heard("user_2", "And yours?"),
]


def run(events: Sequence[Event]) -> list[FinishedTurn]:
    assembler = TurnAssembler()
    turns = [turn for event in events for turn in assembler.feed(event, 0.0)]
    return [*turns, *assembler.flush()]


def transcribed(events: Sequence[Event]) -> dict[str, str]:
    """The user's words by item, as far as they had come."""
    words: dict[str, str] = {}
    for event in events:
        if event["type"].endswith("transcription.delta"):
            words[event["item_id"]] = words.get(event["item_id"], "") + event["delta"]
        elif event["type"].endswith("transcription.completed"):
            words[event["item_id"]] = event["transcript"]
    return words


@pytest.mark.parametrize("length", range(1, len(STREAMED) + 1))
def test_no_prefix_loses_a_transcribed_word(length: int) -> None:
    events = STREAMED[:length]
    kept = {turn.item_id: turn.content for turn in run(events) if turn.role == "user"}
    assert kept == transcribed(events)


def test_utterance_that_was_cut_is_marked() -> None:
    assert [(turn.content, turn.interrupted) for turn in run(STREAMED[:2])] == [("Hello, my name is", True)]
    whole = [turn for turn in run(STREAMED) if turn.role == "user"]
    assert [turn.interrupted for turn in whole] == [False, False]


def test_committed_words_stand_before_the_answer() -> None:
    turns = sorted(run(STREAMED), key=lambda turn: turn.sequence)
    assert [turn.item_id for turn in turns] == ["user_1", "agent_1", "user_2", "agent_2"]


@pytest.mark.parametrize("kind", ["response.output_text", "response.text", "response.output_audio_transcript"])
def test_response_outside_the_conversation_is_no_turn(kind: str) -> None:
    outside = [created("resp_9", None), *spoken("resp_9", "item_9", '{"topic": "weather"}', kind=kind)]
    within = [created("resp_1"), *spoken("resp_1", "agent_1", "Sunny."), done("resp_1")]
    assert [turn.content for turn in run([*outside, done("resp_9", None), *within])] == ["Sunny."]
    interleaved = [*outside[:2], *within, *outside[2:], done("resp_9", None)]
    assert [turn.content for turn in run(interleaved)] == ["Sunny."]


def test_response_without_the_field_is_of_the_conversation() -> None:
    events = [{"type": "response.created", "response": {"id": "r"}}, *spoken("r", "agent_1", "Yes.")]
    assert [turn.content for turn in run(events)] == ["Yes."]


GA_MULAW = {"audio": {"output": {"format": {"type": "audio/pcmu"}}}}


@pytest.mark.parametrize("session", [GA_MULAW, {"output_audio_format": "g711_ulaw"}])
def test_barge_in_is_marked_by_the_formats_playing_time(session: Event) -> None:
    """29,600 bytes of µ-law play for 3.7 s; as PCM16 they would be over for long when the user cuts in."""
    assembler = TurnAssembler()
    assembler.feed({"type": "session.updated", "session": session}, 0.0)
    assembler.heard(29_600 * 4 // 3, 0.0)
    for event in spoken("r", "agent_1", "A long sentence."):
        assembler.feed(event, 0.1)
    assert [turn.interrupted for turn in assembler.feed(done("r"), 0.2)] == [False]
    truncated = {"type": "conversation.item.truncated", "item_id": "agent_1"}
    assert [(turn.interrupted, turn.again) for turn in assembler.feed(truncated, 3.6)] == [(True, True)]


@pytest.mark.parametrize("format_", ["pcm16", "unheard_of", None, {"type": 1}])
def test_other_formats_play_as_pcm16(format_: Any) -> None:
    assembler = TurnAssembler()
    assembler.feed({"type": "session.updated", "session": {"output_audio_format": format_}}, 0.0)
    assembler.heard(64_000, 0.0)
    for event in spoken("r", "agent_1", "One second."):
        assembler.feed(event, 0.1)
    assembler.feed(done("r"), 0.2)
    assert assembler.is_answering(0.99)
    assert not assembler.is_answering(1.01)


def words(events: Sequence[Event]) -> dict[str, str]:
    """What was said in these events, by item: the user's words and the agent's, as far as they had come."""
    said: dict[str, str] = {}
    for event in events:
        kind, item = event["type"], event.get("item_id", "")
        if kind.endswith(("transcription.delta", "transcript.delta", "text.delta")):
            said[item] = said.get(item, "") + event["delta"]
        elif kind.endswith(("transcription.completed", "transcript.done", "text.done")):
            said[item] = event.get("transcript") or event["text"]
        elif kind.startswith("conversation.item.") and (event.get("item") or {}).get("role") == "user":
            typed = [part["text"] for part in event["item"]["content"] if part["type"] == "input_text"]
            said |= {event["item"]["id"]: " ".join(typed)} if typed else {}
    return {item: text.strip() for item, text in said.items() if text.strip()}


class Kept:
    """Keeps a turn where its id is new, as the store does."""

    def __init__(self) -> None:
        self.turns: dict[str, str] = {}

    def offer(self, turn: Turn) -> bool:
        self.turns.setdefault(turn.turn_id, turn.content)
        return True

    def mark_interrupted(self, interruption: Interruption) -> bool:
        raise AssertionError(interruption)


def typed(recorder: TurnRecorder, item: str, text: str) -> None:
    content = [{"type": "input_text", "text": text}]
    about = {"id": item, "type": "message", "role": "user", "content": content}
    recorder.feed({"type": "conversation.item.added", "previous_item_id": None, "item": about}, 0.0)


@pytest.mark.parametrize("item", ["msg_001", "1", "item_1", "user-message-00000000000000001", "item_" + "é" * 20])
def test_ids_a_client_chose_are_one_connections(item: str) -> None:
    kept, texts = Kept(), ["Good morning", "Please cancel order 17"]
    for scope, text in zip(("a1", "b2"), texts, strict=True):
        recorder = TurnRecorder(OWNER, "elena", ingest=kept, counters=TalkCounters(), on_lost=pytest.fail, scope=scope)
        typed(recorder, item, text)
    assert list(kept.turns.values()) == texts


def test_ids_of_azures_are_the_same_in_each_connection() -> None:
    """A client that puts a history back with its ids brings nothing new."""
    kept = Kept()
    for scope in ("a1", "b2"):
        recorder = TurnRecorder(OWNER, "elena", ingest=kept, counters=TalkCounters(), on_lost=pytest.fail, scope=scope)
        typed(recorder, "item_1NEGWt6HlQ4SHbk7pOcFOC", "Good morning")
    assert kept.turns == {"item_1NEGWt6HlQ4SHbk7pOcFOC": "Good morning"}


class Full(Kept):
    """Refuses the offers of these numbers, as a full buffer does."""

    def __init__(self, *refused: int) -> None:
        super().__init__()
        self._refused = refused
        self._offers = 0

    def offer(self, turn: Turn) -> bool:
        self._offers += 1
        return self._offers not in self._refused and super().offer(turn)


@pytest.mark.parametrize(("refused", "kept", "lost"), [((), 1, 0), ((2,), 0, 1), ((1,), 0, 1), ((1, 2), 0, 1)], ids=str)
def test_question_lost_at_its_second_offer_counts(refused: tuple[int, ...], kept: int, lost: int) -> None:
    """A question typed first may be history. Once it is known not to be, it is offered again, and that offer counts."""
    counters, told = TalkCounters(), []
    recorder = TurnRecorder(
        OWNER, "elena", ingest=Full(*refused), counters=counters, on_lost=lambda: told.append("lost"), scope="a1"
    )
    typed(recorder, "msg_1", "And on Friday?")
    recorder.feed(created("resp_1"), 0.0)
    assert (counters.turns, counters.turns_lost, len(told)) == (kept, lost, lost)
