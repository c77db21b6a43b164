"""Protocol adapters: which path speaks which dialect, and how a talk speaks to its client.

The plan's proxy (`ProxyAdapter`) adds `broker.*` events and forwards the upstream's dialect unchanged. A compatible
endpoint (`CompatAdapter`) speaks its own dialect whatever the upstream speaks, and adds no event that a strict official
client does not know.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol
from urllib.parse import parse_qs

from starlette.types import Scope

from strategies.session_model.agent_settings import CLIENT_MAY_SET, Dialect
from token_broker.relay.answers.actions import Tell
from token_broker.relay.answers.turn_clock import TurnLatency
from token_broker.relay.azure.route import UpstreamConnection
from token_broker.relay.dialects.broker_events import api_error, broker_error, broker_event
from token_broker.relay.dialects.conversation_items import history_as_text
from token_broker.relay.dialects.item_cache import CACHED_EVENTS, ItemCache
from token_broker.relay.dialects.refused_settings import refused_fields, unknown_field
from token_broker.relay.dialects.session_settings import MaySet
from token_broker.relay.dialects.talk_translator import TalkTranslator
from token_broker.relay.dialects.translation import completed, renamed, to_azure
from token_broker.relay.event_text import SESSION_EVENTS, compact, parsed
from token_broker.relay.policy.allowlist import Allowed, Broken, Command, Passed, Refused, event_id_of, examine
from token_broker.server.close_codes import DONE, DRAINING, INTERNAL, UPSTREAM_FAILED, UPSTREAM_TIMED_OUT, Ending
from token_broker.web.requests import uuid7

__all__ = [
    "COMPAT_ENDPOINTS",
    "Answered",
    "CompatAdapter",
    "CompatEndpoint",
    "ProtocolAdapter",
    "ProxyAdapter",
    "ToAzure",
    "compat_adapter",
    "query_values",
]

Event = dict[str, Any]

_BETA_SUBPROTOCOL = "openai-beta.realtime-v1"  # what a browser offers in place of the header `OpenAI-Beta`
# Reported as a `server_error`, not as an `invalid_request_error`: the client did nothing wrong and may connect again.
_BROKERS_FAULT = frozenset({UPSTREAM_FAILED, UPSTREAM_TIMED_OUT, DRAINING, INTERNAL})


@dataclass(frozen=True, slots=True)
class CompatEndpoint:
    """A WebSocket at the paths that an official client derives from a base URL. `name` appears in logs."""

    name: str
    dialect: Dialect
    paths: tuple[str, ...]
    summary: str


# What a client may send is the same on both, and on the proxy: the rows of the allowlist.
COMPAT_ENDPOINTS = (
    CompatEndpoint(
        "ga",
        "ga",
        (
            "/v1/realtime",
            "/openai/v1/realtime",
            "/openai/realtime",
            "/openai/deployments/{deployment}/realtime",
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
    """Does not go to Azure: the broker answers with `text`."""

    text: str


@dataclass(frozen=True, slots=True)
class ToAzure:
    """Goes to Azure as these messages: none, one or two. `left_out` counts the fields that were removed.

    `told` are the errors about them: none of a client's fields is dropped without its knowledge.
    """

    texts: tuple[str, ...]
    left_out: int = 0
    told: tuple[str, ...] = ()


FromClient = ToAzure | Answered | Command | Refused | Broken
"""What becomes of a client's message."""


