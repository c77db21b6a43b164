"""WebRTC calls made for a browser: posts its offer to Azure, and hangs up.

Azure takes the raw offer with the ephemeral token alone; hanging up needs the resource's credential (docs/azure.md §5).
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import httpx

from strategies.base import EphemeralGrant
from strategies.credentials import Credentials
from strategies.errors import (
    KeysDisabledError,
    MalformedError,
    MintError,
    TimedOutError,
    TransientError,
)
from strategies.upstream import Answer, classify, connection_failure, read_body

__all__ = ["AcceptedCall", "AzureCalls", "post", "with_credential"]

_CALL_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_CREATED = 201
_OVER = frozenset({404, 409, 410})  # of a hang-up: there is no such call, or none that goes on

OnHead = Callable[[int, httpx.Headers], None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AcceptedCall:
    """Azure's answer to an offer. Without a `call_id`, which `Location` names, the call cannot be hung up."""

    answer: bytes
    call_id: str | None


class AzureCalls:
    """Client of Azure's calls route, with the process's one HTTP client and credential."""

    def __init__(self, client: httpx.AsyncClient, credentials: Credentials) -> None:
        self._client = client
        self._credentials = credentials

    async def offer(
        self,
        grant: EphemeralGrant,
        offer: bytes,
        *,
        filtered: bool,
        timeout_s: float,
        named: Callable[[str], None] = lambda _call_id: None,
    ) -> AcceptedCall:
        """Posts the SDP `offer` to the host that minted. Raises MintError.

        `named` gets the call's id as soon as Azure's headers name it. The call exists from then on, even if the answer
        comes late, breaks off or is unusable: a caller that cannot use the call has to hang it up.
        """
        url = f"{grant.endpoint}/openai/v1/realtime/calls{'?webrtcfilter=on' if filtered else ''}"
        headers = {"Content-Type": "application/sdp", "Authorization": f"Bearer {grant.token.get_secret_value()}"}

        def on_head(status: int, answered: httpx.Headers) -> None:
            if status == _CREATED and (call_id := _call_id(answered)) is not None:
                named(call_id)

        answer = await post(self._client, url, offer, headers, timeout_s=timeout_s, on_head=on_head)
        if (error := classify(answer, now_s=time.time())) is not None:
            raise error
        if not answer.body.startswith(b"v=0"):  # Content-Type says nothing: Azure sends application/sdp or text/plain
            raise MalformedError("the answer to the offer is no SDP", status=answer.status)
        return AcceptedCall(answer.body, _call_id(answer.headers))

    async def hang_up(self, endpoint: str, call_id: str, *, timeout_s: float) -> bool:
        """Ends the call at the host that made it. True where Azure has no such call any more. Raises MintError.

        A plain success says that Azure has been told, and not that the call is over.
        """
        url = f"{endpoint}/openai/v1/realtime/calls/{call_id}/hangup"

        async def ask(headers: Mapping[str, str], left_s: float) -> bool:
            answer = await post(self._client, url, b"", headers, timeout_s=left_s)
            if answer.status in _OVER:
                return True
            error = None if answer.status == 204 else classify(answer, now_s=time.time())  # noqa: PLR2004
            if error is not None:
                raise error
            return False

        return await with_credential(self._credentials, ask, timeout_s=timeout_s)


async def with_credential(
    credentials: Credentials, ask: Callable[[Mapping[str, str], float], Awaitable[T]], *, timeout_s: float
) -> T:
    """What `ask` gives for the headers of the resource's credential and the seconds left; it may raise MintError.

    Where Azure says that keys are switched off, it is asked once more with Entra.
    """
    deadline_s = time.monotonic() + timeout_s
    for last in (False, True):
        authorization = await credentials.current(timeout_s=deadline_s - time.monotonic())
        try:
            return await ask(authorization.headers(), deadline_s - time.monotonic())
        except KeysDisabledError:
            if last or authorization.kind != "key" or not credentials.keys_refused():
                raise
    raise AssertionError  # the second attempt returns or raises


async def post(
    client: httpx.AsyncClient,
    url: str,
    content: bytes,
    headers: Mapping[str, str],
    *,
    timeout_s: float,
    on_head: OnHead = lambda _status, _headers: None,
) -> Answer:
    """The whole answer, whatever its status, within the limit. Raises MintError."""
    try:
        async with asyncio.timeout(timeout_s):
            async with client.stream("POST", url, content=content, headers=headers) as response:
                on_head(response.status_code, response.headers)
                return Answer(response.status_code, response.headers, await read_body(response.aiter_raw()))
    except TimeoutError:
        raise TimedOutError(f"no whole answer within {timeout_s:.1f} s") from None
    except MintError:
        raise
    except Exception as error:  # noqa: BLE001  # httpx's errors, and those its transport lets through unmapped
        raise TransientError(connection_failure(error)) from None


def _call_id(headers: Mapping[str, str]) -> str | None:
    named = headers.get("location", "").partition("?")[0].rstrip("/").rpartition("/")[2]
    return named if _CALL_ID.fullmatch(named) else None
