"""Makes calls over Azure's control sockets: one resource at a time, since what makes a call is never hedged.

A resource that is silent for its share is followed by the next. Closing a control socket is the only end of a call that
is known (docs/azure.md §12.1), so whatever a request that nobody waits for still comes to ends with its socket.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import structlog

from strategies.base import SpecSupplier
from strategies.errors import MalformedError, MintError, RejectedError, TimedOutError, TransientError
from strategies.resources import Resource, Wanted
from strategies.voice_live_webrtc import WebRtcAvailability
from token_broker.relay.azure.connector import NoUpstreamError, UpstreamConnector, ending_of
from token_broker.relay.azure.opening import SessionRefusedError, clock_skew_s, expiry_s, refusal_of
from token_broker.relay.azure.route import ConnectionHealth, Route, UpstreamConnection
from token_broker.relay.azure.socket import AzureSocket
from token_broker.relay.confirmation.confirmation import Confirmation
from token_broker.relay.dialects.broker_events import OWN_EVENT_IDS
from token_broker.relay.event_text import SESSION_EVENTS, compact, event_of, event_type
from token_broker.relay.media.call_offers import CREATE, CREATED, CallOffer, with_line_ends
from token_broker.server.close_codes import UPSTREAM_FAILED, UPSTREAM_TIMED_OUT, Ending

__all__ = ["CALL_ERROR", "CallConnector", "CallRefusedError", "harmless_error", "probe_control"]

log = structlog.get_logger("token_broker.relay")

CALL_ERROR = "rtc.call.error"
_CALL_ID = f"{OWN_EVENT_IDS}call"
_SHARE_S = 1.0  # of a resource while another one is left, as an SDP offer has it
_PROBE_S = 5.0
_FRAMES_AT_MOST = 64
_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_KINDS = frozenset({"invalid_request_error", "server_error"})
_NO_CALLS = Ending(UPSTREAM_FAILED, "no Azure resource has this way now: go on to the plan's next connection")

OnAnswer = Callable[[str], Awaitable[None]]


class CallRefusedError(RejectedError):
    """Azure refuses the offer. `event` is what its client may know of it."""

    def __init__(self, event: str, code: str | None) -> None:
        super().__init__("Azure refuses the offer", code=code)
        self.event = event


@dataclass(frozen=True, slots=True)
class _TakenCall:
    frames: list[str]
    session: Mapping[str, Any]
    left_out: tuple[str, ...]


async def probe_control(connector: UpstreamConnector, routes: Mapping[str, Route], resource: Resource) -> None:
    """Opens the resource's control socket and closes it without an offer. Raises MintError."""
    deadline_s, route = asyncio.get_running_loop().time() + _PROBE_S, routes[resource.name]
    try:
        async with asyncio.timeout_at(deadline_s):
            socket = await connector.open_route(resource, route, deadline_s=deadline_s, query=_query(route))
    except TimeoutError:
        raise TimedOutError(f"no control socket within {_PROBE_S:g} s") from None
    await socket.aclose()


