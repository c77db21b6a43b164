"""Voice Live over WebRTC: a call that a control socket signals (docs/azure.md §12.1)."""

from functools import partial
from typing import Any

from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from token_broker.simulator import azure_errors
from token_broker.simulator.auth import Credential, admit
from token_broker.simulator.calls.ongoing import OngoingCalls
from token_broker.simulator.calls.signalling import ControlSocket, OpenedTalk
from token_broker.simulator.faults.call_faults import NoVoiceLiveWebrtcFault, OfferSessionFault
from token_broker.simulator.faults.talk_behaviour import TalkBehaviour
from token_broker.simulator.realtime.sockets import RealtimeSockets
from token_broker.simulator.realtime.talk_opening import Opening, new_talk
from token_broker.simulator.resource import Resource
from token_broker.simulator.session_bodies.check import InvalidRequest, check
from token_broker.simulator.session_bodies.voice_live_session import OpenAIVoice, VoiceLiveSession

_PATH = "/voice-live/realtime/calls"
_CREDENTIALS = frozenset({Credential.KEY, Credential.ENTRA})


class VoiceLiveCalls:
    """Voice Live's control sockets at one simulated resource."""

    def __init__(self, resource: Resource, calls: OngoingCalls, sockets: RealtimeSockets) -> None:
        self._resource = resource
        self._calls = calls
        self._sockets = sockets

    def routes(self) -> list[WebSocketRoute]:
        config = self._resource.config
        if not config.kinds & {"unified", "project"} or not config.voice_live_webrtc:
            return []
        return [WebSocketRoute(_PATH, self.control)]

    async def control(self, websocket: WebSocket) -> None:
        await self._sockets.serve(websocket, self.check_in, self.hold)

    def check_in(self, websocket: WebSocket) -> Opening:
        """Looks at a handshake.

        Raises:
            AzureError: it is refused.

        """
        config, version = self._resource.config, websocket.query_params.get("api-version")
        if self._resource.faults.switched(NoVoiceLiveWebrtcFault, _PATH):
            raise azure_errors.resource_not_found()
        if version in config.voice_live_calls_unauthorized_versions:
            raise azure_errors.key_missing()
        if version not in config.voice_live_calls_api_versions:
            raise azure_errors.resource_not_found()
        admit(self._sockets.credential_anywhere(websocket), config, _CREDENTIALS)
        return self._sockets.voice_live_opening(websocket)

    async def hold(self, websocket: WebSocket, opening: Opening) -> None:
        """Serves an accepted socket."""
        open_talk = partial(self._open_talk, opening)
        await ControlSocket(websocket, self._resource, self._calls, open_talk).run()

    def _open_talk(self, opening: Opening, session: dict[str, Any] | None) -> OpenedTalk:
        refused = None
        if session is not None:
            try:
                opening = self._applied(opening, session)
            except InvalidRequest as invalid:
                fault = self._resource.faults.switched(OfferSessionFault, _PATH)
                if fault is None:
                    raise
                refused = invalid if fault.how == "error" else None
        talk = new_talk(self._resource, opening, _PATH, server_plays=True, check_update=check_unchanged)
        return OpenedTalk(talk, refused)

    def _applied(self, opening: Opening, session: dict[str, Any]) -> Opening:
        """The opening with the offer's session put into it, as an update of a talk that has not begun."""
        taken = TalkBehaviour(self._resource.faults, _PATH).take_update(session)
        asked = check(VoiceLiveSession, taken, "session")
        updated = opening.dialect.updated(opening.session, asked.model_dump(mode="json", exclude_unset=True))
        if updated.model != opening.session.model:
            raise InvalidRequest("invalid_value", "The model of a session can't be changed.", "session.model")
        return Opening(opening.dialect, updated)


def check_unchanged(before: VoiceLiveSession, after: VoiceLiveSession) -> None:
    """Refuses an update of a call's session that changes what only its offer can say.

    Raises:
        InvalidRequest: it changes the kind of turn detection, or whose voice speaks.

    """
    kinds = [session.turn_detection.type if session.turn_detection else None for session in (before, after)]
    if kinds[0] != kinds[1]:
        message = f"Cannot update turn_detection type from {kinds[0]} to {kinds[1]}."
        raise InvalidRequest("invalid_value", message, "session.turn_detection.type")
    providers = [
        "OpenAIVoice" if isinstance(session.voice, OpenAIVoice) else "AzureVoice" for session in (before, after)
    ]
    if providers[0] != providers[1]:
        message = f"Cannot update voice from {providers[0]} to {providers[1]}"
        raise InvalidRequest("invalid_value", message, "session.voice")
