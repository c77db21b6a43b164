"""What the official clients show of a refusal. On sockets, only a refused handshake brings them a status."""

import contextlib
import functools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
import trustme
from pydantic import SecretStr

from tests.clients.support.compat import SIMULATED_KEY, CompatEndpoint, open_compat
from tests.clients.support.programs import ClientRunner
from tests.clients.support.setups import assert_heard, make_setup
from tests.support.client_secrets import secret_claims
from token_broker.memory.maintenance import open_maintenance
from token_broker.security.tokens import Owner, TokenSigner

Failure = dict[str, Any]

SOCKETS: dict[str, tuple[str, dict[str, Any]]] = {
    "python openai": ("openai_python", {}),
    "python openai, Azure": ("openai_python", {"azure": True}),
    "python azure-ai-voicelive": ("voicelive_python", {"credential": "key"}),
    "npm openai, ws": ("openai_ws.mjs", {}),
    "npm openai, ws, Azure": ("openai_ws.mjs", {"azure": True}),
    "npm agents-realtime": ("agents_websocket.mjs", {}),
    "npm ai-voicelive": ("voicelive.mjs", {"credential": "token"}),
}
MINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "python openai": ("openai_python", {}),
    "python openai, Azure": ("openai_python", {"azure": True}),
    "npm openai": ("openai_ws.mjs", {}),
    "npm openai, Azure": ("openai_ws.mjs", {"azure": True}),
}
sockets = pytest.mark.parametrize(("program", "options"), SOCKETS.values(), ids=SOCKETS)
by_library = pytest.mark.parametrize(
    ("program", "options"),
    [SOCKETS[name] for name in ("python openai", "python azure-ai-voicelive", "npm openai, ws")],
    ids=["websockets", "aiohttp", "ws"],
)
"""One client for each WebSocket library: the library writes the message about a refused handshake."""
mints = pytest.mark.parametrize(("program", "options"), MINTS.values(), ids=MINTS)


pytestmark = pytest.mark.asyncio(loop_scope="module")  # the brokers are the module's

OpenBroker = Callable[..., contextlib.AbstractAsyncContextManager[CompatEndpoint]]


