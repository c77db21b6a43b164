"""The realtime WebSockets: GA's, the preview's and Voice Live's. Checks the handshake, then holds a talk.

docs/azure.md §3. One task a talk: it reads, advances and sends in turn. So a client that does not read its frames
is not read either, and no task is left over when it vanishes.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from token_broker.simulator import azure_errors
from token_broker.simulator.auth import Credential, admit, bearer_of
from token_broker.simulator.faults.interruptions import Interruptions
from token_broker.simulator.realtime.dialects import GA, PREVIEW, VOICE_LIVE
from token_broker.simulator.realtime.talk_opening import Opening, minted_opening, new_talk
from token_broker.simulator.realtime.talk_socket import hold, payload
from token_broker.simulator.resource import Resource
from token_broker.simulator.session_bodies import flat_session, ga_session, voice_live_session
from token_broker.simulator.session_bodies.check import InvalidRequest

if TYPE_CHECKING:
    from token_broker.simulator.realtime.call import Call

SUBPROTOCOL = "realtime"
SECRET_SUBPROTOCOL = "openai-insecure-api-key."  # noqa: S105 - what stands before a secret

_SERVER_CREDENTIALS = frozenset({Credential.KEY, Credential.ENTRA})
_SIDEBAND_CREDENTIALS = _SERVER_CREDENTIALS | {Credential.KEY_AS_BEARER}
_V1_CREDENTIALS = _SERVER_CREDENTIALS | {Credential.KEY_AS_BEARER, Credential.EPHEMERAL}

_MOST_UNREAD_EVENTS = 1000

Admitted = TypeVar("Admitted")


class RealtimeSockets:
    """The WebSocket endpoints of one simulated resource."""

    def __init__(self, resource: Resource, join_call: "Callable[[str, str], Call]") -> None:
        self._resource = resource
        self._join_call = join_call
        self._talks = 0

    def routes(self) -> list[WebSocketRoute]:
        """Those of the resource's kinds."""
        kinds = self._resource.config.kinds
        routes = [WebSocketRoute("/openai/v1/realtime", self.ga)]
        if "direct" in kinds:
            routes.append(WebSocketRoute("/openai/realtime", self.preview))
        if kinds & {"unified", "project"}:
            routes.append(WebSocketRoute("/voice-live/realtime", self.voice_live))
        return routes

    async def ga(self, websocket: WebSocket) -> None:
        """A talk, or with `call_id` the sideband of a call."""
        if "call_id" in websocket.query_params:
            states_session = self._resource.config.sideband_states_session
            await self.serve(websocket, self._find_call, partial(observe, states_session=states_session))
        else:
            await self.serve(websocket, self._open_ga, self.hold)

    async def preview(self, websocket: WebSocket) -> None:
        await self.serve(websocket, self._open_preview, self.hold)

    async def voice_live(self, websocket: WebSocket) -> None:
        await self.serve(websocket, self._open_voice_live, self.hold)

    async def serve(
        self,
        websocket: WebSocket,
        check_in: Callable[[WebSocket], Admitted],
        hold_on: Callable[[WebSocket, Admitted], Awaitable[None]],
    ) -> None:
        """Refuses the handshake, or takes it and holds what was admitted."""
        try:
            if self._talks >= self._resource.config.max_talks:
                raise azure_errors.structured(429, "429", "Too many open sessions.")
            admitted = check_in(websocket)
        except azure_errors.AzureError as refusal:
            await _refuse(websocket, refusal)
            return
        except InvalidRequest as invalid:
            await _refuse(websocket, azure_errors.invalid_request(invalid.code, invalid.message, param=invalid.param))
            return
        # Only what was offered may be chosen; nothing where nothing was offered (docs/azure.md §4.4).
        chosen = SUBPROTOCOL if SUBPROTOCOL in websocket.scope["subprotocols"] else None
        self._talks += 1
        try:
            await websocket.accept(chosen)
            await hold_on(websocket, admitted)
        except WebSocketDisconnect:
            return
        finally:
            self._talks -= 1

    async def hold(self, websocket: WebSocket, opening: Opening) -> None:
        """Holds a talk on an accepted socket."""
        path = websocket.scope["path"]
        await hold(websocket, new_talk(self._resource, opening, path), Interruptions(self._resource.faults, path))

    def _find_call(self, websocket: WebSocket) -> "Call":
        admit(self._resource.credential_of(websocket.headers), self._resource.config, _SIDEBAND_CREDENTIALS)
        return self._join_call(websocket.query_params["call_id"], websocket.scope["path"])

    def _open_ga(self, websocket: WebSocket) -> Opening:
        headers = websocket.headers
        offered = [name for name in websocket.scope["subprotocols"] if name.startswith(SECRET_SUBPROTOCOL)]
        if offered and self._resource.config.ephemeral_subprotocol:
            # Browsers can't set headers: there a secret comes as a subprotocol.
            headers = MutableHeaders(raw=list(headers.raw))
            headers["authorization"] = f"Bearer {offered[0].removeprefix(SECRET_SUBPROTOCOL)}"
        credential = self._resource.credential_of(headers)
        admit(credential, self._resource.config, _V1_CREDENTIALS)
        if "api-version" in websocket.query_params:
            # 401, as it was seen: nothing says that the version is at fault (docs/azure.md §2.1).
            raise azure_errors.key_missing()
        if "openai-beta" in headers:
            raise azure_errors.beta_shape_disabled()
        if credential is Credential.EPHEMERAL:
            secret = self._resource.secrets.find(bearer_of(headers) or "")
            if secret is None or secret.dialect != "ga":
                raise azure_errors.key_wrong()
            return minted_opening(self._resource, secret)
        model = self._require_model(websocket.query_params.get("model"), self._resource.config.deployments)
        return Opening(GA, ga_session.RealtimeSession(type="realtime", model=model))

    def _open_preview(self, websocket: WebSocket) -> Opening:
        admit(self._resource.credential_of(websocket.headers), self._resource.config, _SERVER_CREDENTIALS)
        self._require_version(websocket, self._resource.config.preview_socket_api_versions)
        model = self._require_model(websocket.query_params.get("deployment"), self._resource.config.deployments)
        return Opening(PREVIEW, flat_session.FlatSession(model=model))

    def _open_voice_live(self, websocket: WebSocket) -> Opening:
        admit(self.credential_anywhere(websocket), self._resource.config, _SERVER_CREDENTIALS)
        self._require_version(websocket, self._resource.config.voice_live_api_versions)
        return self.voice_live_opening(websocket)

    def credential_anywhere(self, websocket: WebSocket) -> Credential:
        """The credential of a handshake that may carry it in its query."""
        # `@azure/ai-voicelive` in a browser puts its credential into the query; a header wins over it.
        headers = MutableHeaders(raw=list(websocket.headers.raw))
        for name in ("api-key", "authorization"):
            if name in websocket.query_params:
                headers.setdefault(name, websocket.query_params[name])
        return self._resource.credential_of(headers)

    def voice_live_opening(self, websocket: WebSocket) -> Opening:
        """Voice Live's talk with the model that the query names.

        Raises:
            AzureError: it names none, or one that there is not.

        """
        config = self._resource.config
        model = self._require_model(websocket.query_params.get("model"), config.voice_live_models | config.deployments)
        return Opening(VOICE_LIVE, voice_live_session.VoiceLiveSession(model=model))

    def _require_version(self, websocket: WebSocket, known: frozenset[str]) -> None:
        if websocket.query_params.get("api-version") not in known:
            raise azure_errors.api_version_not_supported()

    def _require_model(self, name: str | None, known: frozenset[str]) -> str:
        if name is None:
            raise azure_errors.structured(400, "missing_model", "The model or deployment is missing from the query.")
        if name not in known:
            raise azure_errors.deployment_not_found()
        return name


