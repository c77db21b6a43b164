"""Asks Azure as the broker does: with the same strategies, connector and credential, whatever their breakers say."""

import asyncio
import base64
import contextlib
import json
import re
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import httpx

from strategies.base import EphemeralGrant, SessionSpec
from strategies.chain import Link, Strategy
from strategies.credentials import Credentials, EntraTokens, TokenSource
from strategies.errors import CredentialError, KeysDisabledError, MintError
from strategies.hedging import Hedger
from strategies.resources import Resource, is_allowed
from strategies.transport import make_transport
from token_broker.azure import build_chain, build_connector, build_pool
from token_broker.doctor.checks import Check, CheckStatus, KnownIssue
from token_broker.doctor.hosts import Host, ms_since
from token_broker.doctor.silent_talk import examine_agents, examine_talks
from token_broker.doctor.verdicts import (
    AzureNames,
    Probe,
    judge_chain,
    judge_clock,
    judge_error,
    judge_key,
    judge_mints,
    judge_region,
    judge_sockets,
)
from token_broker.doctor.voice_services import VOICE_LIVE_WEBRTC, examine_voice_services
from token_broker.doctor.ways import examine_way
from token_broker.relay.azure.connector import Route, UpstreamConnector
from token_broker.sessions.agent_reports import agent_reports, tool_reports
from token_broker.sessions.agents import AgentsFileError, load_agents
from token_broker.sessions.plans import session_spec
from token_broker.settings import Settings

__all__ = ["examine_azure"]

PROBE_S = 5.0  # twice the broker's own attempt, so that a slow route is told from one that hangs
ENTRA_S = 8.0  # a managed identity may take seconds to give its first token
_PROBE_TTL_S = 10  # what is minted here is thrown away: Azure's shortest lifetime (docs/azure.md §2.1)

_OBJECT_ID = re.compile(r"[0-9a-fA-F-]{36}")

Tell = Callable[[Check], None]


