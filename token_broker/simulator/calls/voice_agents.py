"""Foundry's voice agents: talks whose session the service takes from its own agent (docs/azure.md §12.2)."""

from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from token_broker.simulator import azure_errors
from token_broker.simulator.auth import Credential, admit
from token_broker.simulator.calls.ongoing import OngoingCalls
from token_broker.simulator.calls.signalling import ControlSocket, OpenedTalk
from token_broker.simulator.config import SimulatedVoiceAgent
from token_broker.simulator.realtime.dialects import GA
from token_broker.simulator.realtime.sockets import RealtimeSockets
from token_broker.simulator.realtime.talk_opening import Opening, new_talk
from token_broker.simulator.resource import Resource
from token_broker.simulator.session_bodies.check import InvalidRequest, parse_json
from token_broker.simulator.session_bodies.ga_session import RealtimeSession

_PATH = "/api/projects/{project}/agents/{agent}/endpoint/protocols/voice"
_OPT_IN = "VoiceAgents=V1Preview"
_API_VERSION = "v1"
# Browsers can't set headers: there the SDK offers its token as a subprotocol.
_TOKEN_SUBPROTOCOL = "authorization.bearer."  # noqa: S105 - what stands before a token
_LARGEST_INPUT_BYTES = 32 * 1024
_DEEPEST_INPUT = 16


class VoiceAgents:
    """The voice agents of one simulated resource."""

    def __init__(self, resource: Resource, calls: OngoingCalls, sockets: RealtimeSockets) -> None:
        self._resource = resource
        self._calls = calls
        self._sockets = sockets

    def routes(self) -> list[WebSocketRoute]:
        if not self._resource.config.kinds & {"unified", "project"}:
            return []
        return [WebSocketRoute(_PATH, self.voice)]

    async def voice(self, websocket: WebSocket) -> None:
        """A talk over this socket, or with `transport=webrtc` one that it signals."""
        by_webrtc = websocket.query_params.get("transport") == "webrtc"
        await self._sockets.serve(websocket, self.check_in, self.hold_call if by_webrtc else self._sockets.hold)

    def check_in(self, websocket: WebSocket) -> Opening:
        """Looks at a handshake, in the order that the service is documented to.

        Raises:
            AzureError: it is refused.

        """
        headers, query = MutableHeaders(raw=list(websocket.headers.raw)), websocket.query_params
        for name in websocket.scope["subprotocols"]:
            if name.startswith(_TOKEN_SUBPROTOCOL):
                headers.setdefault("authorization", f"Bearer {name.removeprefix(_TOKEN_SUBPROTOCOL)}")
        admit(self._resource.credential_of(headers), self._resource.config, {Credential.ENTRA})
        if query.get("api-version") != _API_VERSION:
            raise azure_errors.api_version_not_supported()
        if _OPT_IN not in (headers.get("foundry-features"), query.get("foundry_features")):
            message = f"This operation is in preview: it needs the header 'Foundry-Features: {_OPT_IN}'."
            raise azure_errors.structured(400, "preview_feature_required", message)
        agent = self.agent_of(websocket)
        if not agent.enabled:
            raise azure_errors.structured(409, "agent_disabled", "The agent is disabled.")
        transport = query.get("transport", "websocket")
        if transport == "webrtc" and not agent.webrtc:
            raise azure_errors.structured(404, "NotFound", "The agent does not offer WebRTC.")
        if transport == "webrtc" and agent.kind != "prompt":
            message = f"WebRTC is not supported for agents of kind '{agent.kind}'."
            raise azure_errors.structured(400, "invalid_request", message)
        if transport not in ("webrtc", "websocket") or query.get("store", "true").lower() not in ("true", "false"):
            raise azure_errors.structured(400, "invalid_request", "Invalid value of 'transport' or 'store'.")
        if "structured_input" in query:
            check_input(query["structured_input"])
        session: dict[str, Any] = {"type": "realtime", "model": agent.model, "instructions": agent.instructions}
        return Opening(GA, RealtimeSession.model_validate(session | {"tools": list(agent.tools)}))

    def agent_of(self, websocket: WebSocket) -> SimulatedVoiceAgent:
        """The agent that the path names.

        Raises:
            AzureError: there is none.

        """
        config, named = self._resource.config, websocket.path_params
        if config.projects is not None and named["project"] not in config.projects:
            raise azure_errors.project_not_found(named["project"])
        if named["agent"] not in config.voice_agents:
            raise azure_errors.structured(404, "NotFound", f"Agent not found: {named['agent']}")
        return config.voice_agents[named["agent"]]

    async def hold_call(self, websocket: WebSocket, opening: Opening) -> None:
        """Signals a call. What a client says about the session is left aside."""
        path = websocket.scope["path"]
        opened = OpenedTalk(new_talk(self._resource, opening, path, server_plays=True))
        await ControlSocket(websocket, self._resource, self._calls, lambda _session: opened, opened.talk).run()


def check_input(text: str) -> None:
    """Refuses a `structured_input` that is no JSON, too large, or nested too deeply.

    Raises:
        AzureError: it is refused.

    """
    try:
        levels, depth = [parse_json(text)], 1
    except InvalidRequest as invalid:
        raise azure_errors.structured(400, "invalid_request", "'structured_input' is no JSON.") from invalid
    # Level by level: a recursive look would need as much of the stack as the input asks for.
    while levels := [
        inner
        for value in levels
        if isinstance(value, dict | list)
        for inner in (value.values() if isinstance(value, dict) else value)
    ]:
        depth += 1
    if len(text.encode()) > _LARGEST_INPUT_BYTES or depth > _DEEPEST_INPUT:
        raise azure_errors.structured(400, "invalid_request", "'structured_input' is too large or nested too deeply.")
