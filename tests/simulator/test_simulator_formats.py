"""Audio formats: what a session names is what goes in and comes out, in every dialect."""

import base64
from typing import Any

import numpy as np
import pytest

from tests.simulator.scene import Scene
from tests.simulator.support import correlation, silence, speech
from token_broker.simulator.realtime.dialects import GA, PREVIEW, VOICE_LIVE, Dialect
from token_broker.simulator.realtime.speech.wire_audio import AudioFormat, AudioReader, Encoding, written


@pytest.mark.parametrize("encoding", ["g711_ulaw", "g711_alaw"])
def test_g711_codes_are_kept(encoding: Encoding) -> None:
    codes = bytes(range(256))
    audio_format = AudioFormat(encoding, 8000)
    again = written(AudioReader(audio_format).read(codes), audio_format)
    # µ-law has two codes for 0.
    assert [(a, b) for a, b in zip(codes, again, strict=True) if a != b] in ([], [(0x7F, 0xFF)])


# From ITU-T G.711's tables: the loudest, the quietest, and one between.
@pytest.mark.parametrize(
    ("encoding", "code", "sample"),
    [
        ("g711_ulaw", 0x00, -32124),
        ("g711_ulaw", 0x80, 32124),
        ("g711_ulaw", 0xFF, 0),
        ("g711_ulaw", 0xD0, 876),
        ("g711_alaw", 0x2A, -32256),
        ("g711_alaw", 0xAA, 32256),
        ("g711_alaw", 0xD5, 8),
        ("g711_alaw", 0xC5, 264),
    ],
)
def test_g711_decodes_by_its_tables(encoding: Encoding, code: int, sample: int) -> None:
    assert np.frombuffer(AudioReader(AudioFormat(encoding, 8000)).read(bytes([code])), "<i2").tolist() == [sample] * 3


@pytest.mark.parametrize("rate_hz", [8000, 16_000, 22_050, 44_100, 48_000])
def test_rates_are_changed_in_any_pieces(rate_hz: int) -> None:
    samples = (np.sin(np.arange(rate_hz) * 2 * np.pi * 200 / rate_hz) * 9000).astype("<i2").tobytes()
    whole = AudioReader(AudioFormat(rate_hz=rate_hz)).read(samples)
    assert len(whole) == 48_000
    reader = AudioReader(AudioFormat(rate_hz=rate_hz))
    assert b"".join(reader.read(samples[at : at + 333]) for at in range(0, len(samples), 333)) == whole
    assert len(written(whole, AudioFormat(rate_hz=rate_hz))) == len(samples)


@pytest.mark.parametrize(
    ("dialect", "session", "audio_format"),
    [
        (GA, {"audio": {"input": {"format": {"type": "audio/pcmu"}}}}, AudioFormat("g711_ulaw", 8000)),
        (GA, {"audio": {"input": {"format": {"type": "audio/pcma"}}}}, AudioFormat("g711_alaw", 8000)),
        (PREVIEW, {"input_audio_format": "g711_alaw"}, AudioFormat("g711_alaw", 8000)),
        (VOICE_LIVE, {"input_audio_format": "g711_ulaw"}, AudioFormat("g711_ulaw", 8000)),
        (VOICE_LIVE, {"input_audio_sampling_rate": 16_000}, AudioFormat(rate_hz=16_000)),
        (VOICE_LIVE, {"input_audio_sampling_rate": 44_100}, AudioFormat(rate_hz=44_100)),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_input_format_is_heard(dialect: Dialect, session: dict[str, Any], audio_format: AudioFormat) -> None:
    scene = Scene(dialect)
    scene.update(**session)
    said = speech(1.0)
    scene.say(written(said + silence(1.0), audio_format))
    scene.wait(10)
    # By its own time: a second of speech, whatever its bytes.
    assert 900 <= scene.only("input_audio_buffer.speech_stopped")["audio_end_ms"] <= 1700
    heard = b"".join(base64.b64decode(delta["delta"]) for delta in scene.all("response.output_audio.delta"))
    assert correlation(said, heard) > 0.6


@pytest.mark.parametrize(
    ("dialect", "session", "bytes_per_s"),
    [
        (GA, {"audio": {"output": {"format": {"type": "audio/pcmu"}}}}, 8000),
        (PREVIEW, {"output_audio_format": "g711_ulaw"}, 8000),
        (VOICE_LIVE, {"output_audio_format": "g711_alaw"}, 8000),
        (VOICE_LIVE, {"output_audio_format": "pcm16_8000hz"}, 16_000),
        (VOICE_LIVE, {"output_audio_format": "pcm16_16000hz"}, 32_000),
        (VOICE_LIVE, {"output_audio_format": "pcm16_48000hz"}, 96_000),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_output_format_is_sent(dialect: Dialect, session: dict[str, Any], bytes_per_s: int) -> None:
    scene, plain = Scene(dialect), Scene(dialect)
    scene.update(**session)
    for each in (scene, plain):
        each.ask("hello to you")
    sent, as_pcm = (
        sum(len(base64.b64decode(delta["delta"])) for delta in each.all("response.output_audio.delta"))
        for each in (scene, plain)
    )
    assert sent == as_pcm * bytes_per_s // 48_000


def test_response_may_have_its_own_format() -> None:
    scene = Scene(GA)
    scene.send("response.create", response={"audio": {"output": {"format": {"type": "audio/pcmu"}}}})
    scene.wait(10)
    # 100 ms a delta.
    assert len(base64.b64decode(scene.all("response.output_audio.delta")[0]["delta"])) == 800


def test_g711_states_its_own_rate() -> None:
    scene = Scene(VOICE_LIVE)
    scene.update(input_audio_format="g711_ulaw")
    assert scene.only("session.updated")["session"]["input_audio_sampling_rate"] == 8000


def test_call_plays_pcm_whatever_is_named() -> None:
    # Over WebRTC the media has a codec of its own.
    scene = Scene(GA, server_plays=True)
    scene.update(audio={"output": {"format": {"type": "audio/pcmu"}}})
    scene.ask("hello")
    assert len(base64.b64decode(scene.all("response.output_audio.delta")[0]["delta"])) == 4800
