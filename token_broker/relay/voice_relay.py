"""The relay's WebSockets, the plan's proxy and the compatible endpoints, as plain ASGI applications.

Each admits its client and then carries a talk. The proxy accepts the WebSocket first and refuses with a close code,
since browsers show scripts no status of a handshake. A compatible endpoint refuses with an HTTP status, which its
clients expect.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import structlog
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from strategies.health import BreakerStatus, percentiles
from strategies.session_model.live_session import LIVE_ROUTES
from token_broker.memory.types import Recall, TurnIngest
from token_broker.observability.events import Observer, TalkEnded, null_observer
from token_broker.observability.logging import Redactor, bind_ids, own_secrets
from token_broker.relay.adapters import (
    CompatAdapter,
    CompatEndpoint,
    ProtocolAdapter,
    ProxyAdapter,
    compat_adapter,
    query_values,
)
from token_broker.relay.admission import BLOCKED, SESSION_GONE, Admission, AdmittedClient, RefusedError
from token_broker.relay.azure.connector import UpstreamConnector
from token_broker.relay.client import TalkClient
from token_broker.relay.counters import Directions, RelayCounters, RelayStatus, ResourceUse, UpstreamStatus
from token_broker.relay.live.azure_session import LiveUpstreams
from token_broker.relay.live.faces import CompatFace, ProxyFace
from token_broker.relay.live.talk import LiveTalk
from token_broker.relay.media.control_socket import CallConnector
from token_broker.relay.media.media_adapter import MediaAdapter
from token_broker.relay.media.media_talk import MediaTalk
from token_broker.relay.session import Talk
from token_broker.relay.talk_parts import TalkParts
from token_broker.security.limits import SessionLimits
from token_broker.security.tokens import Owner
from token_broker.server.close_codes import BAD_REQUEST, Ending
from token_broker.server.drain import GOING_AWAY, Drain
from token_broker.sessions.agents import AgentRegistry
from token_broker.sessions.talk_level import TalkLevelCounters
from token_broker.settings import Settings
from token_broker.tools.guardrail import GuardrailClient
from token_broker.tools.runner import ToolRunner
from token_broker.usage.budgets import Leash
from token_broker.usage.ledger import UsageLedger
from token_broker.usage.talk_usage import TalkUsage
from token_broker.web.middleware import not_found
from token_broker.web.requests import Problem, correlation_id, problem_response, refuse_socket

__all__ = ["VoiceRelay", "websocket_not_found"]

log = structlog.get_logger("token_broker.relay")

SUBPROTOCOL = "realtime"
_NO_SIDEBAND = Problem(
    400,
    "sideband_not_served",
    "A call can't be joined here: the broker listens to it by itself. Leave call_id out to begin a talk.",
)
_NO_TRANSCRIPTION = Problem(
    400,
    "transcription_not_served",
    "Sessions that only transcribe are not served here: an agent would answer. Leave intent out to begin a talk.",
)
_SPEAKS_LIVE = Problem(
    409, "speaks_live", "This agent talks by GPT-Live: connect to /v1/live/sessions, with the clients' `live` resource."
)
_SPEAKS_REALTIME = Problem(
    409,
    "speaks_realtime",
    "This agent does not talk by GPT-Live: connect to /v1/realtime, with the `realtime` resource.",
)


class VoiceRelay:
    """All talks of the process.

    Route WebSockets and plain requests of the proxy's path, which has the parameter `session_id`, to `proxy`, and those
    of a compatible endpoint's paths to `compat`. `limits` are shared with the SDP relay; `observe` gets a TalkEnded for
    each talk; `tools` runs the tools of agents; `guardrail` asks theirs; `on_ended` gets the owner and the agent of
    each talk in which something was said; `ledger` keeps what each talk used.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        agents: AgentRegistry,
        admission: Admission,
        ingest: TurnIngest,
        recall: Recall,
        connector: UpstreamConnector,
        limits: SessionLimits,
        drain: Drain,
        observe: Observer = null_observer,
        level: TalkLevelCounters | None = None,
        tools: ToolRunner | None = None,
        guardrail: GuardrailClient | None = None,
        on_ended: Callable[[Owner, str], None] = lambda _owner, _agent_id: None,
        ledger: UsageLedger | None = None,
        leash: Leash | None = None,
        calls: CallConnector | None = None,
    ) -> None:
        lasting_secrets = (*own_secrets(settings), *(secret for agent in agents.values() for secret in agent.secrets))

        def redact(text: str) -> str:  # the connector's secrets change: an Entra token lives for an hour
            return Redactor((*lasting_secrets, *connector.secrets))(text)

        self._on_ended = on_ended
        self._leash = leash
        self._calls = calls
        self._ledger = ledger or UsageLedger(None)
        self._observe = observe
        self._level = level or TalkLevelCounters()
        self._model = connector.pool.resources[0].model if connector.pool.resources else settings.model
        self._admission = admission
        self._limits = limits
        self._drain = drain
        self._counters = RelayCounters()
        self._talks: set[Talk | MediaTalk] = set()
        self._live_talks: set[LiveTalk] = set()
        self._live_upstreams = LiveUpstreams(connector, timeout_s=settings.proxy_connect_timeout_s)
        self.parts = TalkParts(
            settings=settings,
            agents=agents,
            connector=connector,
            ingest=ingest,
            recall=recall,
            counters=self._counters,
            redact=redact,
            tools=tools,
            guardrail=guardrail,
            observe=observe,
        )

    @property
    def active(self) -> int:
        """The number of talks that run now."""
        return len(self._talks) + len(self._live_talks)

    def snapshot(self) -> RelayStatus:
        """The relay's status now, running talks and the calls that are listened to included."""
        counters = self._counters
        for talk in (*self._talks, *self._live_talks):
            talk.book()
        running = [*(talk.counters for talk in (*self._talks, *self._live_talks)), *counters.listened.values()]
        totals = counters.totals(running)
        return RelayStatus(
            active=self.active,
            open_or_relayed=self._limits.active,
            sessions=counters.sessions,
            ready=counters.ready,
            handoffs=counters.handoffs,
            resumes=counters.resumes_by_resource(),
            closes={str(code): count for code, count in sorted(counters.closes.items())},
            frames=Directions(totals.to_azure_frames, totals.to_client_frames),
            bytes=Directions(totals.to_azure_bytes, totals.to_client_bytes),
            turns=totals.turns,
            turns_lost=totals.turns_lost,
            failed_transcriptions=totals.failed_transcriptions,
            transcription_missing=sorted(self.parts.counters.transcription_missing),
            failed_answers=dict(counters.failed_answers),
            settings_left_out=self.parts.connector.settings_report.by_resource(),
            sessions_refused=self.parts.connector.settings_report.refused_by_resource(),
            refused_events=totals.refused_events,
            fields_left_out=totals.fields_left_out,
            tool_calls=totals.tool_calls,
            tool_calls_failed=totals.tool_calls_failed,
            calls_ended=counters.calls_ended,
            usage=totals.usage,
            transcription_usage=totals.transcription,
            usage_by_agent=dict(counters.usage_by_agent),
            usage_by_principal=dict(counters.usage_by_principal),
            turn_latency_ms=percentiles(counters.turn_latencies_ms),
            # Each is shown from the start, so that its first failure is seen as an increase.
            resources={name: counters.resources.get(name) or ResourceUse() for name in self.parts.connector.routes},
            upstreams=[
                UpstreamStatus(**{name: getattr(status, name) for name in BreakerStatus.__slots__}, resource=resource)
                for resource, route in self._upstreams()
                for status in [self.parts.connector.pool.route_status(resource, route)]
            ],
        )

    def _upstreams(self) -> list[tuple[str, str]]:
        """The resources and routes that talks may be connected to now."""
        connector, agents = self.parts.connector, self.parts.agents.values()
        signalled = [] if self._calls is None else self._calls.known
        own = {(resource, route.name) for (_, resource), route in connector.agents_routes.items()}
        live = {
            (resource.name, route)
            for agent in agents
            if agent.speaks_live(connector.pool.resources)
            for resource in connector.pool.allowed(agent.wanted(""))
            for route in LIVE_ROUTES
        }
        shared = [*connector.breakers, *((name, route.name) for name, route in signalled)]
        return [*shared, *sorted(own | live)]

    def end_where(self, refused: Callable[[str, str | None], bool]) -> None:
        """Ends the talks for which `refused` is true of principal and session: the operator has blocked them."""
        for talk in (*self._talks, *self._live_talks):
            if refused(talk.owner.principal, talk.owner.session_id):
                talk.end(BLOCKED)

    def end_session(self, owner: Owner) -> None:
        """Ends the talks of an erased session of `owner`: no turn of them could be kept any more."""
        for talk in (*self._talks, *self._live_talks):
            if talk.owner.session_id == owner.session_id and talk.owner.principal == owner.principal:
                talk.end(SESSION_GONE)

    async def proxy(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The plan's proxy (docs/api.md §5.1): a plan's ticket opens it, once. With `?media=webrtc` it carries the
        signalling and the events of a talk by WebRTC (§5.10).
        """
        if scope["type"] != "websocket":
            await _upgrade_required(scope, receive, send)
            return
        await receive()  # websocket.connect
        await send(_accepted(scope))  # before admission: only then can a refusal carry a close code
        adapter = MediaAdapter() if "webrtc" in query_values(scope, "media") else ProxyAdapter()
        try:
            admitted = self._admission.by_ticket(scope)
            self._admission.ensure_transport(admitted, adapter.transport)
            lease = await self._admission.enter(admitted)
        except RefusedError as refused:
            ending = refused.ending
            self._note_refusal(ending)
            try:
                await send({"type": "websocket.close", "code": ending.code, "reason": ending.reason})
            except (OSError, RuntimeError):
                log.debug("client_left_first", code=ending.code)
            return
        with lease:
            is_live = self._speaks_live(admitted)
            await self._talk(scope, receive, send, admitted, ProxyFace() if is_live else adapter)

    async def live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The socket of the official clients' `live` resource (docs/api.md §6.7)."""
        if scope["type"] != "websocket":
            await _upgrade_required(scope, receive, send)
            return
        await receive()
        await self._admit(scope, receive, send, name="live", face=CompatFace(), speaks_live=True)

    async def compat(self, endpoint: CompatEndpoint, scope: Scope, receive: Receive, send: Send) -> None:
        """A compatible endpoint (docs/api.md §6.4): any credential of the broker's opens it, for its own session."""
        if scope["type"] != "websocket":
            await _upgrade_required(scope, receive, send)
            return
        await receive()
        if b"call_id=" in scope["query_string"]:
            await _deny(scope, receive, send, _NO_SIDEBAND)
            return
        if "transcription" in query_values(scope, "intent"):
            await _deny(scope, receive, send, _NO_TRANSCRIPTION)
            return
        adapter = compat_adapter(endpoint, scope)
        await self._admit(scope, receive, send, name=endpoint.name, face=adapter, speaks_live=False)

    async def _admit(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        name: str,
        face: ProtocolAdapter | CompatFace,
        speaks_live: bool,
    ) -> None:
        """Admits an official client, whose endpoint is one for GPT-Live or not, and carries its talk."""
        try:
            admitted = self._admission.by_any(scope)
            if self._speaks_live(admitted) != speaks_live:
                raise _SPEAKS_REALTIME if speaks_live else _SPEAKS_LIVE
            await self._admission.ensure_budget(admitted)
            lease = await self._admission.enter(admitted, counted=True)
        except Problem as problem:
            if isinstance(problem, RefusedError):
                self._note_refusal(problem.ending, compat=name)
            await _deny(scope, receive, send, problem)
            return
        with lease:
            await send(_accepted(scope))
            await self._talk(scope, receive, send, admitted, face)

    def _speaks_live(self, admitted: AdmittedClient) -> bool:
        return admitted.agent.speaks_live(self.parts.connector.pool.resources)

    def _note_refusal(self, ending: Ending, **ids: str) -> None:
        self._counters.closes[ending.code] += 1
        log.info("talk_refused", **ids, code=ending.code, reason=ending.reason)

    async def _talk(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        admitted: AdmittedClient,
        adapter: ProtocolAdapter | ProxyFace | CompatFace,
    ) -> None:
        owner, agent = self._level.of(admitted.owner), admitted.agent
        self._level.begin(owner)
        is_official = isinstance(adapter, CompatFace | CompatAdapter)
        transport = "compat" if is_official else adapter.transport
        usage = self._ledger.open(owner, agent_id=agent.id, transport=transport, dialect="", seen=True)
        client = TalkClient.of(scope, receive, send)
        about: dict[str, Any] = {
            "owner": owner,
            "agent": agent,
            "on_live": partial(self._level.went_live, owner.talk_id),
            "greets": partial(self._level.greets, owner.talk_id),
            "usage": usage,
            "leash": None if self._leash is None else partial(self._leash.hold, usage, admitted.limit_key),
            "age_s": self._level.age_s(owner.talk_id),
        }
        talk: Talk | MediaTalk | LiveTalk
        if isinstance(adapter, ProxyFace | CompatFace):
            talk = LiveTalk(self.parts, self._live_upstreams, adapter, client, **about)
        elif isinstance(adapter, MediaAdapter) and self._calls is not None:
            talk = MediaTalk(self.parts, adapter, client, calls=self._calls, **about)
        else:
            talk = Talk(self.parts, adapter, client, **about)
        self._counters.sessions += 1
        if isinstance(talk, LiveTalk):
            self._live_talks.add(talk)
        else:
            self._talks.add(talk)
        self._drain.add(talk)
        used = talk.counters.usage
        ending = GOING_AWAY  # what counts if the server cancels this task before the talk ends by itself
        began_s = time.monotonic()
        bind_ids(session_id=owner.session_id)
        try:
            ending = await talk.run()
            log.info(
                "talk_ended",
                session_id=owner.session_id,
                principal=owner.principal,
                agent_id=agent.id,
                code=ending.code,
                reason=ending.reason,
                frames_to_azure=talk.counters.to_azure_frames,
                frames_to_client=talk.counters.to_client_frames,
                turns=talk.counters.turns,
                turns_lost=talk.counters.turns_lost,
                failed_transcriptions=talk.counters.failed_transcriptions,
                failed_answers=talk.counters.failed_answers,
                tool_calls=talk.counters.tool_calls,
                usage=used.snapshot() if _is_known(talk, usage) else None,
                transcription=talk.counters.transcription.snapshot(),
            )
        finally:
            self._talks.discard(talk)
            self._live_talks.discard(talk)
            self._drain.remove(talk)
            self._counters.finish(talk.counters, ending.code)
            usage.end(ending.outcome)
            if talk.counters.turns:
                self._on_ended(owner, talk.agent_id)
            self._level.end(owner, ends_talk=ending.ends_talk, has_left=ending.by_client)
            self._observe(
                TalkEnded(
                    session_id=owner.session_id,
                    agent_id=agent.id,
                    model=agent.model or self._model,
                    code=ending.code,
                    reason=ending.reason,
                    duration_s=time.monotonic() - began_s,
                    correlation_id=correlation_id(scope),
                    turns=talk.counters.turns,
                    input_tokens=used.input_tokens if _is_known(talk, usage) else None,
                    output_tokens=used.output_tokens if _is_known(talk, usage) else None,
                    turn_latencies_ms=tuple(talk.turn_latencies_ms),
                    trace=scope.get("state", {}).get("trace"),
                )
            )


def _is_known(talk: Talk | MediaTalk | LiveTalk, usage: TalkUsage) -> bool:
    """Whether the talk's tokens are known: Azure may tell its page alone, and GPT-Live itself bills seconds."""
    return talk.counters.usage.responses > 0 or (usage.is_measured and not isinstance(talk, LiveTalk))


async def websocket_not_found(scope: Scope, receive: Receive, send: Send) -> None:
    """A WebSocket at any other path: 404, where ASGI by default answers 403."""
    await refuse_socket(not_found(scope["path"]), scope, receive, send)


async def _upgrade_required(scope: Scope, receive: Receive, send: Send) -> None:
    problem = Problem(
        426,
        "upgrade_required",
        "This path speaks WebSocket: connect with a WebSocket client; /openapi.json says with what. An SDP offer "
        "goes to POST /v1/realtime/calls.",
        headers={"Upgrade": "websocket", "Connection": "Upgrade"},
    )
    await problem_response(problem, scope)(scope, receive, send)


def _accepted(scope: Scope) -> Message:
    """The handshake's answer. A credential may be among the offered subprotocols and must never be echoed as the chosen
    one. A client that offered none gets none (docs/azure.md §4.4).
    """
    return {"type": "websocket.accept", "subprotocol": SUBPROTOCOL if SUBPROTOCOL in scope["subprotocols"] else None}


async def _deny(scope: Scope, receive: Receive, send: Send, problem: Problem) -> None:
    response = problem_response(problem, scope)
    response.headers["X-Request-ID"] = correlation_id(scope)  # the middleware adds it only to HTTP responses
    await _answer(scope, receive, send, response)


async def _answer(scope: Scope, receive: Receive, send: Send, response: Response) -> None:
    """Answers a handshake with `response` where the server supports it, otherwise with ASGI's own 403."""
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": BAD_REQUEST})
        return
    await response(scope, receive, send)
