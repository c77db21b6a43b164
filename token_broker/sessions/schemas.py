"""Requests and answers of the voice routes, as models that both check a request and describe it in OpenAPI."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from strategies.session_model.agent_settings import AnyDialect
from token_broker.web.requests import whole_number

__all__ = [
    "SESSION_ID_PATTERN",
    "AgentConfig",
    "BetaClientSecret",
    "BetaSession",
    "BetaSessionRequest",
    "ClientSecret",
    "ClientSecretRequest",
    "Connection",
    "NarrowedRequest",
    "Plan",
    "RelayConnection",
    "SecretMetadata",
    "TokenRequest",
    "WebRtcConnection",
    "WebSocketConnection",
]


def _is_set(values: list[Literal["audio", "text"]]) -> list[Literal["audio", "text"]]:
    if len(set(values)) != len(values):
        raise ValueError("must not name a modality twice")
    return values


SESSION_ID_PATTERN = r"^[A-Za-z0-9_-]{16,64}$"
SessionId = Annotated[str, StringConstraints(pattern=SESSION_ID_PATTERN)]
# A user id is shown in logs and by the CLI: no control characters, no invisible ones, none that changes the direction.
_PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]+$"
_ORIGIN = r"^https?://[a-z0-9.:\[\]-]+$"
UserId = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=_PRINTABLE)]


Transport = Literal["webrtc", "webrtc_relay", "webrtc_websocket", "websocket", "websocket_proxy"]


class NarrowedRequest(BaseModel):
    """What a request may narrow its credentials to; none of it widens anything."""

    max_session_s: Annotated[int, Field(ge=10, le=86_400), BeforeValidator(whole_number)] | None = Field(
        None, description="The longest talk, within the broker's own limit."
    )
    transports: Annotated[list[Transport], Field(min_length=1, max_length=5)] | None = Field(
        None, description="The only transports that may be used."
    )
    origin: Annotated[str, StringConstraints(pattern=_ORIGIN, max_length=255)] | None = Field(
        None, description="The origin whose pages alone may use the credentials, such as https://app.example.com."
    )


class TokenRequest(NarrowedRequest):
    """A browser's request for a plan; every field is optional."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        json_schema_extra={"examples": [{"agent_id": "elena", "modalities": ["audio", "text"]}]},
    )

    agent_id: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = Field(
        None, description="Who speaks; the default agent where it is left out."
    )
    session_id: SessionId | None = Field(
        None, description="A session to begin under this id, or to resume with its `X-Session-Token`."
    )
    modalities: Annotated[
        list[Literal["audio", "text"]], Field(min_length=1, max_length=2), AfterValidator(_is_set)
    ] = Field(
        ["audio", "text"],
        description="What the agent answers with. GA takes one: audio where both are asked for.",
        json_schema_extra={"uniqueItems": True},
    )
    user_id: UserId | None = Field(
        None, description="A label without authentication; with it, absent or the caller's own id."
    )