class ProtocolAdapter(Protocol):
    """A talk's side towards its client."""

    dialect: Dialect | None
    """What the client speaks; None where it accepts whatever the upstream speaks."""
    transport: str
    """How metrics call the client's side."""

    def opening(self, upstream: UpstreamConnection, *, session_id: str, agent_id: str) -> list[str]:
        """The client's first events, made from the upstream's frames up to its `session.updated`."""
        ...

    def error(self, refusal: Refused, *, retryable: bool = False) -> str:
        """The event that says that something failed, or was refused, and the talk goes on."""
        ...

    def called(self, tool: Tell) -> str | None:
        """The event that says what becomes of a call of a tool, where this client knows one."""
        ...

    def switched(self, agent_id: str) -> str | None:
        """The event that says that another agent has the talk, where this client knows one."""
        ...

    def answered(self, turn: TurnLatency) -> str | None:
        """The event that says how long the user waited for an answer, where this client knows one."""
        ...

    def announce_end(self, left_s: float) -> str | None:
        """The event that says that the talk ends in `left_s`, where this client knows one."""
        ...

    def resuming(self, reason: str, *, retry_after_s: float | None = None) -> str | None:
        """The event that says that Azure is being connected again, where this client knows one."""
        ...

    def resumed(self, upstream: UpstreamConnection) -> str | None:
        """The event that says that the talk goes on at `upstream`, where this client knows one."""
        ...

    def farewell(self, ending: Ending) -> tuple[Ending, str | None]:
        """The close code and reason for this client, and an event to send before them, if any."""
        ...

    def from_client(self, text: str, upstream: Dialect, may_set: MaySet = CLIENT_MAY_SET) -> FromClient:
        """What becomes of a message from the client, where its agent lets it change `may_set` of the session."""
        ...

    def reads(self, kind: str, upstream: Dialect) -> bool:
        """Whether Azure's events of this type have to be parsed for `to_client`; the others go through `passed`."""
        ...

    def passed(self, text: str, upstream: Dialect) -> str:
        """The text of an event that needs no parsing, for the client."""
        ...

    def to_client(self, event: Event, upstream: Dialect, *, text: str | None = None) -> list[str]:
        """Azure's event for the client: none, one or several. `text` is as Azure wrote it, where nothing is hidden."""
        ...


class ProxyAdapter:
    """docs/api.md §5.2: the Realtime API's events as the upstream sends them, and the broker's own. One a talk."""

    dialect: Dialect | None = None
    transport = "websocket_proxy"

    def __init__(self) -> None:
        self._items = ItemCache()

    def opening(self, upstream: UpstreamConnection, *, session_id: str, agent_id: str) -> list[str]:
        ready = broker_event(
            "broker.ready",
            session_id=session_id,
            agent_id=agent_id,
            dialect=upstream.route.dialect,
            upstream=upstream.route.name,
            resource=upstream.resource,
        )
        return [ready, *upstream.first]

    def error(self, refusal: Refused, *, retryable: bool = False) -> str:
        return broker_error(refusal.code, refusal.message, retryable=retryable, param=refusal.param)

    def called(self, tool: Tell) -> str | None:
        return broker_event("broker.tool", **tool.fields)

    def switched(self, agent_id: str) -> str | None:
        return broker_event("broker.agent.switched", agent_id=agent_id)

    def answered(self, turn: TurnLatency) -> str | None:
        return broker_event("broker.latency", **turn.fields)

    def announce_end(self, left_s: float) -> str | None:
        message = f"Azure ends this talk in {left_s:.0f} s, and no other session is to be had: ask for a new plan"
        return broker_error("session_expiring", message, retryable=True)

    def resuming(self, reason: str, *, retry_after_s: float | None = None) -> str | None:
        wait = {} if retry_after_s is None else {"retry_after_s": math.ceil(retry_after_s)}
        return broker_event("broker.resuming", reason=reason, **wait)

    def resumed(self, upstream: UpstreamConnection) -> str | None:
        return broker_event(
            "broker.resumed",
            resource=upstream.resource,
            upstream=upstream.route.name,
            dialect=upstream.route.dialect,
        )

    def farewell(self, ending: Ending) -> tuple[Ending, str | None]:
        told = broker_error(ending.error_code, ending.reason) if ending.told and ending.error_code else None
        return ending, told

    def from_client(self, text: str, upstream: Dialect, may_set: MaySet = CLIENT_MAY_SET) -> FromClient:
        match examine(text, may_set):
            case Passed(text=plain):
                return ToAzure((plain,))
            case Allowed(event=event) if answer := _retrieved(event, self._items):
                if isinstance(answer, Refused):
                    return answer
                return Answered(broker_event(answer.pop("type"), **answer))
            case Allowed(event=event, left_out=left_out, unlisted=unlisted):
                refused = [unknown_field(param, upstream) for param in unlisted]
                told = (self.error(Refused(each.code, each.message, each.param)) for each in refused)
                return ToAzure((compact(history_as_text(event, upstream)),), left_out, tuple(told))
            case verdict:
                return verdict

    def reads(self, kind: str, upstream: Dialect) -> bool:
        del upstream
        return kind in CACHED_EVENTS

    def passed(self, text: str, upstream: Dialect) -> str:
        del upstream
        return text

    def to_client(self, event: Event, upstream: Dialect, *, text: str | None = None) -> list[str]:
        del upstream
        self._items.note(event)
        return [compact(event) if text is None else text]


