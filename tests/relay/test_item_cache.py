"""The cache from which a compatible endpoint answers `conversation.item.retrieve`."""

from typing import Any

import pytest

from token_broker.relay.dialects.item_cache import ItemCache


def spoken(item_id: str = "item_1") -> dict[str, Any]:
    content = [{"type": "input_audio", "audio": "AAAA", "transcript": None}]
    return {"id": item_id, "type": "message", "role": "user", "status": "completed", "content": content}


def test_item_is_kept_without_audio() -> None:
    cache = ItemCache()
    cache.note({"type": "conversation.item.added", "item": spoken()})
    assert cache.get("item_1") == spoken() | {"content": [{"type": "input_audio", "transcript": None}]}
    transcribed = {"type": "conversation.item.input_audio_transcription.completed", "item_id": "item_1"}
    cache.note({**transcribed, "content_index": 0, "transcript": "hello"})
    item = cache.get("item_1")
    assert item is not None
    assert item["content"] == [{"type": "input_audio", "transcript": "hello"}]


def test_truncated_and_deleted_items_lose_text() -> None:
    cache = ItemCache()
    answer = {
        "id": "a",
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_audio", "transcript": "x"}],
    }
    cache.note({"type": "response.output_item.done", "item": answer})
    cache.note({"type": "conversation.item.truncated", "item_id": "a", "content_index": 0, "audio_end_ms": 10})
    item = cache.get("a")
    assert item is not None
    assert item["content"][0]["transcript"] is None
    cache.note({"type": "conversation.item.deleted", "item_id": "a"})
    assert cache.get("a") is None


def test_only_latest_items_are_kept() -> None:
    cache = ItemCache()
    for number in range(300):
        cache.note({"type": "conversation.item.created", "item": spoken(f"item_{number}")})
    assert cache.get("item_43") is None
    assert cache.get("item_44") is not None


def test_long_item_is_left_to_azure() -> None:
    cache = ItemCache()
    long = [{"type": "input_text", "text": "x" * 100_000}]
    cache.note({"type": "conversation.item.added", "item": spoken()})
    cache.note({"type": "conversation.item.added", "item": spoken() | {"content": long}})
    assert cache.get("item_1") is None
    with_audio = [{"type": "input_audio", "audio": "A" * 100_000, "transcript": "hello"}]
    cache.note({"type": "conversation.item.added", "item": spoken() | {"content": with_audio}})
    assert cache.get("item_1") is not None


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
    cache = ItemCache()
    cache.note({"type": "conversation.item.added", "item": spoken()})
    before = cache.get("item_1")
    cache.note(event)
    assert cache.get("item_1") == before
