"""GPT-Live's sessions over WebRTC: a browser's offer goes to Azure with the agent's session.

There is no ephemeral key: the resource's own credential is used. One request sets the session up, and its answer has
the session's id and the SDP (docs/azure.md §12.3). No route ends such a session: a `session.close` over its sideband
does, as far as is known.
"""

import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from pydantic_core import to_json

from strategies.azure_calls import AcceptedCall, post, with_credential
from strategies.credentials import Credentials
from strategies.errors import MalformedError, MintError, PermanentError, RejectedError
from strategies.upstream import Answer, classify

__all__ = ["Closes", "LiveOffer", "LiveSessions", "SessionFieldError", "never_closes"]

_SESSION_ID = re.compile(r"[A-Za-z0-9_.~-]{1,200}")

Closes = Callable[[str, str, float], Awaitable[bool]]
"""Ends the session of that id at a live endpoint, within so many seconds; True: it is over."""


async def never_closes(endpoint: str, call_id: str, timeout_s: float) -> bool:
    """For who has no sidebands. Raises MintError."""
    del endpoint, call_id, timeout_s
    raise PermanentError("no sideband is there to close the session by")


@dataclass(frozen=True, slots=True)
class LiveOffer:
    """What a resource is asked for beside the offer: the session. `endpoint` is that of its sessions."""

    endpoint: str
    resource: str
    session: Mapping[str, Any] = field(repr=False)


class SessionFieldError(RejectedError):
    """Azure refuses the session; `error` is as Azure wrote it, and may name a field. It is for no log."""

    def __init__(self, message: str, *, error: Mapping[str, Any], **about: Any) -> None:
        super().__init__(message, **about)
        self.error = error


class LiveSessions:
    """Sets sessions up and ends them, with the process's one HTTP client and the resource's credential."""

    def __init__(self, client: httpx.AsyncClient, credentials: Credentials, closes: Closes) -> None:
        self._client = client
        self._credentials = credentials
        self._closes = closes

    async def offer(
        self,
        grant: LiveOffer,
        offer: bytes,
        *,
        filtered: bool,
        timeout_s: float,
        named: Callable[[str], None] = lambda _session_id: None,
    ) -> AcceptedCall:
        """Posts the session and the SDP `offer`. Raises MintError, SessionFieldError where a field is refused.

        `named` gets the session's id as soon as it is known: from then on the session has to be closed if it can't be
        used. Events are filtered by the session itself, so `filtered` means nothing here.
        """
        del filtered
        body = {"session": grant.session, "transport": {"type": "webrtc", "sdp": offer.decode("utf-8", "replace")}}
        content = to_json(body)

        async def ask(headers: Mapping[str, str], left_s: float) -> AcceptedCall:
            sent = {**headers, "Content-Type": "application/json", "Accept": "application/json"}
            answer = await post(self._client, grant.endpoint, content, sent, timeout_s=left_s)
            if (error := classify(answer, now_s=time.time())) is not None:
                raise _with_field(error, answer)
            return _accepted(answer, named)

        return await with_credential(self._credentials, ask, timeout_s=timeout_s)

    async def hang_up(self, endpoint: str, call_id: str, *, timeout_s: float) -> bool:
        """Ends the session. True where Azure has it no more. Raises MintError."""
        return await self._closes(endpoint, call_id, timeout_s)


def _accepted(answer: Answer, named: Callable[[str], None]) -> AcceptedCall:
    document = _object(answer.body)
    session, transport = document.get("session"), document.get("transport")
    session_id = session.get("id") if isinstance(session, dict) else None
    if not isinstance(session_id, str) or not _SESSION_ID.fullmatch(session_id):
        session_id = None
    else:
        named(session_id)
    sdp = transport.get("sdp") if isinstance(transport, dict) else None
    if not isinstance(sdp, str) or not sdp.startswith("v=0"):
        raise MalformedError("the answer to the offer has no SDP", status=answer.status)
    return AcceptedCall(sdp.encode(), session_id)


def _with_field(error: MintError, answer: Answer) -> MintError:
    """The error, with what Azure says of the session where it refuses that."""
    stated = _object(answer.body).get("error")
    if isinstance(error, RejectedError) and isinstance(stated, dict):
        about = {"status": error.status, "code": error.code, "request_id": error.request_id}
        return SessionFieldError(str(error), error=stated, **about)
    return error


def _object(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
