"""Zep Community Edition, or a Zep Cloud whose key still serves its v2 API, as the memory: the sink `zep`.

The only module that knows zep-python (docs/azure.md §11); imported where the sink is used.

zep-python does not retry, and Zep stores a repeated message twice. So after an uncertain failure Zep is asked for its
turn ids, which travel in each message's metadata, before anything is sent again.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from http import HTTPStatus
from typing import TypeVar

import httpx
from pydantic import SecretStr
from zep_python.client import AsyncZep
from zep_python.core.api_error import ApiError
from zep_python.types.message import Message

from strategies.outbound_proxy import OutboundProxy
from strategies.transport import make_tls_context
from token_broker.memory.delivery.zep_terms import (
    MAX_CHARS,
    MAX_MESSAGES,
    metadata_of,
    part_of,
    retry_after_s,
    split_text,
    status_failure,
    zep_user_id,
)
from token_broker.memory.types import DeliveryBatch, Failure, Notice, SinkErasure, SinkError, SinkName, StoredTurn
from token_broker.security.limits import BoundedDict
from token_broker.security.tokens import ANONYMOUS, Owner

__all__ = ["ZEP_CLOUD_URL", "ZepMemory", "zep_failure"]

R = TypeVar("R")

ZEP_CLOUD_URL = "https://api.getzep.com"
_ABOUT = "who the user is, and what they want"
_FACTS = 10
_PAGE = 100
_PAGES = 50  # of a session's messages that are looked through for turns that may have arrived
_SESSIONS_KNOWN = 10_000


class ZepMemory:
    """See `Sink` and `FactSource`. Close it with `aclose`."""

    name: SinkName = "zep"
    max_turns = MAX_MESSAGES
    max_bytes: int | None = None
    keeps_batches = False  # Zep is asked what it has instead
    takes_notices = False

    def __init__(
        self, api_key: SecretStr, base_url: str | None, *, timeout_s: float, proxy: OutboundProxy | None = None
    ) -> None:
        async def raise_for_status(response: httpx.Response) -> None:
            # Before zep-python reads the answer: its errors drop the headers, and it fails on a body that is not JSON.
            if response.is_error:
                response.raise_for_status()

        base_url = (base_url or ZEP_CLOUD_URL).rstrip("/")
        self._proxy = proxy if proxy is not None and proxy.serves(base_url) else None
        self._http = httpx.AsyncClient(
            verify=make_tls_context(),
            follow_redirects=False,
            trust_env=False,  # it would read a proxy from the environment, whatever BROKER_OUTBOUND_PROXY says
            proxy=httpx.Proxy(self._proxy.url, headers=self._proxy.headers) if self._proxy else None,
            event_hooks={"response": [raise_for_status]},
        )
        key = api_key.get_secret_value()
        # The timeout is given here since zep-python passes its own, none, over the client's.
        self._zep = AsyncZep(api_key=key, base_url=base_url, timeout=timeout_s, httpx_client=self._http)
        self._known = BoundedDict[str, None](_SESSIONS_KNOWN)  # sessions that Zep has

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def deliver(self, batch: DeliveryBatch) -> None:
        async with self._failures(storing=False):
            await self._ensure_session(batch.session_id, batch.principal, batch.user_id)
            arrived = await self._parts(batch.session_id) if batch.uncertain else set()
        said = [message for turn in batch.turns for message in _messages(turn, batch.user_id)]
        missing = [message for message in said if part_of(message.metadata) not in arrived]
        for start in range(0, len(missing), MAX_MESSAGES):
            # From the second call on, the first has been stored, whatever becomes of this one.
            async with self._failures(
                storing=True, begun=start > 0, on_missing=lambda: self._known.pop(batch.session_id, None)
            ):
                await self._zep.memory.add(batch.session_id, messages=missing[start : start + MAX_MESSAGES])

    async def tell(self, notice: Notice) -> None:
        del notice  # it is never given one

    async def is_done(self, task: str) -> bool:
        del task  # it has none
        return True

    async def erase(self, erasure: SinkErasure) -> None:
        principal, session_id = erasure.principal, erasure.session_id
        async with self._failures(storing=False):
            if session_id:
                self._known.pop(session_id, None)
                await _unless_missing(self._zep.memory.delete(session_id))
            if not session_id or principal == ANONYMOUS:
                self._known.clear()
                await _unless_missing(self._zep.user.delete(zep_user_id(principal, session_id)))

    async def facts(self, owner: Owner, *, of_session: bool) -> list[str]:
        async def about_user() -> list[str]:
            """What Zep knows of the user from all their sessions."""
            user_id = zep_user_id(owner.principal, "")
            search = self._zep.memory.search_sessions(user_id=user_id, text=_ABOUT, search_scope="facts", limit=_FACTS)
            results = (found.results if (found := await _unless_missing(search)) else None) or []
            return [result.fact.fact for result in results if result.fact and result.fact.fact]

        async def about_session() -> list[str]:
            """What Zep says of the session: relevant facts first, then its summary."""
            memory = await _unless_missing(self._zep.memory.get(owner.session_id, lastn=1))
            if memory is None:
                return []
            relevant = [fact.fact for fact in memory.relevant_facts or [] if fact.fact]
            summary = [memory.summary.content] if memory.summary and memory.summary.content else []
            return [*relevant, *(memory.facts or []), *summary]

        asked = [about_session()] if of_session else []
        if owner.principal != ANONYMOUS:
            asked.append(about_user())
        async with self._failures(storing=False):
            return list(dict.fromkeys(fact for facts in await asyncio.gather(*asked) for fact in facts))

    @asynccontextmanager
    async def _failures(
        self, *, storing: bool, begun: bool = False, on_missing: Callable[[], object] = lambda: None
    ) -> AsyncIterator[None]:
        """Turns what zep-python raises into SinkError; calls `on_missing` for a 404. `begun`: some were stored."""
        try:
            yield
        except (ApiError, httpx.HTTPError, OSError, ValueError) as error:
            if _status_of(error) == HTTPStatus.NOT_FOUND:
                on_missing()
            failure = zep_failure(error, storing=storing, proxy=self._proxy)
            raise SinkError(replace(failure, uncertain=failure.uncertain or begun)) from None

    async def _ensure_session(self, session_id: str, principal: str, label: str | None) -> None:
        if session_id in self._known:
            return
        user_id = zep_user_id(principal, session_id)
        metadata = {"principal": principal} | ({"user_id": label} if label else {})
        await _unless_there(self._zep.user.add(user_id=user_id, metadata=metadata), self._zep.user.get, user_id)
        await _unless_there(
            self._zep.memory.add_session(session_id=session_id, user_id=user_id),
            self._zep.memory.get_session,
            session_id,
        )
        self._known[session_id] = None

    async def _parts(self, session_id: str) -> set[tuple[str, str]]:
        """All turns that Zep has of a session, and which parts of them; see `_part_of`."""
        found: set[tuple[str, str]] = set()
        cursor = 0
        for _ in range(_PAGES):
            page = await _unless_missing(self._zep.memory.get_session_messages(session_id, limit=_PAGE, cursor=cursor))
            messages = (page.messages if page else None) or []
            found |= {part_of(message.metadata) for message in messages}
            cursor += len(messages)
            if len(messages) < _PAGE:
                break
        return found


def zep_failure(error: Exception, *, storing: bool, proxy: OutboundProxy | None = None) -> Failure:
    """Maps an error of zep-python, or of httpx beneath it, to a Failure. Carries none of its text.

    `storing`: messages were on their way, and may have been stored all the same. `proxy` is what Zep is asked through.
    """
    through = f" through the proxy {proxy.url}" if proxy is not None else ""
    if isinstance(error, httpx.HTTPStatusError):
        response = error.response
        return status_failure("zep", response.status_code, retry_after_s(response.headers), storing=storing)
    if isinstance(error, ApiError) and error.status_code is not None:
        return status_failure("zep", error.status_code, None, storing=storing)
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout | httpx.ProxyError):
        return Failure(f"zep: {type(error).__name__}{through}")
    if isinstance(error, httpx.TransportError | OSError):
        return Failure(f"zep: {type(error).__name__}{through}", uncertain=storing)
    return Failure(f"zep: malformed answer ({type(error).__name__})", counts=True, uncertain=storing)


async def _unless_missing(call: Awaitable[R]) -> R | None:
    """The answer, or None for a 404."""
    try:
        return await call
    except (ApiError, httpx.HTTPStatusError) as error:
        if _status_of(error) != HTTPStatus.NOT_FOUND:
            raise
        return None


async def _unless_there(make: Awaitable[object], get: Callable[[str], Awaitable[object]], key: str) -> None:
    """Makes something, unless it exists. Zep answers 400 or 409 then, but also for other faults: so it is looked up."""
    try:
        await make
    except (ApiError, httpx.HTTPStatusError) as error:
        if _status_of(error) not in {HTTPStatus.BAD_REQUEST, HTTPStatus.CONFLICT}:
            raise
        if await _unless_missing(get(key)) is None:
            raise


def _status_of(error: Exception) -> int | None:
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code
    return error.status_code if isinstance(error, ApiError) else None


def _messages(turn: StoredTurn, label: str | None) -> list[Message]:
    """The turn as messages: one, or as many as Zep's limit makes of a long text, each with its part in the metadata."""
    parts = split_text(turn.content, MAX_CHARS)
    messages = []
    for number, content in enumerate(parts, start=1):
        messages.append(
            Message(
                role=(label or "user") if turn.role == "user" else (turn.agent_id or "assistant"),
                role_type=turn.role,
                content=content,
                created_at=turn.created_at.isoformat().replace("+00:00", "Z"),
                metadata=metadata_of(turn, number, len(parts)),
            )
        )
    return messages
