"""Connects a talk to one of Azure's WebSockets: the pool's resources in their order, and the routes of each.

The first that accepts the agent's session has the talk, within one time limit for all. Pool and error tree are those of
the strategies' chain. A redirect is never followed: it would send the credential to another host.
"""

import asyncio
import json
import logging
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from urllib.parse import quote

import picows
import structlog
from aiohttp.abc import AbstractResolver
from pydantic import SecretStr

from strategies.base import Dialect, SessionSpec
from strategies.credentials import Authorization, Credentials
from strategies.errors import (
    CredentialError,
    KeysDisabledError,
    MalformedError,
    MintError,
    MisconfiguredError,
    RateLimitedError,
    RejectedError,
    TimedOutError,
    TransientError,
)
from strategies.health import CircuitBreaker
from strategies.hedging import Hedger
from strategies.outbound_proxy import OutboundProxy, ProxyFailedError
from strategies.resources import Resource, Wanted
from strategies.upstream import Answer, classify
from token_broker.relay.azure.connection_health import ConnectionHealth
from token_broker.relay.azure.dns_cache import DnsCache
from token_broker.relay.azure.handshakes import Handshakes
from token_broker.relay.azure.route import Route, UpstreamConnection, make_routes
from token_broker.relay.azure.socket import AzureSocket, connect
from token_broker.relay.event_text import SESSION_EVENTS, event_type, parsed
from token_broker.server.close_codes import UPSTREAM_FAILED, Ending
from token_broker.sessions.plans import SpecSupplier
from token_broker.settings import UpstreamName

__all__ = ["NoUpstreamError", "Route", "UpstreamConnection", "UpstreamConnector", "make_routes"]

log = structlog.get_logger("token_broker.relay")

SESSION_EVENT_ID = "broker_session"
_LONGEST_SESSION_S = 86_400.0
_FIRST_FRAMES_AT_MOST = 64  # Azure sends two or three; all are held until the session is accepted


class NoUpstreamError(Exception):
    """No upstream accepted the talk; `ending` is for the client."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.reason)
        self.ending = ending


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
        self._credentials = credentials
        self._at_endpoint = at_endpoint
        self._names = DnsCache(resolver)
        self._timeout_s = timeout_s
        self._max_message_bytes = max_message_bytes
        self._max_image_bytes = max_image_bytes
        self._tls = tls
        self._proxy = proxy
        self._picows_log = logging.getLogger("token_broker.relay.picows")
        self._picows_log.setLevel(logging.CRITICAL)  # below INFO it logs headers, the key included

    @property
    def secrets(self) -> tuple[SecretStr, ...]:
        """The credentials in use, which an error of Azure's could quote."""
        return tuple(secret for credentials in self._credentials.values() for secret in credentials.secrets)

    @property
    def breakers(self) -> dict[tuple[str, UpstreamName], CircuitBreaker]:
        """The breakers, by resource and route."""
        return {
            (name, route.name): self.pool.breaker(name, route.name)
            for name, routes in self.routes.items()
            for route in routes
        }

    def resource(self, name: str) -> Resource:
        """The resource of that name, which an open connection has."""
        return next(each for each in self.pool.resources if each.name == name)

    async def aclose(self) -> None:
        """Cancels lookups that still run; call it when no talk is left."""
        await self._names.aclose()

    async def connect(
        self,
        supply: SpecSupplier,
        *,
        wanted: Wanted,
        only: UpstreamName | None = None,
        prefer: Dialect | None = None,
        after: UpstreamConnection | None = None,
    ) -> UpstreamConnection:
        """An upstream whose session is the agent's, within the limit for all together. Raises NoUpstreamError.

        `only` leaves out all but that route: for a talk that has to keep its dialect. Of one resource's routes, those
        that speak what the client would `prefer` are tried first. `after` is the connection that a running talk lost:
        its dialect, and with it its voice, is tried at every resource before another one.
        """
        candidates = self._candidates(wanted, only=only, prefer=prefer, after=after)
        attempt = partial(self.attempt, supply=supply, model=wanted.model)
        deadline_s = time.monotonic() + self._timeout_s
        contest = Handshakes(self.pool, wanted, candidates, attempt, deadline_s=deadline_s)
        upstream = await self._hedger.race(contest, is_handshake=True)
        if upstream is not None and contest.winner is not None:
            health = ConnectionHealth(self.pool, contest.winner, upstream.socket, expires_s=upstream.expires_s)
            return replace(upstream, health=health)
        ending = contest.ending or Ending(UPSTREAM_FAILED, "no Azure endpoint is configured for talks")
        if contest.ending is None and self.pool.resources:
            ending = Ending(UPSTREAM_FAILED, "no Azure resource that this agent may use is left: try again later")
        raise NoUpstreamError(ending)

    def _candidates(
        self, wanted: Wanted, *, only: UpstreamName | None, prefer: Dialect | None, after: UpstreamConnection | None
    ) -> list[tuple[Resource, Route]]:
        """What to try, in order."""
        found: list[tuple[Resource, Route]] = []
        for resource in self.pool.order(wanted):
            routes = [route for route in self.routes[resource.name] if only is None or route.name == only]
            if prefer is not None:
                routes.sort(key=lambda route: route.dialect != prefer)
            found += [(resource, route) for route in routes]
        if after is not None:
            found.sort(key=lambda pair: pair[1].dialect != after.route.dialect)
        return found

    async def join_call(self, endpoint: str, call_id: str) -> AzureSocket:
        """The sideband of a WebRTC call at `endpoint` (docs/azure.md §5.4), within the limit. Raises MintError."""
        url = f"{endpoint}/openai/v1/realtime?call_id={quote(call_id, safe='')}"
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._opened(
                    url, asyncio.get_running_loop().time() + self._timeout_s, self._at_endpoint.get(endpoint)
                )
        except TimeoutError:
            raise TimedOutError(f"no sideband within {self._timeout_s:.1f} s") from None

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
                opened = await self._opened(route.url_of(model), deadline_s, self._credentials.get(resource.name))
                try:
                    first = await _take_session(opened, route, await supply(resource))
                except BaseException:
                    await opened.aclose(graceful=False)
                    raise
        except TimeoutError:
            raise TimedOutError(f"no open session within {timeout_s:.1f} s") from None
        return UpstreamConnection(route, opened, first, _expiry_s(first), resource.name, model)

    async def _opened(self, url: str, deadline_s: float, credentials: Credentials | None) -> AzureSocket:
        """A socket opened with the key, or with Entra where the resource has keys disabled."""
        if credentials is None:
            raise MisconfiguredError("there is no credential for this endpoint")
        authorization = await _current(credentials, deadline_s)
        try:
            return await self._open(url, authorization, deadline_s)
        except KeysDisabledError:
            if authorization.kind != "key" or not credentials.keys_refused():
                raise
            return await self._open(url, await _current(credentials, deadline_s), deadline_s)

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
            raise _handshake_error(error, authorization) from None
        except TimeoutError:
            raise
        except ProxyFailedError as error:
            raise TransientError(str(error)) from None
        except ssl.SSLError:
            raise TransientError("the TLS handshake failed") from None
        except (OSError, picows.WSError) as error:
            raise TransientError(f"the connection failed ({type(error).__name__})") from None


