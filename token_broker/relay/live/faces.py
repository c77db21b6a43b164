"""A talk's side towards its client: the plan's proxy, with `broker.*` events, and the official clients' socket."""

from dataclasses import replace
from typing import Any, Protocol

from strategies.session_model.live_session import LIVE_ROUTE
from token_broker.relay.answers.actions import Tell
from token_broker.relay.answers.turn_clock import TurnLatency
from token_broker.relay.dialects.broker_events import broker_error, broker_event
from token_broker.relay.event_text import compact
from token_broker.relay.live.azure_session import LiveUpstream
from token_broker.relay.live.shown import DIALECT, shown_session
from token_broker.relay.policy.allowlist import Refused
from token_broker.server.close_codes import DONE, Ending
from token_broker.web.requests import uuid7

__all__ = ["CompatFace", "LiveFace", "ProxyFace", "live_error"]


class LiveFace(Protocol):
    """What a talk tells its client; None or nothing where the client knows no such event."""

    transport: str
    starts: bool
    """Whether the client begins with a `session.start`."""

    def opening(self, upstream: LiveUpstream, *, session_id: str, agent_id: str) -> list[str]: ...
    def error(self, refusal: Refused, *, retryable: bool = False) -> str: ...
    def called(self, tool: Tell) -> str | None: ...
    def answered(self, turn: TurnLatency) -> str | None: ...
    def switching(self, agent_id: str) -> str | None: ...
    def resuming(self, reason: str) -> str | None: ...
    def resumed(self, upstream: LiveUpstream) -> str | None: ...
    def farewell(self, ending: Ending) -> tuple[Ending, str | None]: ...


def live_error(code: str, message: str, *, param: str | None = None, event_id: str | None = None) -> str:
    """GPT-Live's `error` event, as the broker writes it."""
    error: dict[str, Any] = {"type": "invalid_request_error", "code": code, "message": message}
    error |= {} if param is None else {"param": param}
    error |= {} if event_id is None else {"client_event_id": event_id}
    return compact({"type": "error", "event_id": f"event_broker_{uuid7()}", "error": error})


class ProxyFace:
    """docs/api.md §5.2."""

    transport = "websocket_proxy"
    starts = False

    def opening(self, upstream: LiveUpstream, *, session_id: str, agent_id: str) -> list[str]:
        """`broker.ready`, then Azure's `session.started`."""
        about = {"dialect": DIALECT, "upstream": LIVE_ROUTE, "resource": upstream.resource}
        ready = broker_event("broker.ready", session_id=session_id, agent_id=agent_id, **about)
        return [ready, _started(upstream)]

    def error(self, refusal: Refused, *, retryable: bool = False) -> str:
        return broker_error(refusal.code, refusal.message, retryable=retryable, param=refusal.param)

    def called(self, tool: Tell) -> str | None:
        return broker_event("broker.tool", **tool.fields)

    def answered(self, turn: TurnLatency) -> str | None:
        return broker_event("broker.latency", **turn.fields)

    def switching(self, agent_id: str) -> str | None:
        return broker_event("broker.agent.switch", agent_id=agent_id)

    def resuming(self, reason: str) -> str | None:
        return broker_event("broker.resuming", reason=reason)

    def resumed(self, upstream: LiveUpstream) -> str | None:
        return broker_event("broker.resumed", resource=upstream.resource, upstream=LIVE_ROUTE, dialect=DIALECT)

    def farewell(self, ending: Ending) -> tuple[Ending, str | None]:
        told = broker_error(ending.error_code, ending.reason) if ending.told and ending.error_code else None
        return ending, told


class CompatFace:
    """docs/api.md §6: the events of the official clients' `live` resource, and no other."""

    transport = "compat_websocket"
    starts = True

    def opening(self, upstream: LiveUpstream, *, session_id: str, agent_id: str) -> list[str]:
        """Azure's `session.started`, which is the answer to the client's `session.start`."""
        del session_id, agent_id
        return [_started(upstream)]

    def error(self, refusal: Refused, *, retryable: bool = False) -> str:
        del retryable
        return live_error(refusal.code, refusal.message, param=refusal.param, event_id=refusal.event_id)

    def called(self, tool: Tell) -> str | None:
        """None: an official client is to see no call that is not its own."""
        del tool
        return None

    def answered(self, turn: TurnLatency) -> str | None:
        """None: an official client measures for itself, if at all."""
        del turn
        return None

    def switching(self, agent_id: str) -> str | None:
        """None: an official client has no plans, of which it could take another one."""
        del agent_id
        return None

    def resuming(self, reason: str) -> str | None:
        """None: an official client knows no such event, and its talk simply goes on."""
        del reason
        return None

    def resumed(self, upstream: LiveUpstream) -> str | None:
        del upstream
        return None

    def farewell(self, ending: Ending) -> tuple[Ending, str | None]:
        """Official clients look at events rather than at close codes, and have no plans."""
        ending = replace(ending, reason=ending.reason.replace("ask for a new plan", "connect again"))
        if ending.code == DONE and ending.error_code is None:
            return ending, None
        return ending, live_error(ending.error_code or f"closed_{ending.code}", ending.reason)


def _started(upstream: LiveUpstream) -> str:
    shown = shown_session(upstream.started.get("session"))
    about = {name: upstream.started[name] for name in ("type", "event_id") if name in upstream.started}
    return compact({**about, "session": shown})
