"""What the client sends while no session of Azure's is there. Pure."""

from collections import deque

from token_broker.server.client_wire import IMAGE_FIELD

__all__ = ["Gap"]

_EVENT_BYTES = 2_097_152
_EVENTS_AT_MOST = 1_000  # an empty event costs memory, too
_IMAGES_AT_MOST = 1
_IMAGE = IMAGE_FIELD.decode()


class Gap:
    """The client's messages in order: audio up to `audio_chars`, other events up to 2 MB and one image."""

    def __init__(self, audio_chars: int) -> None:
        self.audio_dropped = 0
        self._audio_chars = audio_chars
        self._messages: deque[tuple[int, str]] = deque()
        self._audio: deque[tuple[int, str]] = deque()
        self._number = 0
        self._audio_held = self._bytes = self._images = 0

    def __len__(self) -> int:
        return len(self._messages) + len(self._audio)

    def add_audio(self, text: str) -> bool:
        """Holds an append; False: it is full, and the oldest was dropped for it."""
        self._number += 1
        self._audio.append((self._number, text))
        self._audio_held += len(text)
        fits = self._audio_held <= self._audio_chars
        while self._audio_held > self._audio_chars:
            self._audio_held -= len(self._audio.popleft()[1])
            self.audio_dropped += 1
        return fits

    def add(self, text: str) -> bool:
        """Holds another event; False: it is full."""
        image = _IMAGE in text
        full = self._images >= _IMAGES_AT_MOST if image else self._bytes + len(text) > _EVENT_BYTES
        if full or len(self._messages) >= _EVENTS_AT_MOST:
            return False
        self._number += 1
        self._messages.append((self._number, text))
        self._images += image
        self._bytes += 0 if image else len(text)
        return True

    def take(self) -> str | None:
        """The next message, in the order in which they came; None: there is none."""
        if self._audio and (not self._messages or self._audio[0] < self._messages[0]):
            _, text = self._audio.popleft()
            self._audio_held -= len(text)
            return text
        if not self._messages:
            return None
        _, text = self._messages.popleft()
        image = _IMAGE in text
        self._images -= image
        self._bytes -= 0 if image else len(text)
        return text
