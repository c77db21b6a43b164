"""Builds the parts that talk to Azure: the pool of resources, their credentials, the chain, the proxy's connector."""

import asyncio
import itertools
import ssl
import time
from collections.abc import Iterable, Mapping
from functools import partial

import httpx
import structlog

from strategies.chain import Chain, ChainLink, Link, OnAttempt, RetryPolicy, Strategy, WebSocketProxy
from strategies.credentials import Credentials, EntraTokens, azure_identity_source
from strategies.endpoint import LIVE_PATH
from strategies.health import BreakerPolicy
from strategies.hedging import Hedger
from strategies.pool import Pool
from strategies.resources import Quotas, Resource
from strategies.routes import DirectDeployment, Ga, Project, Unified
from strategies.transport import BoundedResolver
from strategies.upstream import Upstream
from strategies.voice_live_webrtc import VoiceLiveWebRtc, WebRtcAvailability, WebRtcMode
from token_broker import __version__
from token_broker.observability.logging import log_attempt
from token_broker.relay.azure.connector import UpstreamConnector, make_routes
from token_broker.relay.azure.route import Route, foundry_route, signalled_route
from token_broker.relay.media.control_socket import CallConnector, probe_control
from token_broker.resources import family_of
from token_broker.sessions.agents import Agent
from token_broker.settings import ResourceSettings, Settings, StrategyName

__all__ = [
    "add_agents_routes",
    "build_agents_availability",
    "build_availability",
    "build_calls",
    "build_chain",
    "build_connector",
    "build_credentials",
    "build_hedger",
    "build_pool",
    "control_routes",
    "credentials_at",
    "make_client",
    "watch_stalls",
]

log = structlog.get_logger("token_broker.azure")

_STALL_CHECK_S = 0.25
_STALL_S = 0.5  # hundreds of milliseconds may pass at a garbage collection, or on a busy machine
# A disabled agent, one without WebRTC, one of a kind that can't have it; no such agent is a 404 as well.
_NO_WEBRTC = frozenset({400, 401, 404, 409})
USER_AGENT = f"voice-token-broker/{__version__}"


def make_client(transport: httpx.AsyncBaseTransport) -> httpx.AsyncClient:
    """A client over `transport` for all that is not a mint; each call runs inside a deadline of its own."""
    return httpx.AsyncClient(
        transport=transport,
        timeout=None,  # noqa: S113  # see above
        follow_redirects=False,
        trust_env=False,
        headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
    )


def build_pool(settings: Settings) -> Pool:
    """The pool of the configured resources; empty where there is none."""
    resources = [
        Resource(
            name=each.name,
            target=each.target,
            model=each.settings.model,
            model_family=each.entry.model_family or family_of(each.settings.model),
            transcription_model=each.settings.transcription_model,
            priority=each.entry.priority,
            weight=each.entry.weight,
            zone=each.entry.zone,
            voice_live_version=each.settings.voice_live_api_version,
            quotas=Quotas(
                voice_live_per_minute=each.entry.voice_live_per_minute,
                voice_live_per_second=each.entry.voice_live_per_second,
                mints_per_minute=each.entry.mints_per_minute,
            ),
        )
        for each in settings.resources
    ]
    return Pool(
        resources,
        policy=BreakerPolicy(
            failures=settings.breaker_failures,
            open_s=settings.breaker_open_s,
            misconfigured_s=settings.misconfigured_retry_s,
            missing_s=settings.missing_retry_s,
        ),
    )


def build_hedger(settings: Settings, pool: Pool) -> Hedger:
    """What asks the next resource beside a silent one, for mints and handshakes together."""
    return Hedger(pool, after_ms=None if settings.hedge_after_ms == "auto" else settings.hedge_after_ms)


async def watch_stalls(pool: Pool) -> None:
    """Tells the pool when our own event loop stood still: what failed meanwhile says nothing of Azure."""
    while True:
        began_s = time.monotonic()
        await asyncio.sleep(_STALL_CHECK_S)
        late_s = time.monotonic() - began_s - _STALL_CHECK_S
        if late_s >= _STALL_S:
            log.warning("event_loop_stalled", for_s=round(late_s, 2))
            pool.stalled(late_s)


def build_credentials(settings: Settings) -> dict[str, Credentials]:
    """The credentials of each resource, by its name.

    Resources that ask the same Entra for the same scope share its tokens. The identity is the process's one.
    """
    shared: dict[tuple[str, str], EntraTokens] = {}
    found = {}
    for each in settings.resources:
        own = each.settings
        entra = None
        if own.uses_entra:
            source = (own.azure_scope, own.azure_authority)
            if (entra := shared.get(source)) is None:
                scope, authority = source
                tokens = azure_identity_source(
                    scope, client_id=settings.client_id, authority=authority, proxy=settings.proxy
                )
                entra = shared[source] = EntraTokens(tokens, timeout_s=settings.credential_timeout_s)
        found[each.name] = Credentials(key=own.key if own.uses_key else None, entra=entra)
    return found


def credentials_at(pool: Pool, credentials: Mapping[str, Credentials]) -> dict[str, Credentials]:
    """The credentials by the base URL of an endpoint, or of GPT-Live's sessions there.

    Of several resources at one endpoint the first counts.
    """
    return {
        base: credentials[resource.name]
        for resource in reversed(pool.resources)
        for base in (resource.target.base, resource.target.openai_base, f"{resource.target.openai_base}{LIVE_PATH}")
    }


