"""Checks a deployed broker from outside, with the requests that browsers and strangers make."""

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
from token_broker.doctor.outside_verdicts import BrokerAnswer
from token_broker.web.requests import websocket_url

__all__ = ["examine_broker"]

Tell = Callable[[Check], None]

ANSWER_S = 8.0  # more than BROKER_TOKEN_BUDGET_S, which a token request may use up
_MAX_ANSWER_BYTES = 262_144  # the address may be anybody's, and its answer endless
_VOICE = "/api/v1/voice"
_UNKNOWN_SESSION = "doctor-has-no-session"  # no plan names it, so no session is touched
_FORGED = base64.b64encode(
    json.dumps({"auth_typ": "aad", "claims": [{"typ": "oid", "val": "forged-by-token-broker-doctor"}]}).encode()
).decode()


async def examine_broker(url: str, client: httpx.AsyncClient, tell: Tell, *, tls: ssl.SSLContext) -> None:
    """Checks host, platform authentication, status, plan, CORS, WebSocket and forged headers of the broker at `url`."""
    base = url.rstrip("/")
    found = await examine_host(Host.of(base), resolver=BoundedResolver(), tls=tls)
    for check in found:
        tell(check)
    if found[-1].status is CheckStatus.FAILED:
        return
    outside = _Outside(base, client, tell)
    await outside.get("/healthz", verdicts.judge_health)
    # Probes are answered under every host name. All else would be refused alike, so one check is enough then.
    status = await outside.ask("GET", f"{_VOICE}/status")
    if status is not None and (refused := verdicts.judge_host(status)) is not None:
        tell(refused)
        return
    parts = urlsplit(base)
    await asyncio.gather(
        outside.get(f"{_VOICE}/status", verdicts.judge_status),
        outside.request_tokens(),
        outside.preflight(f"{parts.scheme}://{parts.netloc}", verdicts.judge_own_origin),
        outside.preflight("https://strange.invalid", verdicts.judge_strange_origin),
        outside.get(f"{_VOICE}/voicelive/{_UNKNOWN_SESSION}", verdicts.judge_plain_get),
        outside.get("/metrics", verdicts.judge_metrics),
        outside.upgrade(tls if base.startswith("https:") else None),
    )


@dataclass(frozen=True, slots=True)
class _Outside:
    base: str
    client: httpx.AsyncClient
    tell: Tell

    async def get(self, path: str, judge: Callable[[BrokerAnswer], Check | None]) -> None:
        """Asks for `path`, and has `judge` make a check of the answer."""
        if (answer := await self.ask("GET", path)) is None:
            self.tell(_silent(path))
        elif (check := judge(answer)) is not None:
            self.tell(check)

    async def request_tokens(self) -> None:
        """Sends one token request without a credential, and one with a forged principal."""
        path = f"{_VOICE}/realtime/token"
        plain = await self.ask("POST", path)
        if plain is None:
            self.tell(_silent(path))
            return
        self.tell(verdicts.judge_token(plain, self.base))
        # Only the difference from the plain request shows whether the broker trusts the header.
        forged = await self.ask("POST", path, {"X-MS-CLIENT-PRINCIPAL": _FORGED})
        if forged is not None:
            self.tell(verdicts.judge_forged_header(plain, forged))

    async def preflight(self, origin: str, judge: Callable[[BrokerAnswer], Check]) -> None:
        """Asks as a browser does whether a page of `origin` may request a token."""
        path = f"{_VOICE}/realtime/token"
        answer = await self.ask("OPTIONS", path, {"Origin": origin, "Access-Control-Request-Method": "POST"})
        self.tell(_silent(path) if answer is None else judge(answer))

    async def upgrade(self, tls: ssl.SSLContext | None) -> None:
        """Makes a WebSocket handshake without a ticket."""
        url = f"{websocket_url(self.base)}{_VOICE}/voicelive/{_UNKNOWN_SESSION}"
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
            refused = BrokerAnswer(response.status_code, headers, bytes(response.body or b""))
        except (WebSocketException, OSError, TimeoutError):
            pass  # neither opened nor refused: judge_upgrade has a verdict for that, too
        self.tell(verdicts.judge_upgrade(close_code, refused))

    async def ask(self, method: str, path: str, headers: Mapping[str, str] | None = None) -> BrokerAnswer | None:
        """The answer, whose body is read up to a limit. None where none comes in time."""
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
        return BrokerAnswer(response.status_code, dict(response.headers), bytes(received))


def _silent(path: str) -> Check:
    return Check(
        f"url {path}",
        CheckStatus.FAILED,
        f"no answer within {ANSWER_S:g} s",
        remediation="check that the broker runs, and that the ingress targets its port: "
        "az containerapp logs show -n <app> -g <group>",
        known_issue=KnownIssue.CONNECTION_HANG,
    )
