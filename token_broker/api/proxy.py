"""`WS /api/v1/voice/voicelive/{session_id}`: hands the proxy's connections to the relay."""

from starlette.types import Receive, Scope, Send

from token_broker.relay.voice_relay import VoiceRelay
from token_broker.web.openapi_document import Parameter, SocketSpec

__all__ = ["VOICELIVE_PATH", "VOICELIVE_SOCKET", "Voicelive"]

VOICELIVE_PATH = "/api/v1/voice/voicelive/{session_id}"


class Voicelive:
    """The proxy; a class: Starlette takes no function for an ASGI application."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        relay: VoiceRelay = scope["state"]["relay"]
        await relay.proxy(scope, receive, send)


VOICELIVE_SOCKET = SocketSpec(
    path=VOICELIVE_PATH,
    tag="Talking",
    summary="A talk through the proxy",
    description=(
        "Connect with the `url` and the `protocols` of a plan's `websocket_proxy`; the ticket among them works once. "
        "Frames are the Realtime API's own JSON events, both ways. The broker adds `broker.ready`, first, "
        "`broker.agent.switched` and `broker.error`, and takes `broker.agent.switch {agent_id}`. A plain GET answers "
        "426 `upgrade_required`, a malformed handshake 400."
    ),
    subprotocols=("realtime", "ticket.<ticket>"),
    close_codes={
        1000: "done",
        1009: "a message was too large",
        1011: "the broker failed: ask for a new plan",
        4400: "bad request",
        4401: "the ticket is missing, invalid, expired or used: ask for a new plan",
        4403: "foreign origin",
        4408: "Azure did not answer in time",
        4410: "the client does not read",
        4429: "too many talks are open",
        4502: "Azure refused, or dropped the talk",
        4503: "draining: ask for a new plan",
    },
    parameters=(
        Parameter("session_id", "path", "The plan's session.", example="019aaf0e-7c1b-7d5e-9a43-1f6f0f6a2b11"),
    ),
)
