"""One `session.update` of the broker's, until Azure has it in force or has refused it for good. Pure."""

import json
from collections.abc import Mapping
from typing import Any

from strategies.session_model.refused_field import field_to_leave_out, shown_path, without
from token_broker.relay.confirmation.agreement import disagreements

__all__ = ["Confirmation"]


class Confirmation:
    """Send `update`; then tell `refused` and `confirmed` what Azure answers.

    A field that a refusal names is left out, once, and `update` is to be sent again. `session` is what is asked for
    now, `left_out` the fields that are no longer in it, as Azure writes their paths.
    """

    def __init__(self, session: Mapping[str, Any], *, event_id: str) -> None:
        self.session = dict(session)
        self.left_out: tuple[str, ...] = ()
        self._event_id = event_id

    @property
    def event_id(self) -> str:
        """That of `update`: an error of Azure's about it has the same."""
        return f"{self._event_id}_again" if self.left_out else self._event_id

    @property
    def update(self) -> str:
        """The event to send."""
        event = {"type": "session.update", "event_id": self.event_id, "session": self.session}
        return json.dumps(event, separators=(",", ":"))

    def refused(self, error: object) -> bool:
        """Azure has refused `update` with this error. Returns whether `update`, now another one, is to be sent again.

        False: the error names no field that may be left out, or it is the second one.
        """
        if self.left_out or not isinstance(error, dict):
            return False
        path = field_to_leave_out(error, self.session)
        if path is None:
            return False
        self.session = without(self.session, path)
        self.left_out = (shown_path(path),)
        return True

    def disagreements(self, confirmed: object) -> list[str]:
        """In what the session that Azure confirms is not the one that was asked for; empty: it is in force."""
        return disagreements(self.session, confirmed)
