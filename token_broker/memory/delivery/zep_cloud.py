"""Today's Zep Cloud (its v4 API) as the memory: the sink `zep_cloud`.

The only module that knows the package `zep-cloud` (docs/azure.md §12). Zep names users and threads itself: the store
keeps its names. A thread has no name of ours, so an idempotency key made of ours is what keeps it one, whenever the
process ends. Messages are taken at once and worked on later: a delivery is over when its task has succeeded.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar

import httpx
from pydantic import SecretStr, ValidationError
from zep_cloud import AddMessage, AsyncZep, Task
from zep_cloud.core.api_error import ApiError
from zep_cloud.core.parse_error import ParsingError

from strategies.outbound_proxy import OutboundProxy
from strategies.transport import make_tls_context
from token_broker.memory.delivery.zep import (
    MAX_CHARS,
    MAX_MESSAGES,
    metadata_of,
    part_of,
    retry_after_s,
    split_text,
    status_failure,
    zep_user_id,
)
from token_broker.memory.drivers.database import Database
from token_broker.memory.store.sink_ids import drop_id, find_id, forget_id, keep_id, newest_thread, user_generation
from token_broker.memory.types import DeliveryBatch, Failure, Notice, SinkErasure, SinkError, SinkName, StoredTurn
from token_broker.security.tokens import ANONYMOUS, Owner

__all__ = ["ZEP_CLOUD_V4", "ZepCloudMemory", "facts_of"]

R = TypeVar("R")

ZEP_CLOUD_V4 = "https://api.getzep.com/api/v4"
_NAME: SinkName = "zep_cloud"
_PAGE = 100
_PAGES = 50
_FACTS = 20
_SESSIONS = 50  # of the user, one of which has a thread to ask for the user's context
_ENDED = frozenset({"succeeded"})
_RUNS = frozenset({"pending", "processing", None})


class ZepCloudMemory:
    """See `Sink` and `FactSource`. Close it with `aclose`."""

    name: SinkName = _NAME
    max_turns = MAX_MESSAGES
    max_bytes: int | None = None
    keeps_batches = True
    takes_notices = False

    def __init__(
        self,
        api_key: SecretStr,
        base_url: str | None,
        database: Database,
        *,
        timeout_s: float,
        proxy: OutboundProxy | None = None,
    ) -> None:
        async def raise_for_status(response: httpx.Response) -> None:
            # Before the package reads the answer: it would sleep, and try again, within the delivery's time.
            if response.is_error:
                response.raise_for_status()

        url = base_url_of(base_url)
        self._proxy = proxy if proxy is not None and proxy.serves(url) else None
        self._database = database
        self._http = httpx.AsyncClient(
            verify=make_tls_context(),
            timeout=timeout_s,
            follow_redirects=False,
            trust_env=False,
            proxy=httpx.Proxy(self._proxy.url, headers=self._proxy.headers) if self._proxy else None,
            event_hooks={"response": [raise_for_status]},
        )
        self._zep = AsyncZep(
            api_key=api_key.get_secret_value(),
            base_url=url,
            timeout=timeout_s,
            max_retries=0,
            stream_reconnection_enabled=False,
            httpx_client=self._http,
        )

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def deliver(self, batch: DeliveryBatch) -> str | None:
        user_key = zep_user_id(batch.principal, batch.session_id)
        try:
            async with self._failures(storing=False):
                thread = await self._thread(batch.session_id, user_key, batch.principal, batch.user_id)
            return await self._add(thread, batch)
        except _LostError:
            # Somebody has deleted the thread, or the whole user, at Zep. They are made anew the next time.
            async with self._failures(storing=False):
                await self._forget_lost(batch.session_id, user_key)
            raise

    async def _add(self, thread: str, batch: DeliveryBatch) -> str | None:
        """Adds the batch's messages; the tasks that work on them, if not all have succeeded yet.

        A repeated call has the idempotency key of the first, so that Zep answers with the first one's task. After a
        task that failed, the key is another one, and what Zep has worked on already is left out.
        """
        said = [message for turn in batch.turns for message in _messages(turn, batch.user_id)]
        done: set[tuple[str, str]] = set()
        if batch.uncertain or batch.generation:
            async with self._failures(storing=False):
                done = await self._processed(thread)
        running: list[str] = []
        for start in range(0, len(said), MAX_MESSAGES):
            messages = said[start : start + MAX_MESSAGES]
            missing = [message for message in messages if part_of(message.metadata) not in done]
            if not missing:
                continue
            if batch.generation:
                messages = missing
            parts = [list(part_of(message.metadata)) for message in messages]
            key = _key("messages", batch.session_id, thread, batch.generation, parts)
            async with self._failures(storing=True, begun=start > 0):
                added = await self._zep.thread.add_messages(thread, messages=messages, idempotency_key=key)
                running += _unfinished(added.task)
        return ",".join(running) or None

    async def tell(self, notice: Notice) -> None:
        del notice  # it is never given one

    async def is_done(self, task: str) -> bool:
        async with self._failures(storing=False):
            found = await asyncio.gather(*(self._zep.task.get(one) for one in task.split(",")))
            return not [one for each in found for one in _unfinished(each)]

    async def erase(self, erasure: SinkErasure) -> str | None:
        """A user, or a session's thread. A session without an owner is a user of its own, and goes as one."""
        principal, session_id = erasure.principal, erasure.session_id
        whole = not session_id or principal == ANONYMOUS
        user_key = zep_user_id(principal, session_id)
        async with self._failures(storing=False):
            if whole:
                key = _key("erase user", user_key, erasure.before_us, erasure.failures)
                user, _ = await self._find("user", user_key)
                if user is None:  # made before the process ended that would have stored the name
                    there = await _unless_missing(self._zep.user.lookup(user_id=user_key))
                    user = None if there is None else _named(there)
                call = self._zep.user.delete(user, idempotency_key=key) if user else None
            else:
                thread, _ = await self._find("thread", session_id)
                key = _key("erase thread", session_id, erasure.before_us, erasure.failures)
                call = self._zep.thread.delete(thread, idempotency_key=key) if thread else None
            accepted = await _unless_missing(call) if call is not None else None
            task = ",".join(_unfinished(accepted.task)) if accepted is not None else ""
        if whole:
            await self._database.write(partial(drop_id, sink=_NAME, kind="user", key=user_key))
        return task or None

    async def facts(self, owner: Owner, *, of_session: bool) -> list[str]:
        async with self._failures(storing=False):
            thread: str | None = None
            if of_session:
                thread, _ = await self._find("thread", owner.session_id)
            if thread is None and owner.principal != ANONYMOUS:
                newest = partial(newest_thread, sink=_NAME, principal=owner.principal, limit=_SESSIONS)
                thread = await self._database.read(newest, pool="recall")
            if thread is None:
                return []
            context = await _unless_missing(self._zep.thread.get_context(thread))
            return facts_of(context.context or "") if context else []

    @asynccontextmanager
    async def _failures(self, *, storing: bool, begun: bool = False) -> AsyncIterator[None]:
        """Turns what zep-cloud raises into SinkError."""
        try:
            yield
        except (ApiError, ParsingError, ValidationError, httpx.HTTPError, OSError, ValueError) as error:
            failure = self._failure(error, storing=storing)
            kind = _LostError if _status_of(error) == HTTPStatus.NOT_FOUND else SinkError
            raise kind(replace(failure, uncertain=failure.uncertain or begun)) from None

    def _failure(self, error: Exception, *, storing: bool) -> Failure:
        """What an error of zep-cloud, or of httpx beneath it, means. Carries none of its text."""
        through = f" through the proxy {self._proxy.url}" if self._proxy is not None else ""
        status = _status_of(error)
        if status is not None and status >= HTTPStatus.BAD_REQUEST:
            wait_s = retry_after_s(error.response.headers) if isinstance(error, httpx.HTTPStatusError) else None
            return status_failure(_NAME, status, wait_s, storing=storing)
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout | httpx.ProxyError):
            return Failure(f"{_NAME}: {type(error).__name__}{through}")
        if isinstance(error, httpx.TransportError | OSError):
            return Failure(f"{_NAME}: {type(error).__name__}{through}", uncertain=storing)
        return Failure(f"{_NAME}: malformed answer ({type(error).__name__})", counts=True, uncertain=storing)

    async def _thread(self, session_id: str, user_key: str, principal: str, label: str | None) -> str:
        """Zep's name of the session's thread, which is made if it is not there."""
        thread, generation = await self._find("thread", session_id)
        if thread is not None:
            return thread
        user = await self._user(user_key, principal, label)
        key = _key("thread", session_id, user, generation)
        made = _named(await self._zep.thread.create(user_uuid=user, idempotency_key=key))
        await self._keep("thread", session_id, made)
        return made

    async def _user(self, user_key: str, principal: str, label: str | None) -> str:
        """Zep's name of the user, who is made if they are not there.

        A user has a name of ours, too: one that was made before the process ended is found by it.
        """
        user, generation = await self._find("user", user_key)
        if user is not None:
            return user
        erased = await self._database.read(partial(user_generation, principal=principal))
        metadata = {"principal": principal} | ({"user_id": label} if label else {})
        try:
            made = await self._zep.user.create(
                user_id=user_key, metadata=metadata, idempotency_key=_key("user", user_key, erased, generation)
            )
        except (ApiError, httpx.HTTPStatusError) as error:
            if _status_of(error) not in {HTTPStatus.BAD_REQUEST, HTTPStatus.CONFLICT}:
                raise
            found = await _unless_missing(self._zep.user.lookup(user_id=user_key))
            if found is None:
                raise
            made = found
        name = _named(made)
        await self._keep("user", user_key, name)
        return name

    async def _forget_lost(self, session_id: str, user_key: str) -> None:
        """Forgets what Zep called a thread, and a user whom Zep does not have any more."""
        for kind, key in (("thread", session_id), ("user", user_key)):
            name, _ = await self._find(kind, key)
            if name is None:
                continue
            if kind == "user" and await _unless_missing(self._zep.user.get(name)) is not None:
                continue
            await self._database.write(partial(forget_id, sink=_NAME, kind=kind, key=key, sink_key=name))

    async def _processed(self, thread: str) -> set[tuple[str, str]]:
        """The turns, and parts of them, that Zep has worked on; newest messages first, up to a limit."""
        found: set[tuple[str, str]] = set()
        pages = 0
        pager = await self._zep.thread.list_messages(thread, page_size=_PAGE, order="desc")
        async for page in pager.iter_pages():
            found |= {part_of(message.metadata) for message in page.items or [] if message.processed}
            pages += 1
            if pages == _PAGES:
                break
        return found

    async def _find(self, kind: str, key: str) -> tuple[str | None, int]:
        return await self._database.read(partial(find_id, sink=_NAME, kind=kind, key=key))

    async def _keep(self, kind: str, key: str, sink_key: str) -> None:
        await self._database.write(partial(keep_id, sink=_NAME, kind=kind, key=key, sink_key=sink_key))


