"""A long talk through the proxy, measured: does the page's memory grow, does the sound drift, is any of it missing?"""

import asyncio
from dataclasses import dataclass

import numpy as np

from tests.web.support.chromium import Browser, Page
from tests.web.support.recorder import MICROPHONE_RATE, install_recorder, recording, without_processing
from tests.web.support.speech import Samples, at_rate, best_match

__all__ = ["Soak", "soak"]

_LIKE = 0.9  # correlation from which a stretch of sound counts as the answer, complete or not


@dataclass(frozen=True)
class Soak:
    """What a soak came to."""

    answers: int
    worst_likeness: float
    """The worst answer's correlation with what was said: a gap of 20 ms in 1.6 s costs about 0.01."""
    drift_ms: float
    """How much later the last answers came than the first, in the microphone's own rhythm (medians of each third)."""
    gaps: int
    heap_growth_bytes: int
    nodes_growth: int
    disconnections: int


async def soak(browser: Browser, url: str, said: Samples, period_s: float, seconds: float) -> Soak:
    """Talks for `seconds` over the proxy alone; the microphone says `said` every `period_s`."""
    async with browser.page() as page:
        await install_recorder(page)
        await without_processing(page)
        await page.goto(f"{url}/?transports=websocket_proxy")
        await page.click("talk")
        await page.wait_for_text("state", "live")
        await page.run(
            "window.__left = 0; new MutationObserver(() => { __left += 1; })"
            ".observe(document.querySelector('[data-testid=state]'), { childList: true, characterData: true })"
        )
        parts: list[Samples] = []
        gaps = 0
        before: tuple[int, int] | None = None
        for _ in range(max(2, round(seconds / 10))):
            await asyncio.sleep(10)
            heard = await recording(page)
            gaps += heard.gaps
            parts.append(at_rate(heard.samples, heard.rate, MICROPHONE_RATE))
            before = before or await _footprint(page)
        after = await _footprint(page)
        disconnections = int(await page.run("__left"))
        likenesses, places_s = _answers(np.concatenate(parts), said)
    assert before is not None
    return Soak(
        answers=len(likenesses),
        worst_likeness=min(likenesses, default=0.0),
        drift_ms=_drift_ms(np.array(places_s), period_s),
        gaps=gaps,
        heap_growth_bytes=after[0] - before[0],
        nodes_growth=after[1] - before[1],
        disconnections=disconnections,
    )


def _drift_ms(places_s: Samples, period_s: float) -> float:
    beats = np.round((places_s - places_s[0]) / period_s)
    late_ms = (places_s - places_s[0] - beats * period_s) * 1000
    third = max(1, len(late_ms) // 3)
    return float(np.median(late_ms[-third:]) - np.median(late_ms[:third]))


def _answers(heard: Samples, said: Samples) -> tuple[list[float], list[float]]:
    """Each answer's likeness and place (s), in order."""
    step = len(said) * 3
    found: dict[int, float] = {}
    for start in range(0, len(heard) - len(said), step):
        stretch = heard[start : start + step + len(said)]
        likeness, place = best_match(stretch, said)
        if likeness > _LIKE:
            found[start + place] = likeness
    places = sorted(found)
    # Two stretches overlap by one answer: the same one may have been found in both.
    kept = [p for i, p in enumerate(places) if i == 0 or p - places[i - 1] > len(said)]
    return [found[place] for place in kept], [place / MICROPHONE_RATE for place in kept]


async def _footprint(page: Page) -> tuple[int, int]:
    """The page's live heap, in bytes, and its DOM nodes."""
    await page.call("HeapProfiler.collectGarbage")
    await page.call("Performance.enable")
    metrics = {entry["name"]: entry["value"] for entry in (await page.call("Performance.getMetrics"))["metrics"]}
    return int(metrics["JSHeapUsedSize"]), int(metrics["Nodes"])
