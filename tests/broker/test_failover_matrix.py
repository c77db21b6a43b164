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
CELLS = [(fault, hit) for fault in FAULTS for hit in HITS if fault != "silent-in-talk"]
"""Silence takes 10 s to be noticed: tests/relay has it with a clock of its own."""


@pytest.mark.parametrize(("fault", "hit"), CELLS)
@retry_if_host_busy(tries=2, or_skipped=True)
async def test_talk_is_live_or_told(fault: str, hit: str, tmp_path: Path) -> None:
    cells = [Cell(fault, hit, way, 3) for way in WAYS if fault not in IN_TALK or way in ("proxy", "compatible")]
    results = [Result() for _ in cells]
    async with serve_resources(*NAMES, configs={name: config_of(name) for name in NAMES}) as azure:
        sick = cells[0].sick
        endpoints = {each.name: each.url for each in azure}
        if fault == "dns":
            endpoints |= {name: f"https://{name}.invalid" for name in sick}
        options = {name: {"priority": number} for number, name in enumerate(NAMES)}
        async with run_broker(settings_of(tmp_path, endpoints, options)) as broker:
            await offer()
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
                assert result.wrong == [], cell.way
                if hit == "all":
                    assert max(result.told_s, default=0.0) < TOLD_S + SLACK_S, cell.way
                else:
                    assert not result.lost, cell.way
                    assert max(result.live_s) < LIVE_S, cell.way
