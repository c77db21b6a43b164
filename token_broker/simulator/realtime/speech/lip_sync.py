"""When which word is spoken, and how the lips stand: what Voice Live tells beside the audio (docs/azure.md §6.3)."""

from collections.abc import Iterator
from typing import Any

# Azure Speech's visemes are numbered from 0, which is silence, to 21.
_VISEMES = 22


def lip_sync(text: str, offset_ms: int, length_ms: int, *, visemes: bool, words: bool) -> Iterator[dict[str, Any]]:
    """The fields of the deltas that go with one piece of audio; `type` is the event's name.

    The times are spread evenly over the words; a viseme stands for its word's first letter. No voice is behind them.
    """
    spoken = text.split()
    each_ms = length_ms // max(len(spoken), 1)
    for number, word in enumerate(spoken):
        at: dict[str, Any] = {"audio_offset_ms": offset_ms + number * each_ms}
        if words:
            timed = {"audio_duration_ms": each_ms, "text": word, "timestamp_type": "word"}
            yield {"type": "response.audio_timestamp.delta"} | at | timed
        if visemes:
            yield {"type": "response.animation_viseme.delta"} | at | {"viseme_id": ord(word[0]) % (_VISEMES - 1) + 1}
