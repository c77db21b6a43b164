"""Builds the broker's parts once, in order, and takes them down in the other order."""

import asyncio
import contextlib
import gc
import sys
from collections.abc import AsyncIterator, Sequence

import httpx
import structlog
from pydantic import SecretStr

from strategies.base import Attempt
from strategies.chain import OnAttempt
from strategies.credentials import Credentials
from strategies.models import is_classic_whisper
from strategies.transport import make_tls_context, make_transport
from token_broker import __version__
from token_broker.azure import build_chain, build_connector, build_credentials, make_client
from token_broker.broker import Broker
from token_broker.memory.drivers.files import make_private_folder
from token_broker.memory.drivers.sqlite import sqlite_path
from token_broker.memory.service import Memory
from token_broker.observability.events import Observer, observe_with
from token_broker.observability.logging import log_attempt
from token_broker.observability.metrics import Metrics
from token_broker.observability.state_metrics import StateCollector
from token_broker.observability.tracing import open_tracing
from token_broker.relay.admission import Admission
from token_broker.relay.voice_relay import VoiceRelay
from token_broker.security.authentication import limit_key, make_authenticator
from token_broker.security.quotas import MemoryQuotas
from token_broker.security.rate_limits import RateLimiter, SessionLimits
from token_broker.security.tokens import TokenSigner, load_or_create_key
from token_broker.server.drain import Drain
from token_broker.sessions.agents import load_agents
from token_broker.sessions.calls import Calls
from token_broker.sessions.plans import PlanMaker
from token_broker.settings import Settings, SettingsError
from token_broker.web.cors import OriginRules

__all__ = ["build_broker", "signing_keys"]

log = structlog.get_logger("token_broker.start")

_WARM_UP_S = 3
# Requests under way are no garbage: looked through every 700 allocations, as Python does, they cost 5 % of a turn.
_GC_THRESHOLDS = (5_000, 20, 20)
# How long a thread that has work waits for the interpreter while the event loop is busy; Python's 5 ms are several
# times what a commit takes, and a commit comes by for the interpreter more than once.
_SWITCH_INTERVAL_S = 0.001


@contextlib.asynccontextmanager
async def build_broker(settings: Settings, drain: Drain, metrics: Metrics) -> AsyncIterator[Broker]:
    """The broker, ready to serve; what warms up does so beside it."""
    async with contextlib.AsyncExitStack() as stack:
        observe = observe_with(metrics, await stack.enter_async_context(open_tracing(settings)))
        agents = load_agents(settings.agents_file)
        for agent in agents:
            if agent.sockets_only:
                log.warning("agent_is_sockets_only", agent_id=agent.id, why="a tool of its has a credential")
        if is_classic_whisper(settings.transcription_model):
            log.warning(
                "transcription_model_not_on_ga",
                model=settings.transcription_model,
                why="a realtime session takes no classic whisper: what users say on GA is not transcribed",
            )
        signer = TokenSigner(signing_keys(settings))
        tls = make_tls_context()
        transport = make_transport(tls=tls)
        http = await stack.enter_async_context(make_client(transport))
        credentials = build_credentials(settings)
        if credentials is not None:
            stack.push_async_callback(credentials.aclose)
        authenticator = make_authenticator(settings, http)
        stack.push_async_callback(authenticator.aclose)
        talks = SessionLimits(per_key=settings.max_sessions_per_principal, total=settings.max_sessions)
        rules = OriginRules(settings)
        memory = await stack.enter_async_context(Memory.open(settings))
        await _settle(memory, settings.store_start_wait_s)
        connector = build_connector(settings, credentials, tls)
        stack.push_async_callback(connector.aclose)
        rate = RateLimiter(settings.rate_limit_per_minute)
        admission = Admission(
            settings=settings,
            agents=agents,
            signer=signer,
            tickets=memory.tickets,
            limits=talks,
            rate=rate,
            drain=drain,
            origin_refusal=rules.refusal,
            limit_key=lambda scope, principal: limit_key(scope, principal, settings.trusted_proxies),
            blocklist=memory.blocklist,
        )
        calls = _build_calls(settings, http, credentials, talks)
        if calls is not None:
            stack.push_async_callback(calls.aclose)
            memory.blocklist.watch(calls.end_where)
        relay = VoiceRelay(
            settings=settings,
            agents=agents,
            admission=admission,
            ingest=memory.ingest,
            recall=memory.recall,
            connector=connector,
            limits=talks,
            drain=drain,
            observe=observe,
            hang_up=None if calls is None else calls.end,
        )
        stack.push_async_callback(relay.aclose)
        memory.blocklist.watch(relay.end_where)
        memory.watch_lost_sessions(relay.end_session)
        broker = Broker(
            settings=settings,
            agents=agents,
            signer=signer,
            authenticator=authenticator,
            rate=rate,
            hang_ups=RateLimiter(settings.rate_limit_per_minute),
            chain=build_chain(settings, transport, credentials, _attempts_to(observe)),
            plans=PlanMaker(settings, signer),
            memory=memory,
            quotas=MemoryQuotas(settings),
            recall=memory.recall,
            http=http,
            credentials=credentials,
            drain=drain,
            talks=talks,
            calls=calls,
            relay=relay,
            admission=admission,
            metrics=metrics,
            observe=observe,
        )
        metrics.expect(settings.token_strategies)
        metrics.registry.register(StateCollector(broker.state, version=__version__))
        warm_up = asyncio.create_task(_warm_up(broker), name="warm-up")
        stack.callback(warm_up.cancel)
        gc.freeze()  # what was built stays: the collector need not look through it again with every few requests
        gc.set_threshold(*_GC_THRESHOLDS)
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        yield broker


def signing_keys(settings: Settings) -> Sequence[SecretStr]:
    """The configured keys, or the one kept beside the SQLite database, made at the first start.

    Raises SettingsError where it can't be kept there.
    """
    if settings.signing_keys:
        return settings.signing_keys
    database = sqlite_path(settings.database_url.get_secret_value())
    path = database.with_name(f"{database.name}.signing-key")
    try:
        make_private_folder(path.parent)
        return (load_or_create_key(path),)
    except OSError as error:
        why = error.strerror or str(error)
        raise SettingsError([f"BROKER_DATABASE_URL: {path}, beside it, can't hold the signing key: {why}"]) from None


async def _settle(memory: Memory, wait_s: float) -> None:
    """Waits until the store is open and the blocklist read, so that nobody is served before; but not for ever."""
    try:
        async with asyncio.timeout(wait_s):
            await memory.ready()
    except TimeoutError:
        log.warning("started_without_store", do="only new sessions are served until the store is reached")


def _build_calls(
    settings: Settings, http: httpx.AsyncClient, credentials: Credentials | None, talks: SessionLimits
) -> Calls | None:
    if credentials is None:
        return None
    return Calls(http, credentials, talks, max_talk_s=settings.max_talk_s, hang_up_timeout_s=settings.token_budget_s)


def _attempts_to(observe: Observer) -> OnAttempt:
    """Each attempt is told, and logged where it failed."""

    def tell(attempt: Attempt) -> None:
        log_attempt(attempt)
        observe(attempt)

    return tell


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