class CallConnector:
    """Connects calls; one instance a process. `routes` are Voice Live's control sockets by the name of a resource;
    `available` gets an agent's id, and says where its control sockets are there.
    """

    def __init__(
        self,
        connector: UpstreamConnector,
        routes: Mapping[str, Route],
        *,
        available: Callable[[str], WebRtcAvailability],
        timeout_s: float,
    ) -> None:
        self.routes = dict(routes)
        self._connector = connector
        self._available = available
        self._timeout_s = timeout_s

    @property
    def known(self) -> list[tuple[str, Route]]:
        """The control sockets that are there, by the name of the resource."""
        availability = self._available("")
        return [(name, route) for name, route in self.routes.items() if availability.has(name)]

    async def call(
        self, supply: SpecSupplier, offer: CallOffer, *, wanted: Wanted, on_answer: OnAnswer
    ) -> UpstreamConnection:
        """A call whose session is the agent's, within the limit for all resources. Raises NoUpstreamError.

        `on_answer` gets Azure's answer at once, as an event; from then on no other resource is asked. Where all that is
        left to tell is why Azure refused the offer, `on_answer` gets that.
        """
        loop, pool, availability = asyncio.get_running_loop(), self._connector.pool, self._available(wanted.agent_id)
        deadline_s = loop.time() + self._timeout_s
        left = [(each, route) for each in pool.order(wanted) if (route := self._route(each, wanted)) is not None]
        ending, refusal, answered = _NO_CALLS, "", False

        async def pass_answer(event: str) -> None:
            nonlocal answered
            answered = True
            await on_answer(event)

        while left and not answered and (left_s := deadline_s - loop.time()) > 0:
            resource, route = left.pop(0)
            about = {"resource": resource.name, "upstream": route.name}
            permit = pool.admit(resource, route.name, agent_id=wanted.agent_id, model=wanted.model, early=not left)
            if permit is None:
                log.info("upstream_attempt", **about, outcome="skipped")
                continue
            began_s = loop.time()
            try:
                with pool.connecting(permit):
                    upstream = await self._attempt(
                        resource,
                        route,
                        supply,
                        offer,
                        pass_answer,
                        timeout_s=min(left_s, _SHARE_S) if left else left_s,
                        longest_s=left_s,
                        model=wanted.model,
                    )
            except MintError as error:
                ending = ending_of(error) if ending.code != UPSTREAM_TIMED_OUT else ending
                refusal = error.event if isinstance(error, CallRefusedError) else refusal
                told = {"outcome": error.outcome, "status": error.status, "code": error.code, "why": str(error)}
                log.warning("upstream_attempt", **about, ms=round((loop.time() - began_s) * 1000), **told)
                availability.note(resource.name, error)
                if isinstance(error, SessionRefusedError):
                    self._connector.settings_report.note_refused(resource=resource.name, agent_id=wanted.agent_id)
                continue
            log.info("upstream_attempt", **about, ms=round((loop.time() - began_s) * 1000), outcome="connected")
            self._connector.settings_report.note_left_out(
                upstream.left_out, resource=resource.name, agent_id=wanted.agent_id
            )
            health = ConnectionHealth(pool, permit, upstream.socket, expires_s=upstream.expires_s)
            return replace(upstream, health=health)
        if refusal and not answered:
            await on_answer(refusal)
        raise NoUpstreamError(ending)

    def _route(self, resource: Resource, wanted: Wanted) -> Route | None:
        if not self._available(wanted.agent_id).has(resource.name):
            return None
        own = self._connector.agents_routes.get((wanted.agent_id, resource.name))
        return own or self.routes.get(resource.name)

    async def _attempt(
        self,
        resource: Resource,
        route: Route,
        supply: SpecSupplier,
        offer: CallOffer,
        on_answer: OnAnswer,
        *,
        timeout_s: float,
        longest_s: float,
        model: str,
    ) -> UpstreamConnection:
        """A call at one resource. Its answer has to come within `timeout_s`, the agent's session within `longest_s`.

        Raises MintError.
        """
        loop = asyncio.get_running_loop()
        until_s, longest_until_s = loop.time() + timeout_s, loop.time() + longest_s
        try:
            async with asyncio.timeout_at(until_s) as limit:

                async def pass_answer(event: str) -> None:
                    limit.reschedule(longest_until_s)
                    await on_answer(event)

                opened = await self._connector.open_route(
                    resource, route, model=model, deadline_s=until_s, query=_query(route)
                )
                try:
                    taken = await _take_call(opened, route.session(await supply(resource)), offer, pass_answer)
                except BaseException:
                    await opened.aclose(graceful=False)
                    raise
        except TimeoutError:
            raise TimedOutError(f"no call within {timeout_s:.1f} s") from None
        return UpstreamConnection(
            route,
            opened,
            taken.frames,
            expiry_s(taken.frames, skew_s=clock_skew_s(opened)),
            resource.name,
            model or resource.model,
            session=taken.session,
            left_out=taken.left_out,
        )