class ObservingTransport(httpx.AsyncBaseTransport):
    """A transport that notes Azure's region and clock from the headers of its answers."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner
        self.region: str | None = None
        self.skew_s: float | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._inner.handle_async_request(request)
        # Refusals have these headers, too; a gateway's answers may lack them.
        self.region = response.headers.get("x-ms-region", self.region)
        with contextlib.suppress(KeyError, ValueError):
            self.skew_s = time.time() - parsedate_to_datetime(response.headers["date"]).timestamp()
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


@dataclass(slots=True)
class _Probes:
    """What was tried with one credential."""

    mints: list[Probe] = field(default_factory=list)
    sockets: list[Probe] = field(default_factory=list)

    @property
    def all(self) -> list[Probe]:
        return [*self.mints, *self.sockets]

    @property
    def keys_are_off(self) -> bool:
        return any(isinstance(probe.error, KeysDisabledError) for probe in self.all)


async def examine_azure(
    settings: Settings, tell: Tell, *, connect: bool, source: TokenSource, tls: ssl.SSLContext
) -> None:
    """Checks hosts, credential, mints and sockets; with `connect` it also holds a short silent talk."""
    target = settings.target
    spec = _agents_spec(settings, tell)
    if target is None or spec is None:
        return
    # The two bases may share their host, which is checked once then. dict.fromkeys keeps the order, a set would not.
    hosts = dict.fromkeys(Host.of(base) for base in (target.openai_base, target.base))
    found = await asyncio.gather(*(examine_way(host, settings, tls=tls) for host in hosts))
    for checks in found:
        for check in checks:
            tell(check)
    if all(checks[-1].status is CheckStatus.FAILED for checks in found):
        tell(Check("azure", CheckStatus.NOTE, "nothing further was tried: no host can be reached"))
        return
    transport = ObservingTransport(make_transport(tls=tls, proxy=settings.proxy))
    entra = EntraTokens(source, timeout_s=ENTRA_S)
    try:
        names = AzureNames.of(
            urlsplit(target.openai_base).hostname or "", model=settings.model, api_version=settings.api_version
        )
        await _Examination(settings, tell, transport, entra, spec, names, tls).run(connect=connect)
    finally:
        await entra.aclose()
        await transport.aclose()


@dataclass(frozen=True, slots=True)
class _Examination:
    settings: Settings
    tell: Tell
    transport: ObservingTransport
    entra: EntraTokens
    spec: SessionSpec
    names: AzureNames
    tls: ssl.SSLContext

    async def run(self, *, connect: bool) -> None:
        """Probes with the key where the broker would use it, and with Entra where the broker would use that."""
        tried: list[Probe] = []
        if self.settings.uses_key:
            credentials = Credentials(key=self.settings.key, entra=None)
            probes = await self._probe(credentials, "the key")
            tried += probes.all
        # Like the broker, which falls back to Entra only if the resource says that its keys are disabled.
        if not self.settings.uses_key or (probes.keys_are_off and self.settings.uses_entra):
            if not await self._fetch_entra_token():
                if (key := judge_key(tried)) is not None:
                    self.tell(key)
                return
            credentials = Credentials(key=None, entra=self.entra)
            probes = await self._probe(credentials, "Entra")
            tried += probes.all
        strategies = self.settings.token_strategies
        services = await self._voice_services()
        has_webrtc = any(each.name == VOICE_LIVE_WEBRTC and each.status is CheckStatus.OK for each in services)
        signals = has_webrtc and "voice_live_webrtc" in strategies and self.settings.voice_live_webrtc != "off"
        verdicts = [
            judge_key(tried),
            *judge_mints(probes.mints, self.names),
            *judge_sockets(probes.sockets, self.names),
            *services,
            judge_chain(probes.mints, probes.sockets, proxy_is_last="websocket_proxy" in strategies, signals=signals),
            judge_clock(self.transport.skew_s),
            judge_region(self.transport.region, self.settings.model),
        ]
        for check in verdicts:
            if check is not None:
                self.tell(check)
        if connect:
            minted = next((probe.grant for probe in probes.mints if probe.grant and probe.grant.strategy == "ga"), None)
            works = [probe.name for probe in probes.sockets if probe.error is None]
            await examine_talks(
                self.settings,
                self._connector(credentials),
                works=works,
                spec=self.spec,
                minted=minted,
                tls=self.tls,
                tell=self.tell,
            )
            await examine_agents(
                self.settings,
                self._connector(credentials),
                works=works,
                agents=list(load_agents(self.settings.agents_file).values()),
                tell=self.tell,
            )

    async def _voice_services(self) -> list[Check]:
        settings = self.settings
        credentials = Credentials(
            key=settings.key if settings.uses_key else None, entra=self.entra if settings.uses_entra else None
        )
        try:
            agents = list(load_agents(settings.agents_file).values())
        except AgentsFileError:  # told elsewhere
            agents = []
        return await examine_voice_services(settings, self._connector(credentials), agents, self.names)

    def _connector(self, credentials: Credentials) -> UpstreamConnector:
        (resource,) = self.settings.resources
        return build_connector(self.settings, {resource.name: credentials}, self.tls, Hedger(build_pool(self.settings)))

    async def _fetch_entra_token(self) -> bool:
        began_s = time.monotonic()
        try:
            token = await self.entra.get(timeout_s=ENTRA_S)
        except CredentialError as error:
            check = judge_error("entra", error, self.names, ms_since(began_s))
            # A managed identity that is missing or has no role often shows as a hang: the runbook describes it there.
            self.tell(replace(check, known_issue=KnownIssue.CONNECTION_HANG))
            return False
        object_id = _object_id(token.get_secret_value())
        finding = f"gives a token for {object_id}" if object_id else "gives a token"
        self.tell(Check("entra", CheckStatus.OK, finding, ms_since(began_s)))
        return True

    async def _probe(self, credentials: Credentials, credential: str) -> _Probes:
        """Tries every mint route and every upstream at once."""
        (resource,) = self.settings.resources
        pool = build_pool(self.settings)
        links = build_chain(self.settings, self.transport, {resource.name: credentials}, Hedger(pool)).links
        strategies = [link.strategy for link in links if isinstance(link, Link)]
        connector = self._connector(credentials)
        # Tools may carry credentials, which must not go into a mint. Whether Azure accepts them, the sockets show.
        mint_spec = replace(self.spec, tools=())

        async def supply(resource: Resource) -> SessionSpec:
            del resource  # the settings are its own
            return self.spec

        async def mint(strategy: Strategy) -> EphemeralGrant | None:
            grant = await strategy.mint(mint_spec, timeout_s=PROBE_S)
            return grant if isinstance(grant, EphemeralGrant) else None

        async def open_socket(route: Route) -> None:
            # attempt() returns once Azure has confirmed the session: a handshake alone would prove nothing.
            upstream = await connector.attempt(
                pool.resources[0], route, supply=supply, timeout_s=PROBE_S, model=self.spec.model
            )
            await upstream.socket.aclose()

        # All at once: routes that hang, tried one after the other, would take longer than the whole run may.
        mints, sockets = await asyncio.gather(
            asyncio.gather(*(_attempt(each.name, credential, mint(each)) for each in strategies)),
            asyncio.gather(
                *(_attempt(each.name, credential, open_socket(each)) for each in connector.routes[resource.name])
            ),
        )
        return _Probes(mints, sockets)


async def _attempt(name: str, credential: str, work: Awaitable[EphemeralGrant | None]) -> Probe:
    """Awaits `work`, and notes its time, its grant or its error."""
    began_s = time.monotonic()
    try:
        grant = await work
    except MintError as error:
        return Probe(name, ms_since(began_s), credential, error)
    return Probe(name, ms_since(began_s), credential, grant=grant)


def _agents_spec(settings: Settings, tell: Tell) -> SessionSpec | None:
    """A session of an agent that may use the resource, as short-lived as Azure allows.

    None, and a check that says why, without an agents file, or where no agent may use the resource: it is asked for
    nothing then.
    """
    try:
        agents = load_agents(settings.agents_file)
    except AgentsFileError as error:
        remediation = "correct BROKER_AGENTS_FILE; agents.toml shows the shape"
        for line in str(error).splitlines():
            tell(Check("agents", CheckStatus.FAILED, line, remediation=remediation))
        return None
    (resource,) = build_pool(settings).resources
    # The default agent, or else the first that may use this resource: it is asked for what a talk would ask for.
    talking = [agents[agents.default], *agents.values()]
    agent = next((each for each in talking if is_allowed(resource, each.wanted(""))), None)
    if agent is None:
        tell(Check("agents", CheckStatus.WARNING, "no agent may use this resource", remediation="see zones, resources"))
        return None
    tell(Check("agents", CheckStatus.OK, f"{', '.join(agents)}; {agents.default} is the default"))
    if on_sockets := [each.id for each in agents.values() if each.sockets_only]:
        reasons = " or ".join(dict.fromkeys(agents[each].sockets_only for each in on_sockets))
        tell(Check("agents", CheckStatus.NOTE, f"{', '.join(on_sockets)}: WebSockets only, since {reasons}"))
    for each in agents.values():
        for line in [*agent_reports(each, settings, [resource]), *tool_reports(each, settings, [resource])]:
            tell(Check("agents", CheckStatus.NOTE, f"{each.id}: {line}", remediation="docs/agents.md"))
    return replace(session_spec(agent, settings, resource), ttl_s=_PROBE_TTL_S)


def _object_id(token: str) -> str:
    """The object id that needs the role. The token's signature is not checked: only Azure can judge it."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        object_id = claims.get("oid", "")
    except (IndexError, ValueError, AttributeError, RecursionError):
        return ""
    return object_id if isinstance(object_id, str) and _OBJECT_ID.fullmatch(object_id) else ""
