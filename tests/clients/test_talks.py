"""Talks of every official client that needs no browser: it mints where it can, speaks, and sends text."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.clients.support.compat import SIMULATED_ENTRA_TOKEN, SIMULATED_KEY, CompatEndpoint
from tests.clients.support.programs import ClientRunner
from tests.clients.support.setups import PREVIEW_SESSION, TURNS, assert_heard, make_setup

pytestmark = pytest.mark.asyncio(loop_scope="module")  # the compatible endpoints are the module's


@dataclass(frozen=True, slots=True)
class Client:
    """A client, and its options for the simulated Azure, which accepts fewer credentials than the broker."""

    program: str
    options: dict[str, Any] = field(default_factory=dict)
    mints: bool = True
    """Whether it can mint by itself."""
    mints_at_azure: bool = True
    azures_key: str = SIMULATED_KEY
    azures_options: dict[str, Any] = field(default_factory=dict)

    async def setup(self, compat: CompatEndpoint) -> dict[str, Any]:
        if compat.broker is None:
            options = self.options | self.azures_options | {"mints": self.mints and self.mints_at_azure}
            return make_setup(compat, self.azures_key, **options)
        key = compat.mint_key if self.mints else await compat.mint()
        return make_setup(compat, key, mints=self.mints, **self.options)


AZURE = {"azure": True}
# On Azure itself this class mints at a path without a GA mint, and its socket is the preview's.
PREVIEW = {"session": PREVIEW_SESSION}
CLIENTS = {
    "python openai": Client("openai_python"),
    "python openai, Azure": Client("openai_python", AZURE, mints_at_azure=False, azures_options=PREVIEW),
    "python azure-ai-voicelive, key": Client("voicelive_python", {"credential": "key"}, mints=False),
    "python azure-ai-voicelive, token": Client(
        "voicelive_python", {"credential": "token"}, mints=False, azures_key=SIMULATED_ENTRA_TOKEN
    ),
    "npm openai, ws": Client("openai_ws.mjs"),
    "npm openai, ws, Azure": Client("openai_ws.mjs", AZURE, mints_at_azure=False),
    "npm openai, native": Client("openai_websocket.mjs"),
    "npm openai, native, Azure": Client("openai_websocket.mjs", AZURE, mints_at_azure=False),
    "npm agents-realtime": Client("agents_websocket.mjs", mints=False),
    "npm ai-voicelive, key": Client("voicelive.mjs", {"credential": "key"}, mints=False),
    "npm ai-voicelive, token": Client(
        "voicelive.mjs", {"credential": "token"}, mints=False, azures_key=SIMULATED_ENTRA_TOKEN
    ),
}
TURNS_SHOWN = [list(turn) for turn in TURNS]


@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)
async def test_talks_and_turns_are_kept_in_order(compat: CompatEndpoint, client: Client, clients: ClientRunner) -> None:
    setup = await client.setup(compat)
    report = await clients.run(client.program, setup)
    assert_heard(report)
    assert report.get("history", TURNS_SHOWN) == TURNS_SHOWN
    if compat.broker is not None:
        assert await compat.turns(report.get("token", setup["key"])) == TURNS
