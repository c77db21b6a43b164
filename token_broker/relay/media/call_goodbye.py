"""When a call ends that the model has ended by the tool `end_talk`: after its goodbye, of which only the words are
heard here. Pure.
"""

from collections.abc import Set as AbstractSet

from token_broker.relay.answers.farewell import Farewell

__all__ = ["CallGoodbye"]

_CHARS_A_SECOND = 14.0  # of slow speech
_LONGEST_S = 20.0
_UNHEARD_S = 20.0  # after which a goodbye of which nothing was heard counts as said


class CallGoodbye:
    """One talk's. Words of the answer that ended the talk, or of a later one, are its goodbye."""

    def __init__(self) -> None:
        self._farewell = Farewell()
        self._said_in = self._called_in = ""
        self._spoke = False
        self.plays_until_s = 0.0
        """When the words that were said have been spoken, as far as can be reckoned."""
        self._asked_s: float | None = None

    def called(self, response_id: str) -> None:
        """An answer has made a call."""
        self._called_in = response_id

    def agent_said(self, response_id: str, words: object, now_s: float) -> None:
        """An answer's words are complete; it is played meanwhile."""
        chars = len(words) if isinstance(words, str) else 0
        self._said_in = response_id
        self._spoke = self._spoke or (self._asked_s is not None and chars > 0)
        self.plays_until_s = now_s + min(_LONGEST_S, chars / _CHARS_A_SECOND)

    def ask(self, call_id: str, now_s: float) -> None:
        """The model has called `end_talk`."""
        self._farewell.ask(call_id)
        self._asked_s = now_s
        self._spoke = bool(self._said_in) and self._said_in == self._called_in

    def user_spoke(self) -> None:
        """The user says something: the talk goes on."""
        self._farewell.take_back()
        self._asked_s = None
        self._spoke = False

    def holds(self, batches: list[AbstractSet[str]]) -> bool:
        """Whether no further answer is asked for: the goodbye was said."""
        return self._farewell.holds(batches, spoke=self._spoke)

    def is_over(self, now_s: float, batches: list[AbstractSet[str]], *, answering: bool) -> bool:
        """Whether the talk ends now."""
        unheard = self._asked_s is not None and now_s - self._asked_s >= _UNHEARD_S
        if not self._spoke and not unheard:
            return False
        return self._farewell.is_over(now_s, batches, answering=answering, spoke=True, plays_until_s=self.plays_until_s)
