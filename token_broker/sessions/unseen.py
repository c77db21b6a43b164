"""Which talks may go by transports that the broker cannot end: one rule for plans and for the talks that come of them.

With an ephemeral token a client opens a talk that nobody may ever see. A call of Voice Live's WebRTC is seen, but no
route ends it: it counts as unseen too, unless somebody has found that it dies with its control socket. So does a
session of GPT-Live's over WebRTC, unless somebody has found that a `session.close` over its sideband ends it.
"""

from token_broker.security.tokens import Owner
from token_broker.sessions.agent import Agent
from token_broker.settings import Settings

__all__ = ["UnseenRule"]


class UnseenRule:
    """`can_end` where a call is known to end with its control socket."""

    def __init__(self, settings: Settings) -> None:
        # Derived once: the settings compute them anew at each access.
        self._allows = settings.unseen_talks == "allow"
        self._counts_tokens = bool(settings.budget_tokens_per_day)
        self._has_budget = bool(settings.budget_minutes_per_day or settings.budget_tokens_per_day)
        self._can_end = settings.voice_live_webrtc_ends == "on"
        self._can_end_live = settings.gpt_live_ends == "on"

    def permits(self, agent: Agent, owner: Owner, *, knows_blocked: bool) -> bool:
        """Whether a plan may have a secret of Azure's, with which its holder talks by himself.

        `knows_blocked`: the blocklist has been read.
        """
        narrowed = owner.narrowed
        bounded = self._has_budget or narrowed.max_session_s is not None or narrowed.origin is not None
        return knows_blocked and not agent.is_seen and (self._allows or not bounded)

    def permits_signalling(self, agent: Agent, owner: Owner, *, knows_blocked: bool) -> bool:
        """Whether a talk may go by WebRTC whose signalling the broker holds, and whose media it does not see."""
        if agent.sockets_only or agent.zones:  # it has no region pin (docs/azure.md §12.1)
            return False
        if self._can_end:
            return self._allows or not self._counts_tokens  # its usage is unknown, whatever ends it
        bounded = self._has_budget or owner.narrowed.max_session_s is not None
        return knows_blocked and not agent.is_seen and (self._allows or not bounded)

    def permits_live_calls(self, agent: Agent, owner: Owner, *, knows_blocked: bool) -> bool:
        """Whether a talk with GPT-Live may go by WebRTC: nobody here has seen such a session ended by its sideband."""
        if agent.sockets_only:
            return False
        if self._can_end_live:
            return self._allows or not self._counts_tokens  # it bills seconds
        bounded = self._has_budget or owner.narrowed.max_session_s is not None
        return knows_blocked and not agent.is_seen and (self._allows or not bounded)
