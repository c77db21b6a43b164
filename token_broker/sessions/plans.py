"""A talk before it begins: the session that Azure is asked for, and the plan that tells a browser how to connect.

An agent, and what the memory recalls of the caller, become a session's spec; a grant becomes the ordered list of
connections that the browser walks.
"""

import asyncio
import math
import time
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

from strategies.base import EphemeralGrant, Grant, SessionSpec
from strategies.chain import SpecSupplier
from token_broker.memory.types import Recall
from token_broker.security.tokens import Owner, TokenSigner
from token_broker.sessions.agents import Agent
from token_broker.sessions.schemas import Connection, Plan, RelayConnection, WebRtcConnection, WebSocketConnection
from token_broker.settings import Settings
from token_broker.web.requests import websocket_url

__all__ = ["TICKET_TTL_S", "PlanMaker", "TalkSpecs", "session_spec"]

TICKET_TTL_S = 180  # clients try the proxy last, after every connection before it
_PREFIX = "/api/v1/voice"


def session_spec(
    agent: Agent, settings: Settings, *, recalled: str = "", modalities: tuple[str, ...] = ("audio", "text")
) -> SessionSpec:
    """The session that every path asks Azure for; `recalled` is the memory's block, or empty."""
    return SessionSpec(
        model=settings.model,
        instructions=f"{agent.instructions}\n\n{recalled}" if recalled else agent.instructions,
        voices=agent.voices,
        modalities=modalities,
        transcription_model=settings.transcription_model,
        tools=agent.tools,
        ttl_s=settings.token_ttl_s,
    )


class TalkSpecs:
    """The specs of one talk's sessions, for whichever agents speak in it.

    What the memory recalls of the owner is asked for once, at the first spec that is needed: a mint may be retried,
    and a talk may change its agent. Without a `recall` the memory is not asked at all.
    """

    def __init__(self, settings: Settings, owner: Owner, recall: Recall | None) -> None:
        self._settings = settings
        self._owner = owner
        self._recall = recall
        self.recalling: asyncio.Task[str] | None = None

    @property
    def recalled(self) -> str:
        """What the memory recalled; empty until it has answered."""
        return self.recalling.result() if self.recalling is not None and self.recalling.done() else ""

    def start(self) -> None:
        """Asks the memory now, so that the answer is there when the first spec is needed."""
        if self.recalling is None and self._recall is not None:
            self.recalling = asyncio.create_task(self._recall.block(self._owner), name="talk-recall")

    def of(self, agent: Agent, modalities: tuple[str, ...] = ("audio", "text")) -> SpecSupplier:
        """A supplier of the agent's spec, which may be called several times."""

        async def supply() -> SessionSpec:
            self.start()
            # Shielded: an attempt that overruns its share is cancelled, and the next one still needs the answer.
            recalled = "" if self.recalling is None else await asyncio.shield(self.recalling)
            return session_spec(agent, self._settings, recalled=recalled, modalities=modalities)

        return supply


class PlanMaker:
    """Makes plans."""

    def __init__(self, settings: Settings, signer: TokenSigner) -> None:
        self._settings = settings
        self._signer = signer
        # Derived once: the settings compute them anew at each access.
        self._session_token_ttl_s = settings.session_token_ttl_s
        self._proxy_dialect = settings.proxy_dialect

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
        session_token = self._signer.session_token(owner, ttl_s=self._session_token_ttl_s, agent_id=agent.id)
        connections: list[Connection] = []
        if isinstance(grant, EphemeralGrant):
            direct = self._direct(grant, owner, public_base, session_token, now)
            connections += direct if unseen else [each for each in direct if each.transport == "webrtc_relay"]
        if "websocket_proxy" in self._settings.token_strategies:
            connections.append(self._proxy(owner, agent, public_base, now))
        shown = grant if isinstance(grant, EphemeralGrant) and unseen else None
        return Plan(
            session_id=owner.session_id,
            agent_id=agent.id,
            model=self._settings.model,
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
        lasting_s = self._session_token_ttl_s
        filtered = "?webrtcfilter=on" if self._settings.webrtc_filter == "on" else ""
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
        if self._settings.direct_websocket == "on" and grant.dialect == "ga":
            model = quote(self._settings.model, safe="")
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
        ticket = self._signer.ticket(owner, agent_id=agent.id, ttl_s=TICKET_TTL_S)
        dialect = self._proxy_dialect
        return WebSocketConnection(
            transport="websocket_proxy",
            url=f"{websocket_url(public_base)}{_PREFIX}/voicelive/{owner.session_id}",
            protocols=["realtime", f"ticket.{ticket}"],
            expires_at=now + timedelta(seconds=TICKET_TTL_S),
            expires_in_s=TICKET_TTL_S,
            dialect=dialect,
            voice=agent.voices[dialect],
        )
