"""Measures ten minutes of talk through the proxy in a real browser: growth of memory, drift and gaps.

    python -m benchmarks.browser.soak [--minutes 10]

Prints the figures as JSON, and exits with 1 where one is beyond its limit.
"""

import argparse
import asyncio
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.web.support.chromium import open_browser
from tests.web.support.demo import run_demo
from tests.web.support.recorder import MICROPHONE_RATE
from tests.web.support.soak import Soak, soak
from tests.web.support.speech import speech, write_wav

SAID_S, PERIOD_S = 1.6, 5.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=10)
    minutes = parser.parse_args().minutes
    outcome = asyncio.run(_run(minutes))
    print(json.dumps({"minutes": minutes} | dataclasses.asdict(outcome), indent=2))
    sys.exit(0 if _is_good(outcome, minutes) else 1)


async def _run(minutes: float) -> Soak:
    with tempfile.TemporaryDirectory() as name, run_demo(Path(name)) as demo:
        said = speech(SAID_S, MICROPHONE_RATE)
        pause = np.zeros(round((PERIOD_S - SAID_S) * MICROPHONE_RATE))
        microphone = write_wav(Path(name) / "said.wav", np.concatenate([said, pause]), MICROPHONE_RATE)
        async with open_browser(microphone) as browser:
            return await soak(browser, demo.base_url, said, minutes * 60)


def _is_good(outcome: Soak, minutes: float) -> bool:
    return (
        outcome.answers >= minutes * 60 / PERIOD_S * 0.9
        and outcome.whole > 0.99
        and abs(outcome.drift_ms) < 150
        and outcome.gaps == 0
        and outcome.disconnections == 0
        and outcome.heap_growth_bytes < 2_000_000
    )


if __name__ == "__main__":
    main()
