"""Builds the broker's parts once, in order, and takes them down in the other order."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx
from pydantic import SecretStr

from strategies.base import Strategy
from strategies.chain import Chain, Link
from strategies.credentials import Credentials, EntraTokens, azure_identity_source
from strategies.direct_deployment import DirectDeployment
from strategies.ga import Ga
from strategies.health import Gate, GatePolicy
from strategies.project import Project
from strategies.retry import RetryPolicy
from strategies.transport import make_transport
from strategies.unified import Unified
from strategies.upstream import Upstream
from strategies.websocket_proxy import WebSocketProxy
from token_broker import __version__
from token_broker.agents import load_agents
from token_broker.auth import make_authenticator
from token_broker.broker import Broker
from token_broker.limits import RateLimit
from token_broker.local_books import LocalSessions, LocalTickets, NoRecall
from token_broker.plans import PlanMaker
from token_broker.settings import Settings
from token_broker.telemetry import log_attempt
from token_broker.tokens import TokenSigner, load_or_create_key

__all__ = ["build_broker", "build_chain", "build_credentials", "gate_policy", "signing_keys"]
USER_AGENT = f"voice-token-broker/{__version__}"
_WARM_UP_S = 3


@contextlib.asynccontextmanager
async def build_broker(settings: Settings) -> AsyncIterator[Broker]:
    """The broker, ready to serve; what warms up does so beside it."""
    async with contextlib.AsyncExitStack() as stack:
        agents = load_agents(settings.agents_file)
        signer = TokenSigner(signing_keys(settings))
        transport = make_transport()
        http = await stack.enter_async_context(make_client(transport))
        credentials = build_credentials(settings)
        if credentials is not None:
            stack.push_async_callback(credentials.aclose)
        authenticator = make_authenticator(settings, http)
        stack.push_async_callback(authenticator.aclose)
        broker = Broker(
            settings=settings,
            agents=agents,
            signer=signer,
            authenticator=authenticator,
            rate=RateLimit(settings.rate_limit_per_minute),
            chain=build_chain(settings, transport, credentials),
            plans=PlanMaker(settings, signer),
            sessions=LocalSessions(),
            tickets=LocalTickets(),
            recall=NoRecall(),
            http=http,
            credentials=credentials,
        )
        warm_up = asyncio.create_task(_warm_up(broker), name="warm-up")
        stack.callback(warm_up.cancel)
        gc.freeze()  # what was built stays: the collector need not look through it again with every few requests
        yield broker


def make_client(transport: httpx.AsyncBaseTransport) -> httpx.AsyncClient:
    """A client over `transport` for all that is not a mint; each call runs inside a deadline of its own."""
    return httpx.AsyncClient(
        transport=transport,
        timeout=None,  # noqa: S113  # see above
        follow_redirects=False,
        trust_env=False,
        headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
    )


def signing_keys(settings: Settings) -> Sequence[SecretStr]:
    """The configured keys, or the one kept beside the SQLite database, made at the first start."""
    if settings.signing_keys:
        return settings.signing_keys
    database = Path(settings.database_url.get_secret_value().removeprefix("sqlite+aiosqlite:///").partition("?")[0])
    return (load_or_create_key(database.with_name(f"{database.name}.signing-key")),)


def build_credentials(settings: Settings) -> Credentials | None:
    """What Azure is asked with; None while no endpoint is configured."""
    if settings.endpoint is None:
        return None
    entra = None
    if settings.uses_entra:
        source = azure_identity_source(settings.entra_scope, client_id=settings.client_id)
        entra = EntraTokens(source, timeout_s=settings.credential_timeout_s)
    return Credentials(key=settings.key if settings.uses_key else None, entra=entra)


def build_chain(settings: Settings, transport: httpx.AsyncBaseTransport, credentials: Credentials | None) -> Chain:
    """The chosen strategies that exist for this endpoint, in their order, each with its gate."""
    return Chain(
        _links(settings, transport, credentials),
        policy=RetryPolicy(attempts=settings.retry_attempts, attempt_timeout_s=settings.attempt_timeout_s),
        on_attempt=log_attempt,
    )


def gate_policy(settings: Settings) -> GatePolicy:
    """How patient all gates are, the strategies' and the proxy's upstreams' alike."""
    return GatePolicy(
        failures=settings.breaker_failures,
        open_s=settings.breaker_open_s,
        misconfigured_s=settings.misconfigured_retry_s,
        missing_s=settings.missing_retry_s,
    )


def _links(settings: Settings, transport: httpx.AsyncBaseTransport, credentials: Credentials | None) -> list[Link]:
    target = settings.target
    if target is None or credentials is None:
        return []
    upstream = Upstream(transport, credentials, user_agent=USER_AGENT)
    version = settings.api_version
    links: list[Link] = []
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
                links.append(Link(WebSocketProxy(), None))
                continue
            case _:
                continue
        links.append(Link(strategy, Gate(name, gate_policy(settings))))
    return links


async def _warm_up(broker: Broker) -> None:
    """Opens the first connection to Azure and fetches the first Entra token, so that the first caller need not wait."""
    target = broker.settings.target
    if target is None or broker.credentials is None:
        return
    await broker.credentials.warm()
    with contextlib.suppress(httpx.HTTPError, OSError, TimeoutError):
        async with asyncio.timeout(_WARM_UP_S):
            async with broker.http.stream("HEAD", target.openai_base):
                pass
