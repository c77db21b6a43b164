"""Opens a session on a socket to Azure: the credential, the handshake's refusals, the agent's settings."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import picows
import structlog

from strategies.base import own_limit_s
from strategies.credentials import Authorization, Credentials
from strategies.errors import (
    CredentialError,
    KeysDisabledError,
    MalformedError,
    MintError,
    RejectedError,
    TransientError,
)
from strategies.upstream import Answer, classify, date_of
from token_broker.relay.azure.socket import AzureSocket
from token_broker.relay.azure.stated_faults import stated_fault
from token_broker.relay.confirmation.confirmation import Confirmation
from token_broker.relay.confirmation.early_answers import EarlyAnswers
from token_broker.relay.event_text import SESSION_EVENTS, event_of, event_type, parsed

__all__ = [
    "LateCredentialError",
    "SessionRefusedError",
    "TakenSession",
    "clock_skew_s",
    "current_authorization",
    "expiry_of",
    "expiry_s",
    "handshake_error",
    "refusal_of",
    "take_session",
]

log = structlog.get_logger("token_broker.relay")

SESSION_EVENT_ID = "broker_session"
_TIMER_S = 0.005  # a loop's timers may be that early
_LONGEST_SESSION_S = 86_400.0
_CLOCKS_AGREE_S = 5.0  # `Date` has whole seconds, and the answer takes its time
_FIRST_FRAMES_AT_MOST = 64  # Azure sends two or three; all are held until the session is accepted


class LateCredentialError(CredentialError):
    """The credential's source took all the time of an attempt: Azure was not asked."""


async def current_authorization(credentials: Credentials, deadline_s: float) -> Authorization:
    """The credential for one attempt. Raises CredentialError, LateCredentialError where its source took all the time.

    It ends a little before the deadline, whose own error would blame Azure.
    """
    loop = asyncio.get_running_loop()
    timeout_s = own_limit_s(deadline_s - loop.time())
    ends_s = loop.time() + timeout_s
    try:
        return await credentials.current(timeout_s=timeout_s)
    except CredentialError as error:
        if loop.time() >= ends_s - _TIMER_S:
            raise LateCredentialError(str(error)) from None
        raise


class SessionRefusedError(RejectedError):
    """Azure refuses the agent's settings, or confirms others: nobody may talk in that session."""


@dataclass(frozen=True, slots=True)
class TakenSession:
    """A session in which the agent's settings are in force.

    `frames` are those up to Azure's `session.updated`, `session` is what was asked for and confirmed, `left_out` are
    the fields that Azure refused, as it writes their paths.
    """

    frames: list[str]
    session: Mapping[str, Any]
    left_out: tuple[str, ...] = ()


async def take_session(opened: AzureSocket, session: Mapping[str, Any]) -> TakenSession:
    """Sends the agent's `session` and waits until Azure has confirmed it. Raises MintError.

    A field that a refusal names is left out, once. What Azure answers before it has confirmed the session is no part of
    the talk.
    """
    asked = Confirmation(session, event_id=SESSION_EVENT_ID)
    early = EarlyAnswers()
    if session:
        opened.send(asked.update)
    confirms = "session.updated" if session else "session.created"  # one that is stated at Azure is in force at once
    frames: list[str] = []
    confirmed = False
    while not (confirmed and early.are_over):
        await opened.wait()
        if not opened.frames:
            raise TransientError(opened.failure or "the connection to Azure broke")
        text = opened.take()
        event = event_of(text)
        kind = event_type(text)
        if event is None or kind is None or len(frames) >= _FIRST_FRAMES_AT_MOST or early.are_too_many:
            raise MalformedError("what came instead of a session is none of Azure's events")
        if (answers := early.take(event, confirmed=confirmed)) is not None:
            for answer in answers:
                opened.send(answer)
            continue
        if kind == "error" and not confirmed:
            if not asked.refused(refusal_of(event)):
                raise SessionRefusedError("Azure refuses the agent's session")
            opened.send(asked.update)
            continue
        frames.append(text)
        if kind == confirms and not confirmed:
            if wrong := asked.disagreements(event.get("session")):
                log.error("session_not_the_agents", fields=wrong)
                raise SessionRefusedError("Azure confirmed other settings than the agent's")
            confirmed = True
    return TakenSession(frames, asked.session, asked.left_out)


def refusal_of(event: Mapping[str, Any]) -> Any:
    """The error in Azure's event, where it is about the session. Raises MintError where it is about Azure itself."""
    error = event.get("error")
    if (fault := stated_fault(error)) is not None:
        raise fault
    return error


def clock_skew_s(socket: AzureSocket) -> float:
    """Our clock less Azure's, by the `Date` of the handshake's answer; 0 where they agree, or nothing is known."""
    azures_s = date_of(socket.answer_headers)
    skew_s = 0.0 if azures_s is None else socket.answered_at_s - azures_s
    return skew_s if abs(skew_s) >= _CLOCKS_AGREE_S else 0.0


def expiry_s(frames: Sequence[str], *, skew_s: float = 0.0) -> float | None:
    """When the session ends that these events show (docs/azure.md §8.1), by the loop's clock; None: they don't say.

    `skew_s` is our clock less Azure's. A time that is past, or more than a day away, comes of a clock that is wrong: it
    says nothing.
    """
    for frame in reversed(frames):
        if event_type(frame) not in SESSION_EVENTS:
            continue
        session = parsed(frame).get("session")
        if isinstance(session, dict) and (ends_s := expiry_of(session, skew_s=skew_s)) is not None:
            return ends_s
    return None


def expiry_of(session: Mapping[str, Any], *, skew_s: float = 0.0) -> float | None:
    """When the session ends that Azure shows, by the loop's clock; None: it does not say, or says nonsense."""
    at_s = session.get("expires_at")
    if isinstance(at_s, int | float) and not isinstance(at_s, bool):
        left_s = at_s - (time.time() - skew_s)
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
