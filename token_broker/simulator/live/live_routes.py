"""GPT-Live's routes: a WebSocket of its own, WebRTC by a POST, and a sideband for a session (docs/azure.md §12.3)."""

import secrets
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from token_broker.simulator import azure_errors
from token_broker.simulator.auth import Credential, admit
from token_broker.simulator.calls.ongoing import OfferRefused, OngoingCalls, load_webrtc
from token_broker.simulator.faults.call_faults import (
    DataChannelFault,
    DieAfterFault,
    IceNeverFault,
    ManySidebandsFault,
    NoPageRightsFault,
)
from token_broker.simulator.faults.http_faults import CALL_FAULT
from token_broker.simulator.faults.interruptions import Interruptions
from token_broker.simulator.faults.talk_behaviour import TalkBehaviour
from token_broker.simulator.live.client_events import SessionStart, read_live_event
from token_broker.simulator.live.live_talk import LiveOptions, SimulatedLiveTalk, stated_error
from token_broker.simulator.live.session_config import LiveCreate, LiveSession, SocketSession, allowed
from token_broker.simulator.realtime.responses import SpeechRate
from token_broker.simulator.realtime.sockets import RealtimeSockets, observe
from token_broker.simulator.realtime.talk_socket import hold, payload
from token_broker.simulator.records.transcript import TalkRecord
from token_broker.simulator.resource import Resource
from token_broker.simulator.session_bodies.check import UNKNOWN_PARAMETER, InvalidRequest, check, parse_json

if TYPE_CHECKING:
    from token_broker.simulator.realtime.call import Call

_PATH = "/openai/v1/live/sessions"
_CREDENTIALS = frozenset({Credential.KEY, Credential.KEY_AS_BEARER, Credential.ENTRA})
# What the page never gets: sound goes over RTP, and its own is no news to it.
_SOUND = frozenset({"session.output_audio.delta", "session.input_audio.append"})


