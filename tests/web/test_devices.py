"""The page's notices: microphones denied, missing and unplugged, no network, and two tabs that talk at once."""

import pytest

from tests.support.machine import retry_if_host_busy
from tests.web.support.chromium import Browser, Page, open_browser
from tests.web.support.fake_broker import DIRECT, PROXY, run_fake
from tests.web.support.recorder import without_processing

NOTICE = "(({ dataset, textContent, hidden }) => hidden ? null : [dataset.code, textContent])(document.getElementById('notice'))"  # noqa: E501


async def _notice(page: Page, code: str) -> str:
    """Waits for the notice with this code; its text."""
    words = await page.wait_for(f"({NOTICE})?.[0] === '{code}' && ({NOTICE})[1]")
    return str(words)


@retry_if_host_busy(tries=3)
async def test_denied_microphone_says_where_to_allow(quiet_browser: Browser) -> None:
    async with run_fake() as server, quiet_browser.page() as page:
        await page.goto(server.base_url)
        await page.run(
            "navigator.permissions.query = async () => ({ state: 'prompt' });"
            "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('no', 'NotAllowedError'); }"
        )
        await page.click("talk")
        await page.wait_for_text("state", "failed")
        assert "Allow it in the address bar" in await _notice(page, "microphone_denied")
        assert server.plan_requests == []  # a prompt may take long, and plans expire: it comes first


@retry_if_host_busy(tries=3)
async def test_missing_microphone_says_to_plug_one_in() -> None:
    async with run_fake() as server, open_browser(devices=False) as browser, browser.page() as page:
        await page.goto(server.base_url)
        await page.click("talk")
        await page.wait_for_text("state", "failed")
        assert "Plug one in" in await _notice(page, "microphone_missing")


@pytest.mark.parametrize(
    ("error", "code"), [("NotReadableError", "microphone_busy"), ("TypeError", "microphone_failed")]
)
@retry_if_host_busy(tries=3)
async def test_microphone_errors_have_own_codes(quiet_browser: Browser, error: str, code: str) -> None:
    async with run_fake() as server, quiet_browser.page() as page:
        await page.goto(server.base_url)
        await page.run(
            f"navigator.mediaDevices.getUserMedia = async () => {{ throw new DOMException('no', '{error}'); }}"
        )
        await page.click("talk")
        assert "press Talk again" in await _notice(page, code)


_KEEP_STREAMS = """
(() => {
  window.__streams = [];
  const get = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  navigator.mediaDevices.getUserMedia = async (wish) => {
    if (window.__unplugged) throw new DOMException("gone", "NotFoundError");
    const stream = await get(wish);
    __streams.push(stream);
    return stream;
  };
  window.__unplug = () => {
    window.__unplugged = true;
    const track = __streams.at(-1).getTracks()[0];
    track.stop();
    track.dispatchEvent(new Event("ended"));
  };
  window.__plugIn = () => {
    window.__unplugged = false;
    navigator.mediaDevices.dispatchEvent(new Event("devicechange"));
  };
})();
"""


@pytest.mark.parametrize("transport", [DIRECT, PROXY])
@retry_if_host_busy(tries=3)
async def test_unplugged_microphone_is_replaced(browser: Browser, transport: str) -> None:
    async with run_fake(transports=(transport,)) as server, browser.page() as page:
        await page.on_every_page(_KEEP_STREAMS)
        await page.goto(server.base_url)
        await page.click("talk")
        await page.wait_for_text("state", "live")
        await page.run("__unplug()")
        assert "Plug it in again" in await _notice(page, "microphone_lost")
        assert await page.text("state") == "live"
        await page.type("text", "Still here")
        await page.press("Enter")
        await page.wait_for("document.querySelector('.line[data-speaker=assistant][data-final=true]')")
        await page.run("__plugIn()")
        await _notice(page, "microphone_back")
        partner = server.partners[0]
        partner.was_loud = False
        await server.until(lambda: partner.was_loud)  # the new microphone is heard
        assert len(server.plans) == 1


@retry_if_host_busy(tries=3)
async def test_talk_resumes_when_back_online(quiet_browser: Browser) -> None:
    async with run_fake(transports=(PROXY,)) as server, quiet_browser.page() as page:
        await page.goto(server.base_url)
        await page.click("talk")
        await page.wait_for_text("state", "live")
        await page.offline(gone=True)
        assert "when the network is back" in await _notice(page, "offline")
        await server.sockets[0].close(4502)
        await page.wait_for_text("state", "reconnecting")
        await page.offline(gone=False)
        await page.wait_for_text("state", "live", 12)
        assert server.plan_requests[-1]["session_id"] == server.plans[0]["session_id"]


@retry_if_host_busy(tries=3)
async def test_talk_while_offline_says_so(quiet_browser: Browser) -> None:
    async with run_fake(transports=(PROXY,)) as server, quiet_browser.page() as page:
        await page.goto(server.base_url)
        await page.offline(gone=True)
        await page.click("talk")
        await page.wait_for_text("state", "failed", 12)
        assert "You are offline" in await _notice(page, "offline")


@retry_if_host_busy(tries=3)
async def test_two_talking_tabs_warn_of_each_other(quiet_browser: Browser) -> None:
    async with run_fake(transports=(PROXY,)) as server, quiet_browser.page() as first, quiet_browser.page() as second:
        for page in (first, second):
            await page.goto(server.base_url)
            await page.click("talk")
            await page.wait_for_text("state", "live")
        for page in (first, second):
            assert "Hang up in one of them" in await _notice(page, "other_tab")
        assert len(server.partners) == 2


@retry_if_host_busy(tries=3)
async def test_background_tab_goes_on_talking(browser: Browser) -> None:
    async with run_fake(transports=(PROXY,)) as server, browser.page() as page, browser.page() as other:
        await page.call("Page.bringToFront")
        await without_processing(page)
        await page.goto(server.base_url)
        await page.click("talk")
        await page.wait_for_text("state", "live")
        await other.call("Page.bringToFront")
        await page.call("Emulation.setFocusEmulationEnabled", enabled=False)
        await page.wait_for("document.querySelector('.line[data-speaker=assistant][data-final=true]')", 15)
        assert await page.text("state") == "live"
        assert await page.run("document.title") == "● Talking"
