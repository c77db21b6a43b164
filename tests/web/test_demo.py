"""`token-broker demo` as a visitor sees it: the agents speak for themselves, show a card, and outlive a resource."""

from pathlib import Path

from tests.support.machine import retry_if_host_busy
from tests.web.support.chromium import Browser, Page
from tests.web.support.demo import run_demo

SAID = (
    "[...document.querySelectorAll('.line[data-speaker=assistant][data-final=true] .words')]"
    ".map((words) => words.textContent)"
)
NOTES = "[...document.querySelectorAll('.note')].map((note) => note.textContent)"


async def _write(page: Page, text: str, answer: str) -> None:
    """Types a text, and waits for an answer that begins so."""
    await page.type("text", text)
    await page.press("Enter")
    await page.wait_for(f"{SAID}.some((words) => words.startsWith('{answer}'))", 30)


@retry_if_host_busy(tries=2)
async def test_visitor_meets_the_agents(quiet_browser: Browser, tmp_path: Path) -> None:
    with run_demo(tmp_path, echo=False) as demo:
        async with quiet_browser.page() as page:
            await page.goto(f"{demo.base_url}/?transports=websocket_proxy")
            await page.wait_for("document.querySelector('[data-testid=agent]').options.length === 3")
            await page.click("type")  # without a microphone
            await page.wait_for_text("state", "live", 30)
            assert await page.text("doing") == "Ready when you are", "nobody listens"
            assert await page.run("document.getElementById('mute').disabled")
            await _write(page, "Who are you?", "Hello. I am Elena, a business analyst")
            await _write(page, "Please show me a card", "Done: show card.")
            assert await page.run("document.querySelector('.shown h2').textContent") == "Elena"
            used = await page.text("resource")
            await page.wait_for("!document.getElementById('break').hidden")
            await page.click("break")
            await page.wait_for(f"{NOTES}.some((note) => note.startsWith('{used} was lost. The talk goes on at '))", 30)
            await _write(page, "Are you still there", "You wrote: Are you still there.")
            assert await page.text("resource") != used
            await page.click("break")  # which repairs it
            await page.run("document.getElementById('agent').value = 'marcus'")
            await page.run("document.getElementById('agent').dispatchEvent(new Event('change'))")
            await page.wait_for(f"{NOTES}.includes('Marcus takes over')", 30)
            await _write(page, "Your name please", "Hello. I am Marcus, a project manager")
            assert await page.run("document.getElementById('events').childElementCount") > 3
            await page.click("hangup")
            await page.wait_for_text("state", "ended")
            await page.click("type")
            await page.wait_for_text("state", "live", 30)
            notes = await page.run(NOTES)
            assert notes[:1] == ["The agent shows a card."]
            assert notes[-1] == "A new talk"
            assert page.complaints == []
