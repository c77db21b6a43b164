"""Opens a session on a socket to Azure: the credential, the handshake's refusals, the agent's settings."""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import picows

from strategies.credentials import Authorization, Credentials
from strategies.errors import (
    CredentialError,
    KeysDisabledError,
    MalformedError,
    MintError,
    RateLimitedError,
    RejectedError,
    TransientError,
)
from strategies.upstream import Answer, classify
from token_broker.relay.azure.socket import AzureSocket
from token_broker.relay.event_text import SESSION_EVENTS, event_type, parsed

__all__ = ["current_authorization", "expiry_s", "handshake_error", "take_session"]

SESSION_EVENT_ID = "broker_session"
_LONGEST_SESSION_S = 86_400.0
_FIRST_FRAMES_AT_MOST = 64  # Azure sends two or three; all are held until the session is accepted


async def current_authorization(credentials: Credentials, deadline_s: float) -> Authorization:
    """The credential for one attempt; TimeoutError where its source took all the time."""
    loop = asyncio.get_running_loop()
    try:
        return await credentials.current(timeout_s=deadline_s - loop.time())
    except CredentialError:
        if loop.time() >= deadline_s:
            raise TimeoutError from None
        raise


async def take_session(opened: AzureSocket, session: Mapping[str, Any]) -> list[str]:
    """Sends the agent's `session` and returns the frames up to Azure's `session.updated`. Raises MintError."""
    update = {"type": "session.update", "event_id": SESSION_EVENT_ID, "session": session}
    opened.send(json.dumps(update, separators=(",", ":")))
    frames: list[str] = []
    while True:
        await opened.wait()
        if not opened.frames:
            raise TransientError(opened.failure or "the connection to Azure broke")
        text = opened.take()
        kind = event_type(text)
        if kind is None or len(frames) >= _FIRST_FRAMES_AT_MOST:
            raise MalformedError("what came instead of a session is none of Azure's events")
        if kind == "error":  # its text may quote the session: only its code is used
            error = json.loads(text).get("error")
            code = error.get("code") if isinstance(error, dict) else None
            if code in {"rate_limit_exceeded", "too_many_requests"}:
                raise RateLimitedError("Azure's rate limit is reached")
            if code in {"server_error", "internal_error"}:
                raise TransientError("Azure failed", status=500)  # what it wanted of the agent's session, perhaps
            raise RejectedError("Azure refuses the agent's session")
        frames.append(text)
        if kind == "session.updated":
            return frames


def expiry_s(frames: Sequence[str]) -> float | None:
    """When the session ends that these events show (docs/azure.md §8.1), by the loop's clock; None: they don't say.

    A time that is past, or more than a day away, comes of a clock that is wrong, ours perhaps: it says nothing.
    """
    for frame in reversed(frames):
        if event_type(frame) not in SESSION_EVENTS:
            continue
        session = parsed(frame).get("session")
        at_s = session.get("expires_at") if isinstance(session, dict) else None
        if isinstance(at_s, int | float) and not isinstance(at_s, bool):
            left_s = at_s - time.time()
            if 0 < left_s <= _LONGEST_SESSION_S:
                return asyncio.get_running_loop().time() + left_s
    return None


def handshake_error(error: picows.WSHandshakeError, authorization: Authorization) -> MintError:
    """What the refusal of a handshake with that credential means."""
    response = error.response
    if response is None or response.status == 101:  # noqa: PLR2004
        return MalformedError("the handshake's answer is not WebSocket's")
    body = error.raw_body or b""
    answer = Answer(int(response.status), response.headers, body)
    found = classify(answer, now_s=time.time())
    if found is None:
        return MalformedError("the handshake was answered as if it were a plain request", status=answer.status)
    if answer.status == 403 and found.code is None and authorization.kind == "key":  # noqa: PLR2004
        # picows reads no further than the headers: the body that says whether keys are off may not have come yet.
        return KeysDisabledError(str(found), status=403, request_id=found.request_id)
    return found
