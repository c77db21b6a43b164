"""A talk before it begins: the session that Azure is asked for, and the plan that tells a browser how to connect.

An agent, and what the memory recalls of the caller, become a session's spec; a grant becomes the ordered list of
connections that the browser walks.
"""

import asyncio
import math
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Literal
from urllib.parse import quote

from strategies.base import EphemeralGrant, Grant, SessionSpec, SignallingGrant, SpecSupplier
from strategies.pool import Outlook, Pool
from strategies.resources import Resource, Wanted
from strategies.session_model.agent_settings import AnyDialect
from strategies.session_model.live_session import LIVE_ROUTE, LIVE_ROUTES, live_voice
from strategies.session_model.session_fields import voice_name
from token_broker.memory.types import Recall
from token_broker.resources import family_of
from token_broker.security.tokens import TICKET_TTL_S, MintedSession, Owner, TokenSigner
from token_broker.sessions.agent import Agent
from token_broker.sessions.schemas import Connection, Plan, RelayConnection, WebRtcConnection, WebSocketConnection
from token_broker.settings import Settings
from token_broker.web.requests import Problem, websocket_url

__all__ = ["SECRET_TRANSPORTS", "PlanMaker", "TalkSpecs", "UnseenRule", "session_spec"]

SECRET_TRANSPORTS = frozenset({"webrtc", "websocket"})
"""Those for which the page has a secret of Azure's."""

_PREFIX = "/api/v1/voice"
_GOOD = Outlook("good")
_POOR_RETRY_AFTER_S = 15.0  # where the pool knows no time: the longest rest of a route that is the last


