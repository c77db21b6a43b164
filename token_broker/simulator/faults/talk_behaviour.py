"""What faults change in what a talk does: how it takes updates and items, and what it answers."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from token_broker.simulator.faults.fault_table import FaultTable
from token_broker.simulator.faults.talk_faults import (
    FailedAnswersFault,
    IgnoreUpdateFault,
    LateMcpFault,
    LateUpdateFault,
    RefuseUpdateFault,
    SessionExpiresFault,
    SlowAnswersFault,
    StrictHistoryFault,
    TextAnswersFault,
)
from token_broker.simulator.session_bodies.check import INVALID_VALUE, InvalidRequest

_LONGEST_ID = 32
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class AnswerFailure:
    """How an answer fails: the error that it states, and the code with which the talk is closed after it, if it is."""

    error: dict[str, Any]
    close: int | None = None


class UpdateRefused(InvalidRequest):
    """An update is refused by a fault. With `close` the talk ends."""

    def __init__(self, fault: RefuseUpdateFault) -> None:
        param = f"session.{fault.field}" if fault.field else "session"
        message = f"[simulated] Invalid value for '{param}'."
        super().__init__(fault.code, message, param if fault.names == "param" else None)
        self.type = fault.type
        self.close = fault.close


class TalkBehaviour:
    """The faults of one talk on a path; `table` may change at any time."""

    def __init__(self, table: FaultTable, path: str) -> None:
        self._table = table
        self._path = path

    def take_update(self, session: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of an update that are put into effect.

        Raises:
            UpdateRefused: a fault refuses one of them.

        """
        for armed, refusing in self._table.of_kind(RefuseUpdateFault, self._path):
            value = session if refusing.field is None else _at(session, refusing.field)
            # Plain text: whoever sets the fault writes a name as it stands in the update.
            stated = json.dumps(value, ensure_ascii=False)
            if value is not None and (refusing.contains is None or refusing.contains in stated):
                armed.use()
                raise UpdateRefused(refusing)
        taken = json.loads(json.dumps(session))
        for armed, ignoring in self._table.of_kind(IgnoreUpdateFault, self._path):
            found = [field for field in ignoring.fields if _at(taken, field) is not None]
            for field in found:
                *above, last = field.split(".")
                del _at(taken, ".".join(above))[last]
            if found:
                armed.use()
        return taken  # type: ignore[no-any-return]

    def update_takes_s(self) -> float:
        """How late an update takes effect."""
        for armed, fault in self._table.of_kind(LateUpdateFault, self._path):
            armed.use()
            return fault.seconds
        return 0.0

    def thinking_s(self, usual_s: float) -> float:
        """From `response.created` to the first content."""
        for armed, fault in self._table.of_kind(SlowAnswersFault, self._path):
            armed.use()
            return fault.seconds
        return usual_s

    def mcp_takes_s(self) -> float | None:
        """How long a call to an MCP server goes on after its answer; None: it ends within it."""
        for armed, fault in self._table.of_kind(LateMcpFault, self._path):
            armed.use()
            return fault.seconds
        return None

    def check_item(self, item: Mapping[str, Any], own_text_type: str) -> None:
        """Refuses an item that a strict history refuses; `own_text_type` is the dialect's for an assistant's text.

        Raises:
            InvalidRequest: it is refused.

        """
        for armed, fault in self._table.of_kind(StrictHistoryFault, self._path):
            try:
                _check_strictly(item, own_text_type, frozenset(fault.refuses))
            except InvalidRequest:
                armed.use()
                raise

    def speaks(self, given_texts: int, *, in_session: bool, in_response: bool) -> bool:
        """Whether an answer that is to be spoken is.

        `given_texts` counts the assistant's text turns that the client gave; modalities may be said in either place.
        """
        for armed, fault in self._table.of_kind(TextAnswersFault, self._path):
            said = {"anywhere": in_session or in_response, "response": in_response, "nowhere": False}
            if given_texts >= fault.after and not said[fault.unless_said]:
                armed.use()
                return False
        return True

    def failure(self) -> AnswerFailure | None:
        """How the next answer fails, if it does."""
        for armed, fault in self._table.of_kind(FailedAnswersFault, self._path):
            armed.use()
            error = {"type": fault.code, "code": fault.code, "message": fault.message}
            return AnswerFailure(error, fault.close)
        wait_s = max((quota.wait_s for quota in self._table.token_quotas(self._path)), default=0.0)
        if wait_s:
            message = f"Rate limit reached on tokens per min (TPM). Please try again in {math.ceil(wait_s)}s."
            return AnswerFailure(
                {"type": "rate_limit_exceeded", "code": "rate_limit_exceeded", "message": message}, None
            )
        return None

    def spend(self, tokens: int) -> None:
        """An answer has used so many tokens."""
        for quota in self._table.token_quotas(self._path):
            quota.spend(tokens)

    def expiry(self, usual_s: float) -> tuple[float | None, float]:
        """In how many seconds a new session states that it ends, if it does, and in how many it ends."""
        for armed, fault in self._table.of_kind(SessionExpiresFault, self._path):
            armed.use()
            ends = fault.ends and fault.seconds is not None and fault.seconds > 0
            return fault.seconds, fault.seconds if ends and fault.seconds is not None else usual_s
        return usual_s, usual_s


def _at(value: Any, path: str) -> Any:
    """What stands at a path such as `tools[2].name`; None if there is nothing."""
    for name, number in _STEP.findall(path):
        if number:
            value = value[int(number)] if isinstance(value, list) and int(number) < len(value) else None
        else:
            value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _check_strictly(item: Mapping[str, Any], own_text_type: str, refuses: Iterable[str]) -> None:
    item_id = item.get("id") or ""
    if "long_ids" in refuses and len(item_id) > _LONGEST_ID:
        message = (
            f"Invalid 'item.id': string too long. Expected a string with maximum length {_LONGEST_ID}, but got a "
            f"string with length {len(item_id)} instead."
        )
        raise InvalidRequest("string_above_max_length", message, "item.id")
    if item.get("role") != "assistant":
        return
    for number, part in enumerate(item.get("content") or ()):
        place = f"item.content[{number}].type"
        if "assistant_audio" in refuses and part["type"] in ("audio", "output_audio"):
            raise InvalidRequest(INVALID_VALUE, "Assistant audio messages can't be created.", place)
        if "foreign_text" in refuses and part["type"] in {"text", "output_text"} - {own_text_type}:
            message = f"Invalid value: '{part['type']}'. Supported values are: '{own_text_type}'."
            raise InvalidRequest(INVALID_VALUE, message, place)
