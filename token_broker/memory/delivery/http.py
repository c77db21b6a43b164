"""Any server of the operator's as a memory: the sink `http`, which gets signed events (Standard Webhooks).

`docs/memory.md` has the events. Each has an id of the broker's own, made of what it is about: a repetition has the same
id, and no two events share one, whatever the ids of turns look like. Timestamp and signature are new each time.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from pydantic import SecretStr
from pydantic_core import to_json

from strategies.outbound_proxy import OutboundProxy
from token_broker.hooks.secrets import parse_webhook_secrets
from token_broker.hooks.sender import HookAnswer, HookSender, hook_client
from token_broker.memory.types import (
    FULL_BATCH,
    DeliveryBatch,
    Failure,
    Notice,
    SinkErasure,
    SinkError,
    SinkName,
    arrived_us,
)
from token_broker.security.tokens import ANONYMOUS

__all__ = ["HttpSink", "event_id", "http_failure"]

_MAX_BYTES = 65_536 - 8_192  # of the turns: the event has 64 KiB with its frame, and the ids of what is missing
_ANSWER_BYTES = 65_536
_GONE_S = 600.0  # how long a receiver that says 410 is left alone
_MAX_RETRY_AFTER_S = 86_400.0
# Unavailable to any event: overloaded, down, or a secret or URL that an operator has to correct.
_UNAVAILABLE = frozenset({401, 403, 404, 408, 425, 429, 502, 503, 504})
_UNCERTAIN = frozenset({408, 500, 502, 504})


class HttpSink:
    """See `Sink`. Open it with `open`, close it with `aclose`."""

    name: SinkName = "http"
    max_turns = FULL_BATCH
    max_bytes: int | None = _MAX_BYTES
    keeps_batches = True
    takes_notices = True

    def __init__(self, sender: HookSender, url: str, *, timeout_s: float, stack: AsyncExitStack) -> None:
        self._sender = sender
        self._url = url
        self._timeout_s = timeout_s
        self._stack = stack

    @classmethod
    async def open(
        cls, url: str, secret: SecretStr, *, timeout_s: float, proxy: OutboundProxy | None = None
    ) -> "HttpSink":
        """A sink with connections of its own."""
        stack = AsyncExitStack()
        client = await stack.enter_async_context(hook_client(proxy=proxy))
        return cls(HookSender(client, parse_webhook_secrets(secret)), url, timeout_s=timeout_s, stack=stack)

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._stack.aclose()

    async def deliver(self, batch: DeliveryBatch) -> None:
        data = _ids(batch.session_id, batch.principal, batch.user_id, batch.turns[-1].agent_id or batch.agent_id)
        data["turns"] = [
            {
                "turn_id": turn.turn_id,
                "sequence": turn.sequence,
                "agent_id": turn.agent_id or None,
                "role": turn.role,
                "content": turn.content,
                "created_at": turn.created_at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
                "interrupted": turn.interrupted,
                "source": turn.source,
                "channel": turn.channel,
            }
            for turn in batch.turns
        ]
        if batch.missing:
            data["missing"] = list(batch.missing)
        at_us = max(turn.arrived_us for turn in batch.turns)
        keys = [batch.session_id, *(turn.turn_id for turn in batch.turns)]
        await self._post("turns.stored", at_us, data, keys)

    async def tell(self, notice: Notice) -> None:
        data = _ids(notice.session_id, notice.principal, notice.user_id, notice.agent_id) | json.loads(notice.body)
        await self._post(notice.kind, arrived_us(notice.arrival), data, [notice.session_id, str(notice.arrival)])

    async def erase(self, erasure: SinkErasure) -> None:
        at_us = erasure.before_us
        if erasure.session_id:
            data = _ids(erasure.session_id, erasure.principal, erasure.user_id, erasure.agent_id)
            await self._post("session.erased", at_us, data, [erasure.session_id])
        else:
            data = {"user_id": erasure.principal, "before": _time(at_us)}
            await self._post("user.erased", at_us, data, [erasure.principal, str(at_us)])

    async def is_done(self, task: str) -> bool:
        del task  # it has none
        return True

    async def _post(self, kind: str, at_us: int, data: Mapping[str, Any], keys: list[str]) -> None:
        event = to_json({"type": kind, "timestamp": _time(at_us), "data": data})
        answer = await self._sender.post(
            self._url,
            event,
            webhook_id=event_id(kind, *keys),
            timeout_s=self._timeout_s,
            max_bytes=_ANSWER_BYTES,
        )
        if (failure := http_failure(answer)) is not None:
            raise SinkError(failure)


def event_id(kind: str, *keys: str) -> str:
    """The `webhook-id` of an event: the same for the same event, with no character that a signature gives a meaning."""
    named = json.dumps([kind, *keys], ensure_ascii=True)  # unlike joined texts, two lists never look alike
    return f"msg_{hashlib.sha256(named.encode()).hexdigest()[:40]}"


def http_failure(answer: HookAnswer) -> Failure | None:
    """How a POST failed; None where the receiver has taken the event. Carries none of the receiver's text."""
    status, wait_s = answer.status, answer.retry_after_s
    if wait_s is not None:
        wait_s = min(wait_s, _MAX_RETRY_AFTER_S)
    if answer.ok or (status is not None and 200 <= status < 300):  # noqa: PLR2004  # whatever its body was
        return None
    if status is None:
        refused = answer.failure == "refused"
        return Failure(f"http: {answer.failure}", uncertain=answer.sent and not refused)
    if answer.failure == "redirect":
        return Failure(f"http: {status}, a redirect, which is not followed", retry_after_s=wait_s)
    reason = f"http: {status}"
    if status == HTTPStatus.GONE:
        return Failure(f"{reason}, gone", retry_after_s=max(_GONE_S, wait_s or 0))
    uncertain = status in _UNCERTAIN
    if status in _UNAVAILABLE:
        return Failure(reason, uncertain=uncertain, retry_after_s=wait_s)
    if status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return Failure(reason, counts=True, refused=True, retry_after_s=wait_s)
    return Failure(reason, counts=True, uncertain=uncertain, retry_after_s=wait_s)


def _ids(session_id: str, principal: str, user_id: str | None, agent_id: str | None) -> dict[str, Any]:
    """The user is the principal where callers sign in; else the label that the client sent, which proves nothing."""
    user = user_id if principal == ANONYMOUS else principal
    return {"session_id": session_id, "user_id": user, "agent_id": agent_id}


def _time(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1_000_000, UTC).isoformat().replace("+00:00", "Z")
