"""What every fault has: the requests that it is for, and how often it is met."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from token_broker.simulator.session_bodies.check import Strict

Protocol = Literal["http", "websocket"]

# A test that waits longer than an hour has hung.
Seconds = Annotated[float, Field(ge=0, le=3600)]


class BaseFault(Strict):
    """`protocols` are those whose requests meet it; a fault inside a talk has none."""

    protocols: ClassVar[frozenset[Protocol]] = frozenset({"http"})

    match: str = Field(pattern="^/")
    """Prefix of the paths it applies to."""
    times: int | None = Field(default=None, ge=0)
    """How often it is met; null: always."""
    method: str | None = None
    auth: Literal["key", "entra", "ephemeral", "none"] | None = None
    """Only requests with such a credential."""
    contains: str | None = Field(default=None, min_length=1)
    """Only requests whose body has this text in it, such as the name of one agent's voice."""


class Armed:
    """A fault that is set, and how often it can still be met."""

    def __init__(self, fault: BaseFault) -> None:
        self.fault = fault
        self.left = fault.times

    def use(self) -> None:
        """Counts one use."""
        if self.left is not None:
            self.left -= 1
