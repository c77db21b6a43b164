"""One mint over HTTP: posts it, limits it, and turns any answer into a token or one of our errors.

The only module that knows httpx's errors and Azure's error shapes. `classify` and `read_minted` are pure.
"""

import asyncio
import json
import math
import re
import time
from collections.abc import AsyncIterable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any

import httpx
from pydantic import SecretStr
from pydantic_core import to_json

from strategies.base import Dialect, EphemeralGrant, SessionSpec
from strategies.credentials import Authorization, Credentials
from strategies.errors import (
    ApiVersionError,
    KeysDisabledError,
    MalformedError,
    MintError,
    MisconfiguredError,
    PermanentError,
    RateLimitedError,
    RejectedError,
    TimedOutError,
    TransientError,
)
from strategies.outbound_proxy import ProxyFailedError
from strategies.session_model.refused_field import field_to_leave_out, shown_path, without
from strategies.session_model.session_fields import voice_name

__all__ = [
    "Answer",
    "Minted",
    "Upstream",
    "classify",
    "connection_failure",
    "date_of",
    "read_body",
    "read_minted",
    "retry_after_s",
]

# Azure's answers have a few KiB; a wrong host may send anything.
MAX_ANSWER_BYTES = 262_144
# Azure mints for 2 h at most. A later expiry is milliseconds taken for seconds, or nonsense.
MAX_LIFETIME_S = 86_400
_MAX_TOKEN_CHARS = 16_384
_BROKEN_OFF = frozenset({
    "ReadError", "WriteError", "RemoteProtocolError", "ServerDisconnectedError", "ConnectionResetError",
    "BrokenPipeError", "ClientPayloadError",
})  # fmt: skip
# Only codes of this shape go into logs and status: a gateway may put the request, with the key, in their place.
_PLAIN_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SESSION_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_VERSION_TEXT = re.compile(r"api[ _-]?version", re.IGNORECASE)
_UNSUPPORTED_CODES = frozenset({"OpperationNotSupported", "OperationNotSupported"})  # sic: docs/azure.md §8.4


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete HTTP answer, of at most MAX_ANSWER_BYTES."""

    status: int
    headers: Mapping[str, str]  # looked up case-insensitively
    body: bytes


@dataclass(frozen=True, slots=True)
class Minted:
    """A token that `resource` minted, and its lifetime by Azure's own clock (see `EphemeralGrant`)."""

    token: SecretStr
    expires_at: datetime
    expires_in_s: float
    received_at_s: float
    clock_skew_s: float | None
    resource: str = ""
    session_id: str | None = None
    left_out: tuple[str, ...] = ()

    def grant(self, strategy: str, *, endpoint: str, dialect: Dialect, spec: SessionSpec) -> EphemeralGrant:
        """The strategy's grant of this token. Media goes to `endpoint`, which minted it."""
        return EphemeralGrant(
            strategy=strategy,
            token=self.token,
            expires_at=self.expires_at,
            expires_in_s=self.expires_in_s,
            received_at_s=self.received_at_s,
            endpoint=endpoint,
            dialect=dialect,
            voice=voice_name(spec.voices[dialect]),
            clock_skew_s=self.clock_skew_s,
            resource=self.resource,
            session_id=self.session_id,
            left_out=self.left_out,
        )


