"""What GPT-Live's compatible endpoints take and answer, as /openapi.json shows it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from token_broker.api.offers import (
    COMPAT_CLOSE_CODES,
    COMPAT_SUBPROTOCOLS,
    COMPAT_TAG,
    OFFER_PROBLEMS,
    SDP_EXAMPLE,
)
from token_broker.web.openapi_document import Body, Operation, Parameter, ResponseSpec, SocketSpec

__all__ = ["LIVE_ATTACH_PATHS", "LIVE_OPERATIONS", "LIVE_PATHS", "LIVE_SOCKETS", "LiveSessionRequest"]

LIVE_PATHS = ("/v1/live/sessions", "/openai/v1/live/sessions")
LIVE_ATTACH_PATHS = tuple(f"{path}/{{call_id}}/attach" for path in LIVE_PATHS)

_CREDENTIAL = "The credential is a client secret, as at the other compatible endpoints"


class _Transport(BaseModel):
    model_config = ConfigDict(frozen=True)

    type: Literal["webrtc"]
    sdp: Annotated[str, StringConstraints(min_length=1)]


class LiveSessionRequest(BaseModel):
    """OpenAI's body for a GPT-Live session over WebRTC. `session` is the agent's to say, and is ignored."""

    model_config = ConfigDict(frozen=True)

    session: dict[str, Any] = Field({}, description="Ignored: the agent says model, instructions, voice and tools.")
    transport: _Transport


class _SessionName(BaseModel):
    id: str = Field(description="The broker's own; what the sideband is opened with.")


class _SdpAnswer(BaseModel):
    type: str
    sdp: str


class LiveSessionAnswer(BaseModel):
    """A GPT-Live session over WebRTC."""

    session: _SessionName
    transport: _SdpAnswer


LIVE_OPERATIONS = (
    Operation(
        name="create_live_session",
        method="post",
        path=LIVE_PATHS[0],
        aliases=LIVE_PATHS[1:],
        tag=COMPAT_TAG,
        summary="Set up a GPT-Live session over WebRTC",
        description=(
            f"OpenAI's route and body; the session is the agent's to say. {_CREDENTIAL}. Media flows between "
            "the client and Azure; the broker listens over the session's sideband. Counts as a token request, and "
            "as an open talk until it is over."
        ),
        body=Body(
            (LiveSessionRequest,),
            example={"session": {"model": "gpt-live-1"}, "transport": {"type": "webrtc", "sdp": SDP_EXAMPLE}},
        ),
        answers=(
            ResponseSpec(
                201,
                "The session.",
                LiveSessionAnswer,
                example={"session": {"id": "eyJ…"}, "transport": {"type": "webrtc", "sdp": SDP_EXAMPLE}},
                headers=("Cache-Control", "Location"),
            ),
        ),
        problems={
            **{status: codes for status, codes in OFFER_PROBLEMS.items() if status != 415},  # noqa: PLR2004
            400: ("bad_sdp", "invalid_json", "client_left"),
            401: ("credential_refused", "agent_gone"),
            409: (*OFFER_PROBLEMS.get(409, ()), "speaks_realtime"),
            422: ("invalid_request",),
            503: ("nothing_minted", "draining", "blocklist_unread"),
        },
        security=("clientSecret", "sessionTokenHeader"),
    ),
)
LIVE_SOCKETS = (
    *(
        SocketSpec(
            path=path,
            tag=COMPAT_TAG,
            summary="A talk by GPT-Live with the clients of OpenAI",
            description=(
                f"{_CREDENTIAL}. The client's first event is `session.start`, the broker's `session.started`. "
                "A refusal is an HTTP status with a problem document. A plain GET answers 426 `upgrade_required`."
            ),
            subprotocols=COMPAT_SUBPROTOCOLS,
            close_codes=COMPAT_CLOSE_CODES,
        )
        for path in LIVE_PATHS
    ),
    *(
        SocketSpec(
            path=path,
            tag=COMPAT_TAG,
            summary="The sideband of a GPT-Live session over WebRTC",
            description=(
                f"{_CREDENTIAL}, of the session that set the call up. 404 `unknown_call` for any other id, 409 "
                "`sideband_elsewhere` where another replica has it, and a sideband or a running tool of it."
            ),
            subprotocols=COMPAT_SUBPROTOCOLS,
            close_codes={code: COMPAT_CLOSE_CODES[code] for code in (1000, 1009, 4400, 4410)},
            parameters=(Parameter("call_id", "path", "The session's id, as its creation told it."),),
        )
        for path in LIVE_ATTACH_PATHS
    ),
)