def session_spec(
    agent: Agent,
    settings: Settings,
    resource: Resource | None = None,
    *,
    recalled: str = "",
    modalities: tuple[str, ...] = ("audio", "text"),
    seen: bool = True,
) -> SessionSpec:
    """The session that every path asks Azure for; `recalled` is the memory's block, or empty.

    Without a `resource` the deployments are those of the settings: for a session that is only shown. One that is not
    `seen` has no tools that the broker runs.
    """
    model = agent.model or (settings.model if resource is None else resource.model)
    family = family_of(model) if agent.model or resource is None else resource.model_family
    return SessionSpec(
        model=model,
        model_family=agent.model_family or family,
        instructions=f"{agent.instructions}\n\n{recalled}" if recalled else agent.instructions,
        voices=agent.voices,
        modalities=modalities,
        transcription_model=settings.transcription_model if resource is None else resource.transcription_model,
        tools=agent.declared_tools if seen else agent.page_tools,
        settings=agent.settings,
        ttl_s=settings.token_ttl_s,
        voice_live_version=settings.voice_live_api_version if resource is None else resource.voice_live_version,
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

    def start(self) -> None:
        """Asks the memory now, so that the answer is there when the first spec is needed."""
        if self.recalling is None and self._recall is not None:
            self.recalling = asyncio.create_task(self._recall.block(self._owner), name="talk-recall")

    def of(self, agent: Agent, modalities: tuple[str, ...] = ("audio", "text"), *, seen: bool = True) -> SpecSupplier:
        """A supplier of the agent's spec for a resource, which may be called several times.

        A session that is not `seen` has no tools that the broker runs.
        """

        async def supply(resource: Resource) -> SessionSpec:
            self.start()
            # Shielded: an attempt that overruns its share is cancelled, and the next one still needs the answer.
            recalling = None if agent.recall == "off" else self.recalling
            recalled = "" if recalling is None else await asyncio.shield(recalling)
            return session_spec(agent, self._settings, resource, recalled=recalled, modalities=modalities, seen=seen)

        return supply


class UnseenRule:
    """Which talks may go by transports that the broker cannot end: for plans, and for the talks that come of them.

    With an ephemeral token a client opens a talk that nobody may ever see. A call of Voice Live's WebRTC is seen, but
    no route ends it: it counts as unseen too, unless somebody has found that it dies with its control socket.
    """

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


class PlanMaker:
    """Makes plans."""

    def __init__(self, settings: Settings, signer: TokenSigner, pool: Pool) -> None:
        self._settings = settings
        self._signer = signer
        self._pool = pool
        self.unseen = UnseenRule(settings)
        # Derived once: the settings compute them anew at each access.
        self._session_token_ttl_s = settings.session_token_ttl_s
        self._proxy_dialects = {each.name: each.settings.proxy_dialect for each in settings.resources}
        self._upstreams = {each.name: each.settings.upstreams for each in settings.resources}

    def make(
        self,
        grant: Grant,
        *,
        owner: Owner,
        agent: Agent,
        public_base: str,
        correlation_id: str,
        knows_blocked: bool = True,
    ) -> Plan:
        """The plan for `grant`. `public_base` is the broker as the browser sees it: scheme, host, port.

        Where an unseen talk is not permitted, the plan has only transports that the broker can end, and no secret of
        Azure's: with such a secret a client opens a talk that the broker never sees. `knows_blocked`: the blocklist has
        been read. Raises Problem 409 where no transport is left.
        """
        unseen = self.unseen.permits(agent, owner, knows_blocked=knows_blocked)
        is_live = grant.strategy == LIVE_ROUTE
        now = datetime.now(UTC).replace(microsecond=0)
        minted = grant if isinstance(grant, EphemeralGrant) else None
        if minted is not None:
            outlook, first = _GOOD, self._pool.by_name.get(minted.resource)
        else:
            # The resource that a proxied talk would ask first.
            wanted = agent.wanted(owner.session_id)
            outlook, first = self._proxy_outlook(wanted, grant, agent), next(iter(self._pool.order(wanted)), None)
        model = agent.model or (first.model if first else self._settings.model)
        opens = None
        # With BROKER_ATTACH_CHECK=off the id is not asked for, and a mint may have none.
        if minted is not None and unseen and (minted.session_id or self._settings.attach_check == "off"):
            opens = MintedSession(minted.session_id or "", minted.endpoint, minted.resource)
        session_token = self._signer.session_token(
            owner, ttl_s=self._session_token_ttl_s, agent_id=agent.id, minted=opens
        )
        connections: list[Connection] = []
        if minted is not None:
            direct = self._direct(minted, owner, public_base, session_token, now, model=model, agent=agent)
            connections += direct if unseen else [each for each in direct if each.transport == "webrtc_relay"]
        own: AnyDialect | None = None if agent.foundry_agent is None else "ga"
        if is_live and self.unseen.permits_live_calls(agent, owner, knows_blocked=knows_blocked):
            connections.append(self._relay(owner, public_base, session_token, now, grant=None, agent=agent))
        elif isinstance(grant, SignallingGrant) and not is_live:
            connections.append(
                self._socket(
                    "webrtc_websocket", owner, agent, public_base=public_base, now=now, dialect=own or "preview"
                )
            )
        if "websocket_proxy" in self._settings.token_strategies:
            dialect: AnyDialect = own or (self._proxy_dialects[first.name] if first else self._settings.proxy_dialect)
            dialect = "live" if is_live else dialect
            connections.append(
                self._socket("websocket_proxy", owner, agent, public_base=public_base, now=now, dialect=dialect)
            )
        connections = [each for each in connections if owner.narrowed.permits(each.transport)]
        if not connections:
            detail = "None of the transports that were asked for is to be had now: ask for others as well."
            raise Problem(409, "no_transport", detail)
        shown = minted if any(each.transport in SECRET_TRANSPORTS for each in connections) else None
        return Plan(
            session_id=owner.session_id,
            agent_id=agent.id,
            model=model,
            strategy=grant.strategy,
            degraded=grant.strategy == "websocket_proxy",
            token=None if shown is None else shown.token.get_secret_value(),
            expires_at=connections[0].expires_at,
            endpoint=public_base if shown is None else shown.endpoint,
            resource=connections[0].resource,
            outlook=outlook.state,
            retry_after_s=None if outlook.state == "good" else math.ceil(outlook.retry_after_s or _POOR_RETRY_AFTER_S),
            session_token=session_token,
            connections=connections,
            correlation_id=correlation_id,
        )

    def _proxy_outlook(self, wanted: Wanted, grant: Grant, agent: Agent) -> Outlook:
        """What to expect of the proxy: poor where each permitted resource is known to be down by all of its routes."""
        poor = Outlook("poor")
        for resource in self._pool.allowed(wanted):
            alone = replace(wanted, zones=(), resources=(resource.name,))
            signalled = isinstance(grant, SignallingGrant) and resource.name == grant.resource
            own = (grant.strategy,) if signalled else ()
            usual = self._upstreams[resource.name] if agent.foundry_agent is None else ("foundry_agent",)
            routes = LIVE_ROUTES if grant.strategy == LIVE_ROUTE else (*own, *usual)
            outlook = self._pool.outlook(alone, routes)
            if outlook.state == "good":
                return outlook
            waits_s = [each for each in (poor.retry_after_s, outlook.retry_after_s) if each is not None]
            poor = Outlook("poor", min(waits_s, default=None), outlook.why)
        return poor

    def _direct(
        self,
        grant: EphemeralGrant,
        owner: Owner,
        public_base: str,
        session_token: str,
        now: datetime,
        *,
        model: str,
        agent: Agent,
    ) -> list[Connection]:
        token = grant.token.get_secret_value()
        # Measured on our own monotonic clock: Azure's expiry is a time of Azure's clock, and clocks differ.
        left_s = max(0, math.floor(grant.expires_in_s - (time.monotonic() - grant.received_at_s)))
        expires_at = grant.expires_at.replace(microsecond=0)
        filters = self._settings.webrtc_filter == "on" and not agent.asks_page  # calls do not pass Azure's filter
        filtered = "?webrtcfilter=on" if filters else ""
        connections: list[Connection] = [
            WebRtcConnection(
                url=f"{grant.endpoint}/openai/v1/realtime/calls{filtered}",
                token=token,
                expires_at=expires_at,
                expires_in_s=left_s,
                dialect=grant.dialect,
                voice=grant.voice,
                resource=grant.resource,
            ),
            self._relay(owner, public_base, session_token, now, grant=grant, agent=agent),
        ]
        if self._settings.direct_websocket == "on" and grant.dialect == "ga":
            connections.append(
                WebSocketConnection(
                    transport="websocket",
                    url=f"{websocket_url(grant.endpoint)}/openai/v1/realtime?model={quote(model, safe='')}",
                    protocols=["realtime", f"openai-insecure-api-key.{token}"],
                    expires_at=expires_at,
                    expires_in_s=left_s,
                    dialect=grant.dialect,
                    voice=grant.voice,
                    resource=grant.resource,
                )
            )
        return connections

    def _relay(
        self,
        owner: Owner,
        public_base: str,
        token: str,
        now: datetime,
        *,
        grant: EphemeralGrant | None,
        agent: Agent,
    ) -> RelayConnection:
        """A call that the broker sets up, as the grant says, or with GPT-Live, which has no grant."""
        return RelayConnection(
            url=f"{public_base}{_PREFIX}/realtime/calls?session_id={owner.session_id}",
            token=token,
            expires_at=now + timedelta(seconds=self._session_token_ttl_s),
            expires_in_s=self._session_token_ttl_s,
            dialect="live" if grant is None else grant.dialect,
            voice=voice_name(live_voice(agent.voices)) if grant is None else grant.voice,
        )

    def _socket(
        self,
        transport: Literal["webrtc_websocket", "websocket_proxy"],
        owner: Owner,
        agent: Agent,
        *,
        public_base: str,
        now: datetime,
        dialect: AnyDialect,
    ) -> WebSocketConnection:
        """A WebSocket of the broker's own. Each has a ticket of its own, which works once."""
        ticket = self._signer.ticket(owner, agent_id=agent.id, ttl_s=TICKET_TTL_S)
        media = "?media=webrtc" if transport == "webrtc_websocket" else ""
        return WebSocketConnection(
            transport=transport,
            url=f"{websocket_url(public_base)}{_PREFIX}/voicelive/{owner.session_id}{media}",
            protocols=["realtime", f"ticket.{ticket}"],
            expires_at=now + timedelta(seconds=TICKET_TTL_S),
            expires_in_s=TICKET_TTL_S,
            dialect=dialect,
            voice=voice_name(live_voice(agent.voices) if dialect == "live" else agent.voices[dialect]),
        )
