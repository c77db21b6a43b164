"""`--connect`: a short silent talk on each upstream, and whether Azure takes an ephemeral token as a subprotocol."""

import asyncio
import base64
import json
import logging
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import picows

from strategies.base import EphemeralGrant, SessionSpec
from strategies.errors import MintError
from strategies.session_body import voice_live_transcription
from strategies.transport import BoundedResolver
from token_broker.doctor.checks import Check, CheckStatus
from token_broker.relay.azure.connector import Route, UpstreamConnector
from token_broker.relay.azure.dns_cache import DnsCache
from token_broker.relay.azure.socket import AzureSocket, connect
from token_broker.settings import Settings

__all__ = ["examine_talks"]

TALK_S = 6.0
_SILENCE_MS = 300
_CHUNK_MS = 20
_BYTES_PER_MS = 48  # PCM16, mono, 24 kHz
_TRANSCRIPTION = "conversation.item.input_audio_transcription."


@dataclass(frozen=True, slots=True)
class Heard:
    """How a silent talk went. `end` is the event that ended it, or empty; `code` Azure's, of an error in it."""

    end: str
    code: str
    duration_ms: float


async def examine_talks(
    settings: Settings,
    connector: UpstreamConnector,
    *,
    works: Sequence[str],
    spec: SessionSpec,
    minted: EphemeralGrant | None,
    tls: ssl.SSLContext,
    tell: Callable[[Check], None],
) -> None:
    """Tells of a talk on each of the upstreams that work, and of the subprotocol where GA minted."""
    routes = [route for route in connector.routes if route.name in works]
    talks = await asyncio.gather(*(_hold_silent_talk(connector, route, spec) for route in routes))
    for route, heard in zip(routes, talks, strict=True):
        ga = route.dialect == "ga"
        transcription = settings.transcription_model if ga else voice_live_transcription(settings.model)
        for check in judge_talk(route.name, heard, transcription):
            tell(check)
    if minted is not None:
        taken = await _takes_subprotocol(minted, settings, tls)
        tell(judge_subprotocol(taken, turned_on=settings.direct_websocket == "on"))


async def _hold_silent_talk(connector: UpstreamConnector, route: Route, spec: SessionSpec) -> Heard:
    began_s = time.monotonic()

    async def supply() -> SessionSpec:
        return spec

    end = code = ""
    try:
        async with asyncio.timeout(TALK_S):
            upstream = await connector.attempt(route, supply, timeout_s=TALK_S)
            try:
                end, code = await _be_silent(upstream.socket)
            finally:
                await upstream.socket.aclose()
    except (MintError, TimeoutError):
        pass  # `end` says how far it came
    return Heard(end, code, (time.monotonic() - began_s) * 1000)


