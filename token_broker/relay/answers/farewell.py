"""When a talk ends that the model has ended by the tool `end_talk`. Pure.

It ends when its goodbye has been played, and not before: Azure sends seven seconds of speech in half a second. The
answer to another tool comes first, and a word of the user's takes the end back.
"""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from token_broker.relay.answers.open_calls import CallBatch

__all__ = ["END_TALK_OUTPUT", "Farewell", "keys_of"]

END_TALK_OUTPUT = (
    "The talk ends when your goodbye has been heard. Say goodbye now if you have not; else say nothing more."
)

_PLAYED_LATE_S = 0.5  # a client buffers what it plays


def keys_of(batches: Iterable[CallBatch]) -> list[AbstractSet[str]]:
    """The keys of each batch of calls, answered or not."""
    return [batch.answered | batch.open.keys() for batch in batches]


class Farewell:
    """One talk's. `batches` are the keys of the calls from which the model has not gone on, one set an answer."""

    def __init__(self) -> None:
        self._calls: set[str] = set()

    @property
    def is_asked(self) -> bool:
        """Whether the talk is to end."""
        return bool(self._calls)

    def ask(self, call_id: str) -> None:
        """The model has called `end_talk`."""
        self._calls.add(call_id)

    def take_back(self) -> None:
        """The user says something: the talk goes on."""
        self._calls.clear()

    def holds(self, batches: list[AbstractSet[str]], *, spoke: bool) -> bool:
        """Whether no further answer is asked for: the goodbye was said (`spoke`: the last answer said something)."""
        return self.is_asked and spoke and self._is_alone(batches)

    def is_over(
        self, now_s: float, batches: list[AbstractSet[str]], *, answering: bool, spoke: bool, plays_until_s: float
    ) -> bool:
        """Whether the talk ends now. `plays_until_s` is when all sound that has come was played."""
        if not self.is_asked or answering or not self._is_alone(batches):
            return False
        # Without a word the model is asked for its goodbye first, which leaves no batch.
        return (spoke or not batches) and now_s >= plays_until_s + _PLAYED_LATE_S

    def _is_alone(self, batches: list[AbstractSet[str]]) -> bool:
        return all(keys <= self._calls for keys in batches)
