"""The input audio buffer, with turns detected by the server or committed by the client."""

from collections.abc import Iterator

from token_broker.simulator.audio import BYTES_PER_MS, duration_ms
from token_broker.simulator.realtime.speech.vad import SpeechDetector, Started, Stopped, VadSettings
from token_broker.simulator.session_bodies.check import InvalidRequest

# Azure's least, which its error message states.
_LEAST_COMMIT_MS = 100
# Not Azure's: without a limit, a client that never commits would fill the memory.
_LONGEST_BUFFER_MS = 5 * 60 * 1000


class InputBuffer:
    """One talk's input audio buffer."""

    def __init__(self, detection: VadSettings | None) -> None:
        self._heard_bytes = 0
        self._detection = detection
        self._detector = SpeechDetector(detection) if detection else None
        self._buffer = bytearray()

    def follow(self, detection: VadSettings | None) -> None:
        """Goes on with another detection. The buffer is dropped only if it differs: clients repeat their settings."""
        if detection != self._detection:
            self._detection = detection
            self._detector = SpeechDetector(detection, self._heard_bytes // BYTES_PER_MS) if detection else None
            self._buffer.clear()

    def hear(self, pcm: bytes) -> Iterator[Started | Stopped]:
        """Takes audio.

        Raises:
            InvalidRequest: the buffer is full, and nobody commits it.

        """
        self._heard_bytes += len(pcm)
        if self._detector is not None:
            yield from self._detector.feed(pcm)
            return
        if duration_ms(self._buffer) >= _LONGEST_BUFFER_MS:
            raise InvalidRequest(
                "input_audio_buffer_full", "The input audio buffer is full: commit or clear it.", "audio"
            )
        self._buffer += pcm

    def commit(self) -> bytes:
        """Takes what is in the buffer.

        Raises:
            InvalidRequest: it is less than 100 ms.

        """
        speech = self._detector.cut() if self._detector is not None else bytes(self._buffer)
        self._buffer.clear()
        if duration_ms(speech) < _LEAST_COMMIT_MS:
            raise InvalidRequest(
                "input_audio_buffer_commit_empty",
                f"Error committing input audio buffer: buffer too small. Expected at least {_LEAST_COMMIT_MS}ms of "
                f"audio, but buffer only has {duration_ms(speech):.2f}ms of audio.",
            )
        return speech

    def clear(self) -> None:
        self._buffer.clear()
        if self._detector is not None:
            self._detector.clear()
