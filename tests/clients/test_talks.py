"""Every official client that is no browser's: it mints where it can, talks in audio and in text, and complains of nothing."""

from pathlib import Path
from typing import Any

import pytest

from tests.clients.support.doors import Door
from tests.clients.support.programs import run_client
from tests.clients.support.setups import PREVIEW_SESSION, TURNS, assert_heard, make_setup

MINTING = {
    "python openai": ("openai_python", {}),
    "node openai ws": ("openai_ws.mjs", {}),
    "node openai native": ("openai_websocket.mjs", {}),
}


@pytest.mark.parametrize(("program", "options"), MINTING.values(), ids=MINTING)
async def test_a_client_that_mints_talks_with_what_it_minted(
    door: Door, program: str, options: dict[str, Any], authority_file: Path
) -> None:
    report = await run_client(program, make_setup(door, door.mint_key, mints=True, **options), authority_file)
    assert_heard(report)
    assert report["token"].startswith("ek_")
    if door.broker:
        assert await door.turns(report["token"]) == TURNS
