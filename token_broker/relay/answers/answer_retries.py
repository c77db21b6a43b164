"""What becomes of an answer that Azure failed to give: it is asked for once more, or the talk moves. Pure."""

from typing import NamedTuple

from token_broker.relay.resume.open_answers import OpenAnswer
from token_broker.relay.transcripts.failed_answers import UNKNOWN, FailedAnswer

__all__ = ["AnswerRetries", "Remedy"]

_FAILURES_A_SESSION = 3


class Remedy(NamedTuple):
    """What is done about a failed answer. `asks`: for it once more; `moves`: to another session, before that."""

    asks: bool
    moves: bool


class AnswerRetries:
    """One talk's. `asks`: whether answers are asked for again at all; otherwise only the client does."""

    def __init__(self, *, asks: bool) -> None:
        self._asks = asks
        self._asked = False  # for an answer to what the user said last
        self._spoke = False  # the user, since the latest answer began
        self._failures = 0  # running, in this session

    def user_spoke(self) -> None:
        """The user has begun to speak, or has typed: what comes now is another utterance."""
        self._spoke, self._asked = True, False

    def answer_began(self) -> None:
        """Azure has begun an answer."""
        self._spoke = False

    def begin_anew(self) -> None:
        """Azure has completed an answer, or another session carries the talk."""
        self._failures = 0

    def is_barge_in(self, failed: FailedAnswer) -> bool:
        """Whether the user's words ended it: Azure may then name no reason."""
        return self._spoke and failed.code == UNKNOWN

    def remedy(self, failed: FailedAnswer, answer: OpenAnswer | None) -> Remedy:
        """What to do about it. `answer` is what the ledger has of it, if nothing of it was heard."""
        if not failed.retryable:
            return Remedy(asks=False, moves=False)
        self._failures += 1
        moves = self._failures >= _FAILURES_A_SESSION
        asks = self._asks and not self._asked and not self._spoke
        asks = asks and answer is not None and answer.response_id == failed.response_id
        asks = asks and not (answer is None or answer.stopped or answer.outside or answer.says_something)
        self._asked = self._asked or asks
        return Remedy(asks, moves)
