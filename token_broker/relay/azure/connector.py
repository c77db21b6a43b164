"""Connects a talk to one of Azure's WebSockets: the pool's resources in their order, and the routes of each.

The first that accepts the agent's session has the talk, within one time limit for all. Pool and error tree are those of
the strategies' chain. A redirect is never followed: it would send the credential to another host.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import quote

import picows
import structlog
from aiohttp.abc import AbstractResolver
from pydantic import SecretStr

from strategies.base import SpecSupplier
from strategies.credentials import Authorization, Credentials
from strategies.endpoint import is_live_endpoint
from strategies.errors import (
    KeysDisabledError,
    MintError,
    MisconfiguredError,
    RateLimitedError,
    RejectedError,
    TimedOutError,
    TransientError,
)
from strategies.health import CircuitBreaker
from strategies.hedging import Call, Hedger
from strategies.outbound_proxy import OutboundProxy, ProxyFailedError
from strategies.pool import Pool, PoolPermit
from strategies.resources import Resource, Wanted
from strategies.session_model.agent_settings import Dialect
from strategies.session_model.session_fields import model_reasons
from token_broker.relay.azure.dns_cache import DnsCache
from token_broker.relay.azure.opening import (
    LateCredentialError,
    SessionRefusedError,
    clock_skew_s,
    current_authorization,
    expiry_s,
    handshake_error,
    take_session,
)
from token_broker.relay.azure.route import (
    ConnectionHealth,
    NoUpstreamError,
    Route,
    RouteName,
    UpstreamConnection,
    make_routes,
)
from token_broker.relay.azure.socket import AzureSocket, connect
from token_broker.relay.confirmation.settings_report import SettingsReport
from token_broker.relay.guardrail.held import held_session
from token_broker.security.limits import BoundedDict
from token_broker.server.close_codes import SESSION_REFUSED, UPSTREAM_FAILED, UPSTREAM_TIMED_OUT, Ending

__all__ = ["NoUpstreamError", "Route", "UpstreamConnection", "UpstreamConnector", "ending_of", "make_routes"]

log = structlog.get_logger("token_broker.relay")

# A handshake ends by itself after its limit, and says what it waited for in vain.
_LAST_WORD_S = 0.05
NO_SUCH_CALL = frozenset({404, 410})  # what joining a call is answered with that is over, or not connected yet
_UNFIT_S = 60.0  # for an agent whose session was refused there: an operator has to act
_UNFIT_KEPT = 1_000

# What a Foundry agent's refusals mean (docs/azure.md §12.2): they are about the agent, not about the resource.
_OF_FOUNDRY: Mapping[int | None, str] = {
    400: "the Foundry agent is of a kind that takes no such talk; its operator has to act",
    404: "there is no such Foundry agent, or it has no WebRTC; its operator has to act",
    409: "the Foundry agent is disabled; its operator has to act",
}

_Candidate = tuple[Resource, Route]


class AgentRefusedError(RejectedError):
    """Azure does not let this agent, which is defined there, take the talk. The text is for clients, too."""


class UpstreamConnector:
    """Connects talks to Azure; one instance a process. Routes and credentials are by the name of a resource.

    `hedger` is the one that mints have, too. `at_endpoint` has the credentials by an endpoint's base URL: a call is
    joined at the host that made it.
    """

    def __init__(
        self,
        hedger: Hedger,
        routes: Mapping[str, Sequence[Route]],
        *,
        credentials: Mapping[str, Credentials],
        at_endpoint: Mapping[str, Credentials],
        resolver: AbstractResolver,
        timeout_s: float,
        max_message_bytes: int,
        max_image_bytes: int = 0,
        tls: ssl.SSLContext,
        proxy: OutboundProxy | None = None,
    ) -> None:
        self.pool = hedger.pool
        self._hedger = hedger
        self.routes = dict(routes)
        self.agents_routes: dict[tuple[str, str], Route] = {}
        """The one route of an agent that is defined at Azure, by the agent's id and the resource."""
        self._credentials = credentials
        self._at_endpoint = at_endpoint
        self._names = DnsCache(resolver)
        self._timeout_s = timeout_s
        self._max_message_bytes = max_message_bytes
        self._max_image_bytes = max_image_bytes
        self._tls = tls
        self._proxy = proxy
        self.settings_report = SettingsReport()
        # Ways on which an agent's session was refused, and until when others are tried first.
        self._unfit = BoundedDict[tuple[str, str, str], float](_UNFIT_KEPT)
        self._picows_log = logging.getLogger("token_broker.relay.picows")
        self._picows_log.setLevel(logging.CRITICAL)  # below INFO it logs headers, the key included

    @property
    def secrets(self) -> tuple[SecretStr, ...]:
        """The credentials in use, which an error of Azure's could quote."""
        return tuple(secret for credentials in self._credentials.values() for secret in credentials.secrets)

    @property
    def breakers(self) -> dict[tuple[str, RouteName], CircuitBreaker]:
        """The breakers, by resource and route."""
        return {
            (name, route.name): self.pool.breaker(name, route.name)
            for name, routes in self.routes.items()
            for route in routes
        }

    def credentials_of(self, resource: str) -> Credentials | None:
        """The credentials of the resource of that name."""
        return self._credentials.get(resource)

    def resource(self, name: str) -> Resource:
        """The resource of that name, which an open connection has."""
        return self.pool.by_name[name]

    async def aclose(self) -> None:
        """Cancels lookups that still run; call it when no talk is left."""
        await self._names.aclose()

    async def connect(
        self,
        supply: SpecSupplier,
        *,
        wanted: Wanted,
        only: RouteName | None = None,
        prefer: Dialect | None = None,
        after: UpstreamConnection | None = None,
        on_refused: Callable[[str], None] = lambda _resource: None,
    ) -> UpstreamConnection:
        """An upstream whose session is the agent's, within the limit for all together. Raises NoUpstreamError.

        `only` leaves out all but that route: for a talk that has to keep its dialect. Of one resource's routes, those
        that speak what the client would `prefer` are tried first. `after` is the connection that a running talk lost:
        its dialect, and with it its voice, is tried at every resource before another one. `on_refused` is told each
        resource that does not take the agent's settings; it comes last next time.
        """

        def ways(resources: Iterable[Resource]) -> list[_Candidate]:
            found: list[_Candidate] = []
            for resource in resources:
                own = self.agents_routes.get((wanted.agent_id, resource.name))
                routes = [
                    route
                    for route in (self.routes[resource.name] if own is None else (own,))
                    if only is None or route.name == only
                ]
                if prefer is not None:
                    routes.sort(key=lambda route: route.dialect != prefer)
                found += [(resource, route) for route in routes]
            if after is not None:
                found.sort(key=lambda pair: pair[1].dialect != after.route.dialect)
            return found

        candidates, began_s = ways(self.pool.order(wanted)), self._hedger.clock()

        def unfit_until_s(way: _Candidate) -> float:
            until_s = self._unfit.get((way[0].name, way[1].name, wanted.agent_id), 0.0)
            return until_s if until_s > began_s else 0.0

        # Of those that refused this agent's session the latest comes last: others have had more time to be mended.
        candidates.sort(key=unfit_until_s)
        attempt = partial(self._attempt_for, wanted.agent_id, on_refused, supply=supply, model=wanted.model)
        deadline_s = began_s + self._timeout_s
        last = ways(self.pool.left_out(wanted)) if wanted.running else []
        clock = self._hedger.clock
        contest = _Handshakes(self.pool, wanted, candidates, attempt, last=last, deadline_s=deadline_s, clock=clock)
        # Somebody waits in the middle of a talk, and a resource has just failed it.
        upstream = await self._hedger.race(contest, is_handshake=True, always=wanted.running)
        if upstream is not None and contest.winner is not None:
            health = ConnectionHealth(self.pool, contest.winner, upstream.socket, expires_s=upstream.expires_s)
            return replace(upstream, health=health)
        ending = contest.ending or Ending(UPSTREAM_FAILED, "no Azure endpoint is configured for talks")
        if contest.ending is None and self.pool.resources:
            ending = Ending(UPSTREAM_FAILED, "no Azure resource that this agent may use is left: try again later")
        raise NoUpstreamError(ending)

    async def join_call(self, endpoint: str, call_id: str) -> AzureSocket:
        """The sideband of a WebRTC call at `endpoint` (docs/azure.md §5.4, §12.3), within the limit.

        Raises MintError.
        """
        name = quote(call_id, safe="")
        url = f"{endpoint}/openai/v1/realtime?call_id={name}"
        if is_live_endpoint(endpoint):
            url = f"{endpoint}/{name}/attach"
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self.open_socket(
                    url, asyncio.get_running_loop().time() + self._timeout_s, self._at_endpoint.get(endpoint)
                )
        except TimeoutError:
            raise TimedOutError(f"no sideband within {self._timeout_s:.1f} s") from None

    async def has_call(self, endpoint: str, call_id: str) -> bool:
        """Whether the WebRTC call can still be joined. Raises MintError where that is not known."""
        try:
            socket = await self.join_call(endpoint, call_id)
        except MintError as error:
            if error.status in NO_SUCH_CALL:
                return False
            raise
        await socket.aclose()
        return True

    async def _attempt_for(
        self, agent_id: str, on_refused: Callable[[str], None], resource: Resource, route: Route, **asked: Any
    ) -> UpstreamConnection:
        """`attempt`, noting what Azure refuses of this agent's session."""
        try:
            upstream = await self.attempt(resource, route, **asked)
        except SessionRefusedError:
            self.settings_report.note_refused(resource=resource.name, agent_id=agent_id)
            self._unfit[resource.name, route.name, agent_id] = self._hedger.clock() + _UNFIT_S
            on_refused(resource.name)
            raise
        self.settings_report.note_left_out(upstream.left_out, resource=resource.name, agent_id=agent_id)
        return upstream

    async def attempt(
        self,
        resource: Resource,
        route: Route,
        *,
        supply: SpecSupplier,
        timeout_s: float,
        model: str = "",
    ) -> UpstreamConnection:
        """One route of one resource, whatever the pool says of it; the doctor uses it too. Raises MintError.

        `model` is the deployment, where it is not the resource's.
        """
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        model = model or resource.model
        try:
            async with asyncio.timeout_at(deadline_s):
                opened = await self.open_route(resource, route, model=model, deadline_s=deadline_s)
                try:
                    spec = await supply(resource)
                    session = route.session(spec)
                    if spec.holds_answers:
                        session = held_session(session, route.dialect)
                    taken = await take_session(opened, session)
                except BaseException:
                    await opened.aclose(graceful=False)
                    raise
        except TimeoutError:
            raise TimedOutError(f"no open session within {timeout_s:.1f} s") from None
        return UpstreamConnection(
            route,
            opened,
            taken.frames,
            expiry_s(taken.frames, skew_s=clock_skew_s(opened)),
            resource.name,
            model,
            session=taken.session,
            left_out=taken.left_out,
            reasons=model_reasons(spec),
        )

    async def open_route(
        self, resource: Resource, route: Route, *, model: str = "", deadline_s: float, query: str = ""
    ) -> AzureSocket:
        """An open socket of that route, in which nothing was said yet; `query` is added to its URL. Raises MintError,
        and TimeoutError at `deadline_s` of the loop's clock.
        """
        credentials = self._credentials.get(resource.name)
        url = f"{route.url_of(model or resource.model)}{query}"
        if not route.takes_keys and credentials is not None and (credentials := credentials.without_key()) is None:
            raise MisconfiguredError("this service takes Entra alone, and AZURE_VOICELIVE_AUTH is key")
        try:
            return await self.open_socket(url, deadline_s, credentials)
        except MintError as error:
            if route.name == "foundry_agent" and (why := _OF_FOUNDRY.get(error.status)) is not None:
                raise AgentRefusedError(why, status=error.status, code=error.code) from None
            raise

    async def open_socket(self, url: str, deadline_s: float, credentials: Credentials | None) -> AzureSocket:
        """A socket opened with the key, or with Entra where the resource has keys disabled. Raises MintError.

        TimeoutError where its time is over.
        """
        if credentials is None:
            raise MisconfiguredError("there is no credential for this endpoint")
        authorization = await current_authorization(credentials, deadline_s)
        try:
            return await self._open(url, authorization, deadline_s)
        except KeysDisabledError:
            if authorization.kind != "key" or not credentials.keys_refused():
                raise
            return await self._open(url, await current_authorization(credentials, deadline_s), deadline_s)

    async def _open(self, url: str, authorization: Authorization, deadline_s: float) -> AzureSocket:
        try:
            return await connect(
                url,
                authorization.headers(),
                names=self._names,
                tls=self._tls,
                max_message_bytes=self._max_message_bytes,
                max_image_bytes=self._max_image_bytes,
                deadline_s=deadline_s,
                log_to=self._picows_log,
                proxy=self._proxy,
            )
        except picows.WSHandshakeError as error:
            raise handshake_error(error, authorization) from None
        except TimeoutError:
            raise
        except ProxyFailedError as error:
            raise TransientError(str(error)) from None
        except ssl.SSLError:
            raise TransientError("the TLS handshake failed") from None
        except (OSError, picows.WSError) as error:
            raise TransientError(f"the connection failed ({type(error).__name__})") from None


