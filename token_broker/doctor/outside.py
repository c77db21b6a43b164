"""A deployed broker, asked from outside as browsers and strangers would."""

import asyncio
import base64
import json
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from strategies.transport import BoundedResolver
from token_broker.doctor import outside_verdicts as verdicts
from token_broker.doctor.checks import Check, CheckStatus, KnownIssue
from token_broker.doctor.hosts import Host, examine_host
from token_broker.doctor.outside_verdicts import Answer
from token_broker.web.forwarded import websocket_url

__all__ = ["examine_broker"]

Tell = Callable[[Check], None]

ANSWER_S = 8.0  # a token request may take its whole budget
_MAX_ANSWER_BYTES = 262_144
_VOICE = "/api/v1/voice"
_NOBODY = "doctor-has-no-session"
_FORGED = base64.b64encode(
    json.dumps({"auth_typ": "aad", "claims": [{"typ": "oid", "val": "forged-by-token-broker-doctor"}]}).encode()
).decode()


async def examine_broker(url: str, client: httpx.AsyncClient, tell: Tell, *, tls: ssl.SSLContext) -> None:
    """Tells of the broker at `url`: host, platform authentication, status, plan, CORS, WebSocket, forged headers."""
    base = url.rstrip("/")
    found = await examine_host(Host.of(base), resolver=BoundedResolver(), tls=tls)
    for check in found:
        tell(check)
    if found[-1].status is CheckStatus.FAILED:
        return
    outside = _Outside(base, client, tell)
    await outside.look("GET", "/healthz", verdicts.judge_health)
    if not await outside.is_asked_by_its_name():
        return
    await asyncio.gather(
        outside.look("GET", f"{_VOICE}/status", verdicts.judge_status),
        outside.look_at_tokens(),
        outside.look_at_preflight(_origin_of(base), verdicts.judge_own_origin),
        outside.look_at_preflight("https://strange.invalid", verdicts.judge_strange_origin),
        outside.look("GET", f"{_VOICE}/voicelive/{_NOBODY}", verdicts.judge_plain_get),
        outside.look("GET", "/metrics", verdicts.judge_metrics),
        outside.look_at_upgrade(tls if base.startswith("https:") else None),
    )


@dataclass(frozen=True, slots=True)
class _Outside:
    base: str
    client: httpx.AsyncClient
    tell: Tell

    async def look(self, method: str, path: str, judge: Callable[[Answer], Check | None]) -> None:
        """Asks, and tells what `judge` makes of the answer."""
        if (answer := await self._ask(method, path)) is None:
            self.tell(_silent(path))
        elif (check := judge(answer)) is not None:
            self.tell(check)

    async def is_asked_by_its_name(self) -> bool:
        """Tells where the broker does not answer under this host: then it answers nothing else but probes."""
        answer = await self._ask("GET", f"{_VOICE}/status")
        if answer is None or (refused := verdicts.judge_host(answer)) is None:
            return True
        self.tell(refused)
        return False

    async def look_at_tokens(self) -> None:
        """A token request as anybody, and one with a made-up principal."""
        path = f"{_VOICE}/realtime/token"
        plain = await self._ask("POST", path)
        if plain is None:
            self.tell(_silent(path))
            return
        self.tell(verdicts.judge_token(plain, self.base))
        forged = await self._ask("POST", path, {"X-MS-CLIENT-PRINCIPAL": _FORGED})
        if forged is not None:
            self.tell(verdicts.judge_forged_header(plain, forged))

    async def look_at_preflight(self, origin: str, judge: Callable[[Answer], Check]) -> None:
        """A browser's question whether a page of `origin` may ask for a token."""
        path = f"{_VOICE}/realtime/token"
        answer = await self._ask("OPTIONS", path, {"Origin": origin, "Access-Control-Request-Method": "POST"})
        self.tell(_silent(path) if answer is None else judge(answer))

    async def look_at_upgrade(self, tls: ssl.SSLContext | None) -> None:
        """A WebSocket handshake without a ticket."""
        url = f"{websocket_url(self.base)}{_VOICE}/voicelive/{_NOBODY}"
        close_code, refused = None, None
        try:
            async with (
                asyncio.timeout(ANSWER_S),
                connect(url, subprotocols=[Subprotocol("realtime")], ssl=tls) as socket,
            ):
                await socket.recv()
        except ConnectionClosed as closed:
            close_code = closed.rcvd.code if closed.rcvd else None
        except InvalidStatus as error:
            response = error.response
            headers = {name.lower(): value for name, value in response.headers.raw_items()}
            refused = Answer(response.status_code, headers, bytes(response.body or b""))
        except (WebSocketException, OSError, TimeoutError):
            pass  # neither opened nor refused: the verdict for that
        self.tell(verdicts.judge_upgrade(close_code, refused))

    async def _ask(self, method: str, path: str, headers: Mapping[str, str] | None = None) -> Answer | None:
        """The answer, read up to a limit; None where none comes in time."""
        body = b"{}" if method == "POST" else None
        sent = {"Content-Type": "application/json", **(headers or {})}
        try:
            async with (
                asyncio.timeout(ANSWER_S),
                self.client.stream(method, f"{self.base}{path}", headers=sent, content=body) as response,
            ):
                received = bytearray()
                async for chunk in response.aiter_raw():
                    received += chunk
                    if len(received) > _MAX_ANSWER_BYTES:
                        break
        except (httpx.HTTPError, OSError, TimeoutError):
            return None
        return Answer(response.status_code, dict(response.headers), bytes(received))


def _silent(path: str) -> Check:
    return Check(
        f"url {path}",
        CheckStatus.FAILED,
        f"no answer within {ANSWER_S:g} s",
        remediation="is the broker running, and its port the ingress's target? az containerapp logs show -n <app> -g <group>",
        known_issue=KnownIssue.CONNECTION_HANG,
    )


def _origin_of(base: str) -> str:
    parts = urlsplit(base)
    return f"{parts.scheme}://{parts.netloc}"
