"""24 kHz PCM16 mono: its duration, its loudness, a tone that stands for the simulated voice, and marks that name it.

A marked recording says in each frame of 20 ms which utterance it is of, and which frame. So a simulator, and who hears
its answer, can tell what of it arrived, and how often. A proxy must not change a byte of it.
"""

import functools
import math
import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

SAMPLE_RATE_HZ = 24_000
BYTES_PER_MS = SAMPLE_RATE_HZ * 2 // 1000

_FULL_SCALE = 32768
_TONE_HZ = 440
_TONE_LEVEL = 0.2
_FADE_MS = 20

# Quiet, and like no sound.
_MARK = struct.pack("<6h", 17, -23, 29, -31, 37, -41)
# The utterance's in two, and the frame's: each stays so small that it is hardly heard.
_NUMBERS = struct.Struct("<3H")
_BASE = 4096
_MARKED_MS = 20
_MARKED_BYTES = _MARKED_MS * BYTES_PER_MS


def duration_ms(pcm: bytes | bytearray) -> int:
    """Playing time in whole milliseconds."""
    return len(pcm) // BYTES_PER_MS


def level(pcm: bytes) -> float:
    """Root mean square about the mean, 0 to 1: a constant offset is no sound, such as PCM's zeros read as µ-law."""
    samples = array("h")
    samples.frombytes(pcm)
    if sys.byteorder == "big":
        samples.byteswap()
    # `hypot` is the standard library's one fast sum of squares: a Python loop costs fifty times as much.
    power = math.hypot(*samples) ** 2 / len(samples) - (sum(samples) / len(samples)) ** 2 if samples else 0.0
    return math.sqrt(max(power, 0.0)) / _FULL_SCALE


@functools.lru_cache(maxsize=32)
def tone(length_ms: int) -> bytes:
    """A 440 Hz sine of so many milliseconds, faded in and out."""
    count = length_ms * SAMPLE_RATE_HZ // 1000
    fade = min(_FADE_MS * SAMPLE_RATE_HZ // 1000, max(count // 2, 1))
    step = 2 * math.pi * _TONE_HZ / SAMPLE_RATE_HZ
    peak = _TONE_LEVEL * (_FULL_SCALE - 1)
    samples = array(
        "h", (round(peak * min(1, n / fade, (count - n) / fade) * math.sin(step * n)) for n in range(count))
    )
    if sys.byteorder == "big":
        samples.byteswap()
    return samples.tobytes()


@dataclass(frozen=True, slots=True)
class Mark:
    """A frame of a marked recording: the utterance's number, and the frame's."""

    utterance: int
    frame: int


def marked(pcm: bytes, utterance: int) -> bytes:
    """The recording with its frames marked: at most 80 s of it, with a number below 16 million.

    Raises:
        ValueError: it is beyond that.

    """
    if not 0 <= utterance < _BASE * _BASE or len(pcm) > _MARKED_BYTES * _BASE:
        raise ValueError("the utterance's number, or the recording, is beyond what a mark can say")
    out = bytearray(pcm)
    for frame, begin in enumerate(range(0, len(pcm) - _MARKED_BYTES + 1, _MARKED_BYTES)):
        mark = _MARK + _NUMBERS.pack(*divmod(utterance, _BASE), frame)
        out[begin : begin + len(mark)] = mark
    return bytes(out)


def marks(pcm: bytes) -> Iterator[Mark]:
    """The marks of a recording, wherever it was cut, in order."""
    begin = -1
    while (begin := pcm.find(_MARK, begin + 1)) >= 0:
        numbers = pcm[begin + len(_MARK) : begin + len(_MARK) + _NUMBERS.size]
        if len(numbers) == _NUMBERS.size:
            high, low, frame = _NUMBERS.unpack(numbers)
            yield Mark(high * _BASE + low, frame)


def described(pcm: bytes) -> str:
    """Speech in words: nobody recognises it, so they are its length, and its number where it is marked."""
    mark = next(marks(pcm), None)
    return f"{duration_ms(pcm) / 1000:.1f} s of speech" + (f" #{mark.utterance}" if mark else "")
