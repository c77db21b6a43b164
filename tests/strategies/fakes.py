"""What the strategies' unit tests ask with: a spec, a credential, and httpx's own mock transport."""

from typing import Any

import httpx
import respx
from pydantic import SecretStr

from strategies.base import SessionSpec
from strategies.credentials import Credentials
from strategies.upstream import Upstream

KEY = "the-resources-key-0123456789"
NOW_S = 1_795_000_000.0

SPEC = SessionSpec(
    model="gpt-realtime",
    instructions="Be brief.",
    voices={"ga": "marin", "preview": "en-US-Ava:DragonHDLatestNeural"},
    transcription_model="my-transcriber",
    ttl_s=60,
)
FLAT_BODY: dict[str, Any] = {
    "model": "gpt-realtime",
    "modalities": ["audio", "text"],
    "instructions": "Be brief.",
    "voice": "en-US-Ava:DragonHDLatestNeural",
    "input_audio_transcription": {"model": "whisper-1"},
    "turn_detection": {
        "type": "server_vad", "threshold": 0.6, "prefix_padding_ms": 300, "silence_duration_ms": 800,
    },
}  # fmt: skip
GA_BODY: dict[str, Any] = {
    "expires_after": {"anchor": "created_at", "seconds": 60},
    "session": {
        "type": "realtime",
        "model": "gpt-realtime",
        "instructions": "Be brief.",
        "output_modalities": ["audio"],
        "audio": {
            "input": {"transcription": {"model": "my-transcriber"}, "turn_detection": FLAT_BODY["turn_detection"]},
            "output": {"voice": "marin"},
        },
    },
}


def minted(token: str = "ek_minted", **more: Any) -> httpx.Response:
    """A mint's success, valid for another minute by the clock of `upstream_over`."""
    return httpx.Response(200, json={"value": token, "expires_at": int(NOW_S) + 60, **more})


def version_refused() -> httpx.Response:
    """As Azure words it (docs/azure.md §2.3)."""
    return httpx.Response(400, json={"error": {"code": "BadRequest", "message": "API version not supported"}})


def key_credentials() -> Credentials:
    return Credentials(key=SecretStr(KEY), entra=None)


def upstream_over(
    router: respx.MockRouter, credentials: Credentials | None = None, *, clock_s: float = NOW_S
) -> Upstream:
    """An upstream whose requests the router answers; our clock stands at `clock_s`."""
    transport = httpx.MockTransport(router.async_handler)
    return Upstream(transport, credentials or key_credentials(), clock=lambda: clock_s)
