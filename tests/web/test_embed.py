"""Runs the ten-line example of docs/embed.md as it is written there."""

import re
from pathlib import Path

from tests.web.support.chromium import Browser
from tests.web.support.fake_broker import run_fake

EMBED = Path(__file__).parents[2] / "docs" / "embed.md"


async def test_ten_line_example_talks(browser: Browser) -> None:
    block = re.search(r"```html\n(.*?)```", EMBED.read_text(), re.DOTALL)
    assert block
    assert len([line for line in block[1].splitlines() if line.strip()]) <= 10
    async with run_fake() as server, browser.page() as page:
        server.extra_page = "<!doctype html>" + block[1].replace("https://voice.example.com", server.base_url)
        await page.goto(f"{server.base_url}/extra")
        await page.click_on("#talk")
        await page.wait_for("words.textContent.includes('spoke for')", 15)
        await server.until(lambda: {turn["role"] for turn in server.turns} == {"user", "assistant"})
        await page.click_on("#talk")
        assert [line for line in page.complaints if "favicon" not in line] == []
