"""Marked recordings: each frame says of which utterance it is, however the recording was cut and joined."""

import pytest

from tests.simulator.support import samples_of, silence, speech
from token_broker.simulator.audio import Mark, described, level, marked, marks


@pytest.mark.parametrize("utterance", [0, 7, 4095, 4096, 16_777_215])
def test_marks_tell_utterance_and_frames(utterance: int) -> None:
    assert list(marks(marked(speech(0.1), utterance))) == [Mark(utterance, frame) for frame in range(5)]


def test_marks_survive_cutting_and_joining() -> None:
    one, two = marked(speech(0.2), 1), marked(speech(0.2), 2)
    joined = one[1000:5000] + silence(0.3) + two[:3000]
    assert list(marks(joined)) == [*(Mark(1, frame) for frame in (2, 3, 4, 5)), *(Mark(2, frame) for frame in range(4))]


def test_marks_are_hardly_heard() -> None:
    pcm = speech(1)
    assert len(marked(pcm, 16_777_215)) == len(pcm)
    assert abs(samples_of(marked(pcm, 16_777_215))).max() <= max(abs(samples_of(pcm)).max(), 4096)
    assert level(marked(pcm, 7)) == pytest.approx(level(pcm), rel=0.05)


def test_number_beyond_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="beyond"):
        marked(speech(0.1), 16_777_216)


def test_unmarked_sound_has_no_marks() -> None:
    assert list(marks(speech(1) + silence(1))) == []


def test_speech_is_described_by_length_and_number() -> None:
    assert described(speech(1.5)) == "1.5 s of speech"
    assert described(marked(speech(1.5), 12)) == "1.5 s of speech #12"
