"""`--connect`: a short silent talk on each upstream, each agent's session, and an ephemeral token as a subprotocol."""

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

from strategies.base import EphemeralGrant, SessionSpec, SpecSupplier
from strategies.errors import MintError
from strategies.resources import Resource, is_allowed
from strategies.transport import BoundedResolver
from token_broker.doctor.checks import Check, CheckStatus
from token_broker.doctor.hosts import ms_since
from token_broker.relay.azure.connector import Route, UpstreamConnector
from token_broker.relay.azure.dns_cache import DnsCache
from token_broker.relay.azure.socket import AzureSocket, connect
from token_broker.sessions.agents import Agent
from token_broker.sessions.plans import session_spec
from token_broker.settings import Settings

__all__ = ["examine_agents", "examine_talks"]

TALK_S = 6.0
AGENTS_AT_MOST = 10  # a resource takes about 30 new sessions a minute (docs/azure.md §8.3)
_SILENCE_MS = 300  # OpenAI's API refuses to commit less than 100 ms
_CHUNK_MS = 20
_BYTES_PER_MS = 48  # PCM16, mono, 24 kHz
_TRANSCRIPTION = "conversation.item.input_audio_transcription."


@dataclass(frozen=True, slots=True)
class SilentTalk:
    """How a silent talk went. `last_event` is empty where it broke off; `error_code` is Azure's, of an error in it."""

    last_event: str
    error_code: str
    took: str


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
    """Holds a talk on each upstream in `works`, and tries the subprotocol where GA minted."""
    (resource,) = connector.pool.resources  # the doctor has a connector of each
    routes = [route for route in connector.routes[resource.name] if route.name in works]

    supply = _supplier(spec)

    async def hold(route: Route) -> SilentTalk:
        began_s = time.monotonic()
        last_event = error_code = ""
        try:
            async with asyncio.timeout(TALK_S):
                upstream = await connector.attempt(resource, route, supply=supply, timeout_s=TALK_S, model=spec.model)
                try:
                    last_event, error_code = await _send_silence(upstream.socket)
                finally:
                    await upstream.socket.aclose()
        except (MintError, TimeoutError):
            pass  # an empty `last_event` is judged as a talk that broke off
        return SilentTalk(last_event, error_code, ms_since(began_s))

    talks = await asyncio.gather(*(hold(route) for route in routes))
    for route, talk in zip(routes, talks, strict=True):
        session = route.session(spec)
        hints = session.get("audio", {}).get("input", session)
        transcription = (hints.get("transcription") or hints.get("input_audio_transcription") or {}).get(
            "model", "none"
        )
        for check in judge_talk(route.name, talk, transcription):
            tell(check)
    if minted is not None:
        accepted = await _accepts_subprotocol(minted, settings, tls)
        tell(judge_subprotocol(accepted, turned_on=settings.direct_websocket == "on"))


async def examine_agents(
    settings: Settings,
    connector: UpstreamConnector,
    *,
    works: Sequence[str],
    agents: Sequence[Agent],
    tell: Callable[[Check], None],
) -> None:
    """Has Azure take each agent's session on each upstream in `works`, one after the other: new ones are limited."""
    (resource,) = connector.pool.resources
    asked = [agent for agent in agents if is_allowed(resource, agent.wanted(""))]
    for route in (each for each in connector.routes[resource.name] if each.name in works):
        name = f"agents {route.name}"
        taken: list[str] = []
        for agent in asked[:AGENTS_AT_MOST]:
            spec = session_spec(agent, settings, resource)
            try:
                async with asyncio.timeout(TALK_S):
                    upstream = await connector.attempt(
                        resource, route, supply=_supplier(spec), timeout_s=TALK_S, model=spec.model
                    )
                    await upstream.socket.aclose()
            except (MintError, TimeoutError) as error:
                finding = f"{agent.id}: {str(error) or 'no answer in time'}"
                remediation = "try the agent without its own settings, voices and tools (docs/agents.md)"
                tell(Check(name, CheckStatus.FAILED, finding, remediation=remediation))
                continue
            if upstream.left_out:
                finding = f"{agent.id}: Azure refuses {', '.join(upstream.left_out)}, and talks go on without"
                remediation = "take it out of the agent, or ask a resource or api-version that has it (docs/agents.md)"
                tell(Check(name, CheckStatus.WARNING, finding, remediation=remediation))
            else:
                taken.append(agent.id)
        if taken:
            tell(Check(name, CheckStatus.OK, f"Azure takes the sessions of {', '.join(taken)}"))
        if (untried := len(asked) - AGENTS_AT_MOST) > 0:
            tell(Check(name, CheckStatus.NOTE, f"{untried} more agents were not tried"))


def _supplier(spec: SessionSpec) -> SpecSupplier:
    async def supply(resource: Resource) -> SessionSpec:
        del resource  # the settings are its own
        return spec

    return supply


