"""Memory a talk, idle and with a client that reads nothing: `python -m benchmarks.relay.idle_memory [talks]`.

While that client reads nothing, Azure says all that it can; what the kernel holds of it is not counted.
"""

import sys
import tempfile
import time
from pathlib import Path

from benchmarks.relay.harness import Proxy, azure, broker, load, need_nginx, nginx, table

AIM_SLOW_KB = 2_000


def grown_kb(proxy: Proxy, talks: int, *, flood: bool) -> tuple[int, int]:
    """What the proxy has in memory before and with so many talks."""
    before = proxy.resident_kb
    with load(proxy.targets(talks), frame_bytes=1300, seconds=1, flood=flood):
        time.sleep(3)
        return before, proxy.resident_kb


def main(talks: int) -> None:
    need_nginx()
    rows = []
    with tempfile.TemporaryDirectory() as name, azure(Path(name)) as url:
        for start in (nginx, broker):
            for what, flood, count in (("idle", False, talks), ("unread", True, talks // 5)):
                with start(Path(name), url) as proxy:
                    grown_kb(proxy, 50, flood=False)  # what is made once is made
                    before, after = grown_kb(proxy, count, flood=flood)
                each = f"{(after - before) / count:.1f}"
                rows.append([proxy.name, what, f"{count}", f"{before / 1024:.0f}", f"{after / 1024:.0f}", each])
    print(f"Memory a talk (aim: under {AIM_SLOW_KB:,} kB where the client reads nothing)")
    table(["", "talks", "count", "MB before", "MB after", "kB a talk"], rows)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
