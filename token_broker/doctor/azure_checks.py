"""Asks Azure as the broker does: the same strategies, connector and credential, but whatever their breakers say."""

import asyncio
import base64
import contextlib
import json
import re
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import httpx

from strategies.base import EphemeralGrant, SessionSpec, Strategy
from strategies.chain import Link
from strategies.credentials import Credentials, EntraTokens, TokenSource
from strategies.errors import CredentialError, KeysDisabledError, MintError
from strategies.transport import BoundedResolver, make_transport
from token_broker.azure import build_chain, build_connector
from token_broker.doctor.checks import Check, CheckStatus, KnownIssue
from token_broker.doctor.hosts import Host, examine_host
from token_broker.doctor.silent_talk import examine_talks
from token_broker.doctor.verdicts import (
    Azure,
    Probe,
    judge_chain,
    judge_clock,
    judge_error,
    judge_key,
    judge_mints,
    judge_region,
    judge_sockets,
)
from token_broker.relay.azure.connector import Route, UpstreamConnector
from token_broker.sessions.agents import AgentsFileError, load_agents, session_spec
from token_broker.settings import Settings

__all__ = ["examine_azure"]

PROBE_S = 5.0
ENTRA_S = 8.0
_PROBE_TTL_S = 10  # what is minted here is thrown away: Azure's shortest life (docs/azure.md §2.1)

_OBJECT_ID = re.compile(r"[0-9a-fA-F-]{36}")

Tell = Callable[[Check], None]


