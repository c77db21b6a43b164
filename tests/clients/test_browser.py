"""The official clients in Chromium, by WebRTC and by WebSocket; their page has another origin than the broker."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import trustme

from tests.clients.support.compat import (
    COMPAT_ENDPOINTS,
    SIMULATED_ENTRA_TOKEN,
    SIMULATED_KEY,
    CompatEndpoint,
    open_compat,
)
from tests.clients.support.pages import bundle, serve_page
from tests.clients.support.programs import CLIENTS
from tests.clients.support.setups import TURNS, assert_heard, make_setup
from tests.clients.support.snippets import Snippet, of_kind
from tests.web.support.chromium import Browser, Page, ScriptError, run_chromium
from tests.web.support.recorder import MICROPHONE_RATE
from tests.web.support.speech import speech, write_wav

pytestmark = pytest.mark.asyncio(loop_scope="module")  # the browser, its page and the endpoints are the module's

LEAD_IN_S, SAID_S, PAUSE_S = 1.0, 1.6, 8.0
SPOKEN = re.compile(r"\[simulated\] \d\.\d s of speech")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    quiet = [np.zeros(int(seconds * MICROPHONE_RATE)) for seconds in (LEAD_IN_S, PAUSE_S)]
    sound = np.concatenate([quiet[0], speech(SAID_S, MICROPHONE_RATE), quiet[1]])
    wav: Path = write_wav(tmp_path_factory.mktemp("microphone") / "said.wav", sound, MICROPHONE_RATE)
    with run_chromium(wav, trusting=True) as url:
        yield url


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(chromium: str) -> AsyncIterator[Browser]:
    async with Browser.connect(chromium) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def page(browser: Browser) -> AsyncIterator[Page]:
    """One page for all talks: it takes longer to load every client than to hold a talk."""
    bundled = await bundle(CLIENTS / "programs" / "browser.mjs")
    async with serve_page(bundled) as origin, browser.page() as opened:
        await opened.goto(origin)
        await opened.wait_for("globalThis.talks")
        yield opened


@pytest_asyncio.fixture(params=COMPAT_ENDPOINTS, scope="module", loop_scope="module")
async def compat(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA, page: Page
) -> AsyncIterator[CompatEndpoint]:
    origin = await page.run("location.origin")
    folder = tmp_path_factory.mktemp("compat")
    async with open_compat(request.param, folder, authority, allowed_origins=(origin,)) as opened:
        yield opened


async def _talk(page: Page, client: str, setup: dict[str, Any]) -> dict[str, Any]:
    page.complaints.clear()
    report: dict[str, Any] = await page.run(f"talks.{client}({json.dumps(setup)})", user_gesture=True)
    assert page.complaints == []
    return report


@pytest.mark.parametrize("client", ["agents_websocket", "openai_websocket"])
async def test_ga_client_talks_with_minted_secret(compat: CompatEndpoint, page: Page, client: str) -> None:
    secret = await compat.mint()
    assert_heard(await _talk(page, client, make_setup(compat, secret, inBrowser=True)))
    if compat.broker is not None:
        assert await compat.turns(secret) == TURNS


@pytest.mark.parametrize("credential", ["key", "token"])
async def test_voice_live_client_talks_in_page(compat: CompatEndpoint, page: Page, credential: str) -> None:
    azures = SIMULATED_KEY if credential == "key" else SIMULATED_ENTRA_TOKEN
    secret = await compat.mint() if compat.broker is not None else azures
    assert_heard(await _talk(page, "voicelive", make_setup(compat, secret, credential=credential)))
    if compat.broker is not None:
        assert await compat.turns(secret) == TURNS


async def test_agents_client_talks_over_webrtc(compat: CompatEndpoint, page: Page) -> None:
    secret = await compat.mint()
    report = await _talk(page, "agents_webrtc", make_setup(compat, secret))
    (spoken,) = report["user"]
    assert SPOKEN.fullmatch(spoken)
    answer = f"[simulated] you said {spoken.removeprefix('[simulated] ')}"
    turns = [("user", spoken), ("assistant", answer), *TURNS[2:]]
    assert report["answers"] == [answer, TURNS[3][1]]
    assert report["history"] == [list(turn) for turn in turns]
    assert report["peak"] > 0.05
    assert report["callId"]
    if compat.broker is not None:
        assert await compat.turns(secret) == turns


@pytest.mark.parametrize("compat", ["voice_live"], indirect=True)
async def test_refused_call_shows_status_and_remedy(compat: CompatEndpoint, page: Page) -> None:
    refused = r"Realtime call request failed with status 401: The client secret is not valid here: mint a new one"
    with pytest.raises(ScriptError, match=refused):
        await _talk(page, "agents_webrtc", make_setup(compat, "ek_forged"))


SHOWN = {
    "Browser: `@openai/agents-realtime`": (
        r"user: \[simulated\] (\d\.\d) s of speech\nassistant: \[simulated\] you said \1 s of speech"
    ),
    "A plain WebSocket": r"\[simulated\] you wrote: What is the time\?",
}


@of_kind("js browser")
async def test_page_snippet_shows_transcript(
    snippet: Snippet, browser: Browser, tmp_path: Path, authority: trustme.CA
) -> None:
    async with (
        serve_page(await bundle(snippet.code)) as origin,
        open_compat("voice_live", tmp_path, authority, allowed_origins=(origin,)) as opened,
        browser.page() as page,
    ):
        await page.goto(f"{origin}/?broker={opened.http}")
        await page.click_on("#talk")
        shown = f"/^{SHOWN[snippet.heading]}$/"
        await page.wait_for(f"{shown}.test(document.querySelector('#said').textContent)", 20)
        assert page.complaints == []
