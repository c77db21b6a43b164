"""`WS /api/v1/voice/voicelive/{session_id}`: admission, then the talk. A plain ASGI application."""

import time
from collections.abc import Callable
from typing import Any

import structlog
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from token_broker.agents import Agent, AgentBook
from token_broker.limits import SessionLease, SessionLimits
from token_broker.memory.base import Owner, Recall, TicketBook, TurnIntake
from token_broker.observing import Observer, TalkEnded, unheard
from token_broker.problems import Problem, problem_response
from token_broker.relay.closing import BAD_REQUEST, FOREIGN_ORIGIN, TICKET_REFUSED, TOO_MANY, Ending
from token_broker.relay.counters import RelayCounters
from token_broker.relay.drain import GOING_AWAY, Drain
from token_broker.relay.serving import GIVE_UP_EXTENSION, WIRE_EXTENSION
from token_broker.relay.talk import Talk, TalkParts
from token_broker.relay.upstreams import UpstreamConnector
from token_broker.settings import Settings
from token_broker.telemetry import bind_ids
from token_broker.tokens import TicketClaims, TokenError, TokenSigner

__all__ = ["VoiceRelay", "websocket_not_found"]

log = structlog.get_logger("token_broker.relay")

SUBPROTOCOL = "realtime"
TICKET_PREFIX = "ticket."

OriginCheck = Callable[[Scope], bool]
LimitKey = Callable[[Scope, str], str]


