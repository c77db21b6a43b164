"""Zep Community Edition, or a Zep Cloud whose key still serves its v2 API, as the memory: the sink `zep`.

The only module that knows zep-python (docs/azure.md §11); imported where the sink is used.

zep-python does not retry, and Zep stores a repeated message twice. So after an uncertain failure Zep is asked for its
turn ids, which travel in each message's metadata, before anything is sent again.
"""

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, TypeVar

import httpx
from pydantic import SecretStr
from zep_python.client import AsyncZep
from zep_python.core.api_error import ApiError
from zep_python.types.message import Message

from strategies.outbound_proxy import OutboundProxy
from strategies.transport import make_tls_context
from token_broker.memory.types import DeliveryBatch, Failure, Notice, SinkErasure, SinkError, SinkName, StoredTurn
from token_broker.security.limits import BoundedDict
from token_broker.security.tokens import ANONYMOUS, Owner

__all__ = [
    "MAX_CHARS",
    "MAX_MESSAGES",
    "ZEP_CLOUD_URL",
    "ZepMemory",
    "metadata_of",
    "part_of",
    "retry_after_s",
    "split_text",
    "status_failure",
    "zep_failure",
    "zep_user_id",
]

R = TypeVar("R")

ZEP_CLOUD_URL = "https://api.getzep.com"
_ABOUT = "who the user is, and what they want"
_FACTS = 10
_PAGE = 100
_PAGES = 50  # of a session's messages that are looked through for turns that may have arrived
_SESSIONS_KNOWN = 10_000

MAX_MESSAGES = 30  # a call
MAX_CHARS = 2_500  # of a message; Zep refuses longer ones
_CUT = "…"  # where a message goes on in the next
_PLAIN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
# Unavailable to any delivery: overloaded, down, or a key that an operator has to correct.
_UNAVAILABLE = frozenset({401, 403, 408, 429, 502, 503, 504})
_WILL_NEVER_TAKE = frozenset({400, 405, 409, 410, 413, 414, 415, 422})
_UNCERTAIN = frozenset({408, 500, 502, 504})  # Zep may have stored the messages, though a gateway before it gave up
_MAX_RETRY_AFTER_S = 3600.0


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
        """All turns that Zep has of a session, and which parts of them; see `part_of`."""
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


def zep_user_id(principal: str, session_id: str) -> str:
    """The Zep user of a session. Each anonymous session gets a user of its own: the callers may be different people."""
    if principal == ANONYMOUS:
        return f"anonymous-{session_id}"
    if _PLAIN_ID.fullmatch(principal):
        return principal
    return f"user-{hashlib.sha256(principal.encode()).hexdigest()[:32]}"


def status_failure(sink: str, status: int, retry_after: float | None, *, storing: bool) -> Failure:
    """What a status of Zep's means, in any of its versions."""
    reason = f"{sink}: {status}"
    uncertain = storing and status in _UNCERTAIN
    if status in _UNAVAILABLE:
        return Failure(reason, uncertain=uncertain, retry_after_s=retry_after)
    if status in _WILL_NEVER_TAKE:
        return Failure(reason, permanent=True)
    return Failure(reason, counts=True, uncertain=uncertain, retry_after_s=retry_after)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """`Retry-After` as seconds, from a number or a date; at most an hour, None where there is none to read."""
    value = headers.get("retry-after", "").strip()
    if value.isdecimal():
        return min(float(value), _MAX_RETRY_AFTER_S)
    try:
        wait_s = parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return min(max(wait_s, 0.0), _MAX_RETRY_AFTER_S)


def split_text(text: str, max_chars: int) -> list[str]:
    """The text in parts of at most so many characters, cut at blanks where there are any; each cut has a mark."""
    parts: list[str] = []
    room = max_chars - 2 * len(_CUT)
    while len(text) > max_chars - len(_CUT if parts else ""):
        blank = text.rfind(" ", room // 2, room + 1)
        at = blank if blank > 0 else room
        parts.append((_CUT if parts else "") + text[:at] + _CUT)
        text = text[at:].lstrip(" ") if blank > 0 else text[at:]
    parts.append((_CUT if parts else "") + text)
    return parts


def part_of(metadata: Mapping[str, Any] | None) -> tuple[str, str]:
    """Turn and part of a message; both empty where it is not one of ours."""
    return str((metadata or {}).get("turn_id", "")), str((metadata or {}).get("part", ""))


def metadata_of(turn: StoredTurn, number: int, parts: int) -> dict[str, Any]:
    """The metadata of a turn's message, or of that part of it."""
    metadata: dict[str, Any] = {
        "turn_id": turn.turn_id,
        "sequence": turn.sequence,
        "agent_id": turn.agent_id,
        "source": turn.source,
        "interrupted": turn.interrupted,
        "channel": turn.channel,
        "part": f"{number}/{parts}" if parts > 1 else None,
    }
    return {key: value for key, value in metadata.items() if value is not None}
