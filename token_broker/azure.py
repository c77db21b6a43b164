"""Builds the parts that talk to Azure: the credentials, the chain, the proxy's connector, the HTTP client."""

import ssl

import httpx

from strategies.chain import Chain, Link, OnAttempt, RetryPolicy, Strategy, WebSocketProxy
from strategies.credentials import Credentials, EntraTokens, azure_identity_source
from strategies.health import BreakerPolicy, CircuitBreaker
from strategies.routes import DirectDeployment, Ga, Project, Unified
from strategies.transport import BoundedResolver
from strategies.upstream import Upstream
from token_broker import __version__
from token_broker.observability.logging import log_attempt
from token_broker.relay.azure.connector import UpstreamConnector, make_routes
from token_broker.settings import Settings

__all__ = ["build_chain", "build_connector", "build_credentials", "make_client"]

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


def build_credentials(settings: Settings) -> Credentials | None:
    """The credentials for Azure; None while no endpoint is configured."""
    if settings.endpoint is None:
        return None
    entra = None
    if settings.uses_entra:
        source = azure_identity_source(
            settings.azure_scope, client_id=settings.client_id, authority=settings.azure_authority, proxy=settings.proxy
        )
        entra = EntraTokens(source, timeout_s=settings.credential_timeout_s)
    return Credentials(key=settings.key if settings.uses_key else None, entra=entra)


def build_chain(
    settings: Settings,
    transport: httpx.AsyncBaseTransport,
    credentials: Credentials | None,
    on_attempt: OnAttempt = log_attempt,
) -> Chain:
    """The configured strategies that exist for this endpoint, in their order, each with its breaker."""
    return Chain(
        _links(settings, transport, credentials),
        policy=RetryPolicy(attempts=settings.retry_attempts, attempt_timeout_s=settings.attempt_timeout_s),
        on_attempt=on_attempt,
    )


def _breaker_policy(settings: Settings) -> BreakerPolicy:
    """The policy of all breakers: the strategies' and those of the proxy's upstreams."""
    return BreakerPolicy(
        failures=settings.breaker_failures,
        open_s=settings.breaker_open_s,
        misconfigured_s=settings.misconfigured_retry_s,
        missing_s=settings.missing_retry_s,
    )


def _links(
    settings: Settings, transport: httpx.AsyncBaseTransport, credentials: Credentials | None
) -> list[Link | WebSocketProxy]:
    target = settings.target
    if target is None or credentials is None:
        return []
    upstream = Upstream(transport, credentials, user_agent=USER_AGENT)
    version = settings.api_version
    links: list[Link | WebSocketProxy] = []
    for name in settings.token_strategies:
        strategy: Strategy
        match name:
            case "ga" if Ga.applies(target):
                strategy = Ga(target, upstream)
            case "direct_deployment" if DirectDeployment.applies(target):
                strategy = DirectDeployment(target, upstream, model=settings.model, api_version=version)
            case "project" if Project.applies(target):
                strategy = Project(target, upstream, api_version=version)
            case "unified" if Unified.applies(target):
                strategy = Unified(target, upstream, api_version=version)
            case "websocket_proxy":
                links.append(WebSocketProxy())
                continue
            case _:
                continue
        links.append(Link(strategy, CircuitBreaker(name, _breaker_policy(settings))))
    return links


def build_connector(settings: Settings, credentials: Credentials | None, tls: ssl.SSLContext) -> UpstreamConnector:
    """The connector of the proxy's talks. It trusts the authorities of `tls`."""
    target = settings.target
    routes = (
        []
        if target is None
        else make_routes(target, settings.upstreams, model=settings.model, api_version=settings.voice_live_api_version)
    )
    return UpstreamConnector(
        routes,
        credentials=credentials,
        breakers={route.name: CircuitBreaker(route.name, _breaker_policy(settings)) for route in routes},
        resolver=BoundedResolver(),
        timeout_s=settings.proxy_connect_timeout_s,
        max_message_bytes=settings.azure_message_bytes,
        max_image_bytes=settings.image_bytes,
        tls=tls,
        proxy=settings.proxy,
    )
