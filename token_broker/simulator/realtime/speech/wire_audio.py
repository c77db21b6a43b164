"""The audio formats that a session may name, to and from the simulator's own 24 kHz PCM16 mono.

Rates are changed by holding each sample, without a filter: good enough to tell speech from silence, and to be heard.
"""

import functools
import itertools
import sys
from array import array
from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal

from token_broker.simulator.audio import SAMPLE_RATE_HZ

Encoding = Literal["pcm16", "g711_ulaw", "g711_alaw"]

# G.711's own words: each code of µ-law is complemented on the wire, and of A-law every second bit.
_ULAW_BIAS = 0x84
_ALAW_MASK = 0x55


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """How audio stands in events. G.711 has 8 kHz and a byte a sample."""

    encoding: Encoding = "pcm16"
    rate_hz: int = SAMPLE_RATE_HZ

    @classmethod
    def named(cls, name: str, rate_hz: int = SAMPLE_RATE_HZ) -> "AudioFormat":
        """By a flat session's word: `g711_ulaw`, `pcm16`, or with its rate `pcm16_8000hz`; or by GA's `audio/pcmu`."""
        if name in ("g711_ulaw", "audio/pcmu"):
            return cls("g711_ulaw", 8000)
        if name in ("g711_alaw", "audio/pcma"):
            return cls("g711_alaw", 8000)
        return cls("pcm16", int(name.removeprefix("pcm16_").removesuffix("hz")) if "_" in name else rate_hz)


class AudioReader:
    """Reads one format's audio as it comes, in pieces of any size."""

    def __init__(self, audio_format: AudioFormat) -> None:
        self._format = audio_format
        self._odd = b""
        self._taken = 0
        self._given = 0

    @property
    def audio_format(self) -> AudioFormat:
        return self._format

    def read(self, data: bytes) -> bytes:
        """The same as 24 kHz PCM16."""
        if self._format == AudioFormat():
            return data
        if self._format.encoding == "pcm16":
            data = self._odd + data
            whole = len(data) - len(data) % 2
            data, self._odd = data[:whole], data[whole:]
            samples = _samples(data)
        else:
            decoded = _decoded(self._format.encoding)
            samples = array("h", (decoded[code] for code in data))
        rate = self._format.rate_hz
        # Counted over all pieces, so that no piece's rounding adds up.
        first, self._taken = self._taken, self._taken + len(samples)
        until = -(-self._taken * SAMPLE_RATE_HZ // rate)
        held = array("h", (samples[n * rate // SAMPLE_RATE_HZ - first] for n in range(self._given, until)))
        self._given = until
        return _bytes(held)


def written(pcm: bytes, audio_format: AudioFormat) -> bytes:
    """24 kHz PCM16 in another format."""
    if audio_format == AudioFormat():
        return pcm
    samples, rate = _samples(pcm), audio_format.rate_hz
    held = array("h", (samples[n * SAMPLE_RATE_HZ // rate] for n in range(-(-len(samples) * rate // SAMPLE_RATE_HZ))))
    if audio_format.encoding == "pcm16":
        return _bytes(held)
    codes = _codes(audio_format.encoding)
    return bytes(codes[sample & 0xFFFF] for sample in held)


def _samples(pcm: bytes) -> "array[int]":
    samples = array("h")
    samples.frombytes(pcm[: len(pcm) - len(pcm) % 2])
    if sys.byteorder == "big":
        samples.byteswap()
    return samples


def _bytes(samples: "array[int]") -> bytes:
    if sys.byteorder == "big":
        samples.byteswap()
    return samples.tobytes()


@functools.cache
def _decoded(encoding: Encoding) -> list[int]:
    """The sample of each of the 256 codes."""
    return [_ulaw(code) if encoding == "g711_ulaw" else _alaw(code) for code in range(256)]


@functools.cache
def _codes(encoding: Encoding) -> bytes:
    """The code of each of the 65,536 samples, as unsigned: the one whose own sample is nearest."""
    # µ-law has two zeros; the dictionary keeps the second, which is what silence is sent as.
    known = sorted({sample: code for code, sample in enumerate(_decoded(encoding))}.items())
    middles = [(low[0] + high[0]) / 2 for low, high in itertools.pairwise(known)]
    return bytes(known[bisect_left(middles, n - 0x10000 if n & 0x8000 else n)][1] for n in range(0x10000))


def _ulaw(code: int) -> int:
    code = ~code & 0xFF
    sample = (((code & 0x0F) << 3) + _ULAW_BIAS << (code >> 4 & 7)) - _ULAW_BIAS
    return -sample if code & 0x80 else sample


def _alaw(code: int) -> int:
    code ^= _ALAW_MASK
    exponent, sample = code >> 4 & 7, (code & 0x0F) << 4
    sample = sample + 8 if exponent == 0 else sample + 0x108 << exponent - 1
    return sample if code & 0x80 else -sample
