"""Opens a session of GPT-Live's for a socket: `session.start` with the agent's settings, at one resource after another.

A session costs from its start on, so one is started at a time; nothing is hedged.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from strategies.base import SpecSupplier
from strategies.credentials import Credentials
from strategies.endpoint import LIVE_PATH
from strategies.errors import MalformedError, MintError, PermanentError, TimedOutError, TransientError
from strategies.pool import Pool
from strategies.resources import Resource, Wanted
from strategies.session_model.live_session import LIVE_ROUTE, live_session
from strategies.session_model.refused_field import field_to_leave_out, shown_path, without
from strategies.session_model.session_fields import overlaid
from strategies.session_model.session_paths import Path
from token_broker.relay.azure.opening import LateCredentialError, SessionRefusedError, clock_skew_s, expiry_of
from token_broker.relay.azure.route import ConnectionHealth, NoUpstreamError
from token_broker.relay.azure.socket import AzureSocket
from token_broker.relay.azure.stated_faults import stated_fault
from token_broker.relay.confirmation.settings_report import SettingsReport
from token_broker.relay.event_text import compact, event_of
from token_broker.server.close_codes import SESSION_REFUSED, UPSTREAM_FAILED, UPSTREAM_TIMED_OUT, Ending

__all__ = ["LiveUpstream", "LiveUpstreams", "OpensSockets", "left_out_of"]

log = structlog.get_logger("token_broker.relay")

# Microsoft's pages have both, the official clients the first (docs/azure.md §12.3).
_PATHS = (LIVE_PATH, LIVE_PATH.removesuffix("/sessions"))
_SHARE_S = 1.5  # of the time for all, while another resource is left
_FIRST_FRAMES_AT_MOST = 16
_START_ID = "broker_start"
_NEVER_LEFT_OUT = frozenset({"model", "client", "delegation"})
_NO_SUCH_PATH = 404


class OpensSockets(Protocol):
    """`UpstreamConnector`, as far as it is needed here."""

    @property
    def pool(self) -> Pool: ...
    @property
    def settings_report(self) -> SettingsReport: ...
    def credentials_of(self, resource: str) -> Credentials | None: ...
    async def open_socket(self, url: str, deadline_s: float, credentials: Credentials | None) -> AzureSocket: ...


@dataclass(frozen=True, slots=True)
class LiveUpstream:
    """A session that has started. `started` is Azure's event; `expires_s` the session's end, by the loop's clock."""

    socket: AzureSocket
    resource: str
    session_id: str
    started: Mapping[str, Any]
    expires_s: float | None
    health: ConnectionHealth


def left_out_of(error: Mapping[str, Any], session: Mapping[str, Any]) -> Path | None:
    """The field that a refusal names and that may be left out; None: there is none."""
    path = field_to_leave_out(error, session)
    if path is None or (len(path) == 1 and path[0] in _NEVER_LEFT_OUT) or path[0] == "client":
        return None
    return None if path in {("delegation", "type"), ("delegation", "responses")} else path


