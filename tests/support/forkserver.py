"""`token-broker` as a process, forked from one that has imported it.

A new interpreter spends 1.4 s of CPU on imports, and the tests start more than a hundred brokers. So each test process
has one server that imports once, and then forks. What it forks has its own environment, folder and standard streams,
and ends as an interpreter ends. `tests/broker/test_commands.py` also starts brokers in interpreters of their own.
"""

import asyncio
import atexit
import contextlib
import functools
import gc
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

__all__ = ["ForkedProcess", "fork_broker", "forked_cpu_s"]

_ROOT = Path(__file__).parents[2]
_REQUEST_BYTES = 131_072
_STREAMS = 3
_cpu_s: list[float] = []


class ForkedProcess:
    """A forked `token-broker`, with the part of `asyncio.subprocess.Process` that tests use."""

    def __init__(self, pid: int, status: asyncio.StreamReader) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = asyncio.create_task(self._end(status))

    async def wait(self) -> int:
        """The exit code, or the negative number of the signal that ended it."""
        return await asyncio.shield(self._ended)

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # its end has not been read yet
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    async def _end(self, status: asyncio.StreamReader) -> int:
        code, cpu_s = (await status.read()).split()  # up to the end of the file, at which asyncio closes the pipe
        _cpu_s.append(float(cpu_s))
        self.returncode = int(code)
        return self.returncode


def forked_cpu_s() -> float:
    """The CPU time of all forked processes whose end was awaited here."""
    return sum(_cpu_s)


async def fork_broker(
    arguments: tuple[str, ...], *, env: Mapping[str, str], cwd: Path, stdout: BinaryIO, stderr: BinaryIO
) -> ForkedProcess:
    """Starts `token-broker` with these arguments; its standard input is empty."""
    request = json.dumps({"arguments": arguments, "env": dict(env), "cwd": str(cwd)}).encode()
    assert len(request) <= _REQUEST_BYTES
    reading, writing = os.pipe()
    with open(os.devnull, "rb") as nothing:  # noqa: ASYNC230, PTH123  # opens at once
        streams = [nothing.fileno(), stdout.fileno(), stderr.fileno()]
        socket.send_fds(_server(), [request], [*streams, writing])
    os.close(writing)
    status = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(status), os.fdopen(reading, "rb")
    )
    return ForkedProcess(int(await asyncio.wait_for(status.readline(), 120)), status)


@functools.cache
def _server() -> socket.socket:
    """The connection to the server of this test process, which ends when this connection does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, "-m", "tests.support.forkserver", str(theirs.fileno())]
        process = subprocess.Popen(command, cwd=_ROOT, pass_fds=[theirs.fileno()])
    atexit.register(process.wait, 10)
    atexit.register(ours.close)  # the last that is registered is the first that is called
    return ours


def _import_all() -> None:
    """Imports what the commands import when they run."""
    import uvloop  # noqa: F401

    import token_broker.cli.memory
    import token_broker.cli.mint_once
    import token_broker.cli.serve
    import token_broker.doctor.command
    import token_broker.memory.service
    import token_broker.simulator.server  # noqa: F401


def _await_request(requests: socket.socket) -> None:
    """Returns in a process that has been forked for a request, ready to run `token-broker`; ends where tests end."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes between
    while True:
        request, descriptors, _, _ = socket.recv_fds(requests, _REQUEST_BYTES, _STREAMS + 1)
        if not request:
            sys.exit()
        if os.fork() == 0:
            break
        for descriptor in descriptors:
            os.close(descriptor)
    # A process between the two, which waits for the broker and tells how it ended.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    requests.close()
    *streams, status = descriptors
    if (pid := os.fork()) != 0:
        os.write(status, b"%d\n" % pid)
        _, code, usage = os.wait4(pid, 0)
        os.write(status, b"%d %.3f\n" % (os.waitstatus_to_exitcode(code), usage.ru_utime + usage.ru_stime))
        os._exit(0)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for descriptor in descriptors:
        os.close(descriptor)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    wanted = json.loads(request)
    os.environ.clear()
    os.environ.update(wanted["env"])
    os.chdir(wanted["cwd"])
    sys.argv = ["token-broker", *wanted["arguments"]]


if __name__ == "__main__":
    from token_broker.cli.main import main

    _import_all()
    gc.collect()
    gc.freeze()  # or each collection in a child looks at, and so copies, all that was imported
    _await_request(socket.socket(fileno=int(sys.argv[1])))
    main()
