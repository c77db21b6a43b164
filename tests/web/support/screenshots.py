"""Takes the screenshots of the demo page: both tabs, light and dark, and a phone. `scripts/screenshots` runs it."""

import asyncio
import sys
import tempfile
from pathlib import Path

import httpx

from tests.web.support.chromium import Browser, open_browser
from tests.web.support.demo import Demo, run_demo

_ANSWERED = "document.querySelector('.line[data-speaker=assistant][data-final=true]')"
_SHOWN = "document.querySelector('.shown')"
_BOTH_HEARD = "new Promise((resolve) => setTimeout(resolve, 2600))"


async def take(folder: Path) -> None:
    """Writes `talk-light.png`, `talk-dark.png`, `health-light.png`, `health-dark.png` and `talk-phone.png`."""
    with tempfile.TemporaryDirectory() as name, run_demo(Path(name), echo=False) as demo:
        async with open_browser() as browser:
            await _ask_for_plans(demo)
            for scheme in ("light", "dark"):
                await _talk(browser, demo, scheme, folder / f"talk-{scheme}.png")
                await _health(browser, demo, scheme, folder / f"health-{scheme}.png")
            await _talk(browser, demo, "light", folder / "talk-phone.png", width=390, height=760)


async def _talk(browser: Browser, demo: Demo, scheme: str, file: Path, *, width: int = 960, height: int = 720) -> None:
    async with browser.page(scheme=scheme, width=width, height=height, still=False) as page:
        await page.goto(demo.base_url)
        await page.wait_for("document.querySelector('[data-testid=agent]').options.length > 0")
        await page.click("type")  # an answer that nobody interrupts
        await page.wait_for_text("state", "live", 15)
        for asked, shown in (("Who are you?", _ANSWERED), ("Please show me a card", _SHOWN)):
            await page.type("text", asked)
            await page.press("Enter")
            await page.wait_for(shown, 25)
            await page.run(_BOTH_HEARD)
        await page.run("document.activeElement.blur()")
        shot = await page.screenshot()
        await asyncio.to_thread(file.write_bytes, shot)
        await page.click("hangup")


async def _health(browser: Browser, demo: Demo, scheme: str, file: Path) -> None:
    async with browser.page(scheme=scheme, width=960, height=720, still=False) as page:
        await page.goto(f"{demo.base_url}/#health")
        await page.wait_for("document.querySelectorAll('#strategies > li').length > 0")
        for _ in range(3):  # a few polls, for the latencies that it draws
            await _ask_for_plans(demo)
            await page.run("new Promise((resolve) => setTimeout(resolve, 5100))")
        shot = await page.screenshot()
        await asyncio.to_thread(file.write_bytes, shot)


async def _ask_for_plans(demo: Demo) -> None:
    """Plans that `ga` mints, and some that it can't, so that the page shows the next strategies too."""
    async with httpx.AsyncClient(base_url=demo.base_url) as client:
        for code in (None, 500, None):
            faults = [{"match": "/openai/v1/realtime/client_secrets", "fault": "status", "code": code}] if code else []
            await demo.set_faults(*faults)
            for _ in range(4):
                (await client.post("/realtime/token", json={})).raise_for_status()


if __name__ == "__main__":
    asyncio.run(take(Path(sys.argv[1])))
