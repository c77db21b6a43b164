"""The page against a resource with a unified endpoint alone, which mints nothing."""

from tests.conftest import StartBroker
from tests.support.machine import retry_if_host_busy
from tests.web.support.chromium import Browser
from token_broker.simulator import SimulatorConfig, serve

STRATEGIES = ("unified", "voice_live_webrtc", "websocket_proxy")


@retry_if_host_busy(tries=3)
async def test_first_click_is_live_by_webrtc(quiet_browser: Browser, start_broker: StartBroker) -> None:
    async with serve(SimulatorConfig(kinds=frozenset({"unified"}))) as azure:
        azure.set_faults({"match": "/openai", "method": "POST", "fault": "status", "code": 404})
        broker = await start_broker(azure, voice_live_webrtc="auto", token_strategies=STRATEGIES)
        async with quiet_browser.page() as page:
            await page.goto(f"{broker.base_url}/")
            await page.click("talk")
            await page.wait_for_text("state", "live", 20)
            assert await page.text("transport") == "webrtc_websocket"
            assert await page.run("document.querySelector('[data-testid=transport]').dataset.reason") == "first_choice"
            await page.type("text", "Hello")
            await page.press("Enter")
            await page.wait_for("document.querySelector('.line[data-speaker=assistant][data-final=true]')")
            asked = {name for name, each in (await broker.strategies()).items() if each["attempts"]}
            assert asked == {"unified", "voice_live_webrtc"}
            await page.click("hangup")
            await page.wait_for_text("state", "ended")
        await azure.until_calls(0)
