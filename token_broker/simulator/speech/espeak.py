"""Speech from text by eSpeak NG, whose library and data the package `espeakng-loader` carries (docs/decisions/0057).

The library has one voice and one callback for a whole process, and blocks while it speaks. So one thread has it, and
nothing is imported or loaded before somebody opens it.
"""

import ctypes
import re
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from token_broker.simulator.audio import BYTES_PER_MS, SAMPLE_RATE_HZ

__all__ = ["Espeak", "Synthesizer", "Voice", "VoiceUnavailableError"]

# From speak_lib.h.
_SYNCHRONOUS = 2
_DONT_EXIT = 0x8000
_UTF8 = 1
_RATE, _PITCH = 1, 3
_OK = 0

_LONGEST_TEXT = 600
_LONGEST_MS = 60_000
_LONGEST_BYTES = _LONGEST_MS * BYTES_PER_MS
# Each is at most 3 MB, and mostly a tenth of that.
_MOST_KEPT = 32
# Beyond it answers have their tone: a thread that is behind must not be asked for ever more.
_MOST_WAITING = 16
_SILENT = re.compile(r"[\x00-\x1f\x7f]+")


class VoiceUnavailableError(Exception):
    """There is no synthetic voice; the message says why."""


@dataclass(frozen=True, slots=True)
class Voice:
    """A voice of eSpeak's: its name, its pitch from 0 to 99, and how many words it says in a minute."""

    name: str = "en-us+f3"
    pitch: int = 50
    words_a_minute: int = 165


class Synthesizer(Protocol):
    """Says texts."""

    def say(self, text: str, voice: Voice) -> "Future[bytes]":
        """The text as 24 kHz PCM16 mono, once it is made; empty where it can't be. Returns at once."""
        ...


class Espeak:
    """eSpeak NG in a thread of its own. What was said lately is kept, and said again without work."""

    def __init__(self) -> None:
        """Loads the library.

        Raises:
            VoiceUnavailableError: the package is missing, or its library can't be used on this machine.

        """
        self._heard = bytearray()
        self._kept: OrderedDict[tuple[str, Voice], Future[bytes]] = OrderedDict()
        self._library, self._rate_hz = _load()
        self._callback = _CALLBACK(self._take)  # the library keeps no reference
        self._library.espeak_SetSynthCallback(self._callback)
        self._thread = ThreadPoolExecutor(1, "espeak")
        self._thread.submit(self._speak, "Hello.", Voice())  # the first of all takes seconds on a busy machine

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def say(self, text: str, voice: Voice) -> "Future[bytes]":
        key = (_SILENT.sub(" ", text)[:_LONGEST_TEXT], voice)
        if (known := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            return known
        if sum(not each.done() for each in self._kept.values()) >= _MOST_WAITING:
            silent: Future[bytes] = Future()
            silent.set_result(b"")
            return silent
        self._kept[key] = said = self._thread.submit(self._speak, *key)
        while len(self._kept) > _MOST_KEPT:
            self._kept.popitem(last=False)
        return said

    def _speak(self, text: str, voice: Voice) -> bytes:
        library, encoded = self._library, text.encode()
        if library.espeak_SetVoiceByName(voice.name.encode()) != _OK:
            return b""
        library.espeak_SetParameter(_RATE, voice.words_a_minute, 0)
        library.espeak_SetParameter(_PITCH, voice.pitch, 0)
        self._heard.clear()
        library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, _UTF8, None, None)
        library.espeak_Synchronize()
        return _resampled(bytes(self._heard), self._rate_hz)

    def _take(self, samples: int | None, count: int, _events: int | None) -> int:
        """A piece of sound, called by the library. 1 stops it: what is said is too long."""
        if samples and count > 0:
            self._heard += ctypes.string_at(samples, count * 2)
        return int(len(self._heard) > _LONGEST_BYTES)


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


def _load() -> tuple[ctypes.CDLL, int]:
    """The library, and the rate of its sound in Hz."""
    try:
        import espeakng_loader
    except ImportError:
        raise VoiceUnavailableError("espeakng-loader is not installed") from None
    try:
        library = ctypes.CDLL(espeakng_loader.get_library_path())
        rate_hz = int(library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), _DONT_EXIT))
    except (OSError, AttributeError, RuntimeError) as error:
        raise VoiceUnavailableError(f"eSpeak NG can't be loaded: {error}") from None
    if rate_hz <= 0:
        raise VoiceUnavailableError("eSpeak NG does not find its data")
    return library, rate_hz


def _resampled(pcm: bytes, rate_hz: int) -> bytes:
    if not pcm:
        return b""
    import av
    import numpy as np

    samples = np.frombuffer(pcm, np.int16)
    frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="mono")
    frame.sample_rate = rate_hz
    resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE_HZ)
    made = [*resampler.resample(frame), *resampler.resample(None)]
    return b"".join(bytes(each.planes[0])[: each.samples * 2] for each in made)[:_LONGEST_BYTES]
