"""What a client that is not let in shows of it: each tells the status, which only a refused handshake can bring."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from pydantic import SecretStr

from tests.clients.support.compat import SIMULATED_KEY, CompatEndpoint, open_compat
from tests.clients.support.programs import ClientRunner
from tests.clients.support.setups import assert_heard, make_setup
from token_broker.memory.admin import open_admin
from token_broker.security.tokens import TokenSigner

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
"""One client for each WebSocket library beneath them, which is what words a refused handshake."""
mints = pytest.mark.parametrize(("program", "options"), MINTS.values(), ids=MINTS)


@pytest.fixture
async def compat(tmp_path: Path, authority: trustme.CA) -> AsyncIterator[CompatEndpoint]:
    async with open_compat("voice_live", tmp_path, authority) as opened:
        yield opened


def _secret(signer: TokenSigner, ttl_s: int = 60) -> str:
    return signer.client_secret(
        session_id="0199aaaa-0000-7000-8000-000000000000", agent_id="elena", principal="anonymous", epoch=1,
        user_id=None, ttl_s=ttl_s,
    )  # fmt: skip


def _bad_credentials(compat: CompatEndpoint) -> dict[str, str]:
    assert compat.broker is not None
    ours = compat.broker.broker.signer
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
async def test_a_socket_that_is_refused_shows_401(
    compat: CompatEndpoint, program: str, options: dict[str, Any], clients: ClientRunner
) -> None:
    bad = _bad_credentials(compat)
    failures = await _failures(compat, program, options, list(bad.values()), clients)
    assert ["401" in failure["message"] for failure in failures] == [True] * len(bad), failures
    assert not [seen for seen in compat.azure.requests if seen.protocol == "websocket"]


@mints
async def test_a_mint_that_is_refused_is_the_clients_authentication_error_and_says_why(
    compat: CompatEndpoint, program: str, options: dict[str, Any], clients: ClientRunner
) -> None:
    bad = _bad_credentials(compat)
    failures = await _failures(compat, program, {**options, "mints": True}, list(bad.values()), clients)
    assert [(failure["name"], failure["status"], failure["code"]) for failure in failures] == [
        ("AuthenticationError", 401, "credential_refused")
    ] * len(bad)
    assert all("not valid here" in failure["message"] for failure in failures), failures


@mints
async def test_a_mint_without_the_platforms_credential_is_401_where_one_is_wanted(
    tmp_path: Path, authority: trustme.CA, program: str, options: dict[str, Any], clients: ClientRunner
) -> None:
    async with open_compat("voice_live", tmp_path, authority, auth="easyauth") as compat:
        (failure,) = await _failures(compat, program, {**options, "mints": True}, ["unused"], clients)
    assert (failure["name"], failure["status"]) == ("AuthenticationError", 401)


@mints
async def test_a_mint_too_many_is_the_clients_rate_limit_error(
    tmp_path: Path, authority: trustme.CA, program: str, options: dict[str, Any], clients: ClientRunner
) -> None:
    async with open_compat("voice_live", tmp_path, authority, rate_limit_per_minute=1) as compat:
        await compat.mint()
        (failure,) = await _failures(compat, program, {**options, "mints": True}, ["unused"], clients)
    assert (failure["name"], failure["status"]) == ("RateLimitError", 429)


@by_library
async def test_a_secret_used_too_often_opens_no_more_talks(
    tmp_path: Path, authority: trustme.CA, program: str, options: dict[str, Any], clients: ClientRunner
) -> None:
    async with open_compat("voice_live", tmp_path, authority, client_secret_uses=1) as compat:
        secret = await compat.mint()
        setup = make_setup(compat, "", keys=[secret, secret], **options)
        first, second = await clients.run(program, setup)
    assert_heard(first)
    assert "401" in second["failure"]["message"]


@by_library
async def test_a_secret_of_a_session_that_was_blocked_shows_403(
    compat: CompatEndpoint, program: str, options: dict[str, Any], clients: ClientRunner
) -> None:
    assert compat.broker is not None
    secret = await compat.mint()
    broker = compat.broker.broker
    async with open_admin(compat.broker.settings) as admin:
        await admin.block("session", broker.signer.read_client_secret(secret).session_id)
    await broker.memory.blocklist.refresh()
    (failure,) = await _failures(compat, program, options, [secret], clients)
    assert "403" in failure["message"]


@by_library
async def test_a_talk_too_many_shows_429(
    tmp_path: Path, authority: trustme.CA, program: str, options: dict[str, Any], clients: ClientRunner
) -> None:
    async with open_compat("voice_live", tmp_path, authority, max_sessions=1) as compat:
        assert compat.broker is not None
        secret = await compat.mint()
        lease = compat.broker.broker.talks.acquire("somebody else")
        assert lease is not None
        (failure,) = await _failures(compat, program, options, [secret], clients)
        lease.release()
    assert "429" in failure["message"]


@by_library
async def test_a_broker_that_is_going_away_shows_503(
    compat: CompatEndpoint, program: str, options: dict[str, Any], clients: ClientRunner
) -> None:
    assert compat.broker is not None
    secret = await compat.mint()
    compat.broker.broker.drain.begin()
    (failure,) = await _failures(compat, program, options, [secret], clients)
    assert "503" in failure["message"]
