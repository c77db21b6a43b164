"""A grant becomes a plan: the ordered list of connections that the browser walks."""

import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

from strategies.base import EphemeralGrant, Grant
from token_broker.security.owner import Owner
from token_broker.security.tokens import TokenSigner
from token_broker.sessions.agents import Agent
from token_broker.sessions.schemas import Connection, Plan, RelayConnection, WebRtcConnection, WebSocketConnection
from token_broker.settings import Settings
from token_broker.web.requests import websocket_url

__all__ = ["TICKET_TTL_S", "PlanMaker"]

TICKET_TTL_S = 180  # clients try the proxy last, after every connection before it
_PREFIX = "/api/v1/voice"


@dataclass(frozen=True, slots=True)
class PlanMaker:
    """Makes plans."""

    settings: Settings
    signer: TokenSigner

    def make(
        self,
        grant: Grant,
        *,
        owner: Owner,
        agent: Agent,
        public_base: str,
        correlation_id: str,
        unseen: bool = True,
    ) -> Plan:
        """The plan for `grant`. `public_base` is the broker as the browser sees it: scheme, host, port.

        Unless `unseen` is set, the plan has only transports that the broker can end, and no secret of Azure's: with
        such a secret a client opens a talk that the broker never sees.
        """
        now = datetime.now(UTC).replace(microsecond=0)
        session_token = self.signer.session_token(owner, ttl_s=self.settings.session_token_ttl_s, agent_id=agent.id)
        connections: list[Connection] = []
        if isinstance(grant, EphemeralGrant):
            direct = self._direct(grant, owner, public_base, session_token, now)
            connections += direct if unseen else [each for each in direct if each.transport == "webrtc_relay"]
        if "websocket_proxy" in self.settings.token_strategies:
            connections.append(self._proxy(owner, agent, public_base, now))
        shown = grant if isinstance(grant, EphemeralGrant) and unseen else None
        return Plan(
            session_id=owner.session_id,
            agent_id=agent.id,
            model=self.settings.model,
            strategy=grant.strategy,
            degraded=not isinstance(grant, EphemeralGrant),
            token=None if shown is None else shown.token.get_secret_value(),
            expires_at=connections[0].expires_at,
            endpoint=public_base if shown is None else shown.endpoint,
            session_token=session_token,
            connections=connections,
            correlation_id=correlation_id,
        )

    def _direct(
        self, grant: EphemeralGrant, owner: Owner, public_base: str, session_token: str, now: datetime
    ) -> list[Connection]:
        token = grant.token.get_secret_value()
        # Measured on our own monotonic clock: Azure's expiry is a time of Azure's clock, and clocks differ.
        left_s = max(0, math.floor(grant.expires_in_s - (time.monotonic() - grant.received_at_s)))
        expires_at = grant.expires_at.replace(microsecond=0)
        lasting_s = self.settings.session_token_ttl_s
        filtered = "?webrtcfilter=on" if self.settings.webrtc_filter == "on" else ""
        connections: list[Connection] = [
            WebRtcConnection(
                url=f"{grant.endpoint}/openai/v1/realtime/calls{filtered}",
                token=token,
                expires_at=expires_at,
                expires_in_s=left_s,
                dialect=grant.dialect,
                voice=grant.voice,
            ),
            RelayConnection(
                url=f"{public_base}{_PREFIX}/realtime/calls?session_id={owner.session_id}",
                token=session_token,
                expires_at=now + timedelta(seconds=lasting_s),
                expires_in_s=lasting_s,
                dialect=grant.dialect,
                voice=grant.voice,
            ),
        ]
        if self.settings.direct_websocket == "on" and grant.dialect == "ga":
            model = quote(self.settings.model, safe="")
            connections.append(
                WebSocketConnection(
                    transport="websocket",
                    url=f"{websocket_url(grant.endpoint)}/openai/v1/realtime?model={model}",
                    protocols=["realtime", f"openai-insecure-api-key.{token}"],
                    expires_at=expires_at,
                    expires_in_s=left_s,
                    dialect=grant.dialect,
                    voice=grant.voice,
                )
            )
        return connections

    def _proxy(self, owner: Owner, agent: Agent, public_base: str, now: datetime) -> WebSocketConnection:
        ticket = self.signer.ticket(owner, agent_id=agent.id, ttl_s=TICKET_TTL_S)
        dialect = self.settings.proxy_dialect
        return WebSocketConnection(
            transport="websocket_proxy",
            url=f"{websocket_url(public_base)}{_PREFIX}/voicelive/{owner.session_id}",
            protocols=["realtime", f"ticket.{ticket}"],
            expires_at=now + timedelta(seconds=TICKET_TTL_S),
            expires_in_s=TICKET_TTL_S,
            dialect=dialect,
            voice=agent.voices[dialect],
        )
