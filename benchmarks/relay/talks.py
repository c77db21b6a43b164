"""Talks at real-time pace (50 frames a second each way): `python -m benchmarks.relay.talks [talks] [seconds]`.

The latency that each proxy adds is what a frame takes there and back through it, less what it takes without one.
"""

import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.relay.harness import Target, azure, broker, load, measure, need_nginx, nginx, table

RATE = 50
AIM_P99_MS = 10


def main(talks: int, seconds: float) -> None:
    need_nginx()
    rows = []
    with tempfile.TemporaryDirectory() as name, azure(Path(name)) as url:
        direct: list[Target] = [{"url": f"ws://127.0.0.1:{urlsplit(url).port}/", "protocols": []}] * talks
        with load(direct, frame_bytes=1300, seconds=seconds, rate=RATE) as running:
            bare = measure(running)
        rows.append(["no proxy", *_cells(bare, bare, 0.0)])
        for start in (nginx, broker):
            with (
                start(Path(name), url) as proxy,
                load(proxy.targets(talks), frame_bytes=1300, seconds=seconds, rate=RATE) as running,
            ):
                before = proxy.cpu_s
                result = measure(running)
                used = (proxy.cpu_s - before) / result["seconds"]
            rows.append([proxy.name, *_cells(result, bare, used)])
    print(f"{talks} talks at real-time pace (aim: p99 added under {AIM_P99_MS} ms, no frame lost)")
    table(["", "p50 ms", "p99 ms", "p50 added", "p99 added", "frames back", "lost", "CPU of a core"], rows)


def _cells(result: dict[str, object], bare: dict[str, object], used: float) -> list[str]:
    ms, bare_ms = result["ms"], bare["ms"]
    assert isinstance(ms, dict)
    assert isinstance(bare_ms, dict)
    return [
        f"{ms['p50']:.2f}",
        f"{ms['p99']:.2f}",
        f"{ms['p50'] - bare_ms['p50']:.2f}",
        f"{ms['p99'] - bare_ms['p99']:.2f}",
        f"{result['round_trips']:,}",
        f"{result['lost']}",
        f"{used:.0%}",
    ]


if __name__ == "__main__":
    arguments = [float(value) for value in sys.argv[1:]]
    main(int(arguments[0]) if arguments else 1000, arguments[1] if len(arguments) > 1 else 10.0)
