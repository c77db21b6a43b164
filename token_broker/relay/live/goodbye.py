"""When a talk with GPT-Live ends that the model has ended by the tool `end_talk`. Pure."""

__all__ = ["Goodbye"]

_QUIET_S = 1.5
_SPEAKS_WITHIN_S = 4.0  # the goodbye may not have begun yet
_AT_MOST_S = 20.0


class Goodbye:
    """One talk's. Nothing says that an answer is over, so it ends when the agent has been quiet for a moment."""

    def __init__(self) -> None:
        self._asked_s: float | None = None

    def ask(self, now_s: float) -> None:
        """The model has called `end_talk`."""
        self._asked_s = now_s

    def take_back(self) -> None:
        """The user says something: the talk goes on."""
        self._asked_s = None

    def is_over(self, now_s: float, *, agent_until_s: float) -> bool:
        """Whether the talk ends now. `agent_until_s`: until when the agent is heard, as far as is known."""
        if self._asked_s is None:
            return False
        spoke = agent_until_s > self._asked_s
        quiet = now_s >= agent_until_s + _QUIET_S and (spoke or now_s >= self._asked_s + _SPEAKS_WITHIN_S)
        return quiet or now_s >= self._asked_s + _AT_MOST_S