async def _be_silent(socket: AzureSocket) -> tuple[str, str]:
    """Sends silence, has it committed, and waits for what Azure makes of it."""
    chunk = base64.b64encode(bytes(_CHUNK_MS * _BYTES_PER_MS)).decode()
    for _ in range(_SILENCE_MS // _CHUNK_MS):
        socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": chunk}))
    socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
    committed = ""
    while socket.failure is None or socket.frames:
        try:
            async with asyncio.timeout(TALK_S / 2):
                await socket.wait()
        except TimeoutError:
            return committed, ""
        if not socket.frames:
            break
        kind, code = _event(socket.take())
        if kind == "input_audio_buffer.committed":
            committed = kind
        if kind in {f"{_TRANSCRIPTION}completed", f"{_TRANSCRIPTION}failed", "error"}:
            return kind, code
    return "", ""


def _event(text: str) -> tuple[str, str]:
    """An event's type, and the code of the error in it."""
    try:
        event = json.loads(text)
    except (ValueError, RecursionError):
        return "", ""
    if not isinstance(event, dict):
        return "", ""
    error = event.get("error")
    code = error.get("code") if isinstance(error, dict) else ""
    return str(event.get("type")), code if isinstance(code, str) else ""


def judge_talk(upstream: str, heard: Heard, transcription_model: str) -> list[Check]:
    """A check of the talk, and one of the transcription where it says something of it."""
    value = f"{heard.duration_ms:.0f} ms"
    talk = f"talk {upstream}"
    transcription = f"transcription {upstream}"
    holds = Check(talk, CheckStatus.OK, "holds: Azure takes audio, and is left in order", value)
    match heard.end:
        case "":
            remediation = "the session opens, and then nothing is heard: try again; if it lasts, Azure's side is ill"
            return [Check(talk, CheckStatus.FAILED, "broke off, or stayed silent", value, remediation)]
        case "error":
            return [Check(talk, CheckStatus.FAILED, "Azure refuses the audio", value, "check the model's deployment")]
        case "input_audio_buffer.committed":
            return [holds, Check(transcription, CheckStatus.NOTE, "silence was not transcribed, which says nothing")]
        case ending if ending.endswith(".completed"):
            return [holds, Check(transcription, CheckStatus.OK, f"{transcription_model} transcribes")]
    if heard.code == "DeploymentNotFound":
        remediation = (
            "deploy it, or name a deployment that is there in AZURE_VOICELIVE_TRANSCRIPTION_MODEL; until then speech "
            "works, and nothing that users say is kept"
        )
        return [
            holds,
            Check(
                transcription,
                CheckStatus.FAILED,
                f"there is no deployment {transcription_model}",
                remediation=remediation,
            ),
        ]
    return [
        holds,
        Check(
            transcription, CheckStatus.WARNING, "silence could not be transcribed", remediation="try it with a voice"
        ),
    ]


async def _takes_subprotocol(minted: EphemeralGrant, settings: Settings, tls: ssl.SSLContext) -> bool | None:
    """Whether the GA socket opens for the token alone; None where it can't be told."""
    url = f"{minted.endpoint}/openai/v1/realtime?model={quote(settings.model, safe='')}"
    offered = f"realtime, openai-insecure-api-key.{minted.token.get_secret_value()}"
    names = DnsCache(BoundedResolver())
    try:
        async with asyncio.timeout(TALK_S):
            socket = await connect(
                url,
                {"Sec-WebSocket-Protocol": offered},
                names=names,
                tls=tls,
                max_message_bytes=settings.azure_message_bytes,
                deadline_s=asyncio.get_running_loop().time() + TALK_S,
                log_to=logging.getLogger("token_broker.relay.picows"),  # fixed above what would print headers
            )
            try:
                await socket.wait()
                return bool(socket.frames) and _event(socket.take())[0] == "session.created"
            finally:
                await socket.aclose()
    except picows.WSHandshakeError:
        return False
    except (OSError, TimeoutError, picows.WSError):
        return None
    finally:
        await names.aclose()


def judge_subprotocol(taken: bool | None, *, turned_on: bool) -> Check:
    """What to set BROKER_DIRECT_WEBSOCKET to."""
    name = "direct websocket"
    match taken:
        case True:
            remediation = (
                "" if turned_on else "BROKER_DIRECT_WEBSOCKET=on adds a way that needs neither WebRTC nor the proxy"
            )
            return Check(
                name, CheckStatus.OK, "Azure takes an ephemeral token as a subprotocol", remediation=remediation
            )
        case False if turned_on:
            remediation = "set BROKER_DIRECT_WEBSOCKET=off: browsers try it in vain"
            return Check(
                name, CheckStatus.FAILED, "Azure refuses an ephemeral token as a subprotocol", remediation=remediation
            )
        case False:
            return Check(
                name,
                CheckStatus.NOTE,
                "Azure refuses an ephemeral token as a subprotocol: BROKER_DIRECT_WEBSOCKET stays off",
            )
    return Check(name, CheckStatus.NOTE, "whether Azure takes an ephemeral token as a subprotocol could not be told")
