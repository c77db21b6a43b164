"""Protocol adapters: which path speaks which dialect, and how a talk speaks to each client.

A `ProtocolAdapter` is a talk's side towards its client. The plan's own (`ProxyAdapter`) adds `broker.*` events and
hands on the upstream's dialect as it is. A compatible endpoint's (`CompatAdapter`) keeps to the compatible endpoint's
dialect whatever the upstream speaks, and adds nothing that a strict official client would not know.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from strategies.base import Dialect
from token_broker.relay.azure.connector import Upstream
from token_broker.relay.dialects.broker_events import api_error, broker_error, broker_event
from token_broker.relay.dialects.item_cache import CACHED_EVENTS, ItemCache
from token_broker.relay.dialects.translation import needs_reading, renamed, to_azure, to_client
from token_broker.relay.event_text import SESSION_EVENTS, compact, parsed
from token_broker.relay.policy.allowlist import Allowed, Broken, Command, Passed, Refused, examine, judge
from token_broker.server.close_codes import DONE, DRAINING, INTERNAL, UPSTREAM_FAILED, UPSTREAM_TIMED_OUT, Ending
from token_broker.web.ids import uuid7

__all__ = [
    "COMPAT_ENDPOINTS",
    "PROXY_ADAPTER",
    "Answered",
    "CompatAdapter",
    "CompatEndpoint",
    "ProtocolAdapter",
    "ProxyAdapter",
    "ToAzure",
]

Event = dict[str, Any]

_NOT_THE_CLIENTS = frozenset({UPSTREAM_FAILED, UPSTREAM_TIMED_OUT, DRAINING, INTERNAL})


@dataclass(frozen=True, slots=True)
class CompatEndpoint:
    """A WebSocket under the paths that an official client makes of a base URL. `name` stands in logs."""

    name: str
    dialect: Dialect
    paths: tuple[str, ...]
    summary: str


# What a client may send is the same on both, and on the proxy: the rows of client_events.py.
COMPAT_ENDPOINTS = (
    CompatEndpoint(
        "ga",
        "ga",
        (
            "/v1/realtime",
            "/openai/v1/realtime",
            "/openai/realtime",
            "/api/v1/voice/voicelive/{session_id}/realtime",
        ),
        "A talk with the clients of OpenAI",
    ),
    CompatEndpoint(
        "voice_live",
        "preview",
        ("/voice-live/realtime", "/api/v1/voice/voicelive/{session_id}/voice-live/realtime"),
        "A talk with the clients of Voice Live",
    ),
)


@dataclass(frozen=True, slots=True)
class Answered:
    """Not for Azure: this is the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ToAzure:
    """Goes to Azure as these messages: none, one or two. `left_out` counts the fields that were taken out."""

    texts: tuple[str, ...]
    left_out: int = 0


FromClient = ToAzure | Answered | Command | Refused | Broken
"""What becomes of a client's message."""


class ProtocolAdapter(Protocol):
    """A talk's side towards its client."""

    dialect: Dialect | None
    """What the client speaks; None where it takes whatever the upstream does."""

    def opening(self, upstream: Upstream, *, session_id: str, agent_id: str) -> list[str]:
        """What the client hears first, made of the frames that came up to the upstream's `session.updated`."""
        ...

    def error(self, code: str, message: str, *, retryable: bool = False) -> str:
        """An event of the broker's own: something did not work, and the talk goes on."""
        ...

    def farewell(self, ending: Ending) -> tuple[Ending, str | None]:
        """The close code and its reason as this client is told them, and an event that comes before them."""
        ...

    def from_client(self, text: str, upstream: Dialect) -> FromClient:
        """What becomes of a message from the client."""
        ...

    def reads(self, kind: str, upstream: Dialect) -> bool:
        """Whether Azure's events of this type have to be parsed, for `to_client`; the others go through `passed`."""
        ...

    def passed(self, text: str, upstream: Dialect) -> str:
        """An event that needs no reading, as the client knows it."""
        ...

    def to_client(self, event: Event, upstream: Dialect) -> list[str]:
        """Azure's event, as the client knows it: none, one or several."""
        ...