class CompatAdapter:
    """docs/api.md §6.6: one dialect, and no event that its official clients do not know. One instance a talk.

    With `may_be_ga` the client speaks GA after all if its session says so: `AzureOpenAI` sends a preview's
    `api-version` whichever of the two it speaks.
    """

    transport = "compat_websocket"

    def __init__(self, dialect: Dialect, *, may_be_ga: bool = False) -> None:
        self._may_be_ga = may_be_ga
        self._items = ItemCache()
        self._speak(dialect)

    def _speak(self, dialect: Dialect) -> None:
        self.dialect: Dialect | None = dialect
        self._client = dialect
        self._translator = TalkTranslator(dialect, new_id=uuid7)

    def opening(self, upstream: UpstreamConnection, *, session_id: str, agent_id: str) -> list[str]:
        """One `session.created` with the session that Azure accepted: to this client it was the agent's all along.

        Azure's own `session.created` shows defaults, and is followed by a `session.updated` that the client did not
        ask for.
        """
        del agent_id
        events = [parsed(frame) for frame in upstream.first]
        session: Event = {"id": session_id}
        for event in events:
            if event["type"] in SESSION_EVENTS and isinstance(event.get("session"), dict):
                session |= event["session"]
        created = {"type": "session.created", "event_id": f"event_{uuid7()}", "session": session}
        others = [
            frame for frame, event in zip(upstream.first, events, strict=True) if event["type"] not in SESSION_EVENTS
        ]
        return [compact(created), *others]

    def error(self, refusal: Refused, *, retryable: bool = False) -> str:
        kind = "server_error" if retryable else "invalid_request_error"
        return api_error(refusal.code, refusal.message, kind=kind, param=refusal.param, event_id=refusal.event_id)

    def called(self, tool: Tell) -> str | None:
        """None: an official client knows no such event, and is to see no call that is not its own."""
        del tool
        return None

    def switched(self, agent_id: str) -> str | None:
        """None: an official client knows nothing of agents."""
        del agent_id
        return None

    def answered(self, turn: TurnLatency) -> str | None:
        """None: an official client measures for itself, if at all."""
        del turn
        return None

    def announce_end(self, left_s: float) -> str | None:
        """None: an official client takes an `error` for something that went wrong."""
        del left_s
        return None

    def resuming(self, reason: str, *, retry_after_s: float | None = None) -> str | None:
        """None: an official client knows no such event, and its talk simply goes on."""
        del reason, retry_after_s
        return None

    def resumed(self, upstream: UpstreamConnection) -> str | None:
        del upstream
        return None

    def farewell(self, ending: Ending) -> tuple[Ending, str | None]:
        """Official clients look at events rather than at close codes, and have no plans."""
        ending = replace(ending, reason=ending.reason.replace("ask for a new plan", "connect again"))
        if ending.code == DONE and ending.error_code is None:
            return ending, None
        kind = "server_error" if ending.code in _BROKERS_FAULT else "invalid_request_error"
        return ending, api_error(ending.error_code or f"closed_{ending.code}", ending.reason, kind=kind)

    def from_client(self, text: str, upstream: Dialect, may_set: MaySet = CLIENT_MAY_SET) -> FromClient:
        match examine(text, may_set):
            case Passed(text=plain):
                return ToAzure((plain,))
            case Allowed(event=event) if answer := _retrieved(event, self._items):
                if isinstance(answer, Refused):
                    return answer
                return Answered(compact(completed(answer, self._client, uuid7)))  # in its dialect already
            case Allowed(event=event, left_out=left_out, unlisted=unlisted):
                if self._may_be_ga and event["type"] == "session.update":
                    self._may_be_ga = False
                    if (event.get("session") or {}).get("type") == "realtime":  # only GA has a type
                        self._speak("ga")
                refused = list(refused_fields(event, unlisted, client=self._client, upstream=upstream, may_set=may_set))
                event_id = event_id_of(event)
                told = (self.error(Refused(each.code, each.message, each.param, event_id)) for each in refused)
                translated = to_azure(event, client=self._client, upstream=upstream)
                if refused and event["type"] == "session.update":
                    # Where nothing is left of it, `session.updated` would be a yes to what was refused.
                    translated = [each for each in translated if set(each.get("session") or ()) - {"type"}]
                texts = tuple(compact(each) for each in translated)
                return ToAzure(texts, max(left_out, len(refused)), tuple(told))
            case Command(event=event):
                return Refused("unknown_event", "there is no such event", "type", event_id_of(event))
            case verdict:
                return verdict

    def reads(self, kind: str, upstream: Dialect) -> bool:
        return kind in CACHED_EVENTS or self._translator.reads(kind, upstream)

    def passed(self, text: str, upstream: Dialect) -> str:
        return renamed(text, client=self._client, upstream=upstream, new_id=uuid7)

    def to_client(self, event: Event, upstream: Dialect, *, text: str | None = None) -> list[str]:
        del text
        translated = self._translator.to_client(event, upstream)
        for each in translated:
            self._items.note(each)
        return [compact(each) for each in translated]