class Upstream:
    """Posts mints to one resource with the process's one transport, and the resource's credential.

    It uses httpx's transport and no client: then no redirect, cookie, proxy of the environment or auth flow can
    interfere, and a mint costs half as much. `clock` gives unix seconds; `monotonic` is the clock of `received_at_s`.
    """

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport,
        credentials: Credentials,
        *,
        resource: str = "",
        user_agent: str = "voice-token-broker",
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resource = resource
        self._user_agent = user_agent
        self._transport = transport
        self._credentials = credentials
        self._clock = clock
        self._monotonic = monotonic

    async def mint(
        self,
        url: str,
        body: Mapping[str, Any],
        *,
        timeout_s: float,
        headers: Callable[[Authorization], Mapping[str, str]] = Authorization.headers,
    ) -> Minted:
        """Posts `body` as JSON, within `timeout_s` in all. Raises MintError.

        If Azure answers that keys are switched off, it is asked once more with Entra; if it refuses a field of the
        session, once more without that.
        """
        deadline_s = self._monotonic() + timeout_s
        try:
            return await self._mint(url, body, timeout_s=timeout_s, headers=headers)
        except RejectedError as error:
            session = body.get("session", body)
            if (path := field_to_leave_out(error.about, session)) is None:
                raise
            left = without(session, path)
            body = {**body, "session": left} if "session" in body else left
        minted = await self._mint(url, body, timeout_s=deadline_s - self._monotonic(), headers=headers)
        return replace(minted, left_out=(shown_path(path),))

    async def _mint(
        self,
        url: str,
        body: Mapping[str, Any],
        *,
        timeout_s: float,
        headers: Callable[[Authorization], Mapping[str, str]],
    ) -> Minted:
        content = to_json(body)
        deadline_s = self._monotonic() + timeout_s

        async def ask(authorization: Authorization) -> Minted:
            try:
                async with asyncio.timeout(deadline_s - self._monotonic()):
                    return await self._ask(url, content, authorization, headers)
            except TimeoutError:
                raise TimedOutError(f"no whole answer within {timeout_s:.1f} s") from None

        # Not within `ask`'s timeout: the credential has a limit of its own, whose error names the cause, and which lets
        # later callers fail at once.
        authorization = await self._credentials.current(timeout_s=timeout_s)
        try:
            return await ask(authorization)
        except KeysDisabledError:
            if authorization.kind != "key" or not self._credentials.keys_refused():
                raise
        return await ask(await self._credentials.current(timeout_s=deadline_s - self._monotonic()))

    async def _ask(
        self,
        url: str,
        content: bytes,
        authorization: Authorization,
        headers: Callable[[Authorization], Mapping[str, str]],
    ) -> Minted:
        request = httpx.Request(
            "POST",
            _parsed(url),
            headers=httpx.Headers(
                {
                    "Accept": "application/json",
                    "Accept-Encoding": "identity",
                    "Content-Type": "application/json",
                    "Content-Length": str(len(content)),
                    "User-Agent": self._user_agent,
                    **headers(authorization),
                },
                encoding="ascii",
            ),
            stream=httpx.ByteStream(content),  # with `content=` httpx guesses headers that are known here
        )
        request.read()
        try:
            response = await self._transport.handle_async_request(request)
            try:
                body = await read_body(response.stream)  # type: ignore[arg-type]  # an async transport's is asynchronous
                answer = Answer(response.status_code, response.headers, body)
            finally:
                await response.aclose()
        except MintError:
            raise
        except Exception as error:  # noqa: BLE001  # httpx's errors, and those its transport lets through unmapped
            raise TransientError(connection_failure(error)) from None
        now_s = self._clock()
        if (refused := classify(answer, now_s=now_s)) is not None:
            # A gateway may echo our credential where Azure's code or request id should be.
            if self._credentials.appear_in(refused.code or ""):
                refused.code = None
            if self._credentials.appear_in(refused.request_id or ""):
                refused.request_id = None
            raise refused
        minted = read_minted(answer, now_s=now_s, received_at_s=self._monotonic(), resource=self._resource)
        if self._credentials.appear_in(minted.token.get_secret_value()):
            raise MalformedError("the answer gave our own credential back as the token")
        return minted


async def read_body(chunks: AsyncIterable[bytes]) -> bytes:
    """The whole body of an answer. Raises MalformedError as soon as it exceeds MAX_ANSWER_BYTES."""
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise MalformedError(f"the answer is larger than {MAX_ANSWER_BYTES} bytes")
    return bytes(body)


def classify(answer: Answer, *, now_s: float) -> MintError | None:
    """The error of an answer, or None for a success. `now_s` (unix) is what a `Retry-After` date is compared with."""
    status = answer.status
    if status in {200, 201}:
        return None
    error = _error_of(answer.body)
    code, text = (value if isinstance(value := error.get(name), str) else "" for name in ("code", "message"))
    shown = code if _PLAIN_CODE.fullmatch(code) else None
    request_id = answer.headers.get("apim-request-id", "")
    about: dict[str, Any] = {
        "status": status,
        "code": shown,
        "request_id": request_id if _PLAIN_CODE.fullmatch(request_id) else None,
    }
    if status == 429:  # noqa: PLR2004
        return RateLimitedError(
            "Azure's rate limit is reached",
            retry_after_s=retry_after_s(answer.headers, now_s=now_s),
            is_of_tokens=answer.headers.get("x-ratelimit-remaining-tokens") == "0"
            or RateLimitedError.names_tokens(f"{code} {text}"),
            **about,
        )
    if 300 <= status < 400:  # noqa: PLR2004
        return MalformedError("a redirect, which is never followed: the endpoint is not Azure's own", **about)
    if status == 401 and code == "PermissionDenied":  # noqa: PLR2004
        return MisconfiguredError("access is denied: the role Cognitive Services OpenAI User is missing", **about)
    if status == 401:  # noqa: PLR2004
        return MisconfiguredError("the credential is refused: is the key this resource's own?", **about)
    if status == 403:  # noqa: PLR2004
        if code == "AuthenticationTypeDisabled":
            return KeysDisabledError("the resource takes no keys: use Entra (AZURE_VOICELIVE_AUTH=entra)", **about)
        return MisconfiguredError("access is denied: a role, or a network rule, is missing", **about)
    if status == 400 and _VERSION_TEXT.search(f"{code} {text}"):  # noqa: PLR2004  # Azure has no code for it
        return ApiVersionError("the api-version is not taken", **about)
    if status in {404, 405, 410, 501} or code in _UNSUPPORTED_CODES:
        missing = "the deployment is not there" if code == "DeploymentNotFound" else "the resource lacks this route"
        return PermanentError(missing, **about)
    if status in {408, 409, 425} or status >= 500:  # noqa: PLR2004
        return TransientError("Azure failed", **about)
    if status < 400:  # noqa: PLR2004
        return MalformedError("a success without a token", **about)
    return RejectedError("Azure refuses the request as it is", **about, about=error)