class _ExpiresAfter(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    anchor: Literal["created_at"] = "created_at"
    seconds: Annotated[int, BeforeValidator(whole_number)] = Field(600, ge=10, le=7200)


class _WantedSession(BaseModel):
    """Its other fields (model, instructions, voice, …) are ignored: the agent decides them."""

    model_config = ConfigDict(frozen=True)

    type: Literal["realtime"] = "realtime"


class SecretMetadata(NarrowedRequest):
    """The broker's own members; others are ignored."""

    model_config = ConfigDict(frozen=True, strict=True)

    agent_id: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = Field(
        None, description="Who speaks; the default agent where it is left out."
    )
    session_id: SessionId | None = Field(
        None, description="A session to begin under this id, or to resume with its `X-Session-Token`."
    )
    user_id: UserId | None = Field(
        None, description="A label without authentication; with it, absent or the caller's own id."
    )
    uses: Annotated[int, Field(ge=1, le=1000), BeforeValidator(whole_number)] | None = Field(
        None, description="How many talks the secret opens, within BROKER_CLIENT_SECRET_USES."
    )


class ClientSecretRequest(BaseModel):
    """OpenAI's body for a client secret; every field is optional, and unknown ones are ignored."""

    model_config = ConfigDict(frozen=True)

    expires_after: _ExpiresAfter = Field(_ExpiresAfter(), description="600 s where it is left out.")
    session: _WantedSession = _WantedSession()
    metadata: SecretMetadata = SecretMetadata()


class _WantedSecret(BaseModel):
    model_config = ConfigDict(frozen=True)

    expires_after: _ExpiresAfter = Field(_ExpiresAfter(), description="600 s where it is left out.")


class BetaSessionRequest(BaseModel):
    """The body of OpenAI's earlier mint; every field is optional, and those of the session are the agent's to say."""

    model_config = ConfigDict(frozen=True)

    client_secret: _WantedSecret = _WantedSecret()
    metadata: SecretMetadata = SecretMetadata()

    @property
    def expires_after(self) -> _ExpiresAfter:
        """The wanted lifetime."""
        return self.client_secret.expires_after


class BetaClientSecret(BaseModel):
    """A credential of the broker's for its compatible endpoints."""

    value: str = Field(description="Begins with `ek_`; opens any compatible endpoint, several times, until it expires.")
    expires_at: int = Field(description="In seconds since 1970.")


class BetaSession(BaseModel):
    """The session as the agent has it, flat and without the instructions, and the credential within it."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["realtime.session"] = "realtime.session"
    model: str
    client_secret: BetaClientSecret


class ClientSecret(BaseModel):
    """A credential of the broker's for its compatible endpoints."""

    value: str = Field(description="Begins with `ek_`; opens any compatible endpoint, several times, until it expires.")
    expires_at: int = Field(description="In seconds since 1970.")
    session: dict[str, Any] = Field(description="The session as the agent has it, without the instructions.")


class _Connection(BaseModel):
    model_config = ConfigDict(frozen=True)

    transport: str
    url: str
    expires_at: datetime
    expires_in_s: int = Field(description="What is left; go by this, clocks are wrong.")
    dialect: AnyDialect
    voice: str
    resource: str | None = Field(
        None, description="The Azure resource that it is bound to; null where the broker chooses one when it is used."
    )


class WebRtcConnection(_Connection):
    """Straight to Azure: post the SDP offer to `url` with `token` as Bearer."""

    transport: Literal["webrtc"] = "webrtc"
    token: str


class RelayConnection(_Connection):
    """The SDP offer goes through the broker; media still flows between the browser and Azure."""

    transport: Literal["webrtc_relay"] = "webrtc_relay"
    token: str


class WebSocketConnection(_Connection):
    """A WebSocket, opened with `protocols`: the broker's proxy, or Azure's own where that is switched on.

    With `webrtc_websocket` it carries signalling and events: media flows between the browser and Azure.
    """

    transport: Literal["webrtc_websocket", "websocket", "websocket_proxy"]
    protocols: list[str]


Connection = Annotated[WebRtcConnection | RelayConnection | WebSocketConnection, Field(discriminator="transport")]


class Plan(BaseModel):
    """How to connect: `connections` in the order to try. `token`, `endpoint`, `expires_at` are the first version's."""

    model_config = ConfigDict(frozen=True)

    session_id: str
    agent_id: str
    model: str
    strategy: str
    degraded: bool = Field(description="True with the strategy `websocket_proxy`: only the proxy is left.")
    token: str | None
    expires_at: datetime
    endpoint: str
    resource: str | None = Field(None, description="The resource of the first connection, where it is bound to one.")
    outlook: Literal["good", "poor"] = Field(
        "good", description="`poor` when nothing was minted and every upstream of the proxy is known to be down."
    )
    retry_after_s: int | None = Field(None, description="With a poor outlook: when to ask for another plan.")
    session_token: str
    connections: list[Connection]
    correlation_id: str


class AgentConfig(BaseModel):
    """An agent as the first version's clients ask for it."""

    agent_id: str
    voice_name: str
    model: str
    endpoint_configured: bool