def query_values(scope: Scope, name: str) -> list[str]:
    """The values of this key in a handshake's query, in lower case."""
    return [value.lower() for value in parse_qs(scope["query_string"].decode("latin-1")).get(name, [])]


def compat_adapter(endpoint: CompatEndpoint, scope: Scope) -> CompatAdapter:
    """The adapter for a client of `endpoint`. One that says that it speaks OpenAI's beta gets the beta's dialect."""
    betas = [value.decode("latin-1") for name, value in scope["headers"] if name == b"openai-beta"]
    if any("realtime=v1" in value.lower() for value in betas) or _BETA_SUBPROTOCOL in scope["subprotocols"]:
        return CompatAdapter("preview")
    if endpoint.dialect == "ga" and any(value.endswith("-preview") for value in query_values(scope, "api-version")):
        return CompatAdapter("preview", may_be_ga=True)
    return CompatAdapter(endpoint.dialect)


def _retrieved(event: Event, items: ItemCache) -> Event | Refused | None:
    """The answer to a client's `conversation.item.retrieve`: the item without its audio, or a refusal. None
    where Azure has to answer, and for any other event.

    Azure's own answer has the audio: some 16 s of speech exceed the limit of a message, and would end the talk.
    """
    item_id = event.get("item_id")
    if event.get("type") != "conversation.item.retrieve" or not isinstance(item_id, str):
        return None
    if (item := items.get(item_id)) is not None:
        return {"type": "conversation.item.retrieved", "item": item}
    if items.is_lost(item_id):
        message = "this item is too long or too old to be retrieved"
        return Refused("item_not_kept", message, "item_id", event_id_of(event))
    return None