class _RefusedError(Exception):
    """A newcomer that is not admitted."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.ending = Ending(code, reason)


class VoiceRelay:
    """The proxy. Route WebSockets and plain requests of its path here; `session_id` is a path parameter.

    `origin_allowed` judges the handshake's Origin; `limit_key` says what a principal's open talks are counted by (the
    address, for somebody anonymous). `limits` are shared with the SDP relay; `observe` hears of each talk's end.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        agents: AgentBook,
        signer: TokenSigner,
        tickets: TicketBook,
        intake: TurnIntake,
        recall: Recall,
        connector: UpstreamConnector,
        limits: SessionLimits,
        drain: Drain,
        origin_allowed: OriginCheck,
        limit_key: LimitKey,
        observe: Observer = unheard,
    ) -> None:
        self._observe = observe
        self._model = settings.model
        self._agents = agents
        self._signer = signer
        self._tickets = tickets
        self._limits = limits
        self._drain = drain
        self._origin_allowed = origin_allowed
        self._limit_key = limit_key
        self._counters = RelayCounters()
        self._talks: set[Talk] = set()
        self._parts = TalkParts(
            settings=settings,
            agents=agents,
            connector=connector,
            intake=intake,
            recall=recall,
            counters=self._counters,
        )

    @property
    def active(self) -> int:
        """How many talks run now."""
        return len(self._talks)

    def snapshot(self) -> dict[str, Any]:
        """The figures of `/status` and `/metrics`; bytes are those of events, not of WebSocket frames."""
        counters = self._counters
        totals = counters.totals([talk.counters for talk in self._talks])
        return {
            "active": self.active,
            "open_or_relayed": self._limits.active,
            "sessions": counters.sessions,
            "ready": counters.ready,
            "switches": counters.switches,
            "closes": {str(code): count for code, count in sorted(counters.closes.items())},
            "frames": {"to_azure": totals.to_azure_frames, "to_client": totals.to_client_frames},
            "bytes": {"to_azure": totals.to_azure_bytes, "to_client": totals.to_client_bytes},
            "turns": totals.turns,
            "turns_lost": totals.turns_lost,
            "failed_transcriptions": totals.failed_transcriptions,
            "usage": totals.usage.snapshot(),
            "usage_by_agent": {agent: usage.snapshot() for agent, usage in counters.usage_by_agent.items()},
            "usage_by_principal": {who: usage.snapshot() for who, usage in counters.usage_by_principal.items()},
            "upstreams": [gate.snapshot() for gate in self._parts.connector.gates.values()],
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await _upgrade_required(scope, receive, send)
            return
        await receive()  # websocket.connect
        offered = scope.get("subprotocols", [])
        # The ticket stands among what was offered: it must never come back as what was chosen.
        await send({"type": "websocket.accept", "subprotocol": SUBPROTOCOL if SUBPROTOCOL in offered else None})
        try:
            owner, agent, lease = await self._admit(scope)
        except _RefusedError as refused:
            self._counters.closes[refused.ending.code] += 1
            log.info("talk_refused", code=refused.ending.code, reason=refused.ending.reason)
            await _close(send, refused.ending)
            return
        with lease:
            await self._talk(scope, receive, send, owner, agent)

    async def _talk(self, scope: Scope, receive: Receive, send: Send, owner: Owner, agent: Agent) -> None:
        extensions = scope.get("extensions") or {}
        talk = Talk(
            self._parts,
            owner=owner,
            agent=agent,
            receive=receive,
            send=send,
            give_up=extensions.get(GIVE_UP_EXTENSION, {}).get("give_up"),
            wire=extensions.get(WIRE_EXTENSION, {}).get("wire"),
        )
        self._counters.sessions += 1
        self._talks.add(talk)
        self._drain.add(talk)
        ending = GOING_AWAY
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
                usage=talk.counters.usage.snapshot(),
            )
        finally:
            self._talks.discard(talk)
            self._drain.remove(talk)
            self._counters.finish(talk.counters, ending.code)
            state = scope.get("state", {})
            self._observe(
                TalkEnded(
                    session_id=owner.session_id,
                    agent_id=agent.id,
                    model=self._model,
                    code=ending.code,
                    reason=ending.reason,
                    duration_s=time.monotonic() - began_s,
                    correlation_id=state.get("correlation_id", ""),
                    turns=talk.counters.turns,
                    input_tokens=talk.counters.usage.input_tokens,
                    output_tokens=talk.counters.usage.output_tokens,
                    trace=state.get("trace"),
                )
            )

    async def _admit(self, scope: Scope) -> tuple[Owner, Agent, SessionLease]:
        """Who may talk, as which agent, in whose place. Raises _RefusedError. The ticket is used up here."""
        if self._drain.draining:
            raise _RefusedError(GOING_AWAY.code, GOING_AWAY.reason)
        if not self._origin_allowed(scope):
            raise _RefusedError(FOREIGN_ORIGIN, "this page's origin may not talk here: see BROKER_ALLOWED_ORIGINS")
        claims = self._read_ticket(scope)
        if (agent := self._agents.get(claims.agent_id)) is None:
            raise _RefusedError(BAD_REQUEST, "the ticket's agent is gone: ask for a new plan")
        lease = self._limits.acquire(self._limit_key(scope, claims.principal))
        if lease is None:
            raise _RefusedError(TOO_MANY, "too many talks are open: end one, or try again later")
        try:
            if not await self._tickets.spend(claims.ticket_id, claims.expires_at_s):
                raise _RefusedError(TICKET_REFUSED, "the ticket was used: ask for a new plan")
        except BaseException:
            lease.release()
            raise
        owner = Owner(claims.session_id, claims.principal, claims.epoch, claims.user_id)
        return owner, agent, lease

    def _read_ticket(self, scope: Scope) -> TicketClaims:
        tickets = [name for name in scope.get("subprotocols", []) if name.startswith(TICKET_PREFIX)]
        if len(tickets) != 1:
            raise _RefusedError(TICKET_REFUSED, "no ticket: ask POST /realtime/token first")
        try:
            claims = self._signer.read_ticket(tickets[0].removeprefix(TICKET_PREFIX))
        except TokenError as error:
            what = "has expired" if error.expired else "is not valid"
            raise _RefusedError(TICKET_REFUSED, f"the ticket {what}: ask for a new plan") from None
        if claims.session_id != scope.get("path_params", {}).get("session_id"):
            raise _RefusedError(TICKET_REFUSED, "the ticket is another session's: ask for a new plan")
        return claims


async def websocket_not_found(scope: Scope, receive: Receive, send: Send) -> None:
    """Any other path's WebSocket: a plain 404, where ASGI by itself would answer 403."""
    await receive()
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": BAD_REQUEST})
        return
    response = PlainTextResponse("There is no WebSocket at this path.\n", 404)
    await response(scope, receive, send)


async def _upgrade_required(scope: Scope, receive: Receive, send: Send) -> None:
    problem = Problem(
        426,
        "upgrade_required",
        "This path speaks WebSocket: connect with the url and the protocols of a plan's websocket_proxy.",
        headers={"Upgrade": "websocket", "Connection": "Upgrade"},
    )
    correlation_id = str(scope.get("state", {}).get("correlation_id", ""))
    await problem_response(problem, correlation_id)(scope, receive, send)


async def _close(send: Send, ending: Ending) -> None:
    try:
        await send({"type": "websocket.close", "code": ending.code, "reason": ending.reason})
    except (OSError, RuntimeError):
        log.debug("client_left_first", code=ending.code)
