"""What Azure's events mean to a talk: turns, usage, the change of an agent; and what of them the client may see."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from token_broker.memory.base import Owner
from token_broker.relay.closing import UPSTREAM_FAILED, Ending
from token_broker.relay.counters import RelayCounters, TalkCounters
from token_broker.relay.keeping import TurnKeeper
from token_broker.relay.policy import without_secrets
from token_broker.relay.switching import AgentSwitch
from token_broker.relay.turns import TURN_EVENTS
from token_broker.relay.upstreams import Upstream

__all__ = ["AUDIO_DELTAS", "READ_EVENTS", "EventReader"]

_SESSION_EVENTS = frozenset({"session.created", "session.updated"})

AUDIO_DELTAS = frozenset({"response.audio.delta", "response.output_audio.delta"})
READ_EVENTS = TURN_EVENTS | _SESSION_EVENTS | {"error"}


class EventReader:
    """One talk's. `end` is told where Azure sends what is no event."""

    def __init__(
        self,
        owner: Owner,
        *,
        turns: TurnKeeper,
        switch: AgentSwitch,
        talk: TalkCounters,
        counters: RelayCounters,
        end: Callable[[Ending], None],
        time_s: Callable[[], float],
    ) -> None:
        self._owner = owner
        self._turns = turns
        self._switch = switch
        self._talk = talk
        self._counters = counters
        self._end = end
        self._time_s = time_s

    def read(self, kind: str | None, text: str, upstream: Upstream) -> str | None:
        """Notes what matters of the event, and gives it as the client may see it; None where it may not."""
        if kind in AUDIO_DELTAS:
            self._turns.assembler.heard(len(text) - text.find('"delta"'), self._time_s())
            return text
        if kind in READ_EVENTS or kind is None:
            return self._parsed(kind, text, upstream)
        return text

    def _parsed(self, kind: str | None, text: str, upstream: Upstream) -> str | None:
        try:
            event = json.loads(text)
        except (ValueError, RecursionError):
            kind = event = None
        if kind is None or not isinstance(event, dict):
            self._end(Ending(UPSTREAM_FAILED, "Azure sent something that is no event: ask for a new plan"))
            return None
        if kind in _SESSION_EVENTS:
            if kind == "session.updated":
                self._switch.confirmed(upstream)
            return without_secrets(event)
        if kind == "error":
            return None if self._switch.owns_error(event, upstream) else text
        if self._switch.owns_item(event):
            return None
        if kind == "response.done":
            self._count_usage(event)
        self._turns.feed(event, self._time_s())
        return text

    def _count_usage(self, event: Mapping[str, Any]) -> None:
        response = event.get("response")
        usage = response.get("usage") if isinstance(response, dict) else None
        if isinstance(usage, dict):
            self._counters.count_usage(
                usage, principal=self._owner.principal, agent_id=self._switch.agent.id, talk=self._talk
            )
