"""Azure's WebSockets as the relay sees them: the routes that a resource has, and an open connection."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from strategies.base import Dialect, SessionSpec, ga_realtime_session, voice_live_session
from strategies.endpoint import Target
from token_broker.relay.azure.connection_health import ConnectionHealth
from token_broker.relay.azure.socket import AzureSocket
from token_broker.settings import UpstreamName

__all__ = ["Route", "UpstreamConnection", "make_routes"]


@dataclass(frozen=True, slots=True)
class Route:
    """One of Azure's WebSockets (docs/azure.md §3), and the shape of its session (§4.3, §6.2)."""

    name: UpstreamName
    dialect: Dialect
    url: str  # http or https, as the endpoint is written, up to the deployment's name
    session: Callable[[SessionSpec], dict[str, Any]]

    def url_of(self, model: str) -> str:
        """The URL for sessions with that deployment."""
        return f"{self.url}{quote(model, safe='')}"


@dataclass(frozen=True, slots=True)
class UpstreamConnection:
    """An open socket whose session is the agent's. `first` are the frames up to `session.updated`, in order.

    `expires_s` is the time, of the loop's clock, at which Azure ends the session, where Azure said it. `resource` is
    the name of the resource; `model` the deployment. Tell `health` when an answer was completed, and when Azure falls
    silent; it notices by itself when the socket breaks.
    """

    route: Route
    socket: AzureSocket
    first: list[str] = field(default_factory=list)
    expires_s: float | None = None
    resource: str = ""
    model: str = ""
    health: ConnectionHealth | None = None


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