class ProxyAdapter:
    """docs/api.md §5.2: the Realtime API's own events as the upstream has them, and the broker's."""

    dialect: Dialect | None = None

    def opening(self, upstream: Upstream, *, session_id: str, agent_id: str) -> list[str]:
        ready = broker_event(
            "broker.ready",
            session_id=session_id,
            agent_id=agent_id,
            dialect=upstream.route.dialect,
            upstream=upstream.route.name,
        )
        return [ready, *upstream.first]

    def error(self, code: str, message: str, *, retryable: bool = False) -> str:
        return broker_error(code, message, retryable=retryable)

    def farewell(self, ending: Ending) -> tuple[Ending, str | None]:
        return ending, None

    def from_client(self, text: str, upstream: Dialect) -> FromClient:
        del upstream
        match judge(text):
            case Passed(text=checked, left_out=left_out):
                return ToAzure((checked,), left_out)
            case verdict:
                return verdict

    def reads(self, kind: str, upstream: Dialect) -> bool:
        del kind, upstream
        return False

    def passed(self, text: str, upstream: Dialect) -> str:
        del upstream
        return text

    def to_client(self, event: Event, upstream: Dialect) -> list[str]:
        del upstream
        return [compact(event)]


PROXY_ADAPTER = ProxyAdapter()


class CompatAdapter:
    """docs/api.md §6.6: one dialect, and nothing that its official clients don't know."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect: Dialect | None = dialect
        self._dialect = dialect
        self._items = ItemCache()

    def opening(self, upstream: Upstream, *, session_id: str, agent_id: str) -> list[str]:
        """One `session.created`, with the session as Azure took it: for this client it has been the agent's all along.

        Azure's own shows its defaults, and is followed by a `session.updated` that the client has not asked for.
        """
        del agent_id
        events = [parsed(frame) for frame in upstream.first]
        sessions: Event = {"id": session_id}
        for event in events:
            if event["type"] in SESSION_EVENTS and isinstance(event.get("session"), dict):
                sessions |= event["session"]
        created = {"type": "session.created", "event_id": f"event_{uuid7()}", "session": sessions}
        others = [
            frame for frame, event in zip(upstream.first, events, strict=True) if event["type"] not in SESSION_EVENTS
        ]
        return [compact(created), *others]

    def error(self, code: str, message: str, *, retryable: bool = False) -> str:
        return api_error(code, message, kind="server_error" if retryable else "invalid_request_error")

    def farewell(self, ending: Ending) -> tuple[Ending, str | None]:
        """These clients look at events rather than at close codes, and know nothing of plans."""
        ending = Ending(ending.code, ending.reason.replace("ask for a new plan", "connect again"))
        if ending.code == DONE:
            return ending, None
        kind = "server_error" if ending.code in _NOT_THE_CLIENTS else "invalid_request_error"
        return ending, api_error(f"closed_{ending.code}", ending.reason, kind=kind)

    def from_client(self, text: str, upstream: Dialect) -> FromClient:
        match examine(text):
            case Passed(text=plain):
                return ToAzure((plain,))
            case Allowed(event={"type": "conversation.item.retrieve", "item_id": str() as item_id}) if (
                item := self._items.get(item_id)
            ):
                return Answered(self._whole({"type": "conversation.item.retrieved", "item": item}))
            case Allowed(event=event, left_out=left_out):
                told = to_azure(event, client=self._dialect, upstream=upstream)
                return ToAzure(tuple(compact(each) for each in told), left_out)
            case Command():
                return Refused("unknown_event", "there is no such event")
            case verdict:
                return verdict

    def reads(self, kind: str, upstream: Dialect) -> bool:
        return kind in CACHED_EVENTS or needs_reading(kind, client=self._dialect, upstream=upstream)

    def passed(self, text: str, upstream: Dialect) -> str:
        return renamed(text, client=self._dialect, upstream=upstream, new_id=uuid7)

    def to_client(self, event: Event, upstream: Dialect) -> list[str]:
        told = to_client(event, client=self._dialect, upstream=upstream, new_id=uuid7)
        for each in told:
            self._items.note(each)
        return [compact(each) for each in told]

    def _whole(self, event: Event) -> str:
        (whole,) = to_client(event, client=self._dialect, upstream=self._dialect, new_id=uuid7)
        return compact(whole)
