"""The calls of one answer, and what is still missing before the model can go on from them. Pure.

A key names what an output is due for: the id of a function call, of a request for approval, or of the item of a call
that Azure makes itself at an MCP server.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from token_broker.relay.answers.actions import Tool

__all__ = ["Batch", "Call"]


@dataclass(slots=True)
class Call:
    """A call, an approval or a call of Azure's own. `output` waits for a session while none is there."""

    key: str
    name: str
    began_s: float
    tool: Tool | None = None
    deadline_s: float = math.inf
    output: str | None = None


@dataclass(slots=True)
class Batch:
    """What one answer called. `answered` are the keys that have their outputs.

    `asks`: the model has to be asked to go on. `acts`: something of it is the broker's or Azure's to do, not the
    client's alone. `asked`: that was done, and no answer has come. `wish` is the client's own `response.create` for it.
    """

    response_id: str
    open: dict[str, Call] = field(default_factory=dict)
    answered: set[str] = field(default_factory=set)
    functions: int = 0
    ended: bool = False
    asks: bool = False
    acts: bool = False
    asked: bool = False
    cancelled: bool = False
    silent: bool = False  # an answer in which tools were off
    said: bool = False
    wish: dict[str, Any] | None = None

    @property
    def is_ready(self) -> bool:
        """Whether all outputs are there, and the model has not been asked to go on from them."""
        return self.ended and not self.open and self.asks and not self.asked and not self.cancelled

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do."""
        return self.ended and not self.open and (self.cancelled or not self.asks)

    def waits_long(self, now_s: float, say_after_s: float) -> Call | None:
        """The call that has run for so long that the user is told to wait; once for all of them."""
        if self.said or self.cancelled or self.silent or not self.ended:
            return None
        late = (call for call in self.open.values() if call.tool is not None and call.tool.say)
        return next((call for call in late if now_s - call.began_s >= say_after_s), None)