async def _send_silence(socket: AzureSocket) -> tuple[str, str]:
    """Sends silence, commits it, and waits for a transcription or an error: the event's type, and its error's code."""
    chunk = base64.b64encode(bytes(_CHUNK_MS * _BYTES_PER_MS)).decode()
    for _ in range(_SILENCE_MS // _CHUNK_MS):
        socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": chunk}))
    # Turn detection never ends a turn of silence, so the buffer is committed by hand.
    socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
    committed = ""
    while socket.failure is None or socket.frames:
        try:
            # Silence is often not transcribed at all. A longer wait would prove no more.
            async with asyncio.timeout(TALK_S / 2):
                await socket.wait()
        except TimeoutError:
            return committed, ""
        if not socket.frames:
            break
        kind, code = _type_and_error_code(socket.take())
        if kind == "input_audio_buffer.committed":
            committed = kind
        if kind in {f"{_TRANSCRIPTION}completed", f"{_TRANSCRIPTION}failed", "error"}:
            return kind, code
    return "", ""


def _type_and_error_code(text: str) -> tuple[str, str]:
    """Of an event; both are empty where the text is not one."""
    try:
        event = json.loads(text)
    except (ValueError, RecursionError):
        return "", ""
    if not isinstance(event, dict):
        return "", ""
    error = event.get("error")
    code = error.get("code") if isinstance(error, dict) else ""
    return str(event.get("type")), code if isinstance(code, str) else ""


def judge_talk(upstream: str, talk: SilentTalk, transcription_model: str) -> list[Check]:
    """A check of the talk, and one of the transcription where the talk shows something about it."""
    name = f"talk {upstream}"
    transcription = f"transcription {upstream}"
    holds = Check(name, CheckStatus.OK, "Azure accepts audio, and the talk ends in order", talk.took)
    match talk.last_event:
        case "":
            remediation = "the session opens, but then Azure falls silent: try again; if it lasts, the fault is Azure's"
            return [Check(name, CheckStatus.FAILED, "broke off, or stayed silent", talk.took, remediation)]
        case "error":
            finding = "Azure refuses the audio"
            return [Check(name, CheckStatus.FAILED, finding, talk.took, "check the model's deployment")]
        case "input_audio_buffer.committed":
            finding = "silence was not transcribed, which proves nothing"
            return [holds, Check(transcription, CheckStatus.NOTE, finding)]
        case event if event.endswith(".completed"):
            return [holds, Check(transcription, CheckStatus.OK, f"{transcription_model} transcribes")]
    if talk.error_code == "DeploymentNotFound":
        remediation = (
            "deploy it, or name an existing deployment in AZURE_VOICELIVE_TRANSCRIPTION_MODEL; until then speech "
            "works, and nothing that users say is kept"
        )
        finding = f"there is no deployment {transcription_model}"
        return [holds, Check(transcription, CheckStatus.FAILED, finding, remediation=remediation)]
    finding = "silence could not be transcribed"
    return [holds, Check(transcription, CheckStatus.WARNING, finding, remediation="try it with a voice")]


async def _accepts_subprotocol(minted: EphemeralGrant, settings: Settings, tls: ssl.SSLContext) -> bool | None:
    """Whether the GA socket opens for the ephemeral token alone. None where that can't be found out."""
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
                log_to=logging.getLogger("token_broker.relay.picows"),  # its level keeps headers out of the log
                proxy=settings.proxy,
            )
            try:
                await socket.wait()
                # Azure may accept the handshake and refuse the token in the first event.
                return bool(socket.frames) and _type_and_error_code(socket.take())[0] == "session.created"
            finally:
                await socket.aclose()
    except picows.WSHandshakeError:
        return False
    except (OSError, TimeoutError, picows.WSError):
        return None
    finally:
        await names.aclose()


def judge_subprotocol(accepted: bool | None, *, turned_on: bool) -> Check:
    """What BROKER_DIRECT_WEBSOCKET should be set to."""
    name = "direct websocket"
    refused = "Azure refuses an ephemeral token as a subprotocol"
    match accepted:
        case True:
            finding = "Azure accepts an ephemeral token as a subprotocol"
            remediation = (
                "" if turned_on else "BROKER_DIRECT_WEBSOCKET=on adds a way that needs neither WebRTC nor the proxy"
            )
            return Check(name, CheckStatus.OK, finding, remediation=remediation)
        case False if turned_on:
            remediation = "set BROKER_DIRECT_WEBSOCKET=off: browsers try it in vain"
            return Check(name, CheckStatus.FAILED, refused, remediation=remediation)
        case False:
            return Check(name, CheckStatus.NOTE, f"{refused}: BROKER_DIRECT_WEBSOCKET stays off")
    return Check(name, CheckStatus.NOTE, "whether Azure accepts an ephemeral token as a subprotocol is not known")
