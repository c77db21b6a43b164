"""CPU a relayed round trip, beside nginx: `python -m benchmarks.relay.round_trip [seconds a run]`."""

import sys
import tempfile
from pathlib import Path

from benchmarks.relay.harness import Proxy, azure, broker, load, need_nginx, nginx, table
from tests.support.machine import StolenTime

CASES = [(1300, 10, False), (2600, 100, False), (1300, 10, True)]
AIM = 4.5


def cost_us(proxy: Proxy, *, frame_bytes: int, connections: int, seconds: float) -> tuple[float, float]:
    """CPU microseconds a round trip, and round trips a second; the best of three runs, since others use the machine."""
    runs = []
    with load(proxy.targets(connections), frame_bytes=frame_bytes, seconds=0.5) as running:
        running.measure()
    for _ in range(3):
        with load(proxy.targets(connections), frame_bytes=frame_bytes, seconds=seconds) as running:
            before = proxy.cpu_s
            result = running.measure()
            used = proxy.cpu_s - before
        runs.append((used / result.round_trips * 1e6, result.round_trips / result.seconds))
    return min(runs)


def main(seconds: float) -> None:
    need_nginx()
    rows = []
    for frame_bytes, connections, tls in CASES:
        with tempfile.TemporaryDirectory() as name, azure(Path(name), tls=tls) as url:
            measured = {}
            for start in (nginx, broker):
                with start(Path(name), url) as proxy:
                    measured[proxy.name] = cost_us(
                        proxy, frame_bytes=frame_bytes, connections=connections, seconds=seconds
                    )
        (their_us, their_rate), (our_us, our_rate) = measured["nginx"], measured["broker"]
        rows.append(
            [
                f"{frame_bytes / 1000:.1f} kB x {connections}{' TLS' if tls else ''}",
                f"{their_us:.1f}",
                f"{our_us:.1f}",
                f"{our_us / their_us:.2f}",
                f"{their_rate:,.0f}",
                f"{our_rate:,.0f}",
            ]
        )
    print(f"CPU a relayed round trip, turns read (aim: at most {AIM} times nginx's)")
    table(["frames x connections", "nginx us", "broker us", "ratio", "nginx /s", "broker /s"], rows)


if __name__ == "__main__":
    stolen = StolenTime()
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 3.0)
    stolen.tell()
