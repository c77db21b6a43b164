"""GPT-Live's session configuration, as `openai.types.live` has it. Unknown fields are refused (docs/azure.md §12.3)."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from token_broker.simulator.session_bodies.check import Strict

DEFAULT_INSTRUCTIONS = "Be a helpful voice assistant."
"""What a session has whose client gave none."""

_VOICES = (
    "alloy ash ballad beacon bossa cedar cinder coral delta echo gleam marin meridian quartz ripple sage shida shimmer "
    "stone tempo verse vesper willow"
)
_WHOLE = "all"


class LivePcm(Strict):
    """PCM16, mono."""

    type: Literal["audio/pcm"]
    rate: Literal[16000, 24000]


class LiveG711(Strict):
    """G.711, mono."""

    type: Literal["audio/pcmu", "audio/pcma"]
    rate: Literal[8000]


class LiveCustomVoice(Strict):
    """A voice of this customer's."""

    id: str


class LiveOutput(Strict):
    """How the model speaks."""

    voice: Annotated[str, Field(pattern=f"^({_VOICES.replace(' ', '|')})$")] | LiveCustomVoice = "marin"


class MediaAudio(Strict):
    """Sound of a session whose format its media transport negotiates."""

    output: LiveOutput = LiveOutput()


class SocketAudio(MediaAudio):
    """Sound of a session over a WebSocket."""

    format: Annotated[LivePcm | LiveG711, Field(discriminator="type")] = LivePcm(type="audio/pcm", rate=24000)


class EventSelector(Strict):
    """Events of one type that the page's data channel may get."""

    type: str
    response_event: str | None = None


class DataChannelRights(Strict):
    """What the page may send and get. Null: all of it."""

    allowed_client_events: Literal["all"] | list[str] | None = None
    allowed_server_events: Literal["all"] | list[EventSelector] | None = None


class LiveClient(Strict):
    """What an untrusted page may do."""

    data_channel: DataChannelRights


class LiveFunction(Strict):
    """A function of the backend's."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class HostedTool(Strict):
    """A tool that OpenAI runs: it is taken and never called."""

    type: Literal["web_search", "file_search", "code_interpreter", "image_generation", "mcp", "custom"]
    server_label: str | None = None
    server_url: str | None = None
    server_description: str | None = None
    authorization: str | None = None
    headers: dict[str, str] | None = None
    allowed_tools: list[str] | dict[str, Any] | None = None
    require_approval: Literal["never", "always"] | dict[str, Any] | None = None


class BackendReasoning(Strict):
    """How much the backend thinks."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: Literal["concise", "detailed", "auto"] | None = None


class BackendText(Strict):
    """How much the backend writes."""

    verbosity: Literal["low", "medium", "high"] | None = None


class ResponsesUpdate(Strict):
    """Changes of the backend."""

    model: str | None = None
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    parallel_tool_calls: bool | None = None
    reasoning: BackendReasoning | None = None
    service_tier: str | None = None
    text: BackendText | None = None
    tool_choice: str | dict[str, Any] | None = None
    tools: list[Annotated[LiveFunction | HostedTool, Field(union_mode="left_to_right")]] | None = None


class ResponsesBackend(ResponsesUpdate):
    """The backend that gets what is delegated to Responses."""

    model: str


class ClientDelegation(Strict):
    """The application gets what is delegated."""

    type: Literal["client"]
    acknowledgement_delay_ms: int | None = Field(default=None, ge=0)


class ResponsesDelegation(Strict):
    """A Responses model gets what is delegated."""

    type: Literal["responses"]
    responses: ResponsesBackend
    acknowledgement_delay_ms: int | None = Field(default=None, ge=0)


class ResponsesDelegationUpdate(Strict):
    """Changes of a delegation to Responses."""

    type: Literal["responses"]
    responses: ResponsesUpdate | None = None
    acknowledgement_delay_ms: int | None = Field(default=None, ge=0)


# `decisions` stands in OpenAI's types alone: nothing says that Azure has it.
Delegation = Annotated[ClientDelegation | ResponsesDelegation, Field(discriminator="type")]


class HistoryText(Strict):
    """The words of a message."""

    text: str
    type: Literal["input_text", "text", "output_text"] | None = None


class HistoryMessage(Strict):
    """A message of an earlier talk: exactly one text."""

    role: Literal["developer", "user", "assistant"]
    content: list[HistoryText] = Field(min_length=1, max_length=1)
    id: str | None = None
    status: Literal["incomplete", "completed"] | None = None
    type: Literal["message"] | None = None


class WakePolicy(Strict):
    """What goes on with a paused session."""

    type: Literal["speech"]
    vad_threshold: float = Field(default=0.5, ge=0, le=1)


class _LiveConfig(Strict):
    model: str
    client: LiveClient | None = None
    delegation: Delegation | None = None
    input: list[HistoryMessage] | None = Field(default=None, max_length=128)
    instructions: str | None = None
    safety_identifier: str | None = None
    store: bool = False
    triggers: Annotated[list[Any], Field(max_length=0)] | None = None


class MediaSession(_LiveConfig):
    """`session` of a POST with an offer."""

    audio: MediaAudio = MediaAudio()
    wake_policy: WakePolicy | None = None


class SocketSession(_LiveConfig):
    """`session` of a `session.start`."""

    audio: SocketAudio = SocketAudio()


class WebrtcTransport(Strict):
    """The page's offer."""

    type: Literal["webrtc"]
    sdp: str = Field(min_length=1)


class LiveCreate(Strict):
    """Body of `POST /openai/v1/live/sessions`."""

    session: MediaSession
    transport: WebrtcTransport


class SessionChanges(Strict):
    """`session` of a `session.update`: nothing else can be changed."""

    delegation: (
        Annotated[
            Annotated[ClientDelegation, Tag("client")] | Annotated[ResponsesDelegationUpdate, Tag("responses")],
            Discriminator("type"),
        ]
        | None
    ) = None
    triggers: Annotated[list[Any], Field(max_length=0)] | None = None


LiveSession = MediaSession | SocketSession


def functions_of(session: LiveSession) -> list[dict[str, Any]]:
    """The functions that the backend may call; for an application's delegation the delegation itself."""
    if isinstance(session.delegation, ResponsesDelegation):
        tools = session.delegation.responses.tools or []
        return [tool.model_dump(exclude_none=True) for tool in tools if isinstance(tool, LiveFunction)]
    return [{"type": "function", "name": "delegate"}]


def allowed(rights: list[Any] | str | None, name: str) -> bool:
    """Whether the page's rights, in either direction, cover events of this name."""
    if rights is None or rights == _WHOLE:
        return True
    return name in [getattr(right, "type", right) for right in rights]


def resource_object(session: LiveSession, session_id: str, expires_at: int) -> dict[str, Any]:
    """The session as events state it: without what was not said, and with the server's defaults."""
    stated = session.model_dump(mode="json", exclude_none=True)
    stated["instructions"] = session.instructions or DEFAULT_INSTRUCTIONS
    stated.setdefault("delegation", {"type": "client"})
    return {"id": session_id, "expires_at": expires_at, "status": "active"} | stated
