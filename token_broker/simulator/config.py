"""The configuration of a simulated resource: its kinds, its key, its deployments. It is fixed while it runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import SecretStr

if TYPE_CHECKING:
    from token_broker.simulator.speech.actor import Actor

Kind = Literal["direct", "unified", "project"]
TranscriptTiming = Literal["before_answer", "during_answer", "after_answer", "after_next_turn"]
ALL_KINDS: frozenset[Kind] = frozenset(get_args(Kind))

DEFAULT_KEY = "simulated-key"
DEFAULT_ENTRA_TOKEN = "simulated-entra-token"  # noqa: S105 - a fake that opens nothing but this simulator


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedVoiceAgent:
    """A voice agent of Foundry's, as its project holds it."""

    instructions: str = "You are a simulated voice agent."
    model: str = "gpt-realtime"
    tools: tuple[dict[str, Any], ...] = ()
    """Functions, as GA has them."""
    enabled: bool = True
    webrtc: bool = True
    kind: Literal["prompt", "byom", "hosted"] = "prompt"
    """`byom`: with a model that the customer brings; `hosted`: a container of the customer's."""


_VOICE_AGENTS = {
    "voice-agent": SimulatedVoiceAgent(),
    "voice-agent-disabled": SimulatedVoiceAgent(enabled=False),
    "voice-agent-without-webrtc": SimulatedVoiceAgent(webrtc=False),
    "voice-agent-byom": SimulatedVoiceAgent(kind="byom"),
    "voice-agent-hosted": SimulatedVoiceAgent(kind="hosted"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorConfig:
    """One simulated Azure resource. The defaults make a healthy one with `gpt-realtime` deployed."""

    kinds: frozenset[Kind] = ALL_KINDS
    """Which families of routes exist; the others answer 404."""
    key: SecretStr = field(default_factory=lambda: SecretStr(DEFAULT_KEY))
    entra_tokens: frozenset[SecretStr] = field(default_factory=lambda: frozenset({SecretStr(DEFAULT_ENTRA_TOKEN)}))
    """Bearer tokens taken for valid Entra tokens of a principal with the right role."""
    roleless_entra_tokens: frozenset[SecretStr] = frozenset()
    """Valid Entra tokens of a principal without the role: 401 `PermissionDenied`."""
    keys_disabled: bool = False
    """`disableLocalAuth`: every key gets 403 `AuthenticationTypeDisabled`."""

    deployments: frozenset[str] = frozenset(
        {
            "gpt-realtime",
            "gpt-realtime-1.5",
            "gpt-realtime-2",
            "gpt-realtime-2.1",
            "gpt-realtime-2.1-mini",
            "gpt-realtime-mini",
        }
    )
    """Each realtime model under its own name (docs/azure.md §7.1)."""
    live_deployments: frozenset[str] = frozenset({"gpt-live-1", "gpt-live-1.1", "gpt-live-1-mini"})
    """GPT-Live's models (docs/azure.md §12.3); without any, its routes answer 404."""
    live_hangup: bool = False
    """Whether a Live session has OpenAI's route for hanging up, which nothing says that Azure has."""
    transcription_deployments: frozenset[str] = frozenset(
        {"gpt-realtime-whisper", "gpt-4o-transcribe", "gpt-4o-mini-transcribe"}
    )
    """On GA a transcription model is a deployment's name, and the classic whisper is none that a session can use.

    Where it is missing each transcription fails (docs/azure.md §7.3).
    """
    projects: frozenset[str] | None = None
    """Foundry projects that exist; `None`: whatever is asked for."""

    voice_agents: Mapping[str, SimulatedVoiceAgent] = field(default_factory=lambda: dict(_VOICE_AGENTS))
    """Foundry's voice agents, the same in every project (docs/azure.md §12.2)."""

    # A route refuses every other version with 400 (docs/azure.md §2.3, §6.1).
    flat_api_versions: frozenset[str] = frozenset({"2025-10-01", "2024-10-01-preview"})
    voice_live_api_versions: frozenset[str] = frozenset(
        {"2025-05-01-preview", "2025-10-01", "2026-01-01-preview", "2026-04-10", "2026-07-15"}
    )
    voice_live_calls_api_versions: frozenset[str] = frozenset({"2026-01-01-preview"})
    """Those with WebRTC (docs/azure.md §12.1). Others answer 404, but for those that answer 401."""
    voice_live_calls_unauthorized_versions: frozenset[str] = frozenset({"2026-06-01-preview"})
    voice_live_webrtc: bool = True
    """Whether Voice Live's control socket exists."""
    preview_socket_api_versions: frozenset[str] = frozenset({"2024-10-01-preview", "2025-04-01-preview"})
    ga_ttl_s: int = 7200
    """Life of a GA secret whose mint asked for none (docs/azure.md §2.1)."""
    flat_ttl_s: int = 60
    """Life of a secret from a flat mint, which cannot ask for one."""

    voice_live_models: frozenset[str] = frozenset(
        {
            "azure-realtime",
            *("gpt-realtime", "gpt-realtime-datazone", "gpt-realtime-mini"),
            *("gpt-realtime-1.5", "gpt-realtime-1.5-datazone"),
            *("gpt-realtime-2.1", "gpt-realtime-2.1-datazone", "gpt-realtime-2.1-mini"),
            *("gpt-4o", "gpt-4o-mini", "gpt-4.1", "gpt-4.1-mini", "gpt-4.1-nano"),
            *("gpt-5", "gpt-5-mini", "gpt-5-nano", "gpt-5.1", "gpt-5.2", "gpt-5.4", "gpt-5.6-luna", "gpt-5.6-terra"),
            *("phi4-mini", "phi4-mm-realtime"),
        }
    )
    """Models that Voice Live hosts itself; the resource's deployments work there as well."""
    ephemeral_subprotocol: bool = False
    """Whether GA's socket takes an ephemeral secret as subprotocol `openai-insecure-api-key.<secret>`: unproven on
    Azure (docs/azure.md §3.3)."""

    ice_addresses: tuple[str, ...] | None = None
    """Where WebRTC's media is taken; `None`: loopback, and every address of this machine."""
    sdp_answer_type: str = "text/plain; charset=utf-8"
    """Content type of an SDP answer, as recorded; the documentation says `application/sdp` (docs/azure.md §5.1)."""
    sideband_states_session: bool = False
    """Whether a sideband begins with `session.created`: not on a recorded WebRTC call (docs/azure.md §5.4)."""

    # Faster than a model thinks, so that tests are fast; slow enough that a cancel can come first.
    thinking_s: float = 0.05
    """From the end of a turn to the first of the answer."""
    answer_speed: float = 5.0
    """How many times faster than real time answers are sent."""
    transcript_timing: TranscriptTiming = "during_answer"
    """When the user's transcript comes: all of these happen on Azure."""
    actor: "Actor | None" = None
    """Who plays the agents in the demo; `None`: answers say what came in, and echo it."""
    longest_talk_s: float = 3600.0
    # Beyond it a handshake is refused with 429, as where a quota ends.
    max_talks: int = 5000

    clock_offset_s: float = 0.0
    """How far this resource's clock is ahead of the machine's."""
    max_body_bytes: int = 1024 * 1024
    max_remembered_requests: int = 1000
