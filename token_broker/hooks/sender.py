"""Posts one signed hook: bounded in time and size, to no forbidden address, and never follows where an answer points.

`hook_client` makes the client, `HookSender` posts. The one module that knows how
httpx and aiohttp fail here: httpx-aiohttp maps most errors of the latter, not all.
"""

import asyncio
import contextlib
import ssl
import time
import zlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Literal

import aiohttp
import httpx
from pydantic import SecretStr
from pydantic_core import to_json

from strategies.outbound_proxy import OutboundProxy
from strategies.transport import BoundedResolver, make_transport
from strategies.upstream import retry_after_s
from token_broker import __version__
from token_broker.hooks.addresses import AddressRefusedError, GuardedResolver, is_forbidden_host
from token_broker.hooks.secrets import WebhookSecret

__all__ = ["HookAnswer", "HookFailure", "HookSender", "hook_client"]

HookFailure = Literal["refused", "timeout", "too_large", "redirect", "unreachable", "broken"]
"""`refused`: an address that is never called, or no URL. `unreachable`: no connection came about. `broken`: the
connection broke off, or the answer can't be read. `redirect`: a 3xx, which is not followed."""

_CONNECTIONS = 256
_KEEPALIVE_S = 4.0  # below the 5 s after which common servers close: else a POST meets a connection that just ended
_CLOSE_S = 1.0
_ZIPPED = frozenset({"gzip", "x-gzip", "deflate"})  # not asked for; some servers pack all the same


@dataclass(frozen=True, slots=True)
class HookAnswer:
    """What came of a POST. Without a `failure` there is a `status`, and for a 2xx its `body` as text.

    `sent`: the server may have got the payload. False is certain: nothing of it left this process. `retry_after_s` is
    what the server asked for. The body of any other status is not read.
    """

    status: int | None = None
    body: str = ""
    failure: HookFailure | None = None
    sent: bool = False
    retry_after_s: float | None = None

    @property
    def ok(self) -> bool:
        """Whether it is a 2xx, read to its end."""
        return self.failure is None and self.status is not None and httpx.codes.is_success(self.status)


class HookSender:
    """Signs each payload with every one of `secrets`, and posts it. Without a secret nothing is posted (ValueError).

    `http` is `hook_client`'s. `now` gives aware times in UTC.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        secrets: Sequence[WebhookSecret],
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        if not secrets:
            raise ValueError("a hook is signed: give at least one secret")
        self._http = http
        self._secrets = tuple(secrets)
        self._now = now

    async def post(
        self,
        url: str,
        payload: Mapping[str, Any] | bytes,
        *,
        webhook_id: str,
        timeout_s: float,
        max_bytes: int,
        headers: Mapping[str, SecretStr] | None = None,
    ) -> HookAnswer:
        """Posts `payload`, as JSON or as it is, once; `timeout_s` is the time for all of it, from the name's lookup on.

        `webhook_id` is the caller's, and the same whenever it posts the same again. An answer of more than `max_bytes`,
        decoded, is `too_large`. Raises nothing but CancelledError.
        """
        content = payload if isinstance(payload, bytes) else to_json(payload)
        body, at = _Body(content), self._now()
        try:
            told = {name: value.get_secret_value() for name, value in (headers or {}).items()} | {
                "User-Agent": f"voice-token-broker/{__version__}",
                "Accept": "application/json, text/plain;q=0.9, */*;q=0.1",
                "Accept-Encoding": "identity",
                "Content-Type": "application/json",
                "Content-Length": str(len(content)),
                "webhook-id": webhook_id,
                "webhook-timestamp": str(int(at.timestamp())),
                # The specification has several signatures separated by blanks: one of them is of the receiver's secret.
                "webhook-signature": " ".join(
                    secret.sign(webhook_id, at, content.decode()) for secret in self._secrets
                ),
            }
            request = httpx.Request("POST", url, headers=told, stream=body)
        except (httpx.InvalidURL, ValueError, TypeError):
            return HookAnswer(failure="refused")
        if not request.url.host or is_forbidden_host(request.url.host):
            return HookAnswer(failure="refused")
        try:
            async with asyncio.timeout(timeout_s):
                return await self._exchange(request, body, max_bytes)
        except TimeoutError:
            return HookAnswer(failure="timeout", sent=body.sent)
        except (httpx.HTTPError, httpx.InvalidURL, aiohttp.ClientError, OSError, ValueError) as error:
            # httpx has aiohttp's error as its cause, and that the resolver's.
            if isinstance(getattr(error.__cause__, "os_error", error), AddressRefusedError):
                return HookAnswer(failure="refused")
            return HookAnswer(failure="broken" if body.sent else "unreachable", sent=body.sent)

    async def _exchange(self, request: httpx.Request, body: "_Body", max_bytes: int) -> HookAnswer:
        """The answer with its body, or with why it has none. Decodes at most `max_bytes`, whatever was packed."""
        response = await self._http.send(request, stream=True, auth=None, follow_redirects=False)
        wait_s = retry_after_s(response.headers, now_s=time.time())

        def answer(failure: HookFailure | None = None, text: str = "") -> HookAnswer:
            return HookAnswer(response.status_code, text, failure, body.sent, wait_s)

        try:
            if not response.is_success:
                return answer("redirect" if 300 <= response.status_code < 400 else None)  # noqa: PLR2004
            encoding = response.headers.get("content-encoding", "").strip().lower()
            if encoding not in {"", "identity", *_ZIPPED}:
                return answer("broken")
            inflater = zlib.decompressobj(zlib.MAX_WBITS | 32) if encoding in _ZIPPED else None
            content = bytearray()
            async for chunk in response.aiter_raw():
                packed = chunk
                while packed and not (inflater and inflater.eof):
                    # In pieces of so many bytes at most: a kilobyte of gzip can hold a megabyte.
                    content += inflater.decompress(packed, max_bytes + 1) if inflater else packed
                    packed = inflater.unconsumed_tail if inflater else b""
                    if len(content) > max_bytes:
                        return answer("too_large")
            if inflater is not None and not inflater.eof:
                return answer("broken")
            return answer(text=content.decode(errors="replace"))
        except zlib.error:
            return answer("broken")
        finally:
            with contextlib.suppress(httpx.HTTPError, aiohttp.ClientError, OSError, TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    await response.aclose()


@contextlib.asynccontextmanager
async def hook_client(
    *, tls: ssl.SSLContext | None = None, proxy: OutboundProxy | None = None, keepalive_s: float = _KEEPALIVE_S
) -> AsyncIterator[httpx.AsyncClient]:
    """A client for hooks: a bounded pool, guarded addresses, no cookies, nothing of the environment.

    `keepalive_s` may be longer for hooks that are posted again where a connection has just ended. Through `proxy` a
    name is looked up by the proxy: its rules guard the addresses then.
    """
    transport = make_transport(
        tls=tls,
        resolver=GuardedResolver(BoundedResolver()),
        connections=_CONNECTIONS,
        keepalive_s=keepalive_s,
        proxy=proxy,
    )
    # A cookie that one user's call brought must not go along with another's.
    no_cookies = CookieJar(policy=DefaultCookiePolicy(allowed_domains=[]))
    async with httpx.AsyncClient(
        transport=transport,
        timeout=None,  # noqa: S113  # each POST runs inside a deadline of its own
        follow_redirects=False,
        trust_env=False,
        cookies=no_cookies,
    ) as client:
        yield client


class _Body(httpx.AsyncByteStream):
    """The payload in one piece. `sent` once the connection stands and has taken it."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.sent = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self.sent = True
        yield self._content
