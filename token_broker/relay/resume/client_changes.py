"""What the client has changed of its session, as far as Azure has not refused it. Pure."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from strategies.session_model.session_paths import merged

__all__ = ["ClientChanges"]

_OPEN_AT_MOST = 64  # Azure answers each within milliseconds


@dataclass(slots=True)
class _Update:
    """One that Azure has not answered: `before` is what held until then."""

    event_id: str
    change: Mapping[str, Any]
    before: dict[str, Any]


class ClientChanges:
    """One talk's. `settings` are in the shape of its dialect; those of an update count as soon as it is sent."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self._open: deque[_Update] = deque(maxlen=_OPEN_AT_MOST)

    @property
    def awaits(self) -> bool:
        """Whether Azure has not answered an update."""
        return bool(self._open)

    def sent(self, event_id: str, change: Mapping[str, Any]) -> None:
        """The client's `session.update` went to Azure."""
        self._open.append(_Update(event_id, change, self.settings))
        self.settings = merged(self.settings, change)

    def confirmed(self) -> None:
        """Azure shows the session. It answers updates in their order."""
        if self._open:
            self._open.popleft()

    def refused(self, event_id: str, *, nameless: bool) -> None:
        """Azure refused an event of that id. `nameless`: it says no id, and the event can only have been an update."""
        found = next((each for each in self._open if event_id and each.event_id == event_id), None)
        if found is None and nameless and not event_id and self._open:
            found = self._open[0]
        if found is None:
            return
        at = self._open.index(found)
        self.settings = found.before
        del self._open[at]
        for later in [*self._open][at:]:
            later.before = self.settings
            self.settings = merged(self.settings, later.change)

    def restated(self, settings: dict[str, Any]) -> None:
        """Another session has all of it, perhaps in the other dialect."""
        self.settings = settings
        self._open.clear()
