"""Every session field of both dialects, changed at the proxy and at both compatible endpoints.

What a client asks for is in force, and `session.updated` shows it; or it is refused with an error that names the field;
or it is the agent's own, and `session.updated` shows that what was asked for is not in force.
"""

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import websockets
from azure.ai.voicelive.models import RequestSession
from openai.types.realtime import RealtimeAudioConfigInput, RealtimeAudioConfigOutput, RealtimeSessionCreateRequest

from tests.compat.conftest import SIGNING_KEY, CompatBroker
from tests.simulator.support import Caller
from tests.support.broker import make_settings, run_broker
from token_broker.simulator import serve

Event = dict[str, Any]

# A value of each field that is not its default. Those of `audio.input` and `audio.output` stand under their paths.
GA: dict[str, Any] = {
    "audio.input.format": {"type": "audio/pcmu"},
    "audio.input.noise_reduction": {"type": "near_field"},
    "audio.input.transcription": {"model": "gpt-4o-transcribe"},
    "audio.input.turn_detection": {"type": "server_vad", "threshold": 0.9},
    "audio.output.format": {"type": "audio/pcma"},
    "audio.output.speed": 1.25,
    "audio.output.voice": "cedar",
    "include": ["item.input_audio_transcription.logprobs"],
    "instructions": "Be a pirate.",
    "max_output_tokens": 99,
    "model": "gpt-realtime-mini",
    "output_modalities": ["text"],
    "parallel_tool_calls": True,
    "prompt": {"id": "pmpt_1"},
    "reasoning": {"effort": "high"},
    "tool_choice": "required",
    "tools": [{"type": "function", "name": "pirate", "parameters": {"type": "object"}}],
    "tracing": "auto",
    "truncation": "disabled",
}
FLAT: dict[str, Any] = {
    "animation": {"outputs": ["viseme_id"]},
    "avatar": {"character": "lisa"},
    "include": ["phrases"],
    "input_audio_echo_cancellation": {"type": "server_echo_cancellation", "reference_source": "client"},
    "input_audio_sampling_rate": 16_000,  # before the formats: G.711 has a rate of its own
    "input_audio_format": "g711_ulaw",
    "input_audio_noise_reduction": {"type": "far_field"},
    "input_audio_transcription": {"model": "azure-speech"},
    "instructions": "Be a pirate.",
    "interim_response": {"type": "static_interim_response", "texts": ["Arr"]},
    "max_response_output_tokens": 99,
    "metadata": {"ship": "pearl"},
    "modalities": ["text"],
    "model": "gpt-realtime-mini",
    "output_audio_format": "g711_alaw",
    "output_audio_timestamp_types": ["word"],
    "parallel_tool_calls": True,
    "reasoning_effort": "high",
    "temperature": 0.9,
    "tool_choice": "required",
    "tools": [{"type": "function", "name": "pirate", "parameters": {"type": "object"}}],
    "turn_detection": {"type": "server_vad", "threshold": 0.9},
    "voice": {"type": "azure-standard", "name": "en-US-GuyNeural"},
}
UNHEARD_OF: dict[str, Any] = {"greeting": "Arr", "handoff": {"to": "x"}, "unheard_of": 1}


def test_table_has_every_field_of_the_packages() -> None:
    ga = set(RealtimeSessionCreateRequest.model_fields) - {"type", "audio"}
    ga |= {f"audio.input.{name}" for name in RealtimeAudioConfigInput.model_fields}
    ga |= {f"audio.output.{name}" for name in RealtimeAudioConfigOutput.model_fields}
    assert ga == set(GA)
    model: Any = RequestSession()
    assert {field._rest_name for field in model._attr_to_rest_field.values()} == set(FLAT)


def _nested(path: str, value: Any) -> Event:
    for name in reversed(path.split(".")):
        value = {name: value}
    assert isinstance(value, dict)
    return value


def _at(session: Any, path: str) -> Any:
    for name in path.split("."):
        session = session.get(name) if isinstance(session, dict) else None
    return session


def _shows(shown: Any, asked: Any) -> bool:
    """Whether what is shown has everything that was asked for; Azure adds defaults."""
    if isinstance(asked, dict) and isinstance(shown, dict):
        return all(_shows(shown.get(name), value) for name, value in asked.items())
    return bool(shown == asked)


@contextlib.asynccontextmanager
async def _talk(compat: CompatBroker, endpoint: str) -> AsyncIterator[Caller]:
    if endpoint == "proxy":
        proxy = (await compat.running.plan())["connections"][-1]
        options = {"subprotocols": proxy["protocols"], "compression": None, "proxy": None}
        async with websockets.connect(proxy["url"], **options) as socket:
            caller = Caller(socket)
            await caller.hear("session.updated")
            yield caller
    else:
        path = "/v1/realtime?model=gpt-realtime" if endpoint == "ga" else "/voice-live/realtime?model=gpt-realtime"
        async with compat.connect(path, secret=await compat.secret()) as caller:
            await caller.hear("session.created")
            yield caller


async def _outcome(caller: Caller, session: Event) -> tuple[list[str], Event | None]:
    """The fields that errors name, and the session that is shown in answer; a marker event ends the answer."""
    await caller.send("session.update", session=session)
    await caller.send("conversation.item.delete", item_id="marker")
    params: list[str] = []
    shown = None
    while True:
        event = json.loads(await caller.socket.recv())
        if event["type"] in {"error", "broker.error"}:
            error = event.get("error", event)
            if error.get("code") == "item_delete_invalid_item_id":
                return params, shown
            params.append(str(error.get("param")))
        elif event["type"] == "session.updated":
            shown = event["session"]


@pytest.mark.parametrize("upstream", ["voice_live", "openai_realtime"])
@pytest.mark.parametrize("endpoint", ["proxy", "ga", "voice_live"])
async def test_no_field_is_a_silent_yes(endpoint: str, upstream: str, tmp_path: Path) -> None:
    silent = []
    async with serve() as azure:
        settings = make_settings(tmp_path, azure.base_url, signing_keys=SIGNING_KEY, proxy_upstreams=(upstream,))
        async with run_broker(settings) as running, _talk(CompatBroker(running, azure), endpoint) as caller:
            spoken = endpoint if endpoint != "proxy" else {"openai_realtime": "ga"}.get(upstream, upstream)
            for path, value in [*GA.items(), *FLAT.items(), *UNHEARD_OF.items()]:
                session = _nested(path, value) | ({"type": "realtime"} if spoken == "ga" else {})
                params, shown = await _outcome(caller, session)
                if any(f"session.{path}".startswith(param) or param.startswith(f"session.{path}.") for param in params):
                    continue
                # Nothing is said of what is the agent's; and nothing is shown that is not in force.
                own = path in AGENTS_OWN[spoken] and endpoint != "proxy"
                if shown is None or _shows(_at(shown, path), value) is own or (own and params):
                    silent.append((path, params, _at(shown, path)))
    assert silent == []


# docs/client-events.md: official clients send these with every session, and some end their talk at the first error.
AGENTS_OWN = {
    "ga": {
        *("instructions", "model", "tools", "tool_choice", "prompt", "tracing", "truncation", "include"),
        *("reasoning", "parallel_tool_calls", "audio.input.transcription", "audio.output.voice"),
    },
    "voice_live": set(FLAT)
    - {"modalities", "input_audio_format", "output_audio_format", "input_audio_sampling_rate", "turn_detection"}
    - {"input_audio_noise_reduction", "max_response_output_tokens"},
}
