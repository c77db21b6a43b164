"""The page's own timers: how long it has waited by its own clock, which a busy machine does not change."""

import json
from collections.abc import Sequence

from tests.web.support.chromium import Page

__all__ = ["HURRIED_MS", "install_clock", "pending_timers_ms", "waited_s"]

HURRIED_MS = {"sdp_timeout": [4_000], "ice_timeout": [5_000]}
"""Limits of web_client/transports/webrtc.js to hurry, by the reason that the page then gives."""

# Below 100 ms, timers order what happens; nobody waits for them.
_SCRIPT = """
((hurried, speed) => {
  const { setTimeout, clearTimeout } = window;
  const pending = new Map();
  window.__clock = { waitedMs: 0, pending, hurried };
  window.setTimeout = (run, ms = 0, ...given) => {
    const once = hurried.indexOf(ms);
    if (once >= 0) hurried.splice(once, 1);
    const fire = () => {
      pending.delete(timer);
      if (ms >= 100) __clock.waitedMs += ms;
      run(...given);
    };
    const timer = setTimeout.call(window, fire, once >= 0 ? ms / 10 : ms / (ms >= 100 ? speed : 1));
    if (ms >= 100) pending.set(timer, ms);
    return timer;
  };
  window.clearTimeout = (timer) => {
    pending.delete(timer);
    clearTimeout.call(window, timer);
  };
})"""


async def install_clock(page: Page, *, hurried_ms: Sequence[int] = (), speed: float = 1) -> None:
    """Counts the page's timers, from the next `goto` on.

    The next timer of each length in `hurried_ms` takes a tenth of its time: a limit that is sure to be reached. All
    others run at `speed`. A running page hurries more after `__clock.hurried.push(…)`.
    """
    await page.on_every_page(f"{_SCRIPT}({json.dumps(list(hurried_ms))}, {speed})")


async def waited_s(page: Page) -> float:
    """How long timers have run to their end, together, by the page's clock: at least as long as the page waited."""
    return float(await page.run("__clock.waitedMs")) / 1000


async def pending_timers_ms(page: Page) -> list[int]:
    return list(await page.run("[...__clock.pending.values()]"))
