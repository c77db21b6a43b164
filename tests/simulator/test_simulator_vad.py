"""Server VAD on audio alone: where it hears speech begin and end, and what it cuts out."""

import pytest

from tests.simulator.support import pcm_of, samples_of, silence, speech
from token_broker.simulator.realtime.speech.input_buffer import InputBuffer
from token_broker.simulator.realtime.speech.vad import SpeechDetector, Started, Stopped, VadSettings
from token_broker.simulator.realtime.speech.wire_audio import AudioFormat, AudioReader
from token_broker.simulator.session_bodies.check import InvalidRequest


def _turns(pcm: bytes, detection: VadSettings | None = None, piece_bytes: int = 960) -> list[Started | Stopped]:
    detector = SpeechDetector(detection or VadSettings())
    return [
        turn for begin in range(0, len(pcm), piece_bytes) for turn in detector.feed(pcm[begin : begin + piece_bytes])
    ]


def test_turn_counts_prefix_and_silence() -> None:
    # 1000 ms quiet, 2000 ms loud, then quiet: starts at 1000 - 300 of prefix, stops at 3000 + 800 of silence.
    started, stopped = _turns(silence(1) + speech(2) + silence(2))
    assert started == Started(700)
    assert isinstance(stopped, Stopped)
    assert stopped.at_ms == pytest.approx(3800, abs=20)


def test_speech_is_cut_byte_for_byte() -> None:
    pcm = silence(1) + speech(2) + silence(2)
    _, stopped = _turns(pcm)
    assert isinstance(stopped, Stopped)
    begin = 700 * 48
    assert pcm[begin : begin + len(stopped.speech)] == stopped.speech
    # Prefix, speech, and 200 ms of what followed.
    assert len(stopped.speech) / 48 == pytest.approx(300 + 2000 + 200, abs=20)


@pytest.mark.parametrize("piece_bytes", [1, 7, 959, 960, 961, 4800, 10_000_000])
def test_piece_size_changes_nothing(piece_bytes: int) -> None:
    pcm = silence(0.4) + speech(0.6) + silence(1)
    assert _turns(pcm, piece_bytes=piece_bytes) == _turns(pcm)


def test_speech_from_first_sample_is_at_zero() -> None:
    assert _turns(speech(1) + silence(1))[0] == Started(0)


def test_long_pause_makes_two_turns() -> None:
    assert len(_turns(speech(1) + silence(0.9) + speech(1) + silence(1))) == 4
    assert len(_turns(speech(1) + silence(0.7) + speech(1) + silence(1))) == 2


def test_silence_noise_click_are_no_speech() -> None:
    noise = pcm_of(samples_of(speech(1)) / 32767 * 0.003)
    click = speech(0.04)
    assert _turns(silence(3) + noise + silence(1) + click + silence(1)) == []


def test_constant_offset_is_silence() -> None:
    # As PCM's zeros are, where a client sends them as µ-law: each is the loudest sample.
    offset = AudioReader(AudioFormat("g711_ulaw", 8000)).read(bytes(16_000))
    assert len(_turns(speech(1) + offset)) == 2


def test_higher_threshold_wants_louder_speech() -> None:
    quiet = pcm_of(samples_of(speech(1)) / 32767 * 0.1)
    assert _turns(quiet + silence(1), VadSettings(threshold=0.3)) != []
    assert _turns(quiet + silence(1), VadSettings(threshold=0.9)) == []


def test_prefix_and_silence_follow_session() -> None:
    detection = VadSettings(prefix_padding_ms=0, silence_duration_ms=200)
    started, stopped = _turns(silence(1) + speech(1) + silence(1), detection)
    assert started == Started(1000)
    assert stopped.at_ms == pytest.approx(2200, abs=20)


def test_endless_speech_is_cut_at_two_minutes() -> None:
    turns = _turns(speech(10) * 13, piece_bytes=48_000)
    assert [type(turn) for turn in turns] == [Started, Stopped, Started]
    assert turns[1].at_ms == 120_000


def test_quiet_keeps_only_the_prefix() -> None:
    detector = SpeechDetector(VadSettings())
    for _ in range(100):
        assert list(detector.feed(silence(1))) == []
    assert len(detector.cut()) <= 300 * 48


def test_commit_takes_buffer_over_100_ms() -> None:
    hearing = InputBuffer(None)
    assert list(hearing.hear(speech(0.5))) == []
    assert hearing.commit() == speech(0.5)
    list(hearing.hear(silence(0.099)))
    with pytest.raises(InvalidRequest, match="buffer too small"):
        hearing.commit()


def test_uncommitted_buffer_is_bounded() -> None:
    hearing = InputBuffer(None)
    list(hearing.hear(silence(300)))
    with pytest.raises(InvalidRequest, match="full"):
        list(hearing.hear(silence(1)))
    hearing.clear()
    assert list(hearing.hear(silence(1))) == []


def test_new_detection_keeps_the_time() -> None:
    hearing = InputBuffer(VadSettings())
    list(hearing.hear(silence(5)))
    hearing.follow(VadSettings(prefix_padding_ms=0))
    (started,) = hearing.hear(speech(0.2))
    assert started == Started(5000)