def read_minted(answer: Answer, *, now_s: float, received_at_s: float, resource: str = "") -> Minted:
    """The token of a successful answer. Raises MalformedError where there is no usable one (docs/api.md §3.2).

    `expires_at` may be unix seconds (GA) or ISO 8601 (the first version's routes). The lifetime left is reckoned by the
    answer's own `Date`, because our clock may be wrong.
    """
    try:
        document = json.loads(answer.body)
    except (ValueError, RecursionError):
        raise MalformedError("the answer is not JSON", status=answer.status) from None
    if not isinstance(document, dict):
        raise MalformedError("the answer is no JSON object", status=answer.status)
    token = document.get("value")
    if not isinstance(token, str) or not token:
        raise MalformedError("the answer has no token in `value`", status=answer.status)
    if len(token) > _MAX_TOKEN_CHARS or not token.isascii() or not token.isprintable() or " " in token:
        raise MalformedError("no header can carry the answer's token", status=answer.status)
    expires_at_s = _unix_seconds(document.get("expires_at"))
    if expires_at_s is None:
        raise MalformedError("the answer's `expires_at` is missing or unreadable", status=answer.status)
    azure_now_s = date_of(answer.headers)
    left_s = expires_at_s - (now_s if azure_now_s is None else azure_now_s)
    if not 0 < left_s <= MAX_LIFETIME_S:
        when = "past" if left_s <= 0 else "more than a day away"
        raise MalformedError(f"the answer's `expires_at` is {when}", status=answer.status)
    session = document.get("session")
    session_id = session.get("id") if isinstance(session, dict) else None
    return Minted(
        token=SecretStr(token),
        expires_at=datetime.fromtimestamp(expires_at_s, UTC),
        expires_in_s=left_s,
        received_at_s=received_at_s,
        clock_skew_s=None if azure_now_s is None else now_s - azure_now_s,
        resource=resource,
        session_id=session_id if isinstance(session_id, str) and _SESSION_ID.fullmatch(session_id) else None,
    )


def retry_after_s(headers: Mapping[str, str], *, now_s: float) -> float | None:
    """How long Azure asks to wait, in seconds from now: `retry-after-ms`, or `retry-after` as seconds or a date.

    None without a usable value: no number, a negative one, a date in the past.
    """
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        if (value := headers.get(name)) is None:
            continue
        try:
            wait_s = float(value) * unit_s
        except ValueError:
            date_s = _http_date(value)
            wait_s = math.nan if date_s is None else date_s - (date_of(headers) or now_s)
        if math.isfinite(wait_s) and wait_s >= 0:
            return wait_s
    return None


@lru_cache(maxsize=64)
def _parsed(url: str) -> httpx.URL:
    """Cached: there are few routes, and httpx takes longer to parse a URL than to send the request."""
    return httpx.URL(url)


def _error_of(body: bytes) -> dict[str, Any]:
    """Azure's error, with its code and message, from `{"error": {…}}` or the flat `{"statusCode", "message"}`."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(document, dict):
        return {}
    error = document.get("error")
    return error if isinstance(error, dict) else document


def date_of(headers: Mapping[str, str]) -> float | None:
    """The unix time that an answer's `Date` says; None where it says none."""
    return None if (value := headers.get("date")) is None else _http_date(value)


def _http_date(value: str) -> float | None:
    try:
        return parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def _unix_seconds(value: object) -> float | None:
    match value:
        case bool():
            return None
        case int() | float():
            try:
                datetime.fromtimestamp(value, UTC)
            except (ValueError, OverflowError, OSError):
                return None
            return float(value)
        case str():
            try:
                parsed = datetime.fromisoformat(value)
                return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
            except (ValueError, OverflowError):
                return None
    return None


def connection_failure(error: Exception) -> str:
    """Our own sentence for a driver's error, whose text may quote what was sent."""
    if isinstance(error, ProxyFailedError):
        return str(error)
    cause: BaseException | None = error
    names = []
    while cause is not None:
        names.append(type(cause).__name__)
        cause = cause.__cause__ or cause.__context__
    joined = " ".join(names)
    if "gaierror" in joined or "DNS" in joined:
        return "the host's name can't be looked up"
    if "SSL" in joined or "Certificate" in joined:
        return "the TLS handshake failed"
    if "ConnectionRefused" in joined:
        return "the connection is refused"
    if any(name in _BROKEN_OFF for name in names):
        return "the connection broke off before the whole answer had come"
    return f"the connection failed ({names[-1]})"
