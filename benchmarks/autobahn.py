"""All of Autobahn's cases, each with its verdict: `python -m benchmarks.autobahn [asyncio|uvloop] [case or section …]`.

Exits with 1 where one failed. `tests/relay/test_autobahn.py` holds the same.
"""

import logging
import sys
import time
from collections import Counter

import structlog

from tests.relay.autobahn.cases import SECTIONS
from tests.relay.autobahn.client import play
from tests.relay.autobahn.server import echo_server


def main(loop: str, wanted: list[str]) -> int:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    verdicts: Counter[str] = Counter()
    failures = 0
    with echo_server(loop) as port:
        for case in (case for section in SECTIONS.values() for case in section()):
            if wanted and not any(case.name == one or case.name.startswith(one + ".") for one in wanted):
                continue
            began_s = time.monotonic()
            verdict = play(case, port)
            verdicts[verdict.behavior] += 1
            failures += not verdict.passed
            took_ms = (time.monotonic() - began_s) * 1000
            print(f"{case.name:<8} {verdict.behavior:<14} close {verdict.closing:<7} {took_ms:7.0f} ms  {verdict.why}")
    print(f"{loop}: {sum(verdicts.values())} cases: {dict(verdicts)}; {failures} failed")
    print("Not played: sections 12 and 13, compression, which is offered to nobody.")
    return 1 if failures else 0


if __name__ == "__main__":
    chosen = sys.argv[1:]
    which = chosen.pop(0) if chosen and chosen[0] in {"asyncio", "uvloop"} else "uvloop"
    sys.exit(main(which, chosen))
