"""The items that a door answers for."""

from typing import Any

import pytest

from token_broker.relay.dialects.item_cache import ItemShelf


def spoken(item_id: str = "item_1") -> dict[str, Any]:
    content = [{"type": "input_audio", "audio": "AAAA", "transcript": None}]
    return {"id": item_id, "type": "message", "role": "user", "status": "completed", "content": content}


def test_an_item_is_kept_without_its_audio_and_gets_its_transcript() -> None:
    shelf = ItemShelf()
    shelf.note({"type": "conversation.item.added", "item": spoken()})
    assert shelf.get("item_1") == spoken() | {"content": [{"type": "input_audio", "transcript": None}]}
    transcribed = {"type": "conversation.item.input_audio_transcription.completed", "item_id": "item_1"}
    shelf.note({**transcribed, "content_index": 0, "transcript": "hello"})
    item = shelf.get("item_1")
    assert item is not None
    assert item["content"] == [{"type": "input_audio", "transcript": "hello"}]


def test_a_truncated_answer_has_no_text_and_a_deleted_item_is_gone() -> None:
    shelf = ItemShelf()
    answer = {
        "id": "a",
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_audio", "transcript": "x"}],
    }
    shelf.note({"type": "response.output_item.done", "item": answer})
    shelf.note({"type": "conversation.item.truncated", "item_id": "a", "content_index": 0, "audio_end_ms": 10})
    item = shelf.get("a")
    assert item is not None
    assert item["content"][0]["transcript"] is None
    shelf.note({"type": "conversation.item.deleted", "item_id": "a"})
    assert shelf.get("a") is None


def test_only_the_latest_items_are_kept() -> None:
    shelf = ItemShelf()
    for number in range(300):
        shelf.note({"type": "conversation.item.created", "item": spoken(f"item_{number}")})
    assert shelf.get("item_43") is None
    assert shelf.get("item_44") is not None


def test_what_is_as_long_as_a_message_may_be_is_left_to_azure() -> None:
    shelf = ItemShelf()
    long = [{"type": "input_text", "text": "x" * 100_000}]
    shelf.note({"type": "conversation.item.added", "item": spoken()})
    shelf.note({"type": "conversation.item.added", "item": spoken() | {"content": long}})
    assert shelf.get("item_1") is None
    with_audio = [{"type": "input_audio", "audio": "A" * 100_000, "transcript": "hello"}]
    shelf.note({"type": "conversation.item.added", "item": spoken() | {"content": with_audio}})
    assert shelf.get("item_1") is not None


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"type": "conversation.item.added"},
        {"type": "conversation.item.added", "item": {"id": 1}},
        {"type": "conversation.item.added", "item": {"id": "x", "content": "text"}},
        {"type": "conversation.item.truncated", "item_id": "unknown", "content_index": 0},
        {"type": "conversation.item.truncated", "item_id": "item_1", "content_index": 9},
        {"type": "conversation.item.input_audio_transcription.completed", "item_id": "item_1", "content_index": None},
    ],
)
def test_odd_events_change_nothing(event: dict[str, Any]) -> None:
    shelf = ItemShelf()
    shelf.note({"type": "conversation.item.added", "item": spoken()})
    before = shelf.get("item_1")
    shelf.note(event)
    assert shelf.get("item_1") == before
