"""Measures a long talk through the proxy: growth of memory, drift of the sound, and gaps in it."""

import asyncio
from dataclasses import dataclass

import numpy as np

from tests.web.support.chromium import Browser, Page
from tests.web.support.recorder import MICROPHONE_RATE, Recording, install_recorder, recording, without_processing
from tests.web.support.speech import Samples, at_rate, best_match

__all__ = ["Soak", "soak"]

_SAMPLE_S = 6  # a recording in the page's memory grows by 200 kB meanwhile, which would hide the page's own growth
_WHOLE = 0.99
_LIKE = 0.8  # correlation from which a stretch of sound counts as the answer, complete or not


@dataclass(frozen=True)
class Soak:
    """The outcome of a soak."""

    said: int
    """How often the microphone gave the speech; Chromium's fake device skips on a busy machine."""
    said_whole: float
    """As `whole`, for what the microphone gave: the answers can't be better."""
    answers: int
    whole: float
    """The share of answers that are, sample for sample, what was said: a correlation above 0.99."""
    worst_likeness: float
    delay_ms: float
    """The median from the microphone to the answer."""
    drift_ms: float
    """How much longer that takes in the last third of the talk than in the first (medians)."""
    gaps: int
    heap_growth_bytes: int
    nodes_growth: int
    disconnections: int


async def soak(browser: Browser, url: str, said: Samples, seconds: float) -> Soak:
    """Talks for `seconds` over the proxy alone; the microphone says `said`, pauses, and says it again."""
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
        spoken, heard = _Track(), _Track()
        before: tuple[int, int] | None = None
        for _ in range(max(2, round(seconds / _SAMPLE_S))):
            await asyncio.sleep(_SAMPLE_S)
            spoken.add(await recording(page, "said"))
            heard.add(await recording(page))
            before = before or await _footprint(page)
        after = await _footprint(page)
        disconnections = int(await page.run("__left"))
    assert before is not None
    # In threads: `retry_if_host_busy` takes an event loop that stands still for a busy machine.
    given, answers = await asyncio.gather(*(asyncio.to_thread(track.find, said) for track in (spoken, heard)))
    delays_ms = _delays_ms([place for place, _ in given], [place for place, _ in answers]) or [0.0]
    likenesses, microphones = (np.array([likeness for _, likeness in found] or [0.0]) for found in (answers, given))
    third = max(1, len(delays_ms) // 3)
    return Soak(
        said=len(given),
        said_whole=round(float(np.mean(microphones > _WHOLE)), 3),
        answers=len(answers),
        whole=round(float(np.mean(likenesses > _WHOLE)), 3),
        worst_likeness=round(float(likenesses.min()), 3),
        delay_ms=round(float(np.median(delays_ms)), 1),
        drift_ms=round(float(np.median(delays_ms[-third:]) - np.median(delays_ms[:third])), 1),
        gaps=heard.gaps,
        heap_growth_bytes=after[0] - before[0],
        nodes_growth=after[1] - before[1],
        disconnections=disconnections,
    )


class _Track:
    """A recording that is made in parts."""

    def __init__(self) -> None:
        self.gaps = 0
        self._parts: list[Samples] = []
        self._began_s: float | None = None

    def add(self, part: Recording) -> None:
        self._began_s = part.began_s if self._began_s is None else self._began_s
        self._parts.append(at_rate(part.samples, part.rate, MICROPHONE_RATE))
        self.gaps += part.gaps

    def find(self, said: Samples) -> list[tuple[float, float]]:
        """Where (s, on the context's clock) and how well `said` sounds, each time that it does."""
        return [
            ((self._began_s or 0) + place, likeness) for place, likeness in _places(np.concatenate(self._parts), said)
        ]


def _delays_ms(spoken_s: list[float], answered_s: list[float]) -> list[float]:
    """From each answer back to the words before it."""
    return [(at - max((s for s in spoken_s if s < at), default=at)) * 1000 for at in answered_s]


def _places(heard: Samples, said: Samples) -> list[tuple[float, float]]:
    step = len(said) * 3
    found: dict[int, float] = {}
    for start in range(0, len(heard) - len(said), step):
        likeness, place = best_match(heard[start : start + step + len(said)], said)
        if likeness > _LIKE:
            found[start + place] = likeness
    places = sorted(found)
    # Two stretches overlap by one answer: the same one may have been found in both.
    kept = [p for i, p in enumerate(places) if i == 0 or p - places[i - 1] > len(said)]
    return [(place / MICROPHONE_RATE, found[place]) for place in kept]


async def _footprint(page: Page) -> tuple[int, int]:
    """The page's live heap, in bytes, and its DOM nodes."""
    await page.call("HeapProfiler.collectGarbage")
    await page.call("Performance.enable")
    metrics = {entry["name"]: entry["value"] for entry in (await page.call("Performance.getMetrics"))["metrics"]}
    return int(metrics["JSHeapUsedSize"]), int(metrics["Nodes"])
