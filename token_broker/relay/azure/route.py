"""Azure's WebSockets as the relay sees them: a resource's routes, an open connection, and what it says of the resource.

A handshake proves nothing: a resource may take every session and fail every answer. A connection works when an answer
of it was completed, or when 30 s have passed without a fault where nobody asked for one.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import quote

from strategies.base import Dialect, SessionSpec
from strategies.endpoint import Target
from strategies.errors import MintError, RateLimitedError, TransientError
from strategies.pool import Pool, PoolPermit
from strategies.session_model.session_fields import ga_realtime_session, voice_live_session
from token_broker.relay.azure.socket import CLOSED_BY_BROKER, AzureSocket
from token_broker.relay.azure.stated_faults import LIMIT_CODES, last_word, stated_fault
from token_broker.server.close_codes import Ending
from token_broker.settings import UpstreamName

__all__ = [
    "ConnectionHealth",
    "NoUpstreamError",
    "Route",
    "RouteName",
    "UpstreamConnection",
    "foundry_route",
    "make_routes",
    "signalled_route",
]

RouteName = UpstreamName | Literal["voice_live_webrtc", "foundry_agent", "gpt_live"]
"""The routes of `BROKER_PROXY_UPSTREAMS`; the control socket of a call; the voice of a Foundry agent; GPT-Live's."""

_PROVEN_AFTER_S = 30.0
_LAST_WORD_S = 2.0  # what Azure said just before it ended the connection is why it did
_SESSION_END_S = 60.0  # Azure ends a session by its clock: that is no fault of the resource


@dataclass(frozen=True, slots=True)
class Route:
    """One of Azure's WebSockets (docs/azure.md §3), and the shape of its session (§4.3, §6.2)."""

    name: RouteName
    dialect: Dialect
    url: str  # http or https, as the endpoint is written, up to the deployment's name
    session: Callable[[SessionSpec], dict[str, Any]]
    names_model: bool = True
    takes_keys: bool = True

    def url_of(self, model: str) -> str:
        """The URL for sessions with that deployment."""
        return f"{self.url}{quote(model, safe='')}" if self.names_model else self.url


class NoUpstreamError(Exception):
    """No upstream accepted the talk; `ending` is for the client."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.reason)
        self.ending = ending


class ConnectionHealth:
    """Reports one connection. `expires_s` is when its session ends, by the loop's clock, where Azure said so."""

    def __init__(self, pool: Pool, permit: PoolPermit, socket: AzureSocket, *, expires_s: float | None) -> None:
        self._pool = pool
        self._permit = permit
        self._expires_s = expires_s
        self._loop = asyncio.get_running_loop()
        self._proven = False
        self._failed = False
        self._answer_failed = False
        self._socket = socket
        self._told: tuple[MintError | None, float] | None = None  # a fault that Azure named; None is counted already
        self.was_asked: Callable[[], bool] = lambda: False  # for an answer: then time alone proves nothing
        self._timer = self._loop.call_later(_PROVEN_AFTER_S, self._pass_time)
        socket.on_end = self._ended
        if socket.failure is not None:
            self._ended(socket.failure)

    def works(self) -> None:
        """An answer was completed, or enough time has passed in which none was asked for."""
        self._timer.cancel()
        self._answer_failed = False
        self._told = None
        if not self._proven and not self._failed:
            self._proven = True
            self._pool.succeeded(self._permit)

    def _pass_time(self) -> None:
        if not self.was_asked():
            self.works()

    def answer_failed(self, code: str) -> None:
        """Azure ended an answer with a failure. It counts once, until an answer is completed.

        A limit is the model's. Anything else may be this agent's, as a 5xx is.
        """
        self._timer.cancel()
        self._told = (None, self._loop.time())
        if self._failed or self._answer_failed:
            return
        self._answer_failed = True
        if code in LIMIT_CODES:
            self._pool.failed(
                self._permit, RateLimitedError("Azure ends answers at a limit", is_of_tokens=True, status=429)
            )
        else:
            self._pool.failed(self._permit, TransientError("Azure's answers fail", status=500))

    def told_error(self, error: object) -> None:
        """Azure sent an `error`. It counts where Azure ends the connection for it."""
        if (fault := stated_fault(error, in_talk=True)) is not None:
            self._told = (fault, self._loop.time())

    def failed(self, error: MintError) -> None:
        """The connection broke, fell silent, or gives no answers, however long it worked before. It counts once."""
        self._timer.cancel()
        if not self._failed:
            self._failed = True
            self._pool.failed(self._permit, error)

    def _ended(self, why: str) -> None:
        self._timer.cancel()
        by_the_clock = self._expires_s is not None and self._loop.time() >= self._expires_s - _SESSION_END_S
        if why == CLOSED_BY_BROKER or by_the_clock:
            return
        # A resource that says that a limit is reached, or that it fails at this session, can be reached all the same.
        if self._told is not None and self._loop.time() - self._told[1] <= _LAST_WORD_S:
            fault = self._told[0]
            if fault is None:
                self._failed = True
                return
        else:
            fault = last_word(self._socket.frames)
        self.failed(fault or TransientError(why))