class LiveRoutes:
    """The Live sessions of one simulated resource."""

    def __init__(self, resource: Resource, calls: OngoingCalls, sockets: RealtimeSockets) -> None:
        self._resource = resource
        self._calls = calls
        self._sockets = sockets
        self._attached: set[str] = set()

    def routes(self) -> list[BaseRoute]:
        if not self._resource.config.live_deployments:
            return []
        routes: list[BaseRoute] = [
            WebSocketRoute(_PATH, self.socket),
            Route(_PATH, self.create, methods=["POST"]),
            WebSocketRoute(f"{_PATH}/{{session_id}}/attach", self.attach),
        ]
        if self._resource.config.live_hangup:
            routes.append(Route(f"{_PATH}/{{session_id}}/hangup", self.hang_up, methods=["POST"]))
        return routes

    # --- WebRTC -----------------------------------------------------------------------------------------------------

    async def create(self, request: Request) -> Response:
        """Takes an offer with the session's configuration."""
        admit(self._resource.credential_of(request.headers), self._resource.config, _CREDENTIALS)
        if "api-version" in request.query_params:
            raise azure_errors.api_version_not_allowed()
        asked = check(LiveCreate, parse_json(await request.body()))
        self.require_deployment(asked.session)
        if asked.session.client and self._resource.faults.switched(NoPageRightsFault, _PATH):
            message = "Unknown parameter: 'session.client'."
            raise azure_errors.invalid_request(UNKNOWN_PARAMETER, message, param="session.client")
        await load_webrtc()
        from token_broker.simulator.realtime.call import Lines, unusable

        talk = self._new_talk(asked.session)
        rights = asked.session.client.data_channel if asked.session.client else None
        may_send = rights.allowed_client_events if rights else None
        may_get = rights.allowed_server_events if rights else None
        lines = Lines(
            page=lambda event: event["type"] not in _SOUND and allowed(may_get, event["type"]),
            heeds_page=lambda text: allowed(may_send, _name_of(text)),
            reflects_sound=True,
            channel=self._resource.faults.switched(DataChannelFault, _PATH),
        )
        try:
            call, answer = await self._calls.answer(talk, asked.transport.sdp, _PATH, lines)
        except OfferRefused as refused:
            message = f"The offer can't be answered: {refused}"
            raise azure_errors.invalid_request("invalid_offer", message, param="transport.sdp") from refused
        fault = request.scope["extensions"].get(CALL_FAULT)
        self._calls.start(call, talk.session_id, fault if isinstance(fault, DieAfterFault) else None)
        sdp = unusable(answer) if isinstance(fault, IceNeverFault) else answer
        made = {"session": {"id": talk.session_id}, "transport": {"type": "webrtc", "sdp": sdp}}
        return JSONResponse(made, 201, azure_errors.MODEL_HEADERS)

    async def hang_up(self, request: Request) -> Response:
        admit(self._resource.credential_of(request.headers), self._resource.config, _CREDENTIALS)
        self._calls.find(request.path_params["session_id"]).receive('{"type":"session.close"}')
        return Response(status_code=200)

    # --- The sideband -----------------------------------------------------------------------------------------------

    async def attach(self, websocket: WebSocket) -> None:
        """The sideband of a session over WebRTC; as a rule one at a time."""
        session_id = websocket.path_params["session_id"]

        async def hold_sideband(websocket: WebSocket, call: "Call") -> None:
            self._attached.add(session_id)
            try:
                await observe(websocket, call, states_session=self._resource.config.sideband_states_session)
            finally:
                self._attached.discard(session_id)

        await self._sockets.serve(websocket, self.find_session, hold_sideband)

    def find_session(self, websocket: WebSocket) -> "Call":
        """The session that a sideband asks for.

        Raises:
            AzureError: there is none, or it has a sideband.

        """
        self.admit_socket(websocket)
        session_id = websocket.path_params["session_id"]
        call = self._calls.join(session_id, websocket.scope["path"])
        several = self._resource.faults.switched(ManySidebandsFault, websocket.scope["path"])
        if session_id in self._attached and not several:
            raise azure_errors.structured(409, "sideband_already_attached", "The session has a sideband already.")
        return call

    # --- The WebSocket ----------------------------------------------------------------------------------------------

    async def socket(self, websocket: WebSocket) -> None:
        """A session whose first message is `session.start`."""
        await self._sockets.serve(websocket, self.admit_socket, self.hold_session)

    def admit_socket(self, websocket: WebSocket) -> None:
        """Looks at a handshake.

        Raises:
            AzureError: it is refused.

        """
        admit(self._resource.credential_of(websocket.headers), self._resource.config, _CREDENTIALS)
        if "api-version" in websocket.query_params:
            raise azure_errors.api_version_not_allowed()

    async def hold_session(self, websocket: WebSocket, _admitted: None) -> None:
        """Waits for a start that can be followed, and holds the session."""
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            event_id: str | None = None
            try:
                value = parse_json(payload(message))
                event_id = value.get("event_id") if isinstance(value, dict) else None
                event = read_live_event(value)
                if not isinstance(event, SessionStart):
                    raise InvalidRequest("session_not_started", "The first event is 'session.start'.", "type")
                session = check(SocketSession, event.session, "session")
                self.require_deployment(session)
            except (InvalidRequest, azure_errors.AzureError) as refused:
                if not isinstance(refused, InvalidRequest):
                    refused = InvalidRequest("model_not_found", "The model does not exist.", "session.model")
                error = {
                    "type": "error",
                    "event_id": f"event_{secrets.token_hex(11)}",
                    "error": stated_error(refused, event_id),
                }
                await websocket.send_json(error)
                continue
            talk = self._new_talk(session, event.event_id)
            await hold(websocket, talk, Interruptions(self._resource.faults, _PATH))
            return

    def require_deployment(self, session: LiveSession) -> None:
        """Refuses a model that is not deployed.

        Raises:
            AzureError: it is not.

        """
        if session.model not in self._resource.config.live_deployments:
            raise azure_errors.deployment_not_found()

    def _new_talk(self, session: LiveSession, client_event_id: str | None = None) -> SimulatedLiveTalk:
        resource, config = self._resource, self._resource.config
        stated_s, longest_s = TalkBehaviour(resource.faults, _PATH).expiry(config.longest_talk_s)
        options = LiveOptions(
            speech_rate=SpeechRate(config.thinking_s, config.answer_speed),
            longest_s=longest_s,
            expires_at=int(resource.clock.now() + (config.longest_talk_s if stated_s is None else stated_s)),
            next_response=resource.scripted.take,
            record=TalkRecord(resource.transcript, resource.name),
        )
        return SimulatedLiveTalk(session, options, f"live_{secrets.token_hex(16)}", client_event_id)


def _name_of(text: str | bytes) -> str:
    try:
        value: Any = parse_json(text)
    except InvalidRequest:
        return ""
    return str(value.get("type")) if isinstance(value, dict) else ""