class Overheard(httpx.AsyncBaseTransport):
    """A transport that notes what Azure's answers say of it in passing: its region and its clock."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner
        self.region: str | None = None
        self.skew_s: float | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._inner.handle_async_request(request)
        self.region = response.headers.get("x-ms-region", self.region)
        with contextlib.suppress(KeyError, ValueError):
            self.skew_s = time.time() - parsedate_to_datetime(response.headers["date"]).timestamp()
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


@dataclass(slots=True)
class _Probes:
    """What was tried, with whichever credential."""

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
    """Tells of hosts, credential, mints, sockets, and with `connect` of a short silent talk."""
    target = settings.target
    spec = _spec(settings, tell)
    if target is None or spec is None:
        return
    hosts = dict.fromkeys(Host.of(base) for base in (target.openai_base, target.base))
    found = await asyncio.gather(*(examine_host(host, resolver=BoundedResolver(), tls=tls) for host in hosts))
    for checks in found:
        for check in checks:
            tell(check)
    if all(checks[-1].status is CheckStatus.FAILED for checks in found):
        tell(Check("azure", CheckStatus.NOTE, "nothing further was tried: no host is reached"))
        return
    overheard = Overheard(make_transport(tls=tls))
    entra = EntraTokens(source, timeout_s=ENTRA_S)
    try:
        azure = Azure.of(
            urlsplit(target.openai_base).hostname or "", model=settings.model, api_version=settings.api_version
        )
        await _Examination(settings, tell, overheard, entra, spec, azure, tls).run(connect=connect)
    finally:
        await entra.aclose()
        await overheard.aclose()


@dataclass(frozen=True, slots=True)
class _Examination:
    settings: Settings
    tell: Tell
    transport: Overheard
    entra: EntraTokens
    spec: SessionSpec
    azure: Azure
    tls: ssl.SSLContext

    async def run(self, *, connect: bool) -> None:
        """Probes with the key where the broker would, and with Entra where it would then."""
        tried: list[Probe] = []
        if self.settings.uses_key:
            credentials = Credentials(key=self.settings.key, entra=None)
            probes = await self._probe(credentials, "the key")
            tried += probes.all
        if not self.settings.uses_key or (probes.keys_are_off and self.settings.uses_entra):
            if not await self._fetch_entra_token():
                if (key := judge_key(tried)) is not None:
                    self.tell(key)
                return
            credentials = Credentials(key=None, entra=self.entra)
            probes = await self._probe(credentials, "Entra")
            tried += probes.all
        self._judge(probes, tried)
        if connect:
            minted = next((probe.grant for probe in probes.mints if probe.grant and probe.grant.strategy == "ga"), None)
            works = [probe.name for probe in probes.sockets if probe.error is None]
            await examine_talks(
                self.settings,
                build_connector(self.settings, credentials, self.tls),
                works=works,
                spec=self.spec,
                minted=minted,
                tls=self.tls,
                tell=self.tell,
            )

    def _judge(self, probes: _Probes, tried: Sequence[Probe]) -> None:
        proxy_is_last = "websocket_proxy" in self.settings.token_strategies
        found = [
            judge_key(tried),
            *judge_mints(probes.mints, self.azure),
            *judge_sockets(probes.sockets, self.azure),
            judge_chain(probes.mints, probes.sockets, proxy_is_last=proxy_is_last),
            judge_clock(self.transport.skew_s),
            judge_region(self.transport.region, self.settings.model),
        ]
        for check in found:
            if check is not None:
                self.tell(check)

    async def _fetch_entra_token(self) -> bool:
        began_s = time.monotonic()
        try:
            token = await self.entra.get(timeout_s=ENTRA_S)
        except CredentialError as error:
            check = judge_error("entra", error, self.azure, _ms_since(began_s))
            self.tell(replace(check, known_issue=KnownIssue.CONNECTION_HANG))
            return False
        who = _who(token.get_secret_value())
        finding = f"gives a token{f' for {who}' if who else ''}"
        self.tell(Check("entra", CheckStatus.OK, finding, f"{_ms_since(began_s):.0f} ms"))
        return True

    async def _probe(self, credentials: Credentials, credential: str) -> _Probes:
        mints, sockets = await asyncio.gather(
            self._probe_mints(credentials, credential), self._probe_sockets(credentials, credential)
        )
        return _Probes(mints, sockets)

    async def _probe_mints(self, credentials: Credentials, credential: str) -> list[Probe]:
        links = build_chain(self.settings, self.transport, credentials).links
        asked = [link.strategy for link in links if isinstance(link, Link)]
        spec = replace(self.spec, tools=())  # whether tools suit is for the sockets to tell: they may have credentials
        return await asyncio.gather(*(_probe_mint(strategy, spec, credential) for strategy in asked))

    async def _probe_sockets(self, credentials: Credentials, credential: str) -> list[Probe]:
        connector = build_connector(self.settings, credentials, self.tls)
        return await asyncio.gather(
            *(_probe_socket(connector, route, self.spec, credential) for route in connector.routes)
        )


async def _probe_mint(strategy: Strategy, spec: SessionSpec, credential: str) -> Probe:
    began_s = time.monotonic()
    try:
        grant = await strategy.mint(spec, timeout_s=PROBE_S)
    except MintError as error:
        return Probe(strategy.name, _ms_since(began_s), credential, error)
    minted = grant if isinstance(grant, EphemeralGrant) else None
    return Probe(strategy.name, _ms_since(began_s), credential, grant=minted)


async def _probe_socket(connector: UpstreamConnector, route: Route, spec: SessionSpec, credential: str) -> Probe:
    began_s = time.monotonic()

    async def supply() -> SessionSpec:
        return spec

    try:
        upstream = await connector.attempt(route, supply, timeout_s=PROBE_S)
    except MintError as error:
        return Probe(route.name, _ms_since(began_s), credential, error)
    took_ms = _ms_since(began_s)
    await upstream.socket.aclose()
    return Probe(route.name, took_ms, credential)


def _spec(settings: Settings, tell: Tell) -> SessionSpec | None:
    """The default agent's session, as short-lived as Azure allows; tells of an agents file that can't be used."""
    try:
        agents = load_agents(settings.agents_file)
    except AgentsFileError as error:
        for line in str(error).splitlines():
            tell(
                Check(
                    "agents",
                    CheckStatus.FAILED,
                    line,
                    remediation="remediation BROKER_AGENTS_FILE; agents.toml shows the shape",
                )
            )
        return None
    agent = agents.get(agents.default)
    if agent is None:
        raise AssertionError("an agents file has its default agent")
    tell(Check("agents", CheckStatus.OK, f"{', '.join(agents.ids)}; {agents.default} where none is named"))
    if silent := [each.id for each in agents if each.sockets_only]:
        finding = f"{', '.join(silent)}: WebSockets only, since a tool has a credential that no page may see"
        tell(Check("agents", CheckStatus.NOTE, finding))
    return replace(session_spec(agent, settings), ttl_s=_PROBE_TTL_S)


def _who(token: str) -> str:
    """The object id that a role has to be given to; the token is not checked, since Azure does."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        object_id = claims.get("oid", "")
    except (IndexError, ValueError, AttributeError, RecursionError):
        return ""
    return object_id if isinstance(object_id, str) and _OBJECT_ID.fullmatch(object_id) else ""


def _ms_since(began_s: float) -> float:
    return (time.monotonic() - began_s) * 1000