@dataclass(frozen=True, slots=True)
class UpstreamConnection:
    """An open socket whose session is the agent's. `first` are the frames up to `session.updated`, in order.

    `expires_s` is the time, of the loop's clock, at which Azure ends the session, where Azure said it. `resource` is
    the name of the resource; `model` the deployment. Tell `health` when an answer was completed, and when Azure falls
    silent; it notices by itself when the socket breaks. `session` is what the agent's settings were confirmed as, and
    `left_out` names those that Azure refused. `reasons`: the model is of a family that thinks before it answers.
    """

    route: Route
    socket: AzureSocket
    first: list[str] = field(default_factory=list)
    expires_s: float | None = None
    resource: str = ""
    model: str = ""
    health: ConnectionHealth | None = None
    session: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    reasons: bool = False


def make_routes(target: Target, names: Sequence[UpstreamName], *, api_version: str) -> list[Route]:
    """The named routes that exist on `target`, in the order of `names`. `api_version` is Voice Live's; GA has none."""
    routes: list[Route] = []
    for name in names:
        if name == "voice_live" and target.unified_base is not None:
            url = f"{target.unified_base}/voice-live/realtime?api-version={api_version}&model="
            routes.append(Route(name, "preview", url, voice_live_session))
        elif name == "openai_realtime":
            routes.append(Route(name, "ga", f"{target.openai_base}/openai/v1/realtime?model=", ga_realtime_session))
    return routes


def signalled_route(target: Target, *, api_version: str) -> Route | None:
    """Voice Live's control socket for calls by WebRTC (docs/azure.md §12.1); None where the endpoint has no Voice Live.

    It has an `api_version` of its own, by which its session is made.
    """
    if target.unified_base is None:
        return None

    def session(spec: SessionSpec) -> dict[str, Any]:
        return voice_live_session(replace(spec, voice_live_version=api_version))

    url = f"{target.unified_base}/voice-live/realtime/calls?api-version={api_version}&model="
    return Route("voice_live_webrtc", "preview", url, session)


def foundry_route(target: Target, *, project: str, name: str, version: str | None) -> Route | None:
    """The voice of a Foundry agent (docs/azure.md §12.2); None where the endpoint has no projects.

    The service has the agent's definition: its session is not ours to state. It takes no keys.
    """
    if target.unified_base is None:
        return None
    path = f"/api/projects/{quote(project, safe='')}/agents/{quote(name, safe='')}/endpoint/protocols/voice"
    query = f"?api-version=v1&foundry_features={quote('VoiceAgents=V1Preview', safe='')}"
    chosen = "" if version is None else f"&x-agent-version-override={quote(version, safe='')}"
    url = f"{target.unified_base}{path}{query}{chosen}"
    return Route("foundry_agent", "ga", url, lambda _spec: {}, names_model=False, takes_keys=False)
