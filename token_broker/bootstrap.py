"""Builds the parts of the broker in order, as the lifespan's state, and closes them in reverse order."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypedDict

import httpx
import structlog
from pydantic import SecretStr

from strategies.credentials import Credentials
from strategies.endpoint import is_live_endpoint
from strategies.models import is_classic_whisper
from strategies.resources import Quotas
from strategies.transport import make_tls_context, make_transport
from token_broker.api.offers import CallRelay
from token_broker.api.status import StatusSources
from token_broker.api.token import Minting
from token_broker.azure import (
    add_agents_routes,
    build_agents_availability,
    build_availability,
    build_calls,
    build_chain,
    build_connector,
    build_credentials,
    build_hedger,
    build_pool,
    credentials_at,
    make_client,
    watch_stalls,
)
from token_broker.calls.attach import CallAttacher
from token_broker.calls.attach_claims import AttachClaims
from token_broker.calls.followed_calls import SharedEvents
from token_broker.calls.leases import CallLeases
from token_broker.calls.page_events import CallStreams
from token_broker.calls.running_calls import Calls
from token_broker.calls.watched_calls import WatchedCalls
from token_broker.hooks.sender import HookSender, hook_client
from token_broker.memory.drivers.sqlite import make_private_folder, sqlite_path
from token_broker.memory.service import Memory
from token_broker.observability.events import Metrics, PlanCounters, TalkLive, observe_with
from token_broker.observability.logging import log_attempt
from token_broker.observability.tracing import open_tracing
from token_broker.relay.admission import Admission
from token_broker.relay.live.sidebands import LiveSidebands
from token_broker.relay.voice_relay import VoiceRelay
from token_broker.security.authentication import make_authenticator
from token_broker.security.limits import MemoryQuotas, RateLimiter, SessionLimits
from token_broker.security.tokens import Owner, TokenSigner, load_or_create_key
from token_broker.server.drain import Drain
from token_broker.sessions.agent_reports import agent_reports, tool_reports
from token_broker.sessions.agent_tools import FunctionTool
from token_broker.sessions.agents import AgentRegistry, ensure_resources, load_agents
from token_broker.sessions.ownership import Callers
from token_broker.sessions.plans import PlanMaker
from token_broker.sessions.talk_level import TalkLevelCounters
from token_broker.settings import Settings, SettingsError
from token_broker.tools.configured_hooks import hook_secrets
from token_broker.tools.guardrail import GUARDRAIL_KEEPALIVE_S, HttpGuardrail
from token_broker.tools.http_runner import HttpToolRunner
from token_broker.usage.budgets import Budgets
from token_broker.usage.ledger import UsageLedger
from token_broker.web.middleware import OriginRules

__all__ = ["BrokerState", "build_broker", "memory_quotas", "signing_keys"]

log = structlog.get_logger("token_broker.start")

_WARM_UP_S = 3


class BrokerState(TypedDict):
    """The lifespan's state. Each route names the part that it uses, in a TypedDict beside it."""

    callers: Callers
    minting: Minting
    calls: CallRelay
    attacher: CallAttacher
    call_streams: CallStreams
    watched: WatchedCalls
    shared_events: SharedEvents
    admission: Admission
    relay: VoiceRelay
    memory: Memory
    quotas: MemoryQuotas
    status: StatusSources
    metrics: Metrics