async def _take_call(
    opened: AzureSocket, session: Mapping[str, Any], offer: CallOffer, on_answer: OnAnswer
) -> _TakenCall:
    """Sends the offer with the agent's `session`, and waits for Azure's answer and its word on the session, in any
    order. Raises MintError.

    Where Azure shows another session, the agent's is sent once more, as an update. A field that a refusal names is left
    out, once.
    """
    asked = Confirmation(session, event_id=_CALL_ID)
    opened.send(_create(offer, asked))
    frames: list[str] = []
    answered = confirmed = differs = updated = False
    while not (answered and confirmed):
        if answered and differs and not updated:
            updated = True
            opened.send(asked.update)
        await opened.wait()
        if not opened.frames:
            raise TransientError(opened.failure or "the connection to Azure broke")
        text = opened.take()
        kind, event = event_type(text), event_of(text)
        if kind is None or event is None or len(frames) >= _FRAMES_AT_MOST:
            raise MalformedError("what came instead of a call is none of Azure's events")
        if kind == CREATED:
            if not answered:
                answered = True
                await on_answer(_answer(event))
        elif kind == CALL_ERROR and answered:
            raise TransientError("Azure has ended the call")
        elif kind in {CALL_ERROR, "error"} and not confirmed:
            error = refusal_of(event)
            if not asked.refused(error):
                if answered:
                    raise SessionRefusedError("Azure refuses the agent's session")
                raise CallRefusedError(harmless_error(event), _code_of(error))
            if kind == CALL_ERROR:  # there is no call
                opened.send(_create(offer, asked))
            else:  # it may begin without what was refused
                differs, updated = True, False
        else:
            frames.append(text)
            if kind in SESSION_EVENTS and not confirmed:
                stated = event.get("session")
                shows = isinstance(stated, dict) and ("instructions" in stated or "instructions" not in asked.session)
                confirmed = shows and not asked.disagreements(stated)
                differs = not confirmed
                if differs and updated and kind == "session.updated":
                    log.error("session_not_the_agents", fields=asked.disagreements(stated))
                    raise SessionRefusedError("Azure confirmed other settings than the agent's")
    return _TakenCall(frames, asked.session, asked.left_out)


def harmless_error(event: Mapping[str, Any]) -> str:
    """Azure's `rtc.call.error` as a client may see it: in our own words, since Azure's may quote what it was sent."""
    error = event.get("error")
    kind = error.get("type") if isinstance(error, dict) else None
    about = {
        "type": kind if kind in _KINDS else "server_error",
        "code": _code_of(error),
        "message": "Azure did not take the call: go on to the plan's next connection",
    }
    shown = {name: event[name] for name in ("event_id", "operation", "rtc_call_id") if _is_id(event.get(name))}
    return compact({"type": CALL_ERROR, **shown, "error": about})


def _query(route: Route) -> str:
    """What a control socket's URL has beside the route's: a Foundry agent's socket is one only if it is asked for."""
    return "&transport=webrtc" if route.name == "foundry_agent" else ""


def _create(offer: CallOffer, asked: Confirmation) -> str:
    session = {"session": asked.session} if asked.session else {}
    return compact({"type": CREATE, "event_id": asked.event_id, "sdp_offer": offer.sdp, **session})


def _answer(event: Mapping[str, Any]) -> str:
    """Azure's answer for the client. Raises MalformedError where it is none."""
    sdp = event.get("sdp_answer")
    if not isinstance(sdp, str) or not sdp.startswith("v=0"):
        raise MalformedError("Azure's answer is no SDP")
    shown = {name: event[name] for name in ("event_id", "rtc_call_id") if _is_id(event.get(name))}
    return compact({"type": CREATED, **shown, "sdp_answer": with_line_ends(sdp)})


def _code_of(error: Any) -> str | None:
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, str) and _CODE.fullmatch(code) else None


def _is_id(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 512  # noqa: PLR2004
