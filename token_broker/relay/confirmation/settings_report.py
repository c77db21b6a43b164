"""What Azure refuses of the agents' settings, for the log, `/status` and the metrics."""

from collections import Counter

import structlog

__all__ = ["SettingsReport"]

log = structlog.get_logger("token_broker.relay")

_KEPT_AT_MOST = 1_000  # agents, resources and settings are an operator's: more come of a fault
_OTHER = "other"


class SettingsReport:
    """Counts the sessions, by resource and agent, that go on without a field, and those that came to nothing.

    `left_out` is by resource, agent and field, `refused` by resource and agent.
    """

    def __init__(self) -> None:
        self.left_out: Counter[tuple[str, str, str]] = Counter()
        self.refused: Counter[tuple[str, str]] = Counter()

    def note_left_out(self, fields: tuple[str, ...], *, resource: str, agent_id: str) -> None:
        """A session of the agent's has begun without these fields."""
        for name in fields:
            log.error("setting_refused", resource=resource, agent_id=agent_id, field=name)
            key = (resource, agent_id, name)
            known = key in self.left_out or len(self.left_out) < _KEPT_AT_MOST
            self.left_out[key if known else (resource, agent_id, _OTHER)] += 1

    def note_refused(self, *, resource: str, agent_id: str) -> None:
        """Azure has not taken the agent's settings."""
        log.error("session_refused", resource=resource, agent_id=agent_id)
        if (resource, agent_id) in self.refused or len(self.refused) < _KEPT_AT_MOST:
            self.refused[resource, agent_id] += 1

    def by_resource(self) -> dict[str, dict[str, dict[str, int]]]:
        """The fields that were left out, by resource, agent and field."""
        found: dict[str, dict[str, dict[str, int]]] = {}
        for (resource, agent_id, name), count in self.left_out.items():
            found.setdefault(resource, {}).setdefault(agent_id, {})[name] = count
        return found

    def refused_by_resource(self) -> dict[str, dict[str, int]]:
        """The sessions that Azure refused, by resource and agent."""
        found: dict[str, dict[str, int]] = {}
        for (resource, agent_id), count in self.refused.items():
            found.setdefault(resource, {})[agent_id] = count
        return found