@contextlib.asynccontextmanager
async def build_broker(settings: Settings, drain: Drain, metrics: Metrics) -> AsyncIterator[BrokerState]:
    """The lifespan's state, ready to serve; connections warm up meanwhile."""
    async with contextlib.AsyncExitStack() as stack:
        plan_counters = PlanCounters()
        tracing = await stack.enter_async_context(open_tracing(settings))
        observe = observe_with(log_attempt, metrics, plan_counters, tracing)
        agents = load_agents(settings.agents_file)
        for model in {each.settings.transcription_model: None for each in settings.resources}:
            if not is_classic_whisper(model):
                continue
            log.warning(
                "transcription_model_not_on_ga",
                model=model,
                why="a realtime session takes no classic whisper: what users say on GA is not transcribed",
            )
        secrets = hook_secrets(settings, agents.values())
        if settings.proxy is not None:
            log.info("outbound_proxy", proxy=settings.proxy.url, bypassed=settings.no_proxy)
        signer = TokenSigner(signing_keys(settings))
        tls = make_tls_context()
        transport = make_transport(tls=tls, proxy=settings.proxy)
        http = await stack.enter_async_context(make_client(transport))
        pool = build_pool(settings)
        ensure_resources(agents, pool.resources)
        reports = {agent.id: agent_reports(agent, settings, pool.resources) for agent in agents.values()}
        for agent in agents.values():
            if agent.sockets_only:
                log.warning("agent_is_sockets_only", agent_id=agent.id, why=agent.sockets_only)
            for line in [*reports[agent.id], *tool_reports(agent, settings, pool.resources)]:
                log.warning("agent_report", agent_id=agent.id, what=line)
        hedger = build_hedger(settings, pool)
        credentials = build_credentials(settings)
        for each in credentials.values():
            stack.push_async_callback(each.aclose)
        authenticator = make_authenticator(settings, http)
        stack.push_async_callback(authenticator.aclose)
        talks = SessionLimits(per_key=settings.max_sessions_per_principal, total=settings.max_sessions)
        rules = OriginRules(settings)
        # Before everything that ends talks: the stack closes it after them, so that their last turns reach the store.
        memory = await stack.enter_async_context(Memory.open(settings))
        # Without a known quota nobody has to be counted.
        names = [resource.name for resource in pool.resources]
        has_quotas = any(resource.quotas != Quotas() for resource in pool.resources)

        def switch(disabled: frozenset[str]) -> None:
            for name in names:
                pool.set_enabled(name, name not in disabled)

        memory.switches.watch(
            switch,
            (lambda live, is_fresh: pool.divide_quotas(live, is_fresh=is_fresh)) if has_quotas else None,
        )
        try:
            # The blocklist is read as the store opens: until then nobody would be known as blocked.
            async with asyncio.timeout(settings.store_start_wait_s):
                await memory.ready()
        except TimeoutError:
            log.warning("started_without_store", do="only new sessions are served until the store is reached")
        ledger = UsageLedger(memory.database)
        ledger.start()
        stack.push_async_callback(ledger.aclose)  # after the talks have ended, before the store closes
        budgets: Budgets | None = None
        if settings.budget_minutes_per_day or settings.budget_tokens_per_day:
            budgets = Budgets(
                memory.database,
                minutes=settings.budget_minutes_per_day,
                tokens=settings.budget_tokens_per_day,
                secret=signer.subkey("budgets"),
                clock=ledger.clock,
                patience_s=settings.store_timeout_s,
            )
            budgets.start()
            stack.push_async_callback(budgets.aclose)
        connector = build_connector(settings, credentials, tls, hedger)
        stack.push_async_callback(connector.aclose)
        add_agents_routes(settings, connector, agents.values())
        availability = build_availability(settings, connector)
        of_agents = build_agents_availability(settings, connector)
        for each_availability in (availability, *of_agents.values()):
            each_availability.start()
            stack.push_async_callback(each_availability.aclose)
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
            blocklist=memory.blocklist,
            budgets=budgets,
        )
        sidebands = LiveSidebands(connector.join_call)

        async def goes_on(endpoint: str, call_id: str) -> bool:
            asks = sidebands.has_session if is_live_endpoint(endpoint) else connector.has_call
            return await asks(endpoint, call_id)

        leases = CallLeases(memory.database, memory.switches.replica_id)
        stack.push_async_callback(leases.aclose)
        calls = Calls(
            http,
            credentials_at(pool, credentials),
            talks,
            max_talk_s=settings.max_talk_s,
            hang_up_timeout_s=settings.token_budget_s,
            goes_on=goes_on,
            closes_live=sidebands.close,
            leases=leases,
        )
        stack.push_async_callback(calls.aclose)
        level = TalkLevelCounters(
            names,
            lambda resource, time_s: observe(TalkLive(time_s, resource)),
            note=lambda owner, over_in_s, begins: memory.sessions.note_talk(owner, over_in_s=over_in_s, begins=begins),
            longest_s=settings.max_talk_s,
        )
        sender: HookSender | None = None
        guardrail: HttpGuardrail | None = None
        if secrets:
            sender = HookSender(await stack.enter_async_context(hook_client(tls=tls, proxy=settings.proxy)), secrets)
            warm = hook_client(tls=tls, proxy=settings.proxy, keepalive_s=GUARDRAIL_KEEPALIVE_S)
            guardrail = HttpGuardrail(HookSender(await stack.enter_async_context(warm), secrets), observe=observe)
        runner = HttpToolRunner(
            sender, memory.tool_claims, memory.recall, store_timeout_s=settings.store_timeout_s, observe=observe
        )
        stack.push_async_callback(runner.aclose)  # after the talks have ended, before the store closes
        on_ended = sum_up(memory, sender, agents)
        # Calls and talks share `talks`: the limit counts both.
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
            level=level,
            tools=runner,
            guardrail=guardrail,
            on_ended=on_ended,
            ledger=ledger,
            leash=budgets,
            calls=build_calls(settings, connector, availability, of_agents),
        )
        shared_events = SharedEvents(memory.database)
        shared_events.start()
        stack.push_async_callback(shared_events.aclose)  # after the calls are heard no more
        claims = AttachClaims(memory.database, memory.switches.replica_id, leases, patience_s=settings.store_timeout_s)
        watched = WatchedCalls(
            relay.parts,
            hang_up=calls.end,
            limits=talks,
            drain=drain,
            level=level,
            on_ended=on_ended,
            ledger=ledger,
            leash=budgets,
            leases=leases,
            sidebands=sidebands,
            shared=shared_events,
        )
        calls.on_ended = watched.ended_at_azure
        stack.push_async_callback(watched.aclose)
        leases.start()
        drain.hand_overs.append(leases.hand_over)
        ledger.confirm = leases.confirm
        attacher = CallAttacher(
            join=connector.join_call,
            resources=pool.by_name,
            calls=calls,
            watched=watched,
            level=level,
            blocklist=memory.blocklist,
            claims=claims,
            max_talk_s=settings.max_talk_s,
            checks=settings.attach_check == "on",
        )
        stack.push_async_callback(attacher.aclose)
        memory.blocklist.watch(relay.end_where)
        memory.blocklist.watch(watched.end_where)
        memory.watch_lost_sessions(relay.end_session)
        memory.watch_lost_sessions(watched.end_session)
        chain = build_chain(
            settings,
            transport,
            credentials,
            hedger,
            on_attempt=observe,
            availability=availability,
            of_agents=of_agents,
        )
        chain.on_left_out = connector.settings_report.note_left_out
        minting = Minting(
            settings=settings,
            agents=agents,
            pool=pool,
            chain=chain,
            recall=memory.recall,
            plans=PlanMaker(settings, signer, pool),
            observe=observe,
            ledger=ledger,
            budgets=budgets,
            live_agents=frozenset(agent.id for agent in agents.values() if agent.speaks_live(pool.resources)),
        )
        status = StatusSources(
            settings=settings,
            agents=agents,
            agent_reports=reports,
            pool=pool,
            chain=chain,
            plan_counters=plan_counters,
            talk_counters=level,
            talks=talks,
            drain=drain,
            memory=memory,
            relay=relay.snapshot,
            availability=availability,
            ledger=ledger,
            budgets=budgets,
            leases=leases,
        )
        if len(pool.resources) > 1:  # with one there is nobody else to go to
            stalls = asyncio.create_task(watch_stalls(pool), name="watch-stalls")
            stack.callback(stalls.cancel)
        metrics.expect(settings.token_strategies, names, agents)
        metrics.expect_tools(
            [
                (agent.id, tool.name)
                for agent in agents.values()
                for tool in agent.tools
                if isinstance(tool, FunctionTool)
            ],
            [agent.id for agent in agents.values() if agent.guardrail is not None],
        )
        for resource in pool.resources:
            work = _warm_up(resource.target.openai_base, credentials[resource.name], http)
            warm_up = asyncio.create_task(work, name=f"warm-up {resource.name}")
            stack.callback(warm_up.cancel)
        yield BrokerState(
            callers=Callers(
                settings=settings,
                signer=signer,
                authenticator=authenticator,
                sessions=memory.sessions,
                blocklist=memory.blocklist,
                rate=rate,
                hang_ups=RateLimiter(settings.rate_limit_per_minute),
                event_streams=RateLimiter(settings.rate_limit_per_minute),
                drain=drain,
                talks=level,
            ),
            minting=minting,
            calls=CallRelay(minting, signer, memory.blocklist, talks, calls, level, watched, claims),
            attacher=attacher,
            call_streams=watched.streams,
            watched=watched,
            shared_events=shared_events,
            admission=admission,
            relay=relay,
            memory=memory,
            quotas=memory_quotas(settings),
            status=status,
            metrics=metrics,
        )


def sum_up(memory: Memory, sender: HookSender | None, agents: AgentRegistry) -> Callable[[Owner, str], None]:
    """What to call when a talk has ended: where an agent has a hook for it, the talk is summed up."""
    urls = {agent.id: agent.summary.url for agent in agents.values() if agent.summary is not None}
    if sender is None or not urls:
        return lambda _owner, _agent_id: None
    return memory.sum_up(sender, urls.get).ended


def memory_quotas(settings: Settings) -> MemoryQuotas:
    """The quotas of the settings."""
    return MemoryQuotas(
        turns_per_minute=settings.turns_per_minute,
        turn_bytes_per_minute=settings.turn_bytes_per_minute,
        reads_per_minute=settings.rate_limit_per_minute,
    )


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


async def _warm_up(base: str, credentials: Credentials, http: httpx.AsyncClient) -> None:
    """Fetches the first Entra token and opens the first connection to Azure, so that the first caller need not wait."""
    await credentials.warm()
    with contextlib.suppress(httpx.HTTPError, OSError, TimeoutError):
        async with asyncio.timeout(_WARM_UP_S):
            async with http.stream("HEAD", base):
                pass