class _Handshakes:
    """The handshakes of one talk, as a contest: `candidates` in their order, until `deadline_s` of the clock.

    `last` are those that fail, which are asked as well before a running talk is given up.
    """

    def __init__(
        self,
        pool: Pool,
        wanted: Wanted,
        candidates: Sequence[_Candidate],
        attempt: Callable[..., Coroutine[Any, Any, UpstreamConnection]],
        *,
        last: Sequence[_Candidate],
        deadline_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.ending: Ending | None = None  # for the client, where nothing was connected
        self.winner: PoolPermit | None = None
        self._pool = pool
        self._wanted = wanted
        self._left = list(candidates)
        self._last: Sequence[_Candidate] | None = last  # None once they are among those that are left
        # Whether it asks what rests for faults, too.
        self._early = pool.all_fail(wanted, ((resource, route.name) for resource, route in candidates))
        self._attempt = attempt
        self._deadline_s = deadline_s
        self._clock = clock
        self._made = 0
        self._refused: list[_Candidate] = []  # they got no permit
        self._waits_for_quota = False
        self._closing: set[asyncio.Task[None]] = set()

    def next_call(self, busy: Collection[str]) -> Call[UpstreamConnection] | None:
        """The next handshake at a resource that is not `busy` with one; None where there is none."""
        call = self._next_admitted(busy)
        if call is None and self._last is not None and (self._wanted.running or not self._made):
            # All others are silent, or have failed: what rests for faults is the last way, and may be well again.
            if not self._made:  # the last ways that are left rest shorter than others
                self._pool.ease(self._wanted, list(dict.fromkeys(route.name for _, route in self._refused)))
            last = [] if self._waits_for_quota else self._last
            self._left, self._refused = [*self._left, *self._refused, *last], []  # left are those at busy resources
            self._last = None
            self._early = len(self._pool.resources) > 1
            call = self._next_admitted(busy)
        if self._refused and self.ending is None:
            self.ending = Ending(UPSTREAM_FAILED, "Azure failed a moment ago: ask for a new plan in a moment")
        return call

    def ended(self, call: Call[UpstreamConnection], error: MintError | None) -> None:
        """Notes the outcome of a handshake."""
        about = {
            "resource": call.permit.resource.name,
            "upstream": call.permit.route,
            "ms": round((self._clock() - call.began_s) * 1000),
        }
        if error is None:
            self.winner = call.permit
            log.info("upstream_attempt", **about, outcome="connected")
            return
        if self.ending is None or self.ending.code != UPSTREAM_TIMED_OUT:  # the one that hung is the client's reason
            self.ending = ending_of(error)
        if isinstance(error, TransientError) and not isinstance(error, RateLimitedError):
            # The resource may be down as a whole: its other ways come after those of the others.
            self._left.sort(key=lambda each: each[0].name == call.permit.resource.name)
        level = log.error if isinstance(error, MisconfiguredError) else log.warning
        level("upstream_attempt", **about, outcome=error.outcome, status=error.status, code=error.code, why=str(error))

    async def _run(
        self, resource: Resource, route: Route, timeout_s: float, _call: Call[UpstreamConnection]
    ) -> UpstreamConnection:
        return await self._attempt(resource, route, timeout_s=timeout_s)

    def undone(self, call: Call[UpstreamConnection], late: UpstreamConnection | None) -> None:
        """Closes what a handshake that nobody waited for has opened all the same."""
        del call
        if late is not None:
            closing = asyncio.create_task(late.socket.aclose(graceful=False), name="late-upstream")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def _next_admitted(self, busy: Collection[str]) -> Call[UpstreamConnection] | None:
        """The first handshake that gets a permit; those that get none leave the contest, into `_refused`."""
        wanted = self._wanted
        if self._made:  # others have found out more meanwhile
            self._left.sort(key=lambda each: self._pool.is_sick(each[0].name))
        for candidate in [each for each in self._left if each[0].name not in busy]:
            resource, route = candidate
            self._left.remove(candidate)
            permit = self._pool.admit(
                resource,
                route.name,
                agent_id=wanted.agent_id,
                model=wanted.model,
                session_id=wanted.session_id,
                running=wanted.running,
                early=self._early,
            )
            if permit is not None:
                self._made += 1
                left_s = max(0.001, self._deadline_s - self._clock())
                breakers = [self._pool.breaker(other.name, later.name) for other, later in self._left]
                if any(each.would_admit_early if self._early else each.would_admit for each in breakers):
                    left_s /= 2
                run = partial(self._run, resource, route, left_s)
                return Call(f"connect-{resource.name}-{route.name}", permit, run, limit_s=left_s + _LAST_WORD_S)
            self._refused.append(candidate)
            refusal = self._pool.why_not(
                resource, route.name, agent_id=wanted.agent_id, model=wanted.model, running=wanted.running
            )
            self._waits_for_quota |= refusal.is_quota
            about = {"resource": resource.name, "upstream": route.name}
            log.info("upstream_attempt", **about, outcome="skipped", why=refusal.why)
        return None


def ending_of(error: MintError) -> Ending:
    """What the client is told where Azure took no talk."""
    match error:
        case TimedOutError() | LateCredentialError():
            return Ending(UPSTREAM_TIMED_OUT, "Azure did not answer in time: ask for a new plan")
        case RateLimitedError():
            return Ending(UPSTREAM_FAILED, "Azure takes no more talks just now: ask for a new plan in a moment")
        case SessionRefusedError():
            return SESSION_REFUSED
        case AgentRefusedError():
            return Ending(UPSTREAM_FAILED, str(error), "agent_refused", told=True)
        case MisconfiguredError():
            return Ending(UPSTREAM_FAILED, "Azure refused the broker; its operator has to act")
        case _:
            return Ending(UPSTREAM_FAILED, "Azure refused the talk: ask for a new plan")
