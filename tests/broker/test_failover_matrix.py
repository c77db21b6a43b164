"""Whatever one, two or all of three resources do: a talk in every way, live elsewhere, or told that there is none.

One talk a cell. `benchmarks/failover.py` has the cells, runs 200 talks in each, and judges percentiles.
"""

import asyncio
from pathlib import Path

import pytest

from benchmarks.failover import FAULTS, HITS, IN_TALK, NAMES, TOLD_S, WAYS, Cell, Result, judge, offer, talk
from benchmarks.stage import Stage
from tests.support.broker import run_broker
from tests.support.machine import retry_if_host_busy
from tests.support.resources import config_of, settings_of
from token_broker.simulator import serve_resources

LIVE_S = 10.0
"""Loose: on a busy machine one talk says nothing about percentiles."""
SLACK_S = 0.25
"""What reading the answer may take after the broker's own 6 s are over."""
CHOSEN = [fault for fault in FAULTS if fault != "silent-in-talk"]
"""Silence takes 10 s to be noticed: tests/relay has it with a clock of its own."""


@pytest.mark.parametrize("fault", CHOSEN)
@retry_if_host_busy(tries=2, or_skipped=True)
async def test_talk_is_live_or_told(fault: str, tmp_path: Path) -> None:
    """What it hits side by side, since most of a cell is waiting."""
    await offer()
    cells = await asyncio.gather(*(wrong_in(fault, hit, tmp_path) for hit in HITS))
    assert [each for wrong in cells for each in wrong] == []


async def wrong_in(fault: str, hit: str, folder: Path) -> list[str]:
    """What is not as it must be where the fault hits those, by the way to talk."""
    cells = [Cell(fault, hit, way, 3) for way in WAYS if fault not in IN_TALK or way in ("proxy", "compatible")]
    results = [Result() for _ in cells]
    wrong: list[str] = []
    async with serve_resources(*NAMES, configs={name: config_of(name) for name in NAMES}) as azure:
        sick = cells[0].sick
        endpoints = {each.name: each.url for each in azure}
        if fault == "dns":
            endpoints |= {name: f"https://{name}.invalid" for name in sick}
        options = {name: {"priority": number} for number, name in enumerate(NAMES)}
        async with run_broker(settings_of(folder, endpoints, options)) as broker:
            for name in sick:
                azure.by_name[name].set_faults(*FAULTS[fault])
            running = Stage(azure, [broker.base_url], broker.client)
            await asyncio.gather(
                *(
                    talk(cell, running, f"#{n}", result)
                    for n, (cell, result) in enumerate(zip(cells, results, strict=True))
                )
            )
            for cell, result in zip(cells, results, strict=True):
                await judge(cell, running, 1, result)
                faults = list(result.wrong)
                if hit == "all":
                    if max(result.told_s, default=0.0) >= TOLD_S + SLACK_S:
                        faults.append(f"told after {max(result.told_s):.1f} s")
                elif result.lost or max(result.live_s) >= LIVE_S:
                    faults.append(f"live after {result.live_s} s, lost {dict(result.lost)}")
                wrong += [f"{cell}: {each}" for each in faults]
    return wrong