async def observe(websocket: WebSocket, call: "Call", *, states_session: bool) -> None:
    """Joins a call on an accepted socket: its events go out, and the client's go into it, until either ends.

    It begins in silence, as recorded: who joins learns the session by updating it (docs/azure.md §5.4).

    Raises:
        WebSocketDisconnect: the client vanished while it was sent to.

    """
    events: asyncio.Queue[dict[str, Any]] = asyncio.Queue(_MOST_UNREAD_EVENTS)

    def keep(event: dict[str, Any]) -> None:
        # A sideband that does not read loses events.
        if not events.full():
            events.put_nowait(event)

    leave = call.observe(keep, states_session=states_session)

    async def tell() -> None:
        while True:
            await websocket.send_text(json.dumps(await events.get(), separators=(",", ":")))

    async def listen() -> None:
        while (message := await websocket.receive())["type"] != "websocket.disconnect":
            call.receive(payload(message))

    work = [asyncio.create_task(part) for part in (tell(), listen(), call.ended.wait())]
    try:
        done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        if call.ended.is_set():
            # What the end itself told is in the queue since then.
            while not events.empty():
                await websocket.send_text(json.dumps(events.get_nowait(), separators=(",", ":")))
            await websocket.close(1000, "the call has ended")
    finally:
        leave()
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)


async def _refuse(websocket: WebSocket, error: azure_errors.AzureError) -> None:
    await websocket.send_denial_response(Response(error.body, error.status, error.headers, error.media_type))