def build_chain(
    settings: Settings,
    transport: httpx.AsyncBaseTransport,
    credentials: Mapping[str, Credentials],
    hedger: Hedger,
    *,
    on_attempt: OnAttempt = log_attempt,
    availability: WebRtcAvailability | None = None,
    of_agents: Mapping[str, WebRtcAvailability] | None = None,
) -> Chain:
    """The configured strategies that exist at each resource's endpoint, in their order.

    Without an `availability` there is no WebRTC that the broker signals. `of_agents` is that of agents at Azure.
    """
    signalling = None if availability is None else VoiceLiveWebRtc(availability, of_agents=of_agents)
    return Chain(
        hedger.pool,
        _links(settings, transport, credentials, hedger.pool, signalling),
        policy=RetryPolicy(attempts=settings.retry_attempts, attempt_timeout_s=settings.attempt_timeout_s),
        on_attempt=on_attempt,
        hedger=hedger,
    )


def _links(
    settings: Settings,
    transport: httpx.AsyncBaseTransport,
    credentials: Mapping[str, Credentials],
    pool: Pool,
    signalling: VoiceLiveWebRtc | None,
) -> list[ChainLink]:
    at = [
        (resource, each, Upstream(transport, credentials[each.name], resource=each.name, user_agent=USER_AGENT))
        for resource, each in zip(pool.resources, settings.resources, strict=True)
    ]
    links: list[ChainLink] = []
    for name in settings.token_strategies:
        if name == "voice_live_webrtc":
            if signalling is not None and signalling.is_possible:
                links.append(signalling)
            continue
        if name == "websocket_proxy":
            if at:
                links.append(WebSocketProxy())
            continue
        for resource, each, upstream in at:
            if (strategy := _strategy(name, each, upstream)) is not None:
                links.append(Link(resource, strategy))
    return links


def _strategy(name: StrategyName, configured: ResourceSettings, upstream: Upstream) -> Strategy | None:
    """The strategy of that name at the resource; None where its endpoint has no such way."""
    target, own = configured.target, configured.settings
    match name:
        case "ga" if Ga.applies(target):
            return Ga(target, upstream)
        case "direct_deployment" if DirectDeployment.applies(target):
            return DirectDeployment(target, upstream, api_version=own.api_version)
        case "project" if Project.applies(target):
            return Project(target, upstream, api_version=own.api_version)
        case "unified" if Unified.applies(target):
            return Unified(target, upstream, api_version=own.api_version)
    return None


def build_connector(
    settings: Settings, credentials: Mapping[str, Credentials], tls: ssl.SSLContext, hedger: Hedger
) -> UpstreamConnector:
    """The connector of the proxy's talks. It trusts the authorities of `tls`."""
    return UpstreamConnector(
        hedger,
        {
            each.name: make_routes(
                each.target, each.settings.upstreams, api_version=each.settings.voice_live_api_version
            )
            for each in settings.resources
        },
        credentials=credentials,
        at_endpoint=credentials_at(hedger.pool, credentials),
        resolver=BoundedResolver(),
        timeout_s=settings.proxy_connect_timeout_s,
        max_message_bytes=settings.azure_message_bytes,
        max_image_bytes=settings.image_bytes,
        tls=tls,
        proxy=settings.proxy,
    )


def control_routes(settings: Settings) -> dict[str, Route]:
    """Voice Live's control sockets, by the name of the resource that may have one."""
    version = settings.voice_live_webrtc_api_version
    routes = {each.name: signalled_route(each.target, api_version=version) for each in settings.resources}
    return {name: route for name, route in routes.items() if route is not None}


def build_availability(settings: Settings, connector: UpstreamConnector) -> WebRtcAvailability:
    """What is known of Voice Live by WebRTC at each resource. `start` it, and close it before the connector."""
    probe = partial(probe_control, connector, control_routes(settings))
    return WebRtcAvailability(connector.pool.resources, mode=_webrtc_mode(settings), probe=probe)


def _webrtc_mode(settings: Settings) -> WebRtcMode:
    return settings.voice_live_webrtc if "voice_live_webrtc" in settings.token_strategies else "off"


def add_agents_routes(settings: Settings, connector: UpstreamConnector, agents: Iterable[Agent]) -> None:
    """Gives the connector the routes of the agents that are defined at Azure."""
    for agent, each in itertools.product(agents, settings.resources):
        if (stated := agent.foundry_agent) is None:
            continue
        route = foundry_route(each.target, project=stated.project, name=stated.name, version=stated.version)
        if route is not None:
            connector.agents_routes[agent.id, each.name] = route


def build_agents_availability(settings: Settings, connector: UpstreamConnector) -> dict[str, WebRtcAvailability]:
    """What is known of WebRTC with each agent that is defined at Azure, by the agent's id."""
    mode = _webrtc_mode(settings)
    routes: dict[str, dict[str, Route]] = {}
    for (agent_id, resource), route in connector.agents_routes.items():
        routes.setdefault(agent_id, {})[resource] = route
    return {
        agent_id: WebRtcAvailability(
            [connector.pool.by_name[name] for name in own],
            mode=mode,
            probe=partial(probe_control, connector, own),
            missing=_NO_WEBRTC,
        )
        for agent_id, own in routes.items()
    }


def build_calls(
    settings: Settings,
    connector: UpstreamConnector,
    availability: WebRtcAvailability,
    of_agents: Mapping[str, WebRtcAvailability],
) -> CallConnector:
    """What makes calls whose signalling the broker holds. `of_agents` is the availability of agents at Azure."""
    return CallConnector(
        connector,
        control_routes(settings),
        available=lambda agent_id: of_agents.get(agent_id, availability),
        timeout_s=settings.proxy_connect_timeout_s,
    )