class _LostError(SinkError):
    """Zep does not have what it is asked for."""


def base_url_of(given: str | None) -> str:
    """The base of the v4 API; `given` is ZEP_API_URL, with or without it."""
    if given is None:
        return ZEP_CLOUD_V4
    bare = given.rstrip("/")
    return bare if bare.endswith("/api/v4") else f"{bare}/api/v4"


def facts_of(context: str) -> list[str]:
    """The facts of a context block: the items of its lists, or its lines where it has none. No tags, no comments."""
    lines = [line.strip() for line in context.splitlines()]
    said = [line for line in lines if line and not line.startswith(("#", "<"))]
    items = [line.removeprefix("- ").strip() for line in said if line.startswith("- ")]
    return list(dict.fromkeys(items or said))[:_FACTS]


def _messages(turn: StoredTurn, label: str | None) -> list[AddMessage]:
    """The turn as messages: one, or several of a long text, each with its part in the metadata."""
    parts = split_text(turn.content, MAX_CHARS)
    return [
        AddMessage(
            role=turn.role,
            name=(label or None) if turn.role == "user" else (turn.agent_id or None),
            content=content,
            reference_time=turn.created_at.isoformat().replace("+00:00", "Z"),
            metadata=metadata_of(turn, number, len(parts)),
        )
        for number, content in enumerate(parts, start=1)
    ]


def _unfinished(task: Task | None) -> list[str]:
    """The task's name while it runs; nothing once it has succeeded. Raises SinkError where it failed."""
    if task is None or task.status in _ENDED:
        return []
    if task.status in _RUNS and task.uuid_:
        return [task.uuid_]
    raise SinkError(Failure(f"{_NAME}: its task ended as {str(task.status)[:20]}", counts=True, uncertain=True))


def _named(made: Any) -> str:
    """What Zep calls it. Raises ValueError where the answer does not say."""
    if not made.uuid_:
        raise ValueError("an answer without a uuid")
    return str(made.uuid_)


def _key(*parts: object) -> str:
    """An idempotency key: the same for the same call, and for no other."""
    return f"token-broker-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:40]}"


async def _unless_missing(call: Awaitable[R]) -> R | None:
    """The answer, or None for a 404."""
    try:
        return await call
    except (ApiError, httpx.HTTPStatusError) as error:
        if _status_of(error) != HTTPStatus.NOT_FOUND:
            raise
        return None


def _status_of(error: Exception) -> int | None:
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code
    return error.status_code if isinstance(error, ApiError) else None