async def _current(credentials: Credentials, deadline_s: float) -> Authorization:
    """The credential for one attempt; TimeoutError where its source took all the time."""
    loop = asyncio.get_running_loop()
    try:
        return await credentials.current(timeout_s=deadline_s - loop.time())
    except CredentialError:
        if loop.time() >= deadline_s:
            raise TimeoutError from None
        raise


async def _take_session(opened: AzureSocket, route: Route, spec: SessionSpec) -> list[str]:
    """Sends the agent's session and returns the frames up to Azure's `session.updated`. Raises MintError."""
    update = {"type": "session.update", "event_id": SESSION_EVENT_ID, "session": route.session(spec)}
    opened.send(json.dumps(update, separators=(",", ":")))
    frames: list[str] = []
    while True:
        await opened.wait()
        if not opened.frames:
            raise TransientError(opened.failure or "the connection to Azure broke")
        text = opened.take()
        kind = event_type(text)
        if kind is None or len(frames) >= _FIRST_FRAMES_AT_MOST:
            raise MalformedError("what came instead of a session is none of Azure's events")
        if kind == "error":  # its text may quote the session: only its code is used
            error = json.loads(text).get("error")
            code = error.get("code") if isinstance(error, dict) else None
            if code in {"rate_limit_exceeded", "too_many_requests"}:
                raise RateLimitedError("Azure's rate limit is reached")
            if code in {"server_error", "internal_error"}:
                raise TransientError("Azure failed", status=500)  # what it wanted of the agent's session, perhaps
            raise RejectedError("Azure refuses the agent's session")
        frames.append(text)
        if kind == "session.updated":
            return frames


def _expiry_s(frames: Sequence[str]) -> float | None:
    """When the session ends that these events show (docs/azure.md §8.1), by the loop's clock; None: they don't say.

    A time that is past, or more than a day away, comes of a clock that is wrong, ours perhaps: it says nothing.
    """
    for frame in reversed(frames):
        if event_type(frame) not in SESSION_EVENTS:
            continue
        session = parsed(frame).get("session")
        at_s = session.get("expires_at") if isinstance(session, dict) else None
        if isinstance(at_s, int | float) and not isinstance(at_s, bool):
            left_s = at_s - time.time()
            if 0 < left_s <= _LONGEST_SESSION_S:
                return asyncio.get_running_loop().time() + left_s
    return None


def _handshake_error(error: picows.WSHandshakeError, authorization: Authorization) -> MintError:
    response = error.response
    if response is None or response.status == 101:  # noqa: PLR2004
        return MalformedError("the handshake's answer is not WebSocket's")
    body = error.raw_body or b""
    answer = Answer(int(response.status), response.headers, body)
    found = classify(answer, now_s=time.time())
    if found is None:
        return MalformedError("the handshake was answered as if it were a plain request", status=answer.status)
    if answer.status == 403 and found.code is None and authorization.kind == "key":  # noqa: PLR2004
        # picows reads no further than the headers: the body that says whether keys are off may not have come yet.
        return KeysDisabledError(str(found), status=403, request_id=found.request_id)
    return found
