"""What the compatible endpoints of the official clients take and answer, as /openapi.json shows it."""

from token_broker.api.offers import (
    COMPAT_CLOSE_CODES,
    COMPAT_SUBPROTOCOLS,
    COMPAT_TAG,
    HANG_UP_PROBLEMS,
    OFFER_PROBLEMS,
    OFFER_SCHEMA,
    SDP_ANSWER,
    SDP_EXAMPLE,
)
from token_broker.relay.adapters import COMPAT_ENDPOINTS
from token_broker.sessions.schemas import BetaSession, BetaSessionRequest, ClientSecret, ClientSecretRequest
from token_broker.web.openapi_document import Body, Operation, Parameter, ResponseSpec, SocketSpec

__all__ = [
    "CALL_PATHS",
    "COMPAT_OPERATIONS",
    "COMPAT_SOCKETS",
    "HANG_UP_PATHS",
    "MAX_FORM_FIELDS",
    "MINT_PATHS",
    "SESSION_PATHS",
]

MAX_FORM_FIELDS = 8  # of an offer; clients send two

# What the clients put before `/realtime`: OpenAI's own, Azure's, Azure's with an api-version, and a deployment's.
_PREFIXES = ("/v1", "/openai/v1", "/openai", "/openai/deployments/{deployment}")

MINT_PATHS = tuple(f"{prefix}/realtime/client_secrets" for prefix in _PREFIXES)
SESSION_PATHS = (*(f"{prefix}/realtime/sessions" for prefix in _PREFIXES), "/openai/realtimeapi/sessions")
CALL_PATHS = (
    *(f"{prefix}/realtime/calls" for prefix in _PREFIXES),
    *(f"{prefix}/realtime" for prefix in _PREFIXES),  # where offers went before GA; Azure's was the last one
    "/v1/realtimertc",
)
HANG_UP_PATHS = tuple(f"{prefix}/realtime/calls/{{call_id}}/hangup" for prefix in _PREFIXES)

_CREDENTIAL = (
    "The credential is a client secret (or a plan's session token or ticket), with or without `ek_`: as "
    "`Authorization: Bearer`, `api-key` header, query `api-key` or `authorization`; a session token also in "
    "`X-Session-Token`"
)
_DEPLOYMENT = Parameter("deployment", "path", "Of no account: the agent says which model.", example="gpt-realtime")
_MINT_PARAMETERS = (
    _DEPLOYMENT,
    Parameter("X-Session-Token", "header", "With `metadata.session_id`: proves that the session is yours."),
)
_MINT_PROBLEMS = {
    400: ("invalid_json", "client_left"),
    401: ("credential_refused", "not_signed_in", "bad_principal", "invalid_token"),
    403: ("foreign_session", "session_erased", "foreign_user", "insufficient_scope", "blocked"),
    404: ("unknown_agent",),
    408: ("body_timeout",),
    413: ("body_too_large",),
    422: ("invalid_request",),
    429: ("rate_limited", "budget_used"),
    503: ("not_configured", "identity_provider_unreachable", "store_away", "blocklist_unread", "draining"),
}

_SECRET_EXAMPLE = {
    "value": "ek_eyJ…",
    "expires_at": 1_795_388_400,
    "session": {
        "id": "019aaf0e-7c1b-7d5e-9a43-1f6f0f6a2b11",
        "object": "realtime.session",
        "type": "realtime",
        "model": "gpt-realtime",
    },
}

_SESSION_EXAMPLE = {
    "id": "019aaf0e-7c1b-7d5e-9a43-1f6f0f6a2b11",
    "object": "realtime.session",
    "model": "gpt-realtime",
    "modalities": ["audio", "text"],
    "client_secret": {"value": "ek_eyJ…", "expires_at": 1_795_388_400},
}
_SOCKET_PARAMETERS = (
    Parameter("session_id", "path", "Of no account: the credential says which session."),
    _DEPLOYMENT,
)

