"""GPT-Live's session, and what of an agent it does not have. Pure.

GPT-Live listens and speaks at once. It has no turn detection, no transcription to configure and no answers to ask for,
and it calls no functions: it delegates work, to a Responses model or to whoever holds the session. `LIVE_KEYS` is the
one table (docs/azure.md §12.3); Azure refuses a field that it does not know.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from strategies.session_model.agent_settings import LEFT_OUT, Voice
from strategies.session_model.session_fields import AskedSession, overlaid, put_at, value_at

__all__ = [
    "LIVE_CALLS_ROUTE",
    "LIVE_KEYS",
    "LIVE_ROUTE",
    "LIVE_ROUTES",
    "LiveKey",
    "delegates_to_responses",
    "live_losses",
    "live_session",
    "live_voice",
    "web_session",
]

LIVE_ROUTE = "gpt_live"
"""The name of the upstream and of the strategy."""
LIVE_CALLS_ROUTE = "gpt_live_calls"
"""What the pool knows the offers by."""
LIVE_ROUTES = (LIVE_ROUTE, LIVE_CALLS_ROUTE)

_BACKEND = ("delegation", "responses")
_NO_SUCH = "is left out: GPT-Live has no such setting"
_BACKENDS = 'is left out: it is of session.live.delegation with type = "responses", which the agent does not have'
# What a page may send over its data channel, and hear there. The rest is the broker's, over the sideband: the session
# with the agent's instructions, and what the Responses backend does. Nothing is written there that the broker would not
# hear of: calls of the page's tools, and typed text, go over a sideband of the broker's own.
_PAGE_SENDS = ("session.input_audio.mute", "session.input_audio.unmute", "session.close")
_PAGE_HEARS = (
    "session.input_audio.muted",
    "session.input_audio.unmuted",
    "session.input_transcript.delta",
    "session.output_transcript.delta",
    "session.paused",
    "session.resumed",
    "session.usage.updated",
    "error",
    "info",
)


@dataclass(frozen=True, slots=True)
class LiveKey:
    """One key of an agent. `path` is where the session has it, None where it has nothing of the kind.

    `value` makes what stands there, or LEFT_OUT. `lost` completes the sentence about a key that is left out; empty:
    nothing is said, since the broker itself does what the key says, or the talk has it anyway.
    """

    key: str
    path: tuple[str, ...] | None = None
    value: Callable[[AskedSession], Any] = lambda _spec: LEFT_OUT
    lost: str = _NO_SUCH


def live_voice(voices: Mapping[Any, Voice]) -> Voice:
    """The agent's voice here: `voices.live`, or `voices.ga`, whose names GPT-Live has too."""
    return voices.get("live") or voices["ga"]


def delegates_to_responses(spec: AskedSession) -> bool:
    """Whether a Responses model does the work that is delegated; it alone calls functions."""
    kind = value_at(dict(spec.settings.session.get("live", {})), ("delegation", "type"))
    return isinstance(kind, str) and kind == "responses"


def live_session(spec: AskedSession) -> dict[str, Any]:
    """The session of a `session.start`, or of a session that is set up by an SDP offer."""
    session: dict[str, Any] = {"model": spec.model}
    if delegates_to_responses(spec):
        session["delegation"] = {"type": "responses"}  # the overlay's, which is merged with what comes of the keys
    for row in LIVE_KEYS:
        if row.path is not None and (value := row.value(spec)) is not LEFT_OUT:
            put_at(session, row.path, value)
    overlay = dict(spec.settings.session.get("live", {}))
    session = overlaid(session, overlay) if overlay else session
    if not delegates_to_responses(spec):
        # Stated, although it is the default: whoever holds the session answers what is delegated.
        session["delegation"] = {"type": "client", **overlay.get("delegation", {})}
    return session


def web_session(session: Mapping[str, Any]) -> dict[str, Any]:
    """The session for WebRTC, where the page writes to Azure itself: what it may send there, and what it hears."""
    heard = [{"type": kind} for kind in _PAGE_HEARS]
    channel = {"allowed_client_events": list(_PAGE_SENDS), "allowed_server_events": heard}
    return {**session, "client": {"data_channel": channel}}


def live_losses(spec: AskedSession) -> Iterator[str]:
    """A line for each key that the agent states and its session does not have, in the order of the table."""
    stated = {"tools": spec.tools, **{name: getattr(spec.settings, name) for name in type(spec.settings).model_fields}}
    for row in LIVE_KEYS:
        value = stated.get(row.key)
        is_stated = value is not None and value != ()
        if is_stated and row.lost and (row.path is None or row.value(spec) is LEFT_OUT):
            yield f"{row.key} {row.lost}"


def _of_backend(value: Callable[[AskedSession], Any]) -> Callable[[AskedSession], Any]:
    """A setting of the Responses backend, which not every agent has."""

    def found(spec: AskedSession) -> Any:
        made = value(spec) if delegates_to_responses(spec) else None
        return LEFT_OUT if made is None else made

    return found


def _plain(name: str) -> Callable[[AskedSession], Any]:
    return _of_backend(lambda spec: getattr(spec.settings, name))


def stated_voice(spec: AskedSession) -> Any:
    voice = live_voice(spec.voices)
    return voice if isinstance(voice, str) else dict(voice)


def stated_tool_choice(spec: AskedSession) -> Any:
    wanted = spec.settings.tool_choice
    if wanted is None or isinstance(wanted, str):
        return wanted
    # A server as a whole can't be chosen here: the choice of one names a tool of it.
    return None if wanted.type == "mcp" else {"type": "function", "name": wanted.name}


def stated_max_tokens(spec: AskedSession) -> int | None:
    wanted = spec.settings.max_output_tokens
    return wanted if isinstance(wanted, int) else None


def stated_tools(spec: AskedSession) -> list[dict[str, Any]] | None:
    return [dict(tool) for tool in spec.tools] or None


LIVE_KEYS = (
    LiveKey("instructions", ("instructions",), lambda spec: spec.instructions),
    LiveKey("voices", ("audio", "output", "voice"), stated_voice),
    LiveKey("tools", (*_BACKEND, "tools"), _of_backend(stated_tools), _BACKENDS),
    LiveKey("tool_choice", (*_BACKEND, "tool_choice"), _of_backend(stated_tool_choice), _BACKENDS),
    LiveKey("parallel_tool_calls", (*_BACKEND, "parallel_tool_calls"), _plain("parallel_tool_calls"), _BACKENDS),
    LiveKey("max_output_tokens", (*_BACKEND, "max_output_tokens"), _of_backend(stated_max_tokens), _BACKENDS),
    LiveKey("reasoning_effort", (*_BACKEND, "reasoning", "effort"), _plain("reasoning_effort"), _BACKENDS),
    LiveKey("language", lost="is left out: GPT-Live finds out by itself what is spoken"),
    LiveKey("turn_detection", lost="is left out: GPT-Live listens and speaks at once"),
    LiveKey("transcription", lost="is left out: GPT-Live transcribes by itself, always"),
    LiveKey("noise_reduction"),
    LiveKey("echo_cancellation"),
    LiveKey("temperature"),
    LiveKey("speed"),
    LiveKey("session", lost=""),
)
