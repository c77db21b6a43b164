"""Synthetic speech: voiced syllables, each with its own formants and pitch.

No stretch of it resembles another, so that a delay or a gap can be measured exactly.
"""

import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["Samples", "at_rate", "best_match", "first_words", "pieces_match", "speech", "write_wav"]

Samples = NDArray[np.float64]
"""Mono, from -1 to 1."""


def speech(seconds: float, rate: int = 24_000, seed: int = 7) -> Samples:
    """`seconds` of speech at `rate` Hz; the same for the same seed."""
    random = np.random.default_rng(seed)
    sound: Samples = np.zeros(int(seconds * rate))
    at = 0
    while at < len(sound):
        length = int(rate * random.uniform(0.12, 0.24))
        syllable = _syllable(length, rate, random)[: len(sound) - at]
        sound[at : at + len(syllable)] = syllable
        at += length + int(rate * random.uniform(0.01, 0.05))
    sound *= 0.5 / np.abs(sound).max()
    return sound


def write_wav(path: Path, sound: Samples, rate: int) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(sound, -1, 1) * 32_767).astype("<i2").tobytes())
    return path


def at_rate(sound: Samples, rate: int, wanted: int) -> Samples:
    """The same sound at another rate, by its spectrum."""
    length = round(len(sound) * wanted / rate)
    spectrum = np.fft.rfft(sound)[: length // 2 + 1]
    return np.fft.irfft(spectrum, length) * (length / len(sound))


def first_words(sound: Samples, rate: int, pause_s: float = 0.3) -> Samples:
    """The first stretch of `sound` that is loud, up to a pause.

    Tests compare with what the microphone gave, not with its file: Chromium's fake device skips now and then.
    """
    loud = np.flatnonzero(np.abs(sound) > 0.02)
    assert len(loud), "nothing was said"
    pauses = np.flatnonzero(np.diff(loud) > pause_s * rate)
    end = loud[pauses[0]] if len(pauses) else loud[-1]
    return sound[loud[0] : end + 1]


def best_match(heard: Samples, said: Samples) -> tuple[float, int]:
    """Where `said` sounds in `heard`: the normalized correlation (1 is the same but for loudness), and the place."""
    return _matches(heard, [said])[0]


def pieces_match(heard: Samples, said: Samples, rate: int, piece_s: float = 0.2) -> float:
    """The median likeness of short pieces of `said`, each wherever it sounds.

    For sound that came over WebRTC: a late packet makes the browser stretch what it has, which moves all that follows.
    """
    size = int(piece_s * rate)
    pieces = [said[start : start + size] for start in range(0, len(said) - size, size)]
    return float(np.median([likeness for likeness, _ in _matches(heard, pieces)]))


def _matches(heard: Samples, pieces: Sequence[Samples]) -> list[tuple[float, int]]:
    """`best_match` of each piece. The transform of `heard` costs most, and is made once."""
    longest = max(map(len, pieces))
    if len(heard) < longest:
        heard = np.pad(heard, (0, longest - len(heard)))
    size = 1 << (len(heard) + longest).bit_length()
    spectrum = np.fft.rfft(heard, size)
    energy = np.concatenate(([0.0], np.cumsum(heard**2)))
    found = []
    for piece in pieces:
        product = np.fft.irfft(spectrum * np.conj(np.fft.rfft(piece, size)), size)[: len(heard) - len(piece) + 1]
        window = energy[len(piece) :] - energy[: len(energy) - len(piece)]
        norm = np.sqrt(np.maximum(window, 1e-3 * window.max() + 1e-12) * np.sum(piece**2))
        correlation = product / norm
        place = int(np.argmax(correlation))
        found.append((float(correlation[place]), place))
    return found


def _syllable(length: int, rate: int, random: np.random.Generator) -> Samples:
    time = np.arange(length) / rate
    pitch = random.uniform(95, 190) * (1 + random.uniform(-0.25, 0.25) * time / time[-1])
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    formants = [
        (random.uniform(300, 850), 1.0),
        (random.uniform(900, 2_300), 0.55),
        (random.uniform(2_400, 3_400), 0.25),
    ]
    sound: Samples = np.zeros(length)
    for harmonic in range(1, 40):
        frequency = harmonic * pitch.mean()
        if frequency > min(5_000, rate / 2.2):
            break
        gain = sum(weight / (1 + ((frequency - centre) / 130) ** 2) for centre, weight in formants)
        sound += gain * np.sin(harmonic * phase + random.uniform(0, 2 * np.pi))
    return sound * np.sin(np.pi * np.arange(length) / length) ** 0.6
