"""Has an operator's hook sum up each talk whose agent asks for it, a minute after its end, and keeps the summary.

The broker has no model of its own for that: it sends the turns, and keeps what comes back. The next talk begins with
it. Any replica may do it; the store says which one does.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING

import structlog

from token_broker.hooks.sender import HookAnswer, HookSender
from token_broker.memory.drivers.database import Database
from token_broker.memory.store_errors import StoreError
from token_broker.memory.types import SinkName, to_us
from token_broker.security.tokens import Owner

if TYPE_CHECKING:
    from token_broker.memory.store.summaries import DueSummary

__all__ = ["MAX_SUMMARY_BYTES", "Summaries", "summary_of"]

log = structlog.get_logger(__name__)

MAX_SUMMARY_BYTES = 4_096
_AFTER_S = 60.0  # of a talk's end: late transcripts are stored by then, and a client that comes back goes on
_POLL_S = 5.0
_TIMEOUT_S = 30.0
_LEASE_S = 120.0
_AGAIN_S = 60.0
_ATTEMPTS = 3
_AT_ONCE = 8
_LATER = frozenset({401, 403, 404, 408, 425, 429})  # busy, or something that the operator is about to correct
_ANSWER_BYTES = 16_384
_WAITING_AT_MOST = 1_000
_STORE_TRIES = 5
_BETWEEN_S = 1.0


class Summaries:
    """`ended` notes a talk that is over; `run` has the summaries made that are due. `url_of` gives an agent's hook.

    `sinks` are told of each summary.
    """

    def __init__(
        self,
        database: Database,
        sender: HookSender,
        url_of: Callable[[str], str | None],
        *,
        clock: Callable[[], float] = time.time,
        after_s: float = _AFTER_S,
        poll_s: float = _POLL_S,
        sinks: Sequence[SinkName] = (),
    ) -> None:
        self._database = database
        self._sender = sender
        self._url_of = url_of
        self._clock = clock
        self._after_s = after_s
        self._poll_s = poll_s
        self._sinks = sinks
        self._noting: set[asyncio.Task[None]] = set()

    def ended(self, owner: Owner, agent_id: str) -> None:
        """A talk is over. Its summary is made unless the talk goes on meanwhile. Never waits, never raises."""
        if self._url_of(agent_id) is None:
            return
        if len(self._noting) >= _WAITING_AT_MOST:
            log.warning("summary_not_asked_for", session_id=owner.session_id, why="the store is away")
            return
        task = asyncio.create_task(self._note(owner, agent_id), name="memory-summary")
        self._noting.add(task)
        task.add_done_callback(self._noting.discard)

    async def run(self) -> None:
        """Has summaries made until it is cancelled."""
        while True:
            with contextlib.suppress(StoreError):  # it is due as long as it takes
                while await self.make_due():
                    pass
            await asyncio.sleep(self._poll_s)

    async def make_due(self) -> int:
        """Has the summaries made that are due now, a few at once; how many were. Raises StoreError."""
        from token_broker.memory.store.summaries import claim_summaries

        claim = partial(claim_summaries, now_us=self._now_us(), lease_us=to_us(_LEASE_S), limit=_AT_ONCE)
        due = await self._database.write(claim)
        await asyncio.gather(*map(self._make, due))
        return len(due)

    async def aclose(self) -> None:
        """Waits shortly for talks that have just ended."""
        if self._noting:
            await asyncio.wait(self._noting, timeout=1)
        for task in self._noting:
            task.cancel()

    async def _note(self, owner: Owner, agent_id: str) -> None:
        from token_broker.memory.store.summaries import request_summary

        work = partial(request_summary, owner=owner, agent_id=agent_id, due_at_us=self._now_us(self._after_s))
        why = "the session is not stored"
        for _ in range(_STORE_TRIES):  # the talk's last turns, or its session, may be on their way
            try:
                if await self._database.write(work):
                    return
            except StoreError as error:
                why = str(error)
            await asyncio.sleep(_BETWEEN_S)
        log.warning("summary_not_asked_for", session_id=owner.session_id, why=why)

    async def _make(self, due: "DueSummary") -> None:
        from token_broker.memory.store.summaries import put_off, save_summary, turns_to_sum_up

        url = self._url_of(due.agent_id)
        turns = await self._database.read(partial(turns_to_sum_up, session_id=due.session_id), pool="bulk")
        if url is None or not turns:
            await self._database.write(partial(put_off, due=due, due_at_us=None))
            return
        asked = {
            "type": "summary.request",
            "session_id": due.session_id,
            "user_id": due.user_id,
            "agent_id": due.agent_id,
            "turns": [
                {"role": turn.role, "content": turn.content, "created_at": turn.created_at.isoformat()}
                for turn in turns
            ],
        }
        webhook_id = f"summary_{due.talk_id}"
        answer = await self._sender.post(
            url, asked, webhook_id=webhook_id, timeout_s=_TIMEOUT_S, max_bytes=_ANSWER_BYTES
        )
        summary = summary_of(answer)
        if summary is not None:
            save = partial(save_summary, due=due, summary=summary, now_us=self._now_us(), sinks=self._sinks)
            await self._database.write(save)
            return
        may_work = answer.failure in {"timeout", "unreachable", "broken"} or (
            answer.status is not None and (answer.status in _LATER or answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR)
        )
        again_us = self._now_us(answer.retry_after_s or _AGAIN_S) if may_work and due.attempts < _ATTEMPTS else None
        log.warning(
            "summary_not_made",
            session_id=due.session_id,
            agent_id=due.agent_id,
            failure=answer.failure or "no_summary",
            status=answer.status,
            again=again_us is not None,
        )
        await self._database.write(partial(put_off, due=due, due_at_us=again_us))

    def _now_us(self, later_s: float = 0.0) -> int:
        return to_us(self._clock() + later_s)


def summary_of(answer: HookAnswer) -> str | None:
    """The summary in a hook's answer, at most 4 KB of UTF-8; None where there is none."""
    if not answer.ok:
        return None
    try:
        found = json.loads(answer.body)
    except ValueError:
        return None
    summary = found.get("summary") if isinstance(found, dict) else None
    if not isinstance(summary, str) or not summary.strip():
        return None
    text = summary.strip().replace("\0", "").encode(errors="replace")
    return text[:MAX_SUMMARY_BYTES].decode(errors="ignore")