@pytest.fixture(scope="module")
def open_broker(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> OpenBroker:
    """Starts a broker: `open_broker(max_sessions=1)`, settings by field name."""
    return functools.partial(open_compat, "voice_live", tmp_path_factory.mktemp("compat"), authority)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def compat(open_broker: OpenBroker) -> AsyncIterator[CompatEndpoint]:
    async with open_broker() as opened:
        yield opened


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def signed_in_only(open_broker: OpenBroker) -> AsyncIterator[CompatEndpoint]:
    async with open_broker(auth="easyauth") as opened:
        yield opened


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rate_limited(open_broker: OpenBroker) -> AsyncIterator[CompatEndpoint]:
    """A broker whose callers have minted as often as they may."""
    async with open_broker(rate_limit_per_minute=1) as opened:
        await opened.mint()
        yield opened


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def single_use(open_broker: OpenBroker) -> AsyncIterator[CompatEndpoint]:
    async with open_broker(client_secret_uses=1) as opened:
        yield opened


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def full(open_broker: OpenBroker) -> AsyncIterator[CompatEndpoint]:
    """A broker that has as many talks as it may."""
    async with open_broker(max_sessions=1) as opened:
        assert opened.broker is not None
        lease = opened.broker.talks.acquire("another caller")
        assert lease is not None
        yield opened
        lease.release()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def draining(open_broker: OpenBroker) -> AsyncIterator[tuple[CompatEndpoint, str]]:
    """A broker that is about to end, and a secret that it minted before."""
    async with open_broker() as opened:
        assert opened.broker is not None
        secret = await opened.mint()
        opened.broker.drain.begin()
        yield opened, secret


def _secret(signer: TokenSigner, ttl_s: int = 60) -> str:
    return signer.client_secret(
        Owner("0199aaaa-0000-7000-8000-000000000000", "anonymous", 1), agent_id="elena", ttl_s=ttl_s
    )


def _bad_credentials(compat: CompatEndpoint) -> dict[str, str]:
    assert compat.broker is not None
    ours = compat.broker.signer
    header, claims, signature = _secret(ours).split(".")
    return {
        "forged": f"{header}.{claims}.{signature[::-1]}",
        "expired": _secret(ours, ttl_s=-120),
        "another broker's": _secret(TokenSigner([SecretStr("another broker's signing key, long enough")])),
        "the resource key": SIMULATED_KEY,
    }


async def _failures(
    compat: CompatEndpoint, program: str, options: dict[str, Any], keys: list[str], clients: ClientRunner
) -> list[Failure]:
    setup = make_setup(compat, "", keys=keys, **options)
    reports = await clients.run(program, setup, may_log=True)
    return [report["failure"] for report in reports]


@sockets
async def test_bad_credential_on_socket_is_401(
    compat: CompatEndpoint, program: str, options: dict[str, Any], clients: ClientRunner
) -> None:
    bad = _bad_credentials(compat)
    sockets_before = _sockets_at_azure(compat)
    failures = await _failures(compat, program, options, list(bad.values()), clients)
    assert ["401" in failure["message"] for failure in failures] == [True] * len(bad), failures
    assert _sockets_at_azure(compat) == sockets_before


def _sockets_at_azure(compat: CompatEndpoint) -> int:
    return sum(seen.protocol == "websocket" for seen in compat.azure.requests)


@mints
async def test_bad_credential_at_mint_is_401_and_why(
    compat: CompatEndpoint, program: str, options: dict[str, Any], clients: ClientRunner
) -> None:
    bad = _bad_credentials(compat)
    failures = await _failures(compat, program, {**options, "mints": True}, list(bad.values()), clients)
    assert [(failure["name"], failure["status"], failure["code"]) for failure in failures] == [
        ("AuthenticationError", 401, "credential_refused")
    ] * len(bad)
    assert all("not valid here" in failure["message"] for failure in failures), failures


@mints
async def test_mint_without_sign_in_is_401(
    signed_in_only: CompatEndpoint, program: str, options: dict[str, Any], clients: ClientRunner
) -> None:
    (failure,) = await _failures(signed_in_only, program, {**options, "mints": True}, ["unused"], clients)
    assert (failure["name"], failure["status"]) == ("AuthenticationError", 401)


@mints
async def test_mint_over_the_rate_limit_is_429(
    rate_limited: CompatEndpoint, program: str, options: dict[str, Any], clients: ClientRunner
) -> None:
    (failure,) = await _failures(rate_limited, program, {**options, "mints": True}, ["unused"], clients)
    assert (failure["name"], failure["status"]) == ("RateLimitError", 429)


@by_library
async def test_secret_used_too_often_is_401(
    single_use: CompatEndpoint, program: str, options: dict[str, Any], clients: ClientRunner
) -> None:
    secret = await single_use.mint()
    first, second = await clients.run(program, make_setup(single_use, "", keys=[secret, secret], **options))
    assert_heard(first)
    assert "401" in second["failure"]["message"]


@by_library
async def test_secret_of_blocked_session_is_403(
    compat: CompatEndpoint, program: str, options: dict[str, Any], clients: ClientRunner
) -> None:
    assert compat.broker is not None
    secret = await compat.mint()
    broker = compat.broker
    async with open_maintenance(compat.broker.settings) as admin:
        await admin.block("session", secret_claims(broker.signer, secret).owner.session_id)
    await broker.memory.blocklist.refresh()
    (failure,) = await _failures(compat, program, options, [secret], clients)
    assert "403" in failure["message"]


@by_library
async def test_talk_over_the_limit_is_429(
    full: CompatEndpoint, program: str, options: dict[str, Any], clients: ClientRunner
) -> None:
    (failure,) = await _failures(full, program, options, [await full.mint()], clients)
    assert "429" in failure["message"]


@by_library
async def test_draining_broker_is_503(
    draining: tuple[CompatEndpoint, str], program: str, options: dict[str, Any], clients: ClientRunner
) -> None:
    compat, secret = draining
    (failure,) = await _failures(compat, program, options, [secret], clients)
    assert "503" in failure["message"]