COMPAT_OPERATIONS = (
    Operation(
        name="create_client_secret",
        method="post",
        path=MINT_PATHS[0],
        aliases=MINT_PATHS[1:],
        tag=COMPAT_TAG,
        summary="Get a client secret",
        description=(
            "OpenAI's route and body. The secret is the broker's own: it opens each compatible endpoint until it "
            "expires. The agent says instructions, voice and model; `metadata.agent_id` says which agent. Who may ask "
            "for a plan may ask here, and so may who has a credential of the broker's: then it is for the same "
            "session, and ends no later. With BROKER_AUTH=entra the access token may stand where a client puts its key."
        ),
        body=Body(
            (ClientSecretRequest,),
            example={"session": {"type": "realtime"}, "metadata": {"agent_id": "elena"}},
            required=False,
        ),
        parameters=_MINT_PARAMETERS,
        answers=(ResponseSpec(200, "A client secret.", ClientSecret, example=_SECRET_EXAMPLE),),
        problems=_MINT_PROBLEMS,
        security=(None, "entra", "easyauth", "clientSecret"),
    ),
    Operation(
        name="create_beta_session",
        method="post",
        path=SESSION_PATHS[0],
        aliases=SESSION_PATHS[1:],
        tag=COMPAT_TAG,
        summary="Get a client secret, as before GA",
        description=(
            f"OpenAI's and Azure's earlier mint, for clients that still ask there. As `{MINT_PATHS[0]}`, but the "
            "answer is the flat session with the secret in its `client_secret`."
        ),
        body=Body(
            (BetaSessionRequest,),
            example={"model": "gpt-realtime", "metadata": {"agent_id": "elena"}},
            required=False,
        ),
        parameters=_MINT_PARAMETERS,
        answers=(ResponseSpec(200, "The session, with a client secret.", BetaSession, example=_SESSION_EXAMPLE),),
        problems=_MINT_PROBLEMS,
        security=(None, "entra", "easyauth", "clientSecret"),
    ),
    Operation(
        name="create_compat_call",
        method="post",
        path=CALL_PATHS[0],
        aliases=CALL_PATHS[1:],
        tag=COMPAT_TAG,
        summary="Set up a WebRTC call",
        description=(
            f"OpenAI's route: the offer raw, or as the `sdp` of a form, whose `session` is the agent's to say. "
            f"{_CREDENTIAL}. Media and events flow between the client and Azure; the broker listens for the turns. "
            "Counts as a token request, and as an open talk until it is over."
        ),
        body=Body(
            media_type="application/sdp",
            json_schema=OFFER_SCHEMA,
            example=SDP_EXAMPLE,
            alternatives={
                "multipart/form-data": {
                    "type": "object",
                    "properties": {"sdp": OFFER_SCHEMA, "session": {"type": "string"}},
                    "required": ["sdp"],
                    "additionalProperties": {"type": "string"},
                    "maxProperties": MAX_FORM_FIELDS,
                }
            },
        ),
        parameters=(_DEPLOYMENT,),
        answers=(SDP_ANSWER,),
        problems={
            **OFFER_PROBLEMS,
            400: ("bad_sdp", "bad_form", "client_left"),
            401: ("credential_refused", "agent_gone"),
            503: ("nothing_minted", "draining", "blocklist_unread"),
        },
        security=("clientSecret", "sessionTokenHeader"),
    ),
    Operation(
        name="hang_up_compat_call",
        method="post",
        path=HANG_UP_PATHS[0],
        aliases=HANG_UP_PATHS[1:],
        tag=COMPAT_TAG,
        summary="Hang up a WebRTC call",
        description=f"Ends a call that this session set up. Counted apart from mints, at the same rate. {_CREDENTIAL}.",
        parameters=(_DEPLOYMENT, Parameter("call_id", "path", "The end of the call's `Location`.")),
        answers=(ResponseSpec(200, "The call is over."),),
        problems={**HANG_UP_PROBLEMS, 401: ("credential_refused",)},
        security=("clientSecret", "sessionTokenHeader"),
    ),
)

COMPAT_SOCKETS = tuple(
    SocketSpec(
        path=path,
        tag=COMPAT_TAG,
        summary=compat.summary,
        description=(
            f"{_CREDENTIAL}, or as subprotocol. The session is the credential's, whatever the path and the query say. "
            "The first event is `session.created`, with the agent's session. A refusal is an HTTP status (401, 403, "
            "429, 503) with a problem document; what ends a talk later is an `error` event and a close code. A plain "
            "GET answers 426 `upgrade_required`."
        ),
        subprotocols=COMPAT_SUBPROTOCOLS,
        close_codes=COMPAT_CLOSE_CODES,
        parameters=tuple(parameter for parameter in _SOCKET_PARAMETERS if f"{{{parameter.name}}}" in path),
    )
    for compat in COMPAT_ENDPOINTS
    for path in compat.paths
)
