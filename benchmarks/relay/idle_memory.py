"""Memory an idle talk: `python -m benchmarks.relay.idle_memory [talks]`."""

import sys
import tempfile
import time
from pathlib import Path

from benchmarks.relay.harness import azure, broker, load, need_nginx, nginx, table


def main(talks: int) -> None:
    need_nginx()
    rows = []
    with tempfile.TemporaryDirectory() as name, azure(Path(name)) as url:
        for start in (nginx, broker):
            with start(Path(name), url) as proxy:
                with load(proxy.targets(50), frame_bytes=1300, seconds=1):
                    time.sleep(1)  # what is made once is made
                before = proxy.resident_kb
                with load(proxy.targets(talks), frame_bytes=1300, seconds=1):
                    time.sleep(2)
                    after = proxy.resident_kb
            rows.append([proxy.name, f"{before / 1024:.0f}", f"{after / 1024:.0f}", f"{(after - before) / talks:.1f}"])
    print(f"Memory of {talks} idle talks")
    table(["", "MB before", "MB after", "kB a talk"], rows)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
