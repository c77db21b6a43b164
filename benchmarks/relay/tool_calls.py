"""What an HTTP tool costs a talk beside its own time, and what it costs other talks.

    python -m benchmarks.relay.tool_calls [--calls 200] [--talks 100] [--seconds 8]

One talk calls a tool again and again. Added to the tool's time are the way there, from Azure's completed item to the
last byte of the tool's request, and the way back, from the first byte of the tool's answer to its output; the claim in
the store (SQLite) is among them. Azure, broker and tool are processes of their own, so that the ways are told twice:
as the broker has them, from the item's arrival to the output's departure (the aim is a median of 5 ms at most), and as
Azure has them, with what it takes itself. Meanwhile other talks carry audio: the p99 of their frames may be 5 ms above
that of the same talks without calls.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import secrets
import statistics
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from websockets.asyncio.client import connect

from benchmarks.relay.harness import Proxy, Result, azure, broker, load, table
from benchmarks.relay.timed_tool import timed_tool
from tests.support.machine import StolenTime

AIM_MS = 5.0
RATE = 50
FRAME_BYTES = 1300
PAUSE_S = 0.05
WARM_UP = 10
ROUNDS = 3

AGENTS = """
default = "elena"
[agents.elena]
name = "Elena"
voices = {{ ga = "marin", preview = "en-US-Ava:DragonHDLatestNeural" }}
instructions = "You are Elena."
[[agents.elena.tools]]
type = "function"
name = "clock"
parameters = {{ type = "object", properties = {{ place = {{ type = "string" }} }}, required = ["place"] }}
run = {{ url = "{url}" }}
"""


class Caller:
    """A talk that calls the tool until it is told to stop. `there_ms` and `back_ms` are what each call took."""

    def __init__(self) -> None:
        self.there_ms: list[float] = []
        self.back_ms: list[float] = []
        self.stop = threading.Event()

    @property
    def ways_ms(self) -> tuple[list[float], list[float]]:
        """There, and back."""
        return self.there_ms, self.back_ms

    async def talk(self, proxy: Proxy, most: int | None = None) -> None:
        (target,) = proxy.targets(1)
        async with connect(target["url"], subprotocols=target["protocols"], proxy=None) as socket:
            while not self.stop.is_set() and (most is None or len(self.there_ms) < most):
                # The word of the user's without which the model would be stopped from calling on and on.
                await socket.send('{"type":"input_audio_buffer.commit"}')
                await socket.send('{"type":"response.create"}')
                async with asyncio.timeout(20):
                    async for text in socket:
                        event = json.loads(text)
                        if event["type"] == "response.audio_transcript.done":
                            break
                took = json.loads(event["transcript"])
                if "failed" in took:
                    raise SystemExit(took["failed"])
                self.there_ms.append(took["there_ns"] / 1e6)
                self.back_ms.append(took["back_ns"] / 1e6)
                await asyncio.sleep(PAUSE_S)


@contextlib.contextmanager
def calling(proxy: Proxy) -> Iterator[Caller]:
    """A talk that calls tools beside what the block does."""
    caller = Caller()
    thread = threading.Thread(target=lambda: asyncio.run(caller.talk(proxy)))
    thread.start()
    try:
        yield caller
    finally:
        caller.stop.set()
        thread.join()


def carried(proxy: Proxy, talks: int, seconds: float) -> Result:
    with load(proxy.targets(talks), frame_bytes=FRAME_BYTES, seconds=seconds, rate=RATE) as running:
        return running.measure()


def merged(results: list[Result]) -> Result:
    latencies: Counter[int] = Counter()
    for result in results:
        latencies.update(result.latencies)
    lost, frames = sum(each.lost for each in results), sum(each.round_trips for each in results)
    return Result(frames, lost, sum(each.seconds for each in results), latencies)


def main(calls: int, talks: int, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as name, timed_tool() as url, azure(Path(name)) as azure_url:
        file = Path(name) / "agents.toml"
        file.write_text(AGENTS.format(url=url))
        clocked = Path(name) / "clocked"
        secret = f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"
        command = ("-m", "benchmarks.relay.clocked_broker", str(clocked))
        settings = {"BROKER_AGENTS_FILE": str(file), "BROKER_TOOLS_SECRET": secret}
        with broker(Path(name), azure_url, command=command, **settings) as proxy:
            alone = Caller()
            asyncio.run(alone.talk(proxy, WARM_UP + calls))
            ways_ms = [tuple(int(ns) / 1e6 for ns in line.split()) for line in clocked.read_text().splitlines()]
            rows = [_row("alone, in the broker", *zip(*ways_ms, strict=True)), _row("alone", *alone.ways_ms)]
            without, beside, callers = [], [], []
            for _ in range(ROUNDS if talks else 0):  # in turns, since others use the machine
                without.append(carried(proxy, talks, seconds))
                with calling(proxy) as caller:
                    beside.append(carried(proxy, talks, seconds))
                callers.append(caller)
    if callers:
        there_ms, back_ms = zip(*(caller.ways_ms for caller in callers), strict=True)
        rows.append(_row(f"beside {talks} talks", list(chain(*there_ms)), list(chain(*back_ms))))
    print(f"Added to a tool's own time (aim: a median of {AIM_MS:g} ms at most)")
    table(["", "calls", "there p50 ms", "back p50 ms", "added p50 ms", "added p95 ms"], rows)
    if not without:
        return
    quiet, busy = merged(without), merged(beside)
    print(f"Frames of {talks} talks (aim: p99 under {AIM_MS:g} ms more while another talk calls)")
    shown = [
        [each[0], f"{each[1].ms(50):.2f}", f"{each[1].ms(99):.2f}", f"{each[1].lost:,}"]
        for each in (("without calls", quiet), ("beside calls", busy))
    ]
    table(["", "p50 ms", "p99 ms", "lost"], shown)


def _row(name: str, there_ms: Sequence[float], back_ms: Sequence[float]) -> list[str]:
    there_ms, back_ms = there_ms[WARM_UP:], back_ms[WARM_UP:]
    cuts = statistics.quantiles(map(sum, zip(there_ms, back_ms, strict=True)), n=20)
    medians = [statistics.median(there_ms), statistics.median(back_ms), cuts[9], cuts[18]]
    return [name, str(len(there_ms)), *(f"{each:.2f}" for each in medians)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--talks", type=int, default=100, help="that carry audio meanwhile; 0: none")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each of the runs with audio")
    given = parser.parse_args()
    stolen = StolenTime()
    main(given.calls, given.talks, given.seconds)
    stolen.tell()
