"""What the next responses of the resource's talks are to be, as a test set it. Each is used up once, in order."""

from collections import deque
from collections.abc import Sequence

from pydantic import JsonValue, TypeAdapter, ValidationError

from token_broker.simulator.realtime.response_plan import ScriptedResponse
from token_broker.simulator.session_bodies.check import describe_all

_RESPONSES: TypeAdapter[list[ScriptedResponse]] = TypeAdapter(list[ScriptedResponse])


class ScriptError(ValueError):
    """A list of responses that can't be set; `problems` names each thing that is wrong."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = list(problems)


class ScriptedResponses:
    """The responses that are still to come. Without any, a talk answers what was said."""

    def __init__(self) -> None:
        # Of the resource, not of a talk: a test scripts before its client connects.
        self._waiting: deque[ScriptedResponse] = deque()

    def replace(self, value: object) -> None:
        """Sets a JSON list of responses in place of those that wait.

        Raises:
            ScriptError: with every mistake in it named.

        """
        try:
            self._waiting = deque(_RESPONSES.validate_python(value))
        except ValidationError as error:
            raise ScriptError(describe_all(error, value)) from None

    def listed(self) -> list[JsonValue]:
        """As JSON, the next one first."""
        return [response.model_dump(mode="json") for response in self._waiting]

    def take(self) -> ScriptedResponse | None:
        """The next response, which is used up by this."""
        return self._waiting.popleft() if self._waiting else None