class LiveUpstreams:
    """Starts sessions; one instance a process."""

    def __init__(self, sockets: OpensSockets, *, timeout_s: float) -> None:
        self._sockets = sockets
        self._timeout_s = timeout_s
        self._paths: dict[str, str] = {}  # by resource, once a handshake has succeeded there

    async def start(
        self,
        supply: SpecSupplier,
        *,
        wanted: Wanted,
        also: Mapping[str, Any],
    ) -> LiveUpstream:
        """A session with the agent's settings, within the limit for all resources. Raises NoUpstreamError.

        `also` is laid over the session: the client's audio format, what was said in an earlier session of the talk.
        """
        pool, loop = self._sockets.pool, asyncio.get_running_loop()
        deadline_s = loop.time() + self._timeout_s
        ending = Ending(UPSTREAM_FAILED, "no Azure resource that this agent may use is left: try again later")
        order = pool.order(wanted)
        for number, resource in enumerate(order):
            is_last = number == len(order) - 1
            permit = pool.admit(
                resource, LIVE_ROUTE, agent_id=wanted.agent_id, model=wanted.model, session_id=wanted.session_id,
                running=wanted.running, early=is_last,
            )  # fmt: skip
            left_s = deadline_s - loop.time()
            if permit is None or left_s <= 0:
                ending = Ending(UPSTREAM_FAILED, "Azure failed a moment ago: ask for a new plan in a moment")
                continue
            share_s = left_s if is_last else min(left_s, _SHARE_S)
            try:
                with pool.connecting(permit):
                    found = await self._attempt(resource, supply, also, agent_id=wanted.agent_id, timeout_s=share_s)
            except MintError as error:
                about = {"resource": resource.name, "upstream": LIVE_ROUTE, "outcome": error.outcome}
                log.info("upstream_attempt", **about, status=error.status, why=str(error))
                ending = _ending(error)
                continue
            socket, started, expires_s = found
            health = ConnectionHealth(pool, permit, socket, expires_s=expires_s)
            log.info("upstream_attempt", resource=resource.name, upstream=LIVE_ROUTE, outcome="connected")
            session_id = str(started["session"].get("id") or "")
            return LiveUpstream(socket, resource.name, session_id, started, expires_s, health)
        raise NoUpstreamError(ending)

    async def has(self, resource: Resource, *, timeout_s: float) -> bool:
        """Whether the resource has GPT-Live: its socket is opened, and closed before a session begins.

        Raises MintError where that is not known, TimeoutError where its time is over.
        """
        try:
            async with asyncio.timeout(timeout_s):
                socket = await self._opened(resource, timeout_s)
        except PermanentError:
            return False
        await socket.aclose()
        return True

    async def _attempt(
        self,
        resource: Resource,
        supply: SpecSupplier,
        also: Mapping[str, Any],
        *,
        agent_id: str,
        timeout_s: float,
    ) -> tuple[AzureSocket, Mapping[str, Any], float | None]:
        report = self._sockets.settings_report
        try:
            async with asyncio.timeout(timeout_s):
                session = overlaid(live_session(await supply(resource)), also)
                try:
                    return await self._started(resource, session, timeout_s)
                except _FieldRefusedError as refused:
                    log.warning("live_session_again", resource=resource.name, without=shown_path(refused.path))
                    found = await self._started(resource, without(session, refused.path), timeout_s)
                    report.note_left_out((shown_path(refused.path),), resource=resource.name, agent_id=agent_id)
                    return found
        except SessionRefusedError:
            report.note_refused(resource=resource.name, agent_id=agent_id)
            raise
        except TimeoutError:
            raise TimedOutError(f"no open session within {timeout_s:.1f} s") from None

    async def _started(
        self, resource: Resource, session: Mapping[str, Any], timeout_s: float
    ) -> tuple[AzureSocket, Mapping[str, Any], float | None]:
        socket = await self._opened(resource, timeout_s)
        try:
            socket.send(compact({"type": "session.start", "event_id": _START_ID, "session": session}))
            for _ in range(_FIRST_FRAMES_AT_MOST):
                await socket.wait()
                if not socket.frames:
                    raise TransientError(socket.failure or "the connection to Azure broke")
                event = event_of(socket.take()) or {}
                if event.get("type") == "error":
                    raise _refusal(event.get("error"), session)
                started = event.get("session")
                if event.get("type") == "session.started" and isinstance(started, dict):
                    return socket, event, expiry_of(started, skew_s=clock_skew_s(socket))
            raise MalformedError("what came instead of a session is none of GPT-Live's events")
        except BaseException:
            await socket.aclose(graceful=False)
            raise

    async def _opened(self, resource: Resource, timeout_s: float) -> AzureSocket:
        """A socket at the path that the resource has."""
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        known = self._paths.get(resource.name)
        credentials = self._sockets.credentials_of(resource.name)
        refused: PermanentError | None = None
        for path in (known,) if known else _PATHS:
            try:
                socket = await self._sockets.open_socket(
                    f"{resource.target.openai_base}{path}", deadline_s, credentials
                )
            except PermanentError as error:
                self._paths.pop(resource.name, None)
                refused = refused or error
                if error.status != _NO_SUCH_PATH or error.code is not None:
                    break
            else:
                self._paths[resource.name] = path
                return socket
        assert refused is not None  # noqa: S101  # there is a path, and it was not opened
        raise refused


class _FieldRefusedError(SessionRefusedError):
    def __init__(self, path: Path) -> None:
        super().__init__("Azure refuses a field of the agent's session", status=400)
        self.path = path


def _refusal(error: Any, session: Mapping[str, Any]) -> MintError:
    """What an error before the start means."""
    stated = error if isinstance(error, dict) else {}
    if (fault := stated_fault(stated)) is not None:
        return fault
    if stated.get("code") in {"DeploymentNotFound", "model_not_found"}:
        return PermanentError("the deployment is not there", status=404, code="DeploymentNotFound")
    path = left_out_of(stated, session)
    return (
        SessionRefusedError("Azure refuses the agent's session", status=400)
        if path is None
        else _FieldRefusedError(path)
    )


def _ending(error: MintError) -> Ending:
    if isinstance(error, SessionRefusedError):
        return SESSION_REFUSED
    if isinstance(error, TimedOutError | LateCredentialError):
        return Ending(UPSTREAM_TIMED_OUT, "Azure did not answer in time: ask for a new plan")
    return Ending(UPSTREAM_FAILED, "Azure refused the connection: ask for a new plan")
