"""One principal's p50 and p99 while another floods and 200 connections drip their heads, beside a quiet run.

    python -m benchmarks.hostile [--seconds 10] [--rounds 2]

Four processes: an upstream that answers at once, the broker (easyauth, its usual rate limit), the attacker, and this
one, which asks as another principal 20 times a second. Quiet and hostile rounds take turns. The aim: p99 under 100 ms.
"""

import argparse
import asyncio
import base64
import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.mint import KEY, free_port, running

SLOW_CONNECTIONS = 200
FLOODING_CONNECTIONS = 32
ASKED_A_SECOND = 20
AIM_MS = 100
BODY = b'{"agent_id":"elena"}'


def request(principal: str) -> bytes:
    claims = {"auth_typ": "aad", "claims": [{"typ": "oid", "val": principal}]}
    header = base64.b64encode(json.dumps(claims).encode())
    return (
        b"POST /realtime/token HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"X-MS-CLIENT-PRINCIPAL: %b\r\nContent-Length: %d\r\n\r\n%b" % (header, len(BODY), BODY)
    )


async def answered(reader: asyncio.StreamReader) -> int:
    """The next answer's status."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
    return int(head.split()[1])


async def attack(port: int) -> None:
    """Until it is killed: heads that never end, begun anew when they are refused, and requests without a pause."""

    async def drip() -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"POST /realtime/token HTTP/1.1\r\nHost: 127.0.0.1\r\n")
                refused = asyncio.create_task(reader.read())
                while not refused.done():
                    writer.write(b"X-More: y\r\n")
                    await asyncio.wait({refused}, timeout=1)
                writer.close()
                await refused

    async def flood() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        asking = request("mallory")
        while True:
            writer.write(asking)
            await answered(reader)

    await asyncio.gather(*(drip() for _ in range(SLOW_CONNECTIONS)), *(flood() for _ in range(FLOODING_CONNECTIONS)))


async def ask(port: int, seconds: float, principals: Iterator[str]) -> list[float]:
    """Latencies in ms of one who asks steadily; each answer must be 200.

    The principal's name changes with each round, so that the rate limit is a round's own.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    latencies_ms, names = [], [next(principals) for _ in range(int(seconds * ASKED_A_SECOND / 50) + 1)]
    for number in range(int(seconds * ASKED_A_SECOND)):
        began_s = time.perf_counter()
        writer.write(request(names[number // 50]))
        if (status := await answered(reader)) != 200:
            raise RuntimeError(f"answered {status}")
        latencies_ms.append((time.perf_counter() - began_s) * 1000)
        await asyncio.sleep(max(0.0, 1 / ASKED_A_SECOND - (time.perf_counter() - began_s)))
    writer.close()
    return latencies_ms


@contextlib.contextmanager
def attacked(port: int) -> Iterator[None]:
    attacker = subprocess.Popen([sys.executable, "-m", "benchmarks.hostile", "--attack", str(port)])
    time.sleep(2)  # until all of it is under way
    try:
        yield
    finally:
        attacker.kill()
        attacker.wait(20)


def measure(seconds: float, rounds: int) -> None:
    upstream_port, broker_port = free_port(), free_port()
    broker = str(Path(sys.executable).with_name("token-broker"))
    principals = (f"ann-{number}" for number in itertools.count())
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        upstream = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.mint", "--role", "upstream", "--port", str(upstream_port)]
        )
        stack.callback(upstream.wait, 20)
        stack.callback(upstream.terminate)
        environment = {
            "PORT": str(broker_port),
            "AZURE_VOICELIVE_ENDPOINT": f"http://127.0.0.1:{upstream_port}",
            "AZURE_VOICELIVE_KEY": KEY,
            "BROKER_AUTH": "easyauth",
            "BROKER_LOG_FORMAT": "json",
            "BROKER_DATABASE_URL": f"sqlite+aiosqlite:///{folder}/broker.db",
        }
        stack.enter_context(running([broker, "serve"], broker_port, "/readyz", **environment))
        time.sleep(1)
        quiet, hostile = [], []
        for _ in range(rounds):
            quiet += asyncio.run(ask(broker_port, seconds, principals))
            with attacked(broker_port):
                hostile += asyncio.run(ask(broker_port, seconds, principals))
    print(f"{'':9}{'requests':>9}{'p50 ms':>9}{'p99 ms':>9}")
    for name, latencies_ms in (("quiet", quiet), ("hostile", hostile)):
        p99_ms = statistics.quantiles(latencies_ms, n=100)[98]
        print(f"{name:9}{len(latencies_ms):>9}{statistics.median(latencies_ms):>9.2f}{p99_ms:>9.2f}")
    print(f"every request was answered 200; the aim is a p99 under {AIM_MS} ms")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=10)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--attack", type=int, metavar="PORT", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.attack:
        asyncio.run(attack(chosen.attack))
    else:
        measure(chosen.seconds, chosen.rounds)


if __name__ == "__main__":
    main()
