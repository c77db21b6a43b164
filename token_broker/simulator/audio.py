"""24 kHz PCM16 mono: its duration, its loudness, and a tone that stands for the simulated voice."""

import functools
import math
import sys
from array import array

SAMPLE_RATE_HZ = 24_000
BYTES_PER_MS = SAMPLE_RATE_HZ * 2 // 1000

_FULL_SCALE = 32768
_TONE_HZ = 440
_TONE_LEVEL = 0.2
_FADE_MS = 20


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
