"""A scripted Azure that makes calls over control sockets, and what a page sends it."""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from tests.relay.support.azure import AzureTalk, ScriptedAzure, scripted_azure
from tests.relay.support.broker import Client, Running, broker
from tests.support.offers import OFFER

__all__ = ["ANSWER", "CREATE", "MEDIA", "ControlSocket", "calling", "control_azure"]

MEDIA = "?media=webrtc"
CREATE = {"type": "rtc.call.sdp.create", "event_id": "mine", "sdp_offer": OFFER}
ANSWER = "v=0\r\no=- 2 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111"  # without its last end


@dataclass
class ControlSocket:
    """How such an Azure behaves: `order` of its first events, what `session.created` shows, what it refuses."""

    order: tuple[str, ...] = ("session.created", "rtc.call.sdp.created")
    shows: Callable[[dict[str, Any]], dict[str, Any]] = lambda session: session
    refuses: list[dict[str, Any]] = field(default_factory=list)  # errors, one for each `rtc.call.sdp.create`
    begins_all_the_same: bool = False  # with Azure's own session
    busy: int = 0  # how many `response.create` it refuses since an answer is active
    expires_at: float | None = None
    sessions: list[dict[str, Any]] = field(default_factory=list)

    async def __call__(self, talk: AzureTalk) -> None:
        async for message in talk.connection:
            talk.arrived(message)
            event = talk.received[-1]
            match event["type"]:
                case "rtc.call.sdp.create" if self.refuses:
                    await talk.send(self.refuses.pop(0))
                    if self.begins_all_the_same:
                        await self._make(talk, {"session": {"instructions": "be helpful"}})
                case "rtc.call.sdp.create":
                    await self._make(talk, event)
                case "session.update":
                    self.sessions.append(event["session"])
                    await talk.send({"type": "session.updated", "session": {"id": "sess_1", **event["session"]}})
                case "response.create" if self.busy:
                    self.busy -= 1
                    code = "conversation_already_has_active_response"
                    error = {"type": "invalid_request_error", "code": code, "event_id": event.get("event_id")}
                    await talk.send({"type": "error", "error": error})

    async def _make(self, talk: AzureTalk, event: dict[str, Any]) -> None:
        session = event.get("session", {})
        self.sessions.append(session)
        stated = {"id": "sess_1", **self.shows(session)}
        if self.expires_at is not None:
            stated["expires_at"] = self.expires_at
        events: dict[str, dict[str, Any]] = {
            "session.created": {"type": "session.created", "event_id": "event_1", "session": stated},
            "rtc.call.sdp.created": {
                "type": "rtc.call.sdp.created",
                "event_id": "event_2",
                "rtc_call_id": "rtc_1",
                "sdp_answer": ANSWER,
            },
        }
        for kind in self.order:
            await talk.send(events[kind])


@contextlib.asynccontextmanager
async def control_azure(behaviour: ControlSocket | None = None) -> AsyncIterator[ScriptedAzure]:
    async with scripted_azure(behaviour or ControlSocket()) as azure:
        yield azure


@contextlib.asynccontextmanager
async def calling(
    behaviour: ControlSocket | None = None, **options: Any
) -> AsyncIterator[tuple[ScriptedAzure, Running, Client]]:
    """A page whose call is made; it has read everything up to `broker.ready`."""
    agent_id = options.pop("agent_id", "elena")
    async with (
        control_azure(behaviour) as azure,
        broker(azure.url, voice_live_webrtc="on", **options) as running,
        running.client(path=MEDIA, agent_id=agent_id) as client,
    ):
        await client.send(CREATE)
        await client.until("broker.ready")
        yield azure, running, client
