"""Talks at real-time pace, 50 frames of 1.3 kB a second each way: `python -m benchmarks.relay.talks --help`.

The latency that a proxy adds is what a frame takes there and back through it, less what it takes without one. Turns are
read and kept on the way. First all talks over so many processes, beside nginx, then how many of them one process
carries: the most, of the sizes tried, at which the added p99 stays under the aim and no frame is lost.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.relay.harness import Proxy, Result, Target, azure, brokers, load, need_nginx, nginx, table
from tests.support.machine import StolenTime

RATE = 50
FRAME_BYTES = 1300
AIM_P99_MS = 10
LOADS = 2
HEAD = ["", "talks", "p50 ms", "p99 ms", "p50 added", "p99 added", "frames back", "lost", "CPU of a core", "stolen"]


class Run:
    """One echoing Azure, and what is put before it."""

    def __init__(self, directory: Path, azure_url: str, seconds: float) -> None:
        self.directory = directory
        self.azure_url = azure_url
        self.seconds = seconds
        self.rows: list[list[str]] = []

    def bare(self, talks: int) -> Result:
        target: Target = {"url": f"ws://127.0.0.1:{urlsplit(self.azure_url).port}/", "protocols": []}
        result, _, stolen = self._measured([target] * talks, [])
        self._tell("no proxy", talks, result, result, used=0.0, stolen=stolen)
        return result

    def through(self, name: str, proxies: Sequence[Proxy], talks: int, bare: Result) -> bool:
        """Whether the aim is met."""
        each = [proxy.targets(len(range(number, talks, len(proxies)))) for number, proxy in enumerate(proxies)]
        result, used, stolen = self._measured([target for targets in each for target in targets], proxies)
        self._tell(name, talks, result, bare, used=used, stolen=stolen)
        return not result.lost and result.ms(99) - bare.ms(99) < AIM_P99_MS

    def _measured(self, targets: list[Target], proxies: Sequence[Proxy]) -> tuple[Result, float, float]:
        """What came back, the cores that the proxies used meanwhile, and the share of all that the host took away."""
        with load(targets, frame_bytes=FRAME_BYTES, seconds=self.seconds, rate=RATE, processes=LOADS) as running:
            stolen = StolenTime()
            before_s = sum(proxy.cpu_s for proxy in proxies)
            result = running.measure()
            used = (sum(proxy.cpu_s for proxy in proxies) - before_s) / result.seconds
            return result, used, stolen.share

    def _tell(self, name: str, talks: int, result: Result, bare: Result, *, used: float, stolen: float) -> None:
        self.rows.append(
            [
                name,
                f"{talks:,}",
                f"{result.ms(50):.2f}",
                f"{result.ms(99):.2f}",
                f"{result.ms(50) - bare.ms(50):.2f}",
                f"{result.ms(99) - bare.ms(99):.2f}",
                f"{result.round_trips:,}",
                f"{result.lost:,}",
                f"{used:.0%}" if used else "",
                f"{stolen:.0%}",
            ]
        )


def main(talks: int, seconds: float, processes: int, sizes: list[int]) -> None:
    need_nginx()
    with tempfile.TemporaryDirectory() as name, azure(Path(name)) as url:
        run = Run(Path(name), url, seconds)
        bare = run.bare(talks)
        with nginx(Path(name), url) as proxy:
            run.through("nginx", [proxy], talks, bare)
        with brokers(Path(name), url, processes) as running:
            run.through(f"broker x {processes}", running, talks, bare)
            carried = 0
            for size in sizes:
                if run.through("broker", running[:1], size, run.bare(size)):
                    carried = size
    print(f"Talks at real-time pace (aim: p99 added under {AIM_P99_MS} ms, no frame lost)")
    table(HEAD, run.rows)
    if sizes:
        print(f"One process carries {carried} talks of the sizes tried ({', '.join(map(str, sizes))}).\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("talks", nargs="?", type=int, default=1000)
    parser.add_argument("seconds", nargs="?", type=float, default=8.0)
    # Azure and the load need a core each, or a little less.
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 1) // 2), help="of the broker")
    parser.add_argument("--sizes", type=int, nargs="*", default=[300, 500, 700], help="talks tried on one process")
    given = parser.parse_args()
    main(given.talks, given.seconds, given.processes, given.sizes)
