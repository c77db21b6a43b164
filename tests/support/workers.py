"""A pytest plugin that runs tests side by side, in processes that it forks once all tests are collected.

pytest-xdist has each of its processes import and collect everything, which takes 13 s of CPU with coverage. Forked ones
share that. `-n` says how many processes; without it pytest is alone, as a debugger needs it.
"""

import atexit
import contextlib
import itertools
import mmap
import multiprocessing
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest

from tests.support.forkserver import prepare_server

__all__ = ["Pieces", "WorkerHooks", "Workers", "in_pieces"]

Pieces = list[list[pytest.Item]]

_TESTS_A_PIECE = 16
"""A piece is taken as a whole. The last ones must be quick: the run ends when the slowest does."""
_ENDS_WITHIN_S = 30.0


class WorkerHooks:
    """What other plugins do in each process, and with what came out there."""

    def pytest_worker_finished(self, output: dict[str, Any]) -> None:
        """In a process that has run its tests: adds what the first process shall know."""

    def pytest_worker_joined(self, output: dict[str, Any]) -> None:
        """In the first process, for each of the others."""


def in_pieces(
    items: list[pytest.Item], group_of: Callable[[str], str | None], *, first: Callable[[pytest.Item], bool]
) -> Pieces:
    """The tests in the parts that one process runs, and in the order in which they begin.

    A group is one piece. Groups and the tests that `first` names begin first, since they take longest.
    """
    groups: dict[str, list[pytest.Item]] = {}
    long: Pieces = []
    short: Pieces = []
    for item in items:
        if group := group_of(item.nodeid):
            groups.setdefault(group, []).append(item)
        elif first(item):
            long.append([item])
        elif short and len(short[-1]) < _TESTS_A_PIECE and _file(short[-1][0]) == _file(item):
            short[-1].append(item)
        else:
            short.append([item])
    return [*sorted(groups.values(), key=len, reverse=True), *long, *short]


def _file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


class _Queue:
    """Numbers from 0, of which each is taken by one process: a pipe, which gives four bytes at once or none."""

    def __init__(self, size: int) -> None:
        self._reading, writing = os.pipe()
        with os.fdopen(writing, "wb") as pipe:
            content = b"".join(number.to_bytes(4, "little") for number in range(size))
            assert len(content) <= 65_536, "a pipe holds no more"
            pipe.write(content)

    def __iter__(self) -> Iterator[int]:
        while taken := os.read(self._reading, 4):
            yield int.from_bytes(taken, "little")

    def close(self) -> None:
        os.close(self._reading)


class _Messages:
    """A plugin that sends reports and warnings to the first process."""

    def __init__(self, config: pytest.Config, connection: Connection) -> None:
        self._config = config
        self._connection = connection

    def send(self, kind: str, content: object) -> None:
        self._connection.send((kind, content))

    def pytest_runtest_logstart(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        self.send("began", (nodeid, location))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.send("report", self._config.hook.pytest_report_to_serializable(config=self._config, report=report))

    def pytest_warning_recorded(self, warning_message: warnings.WarningMessage, nodeid: str) -> None:
        text = f"{warning_message.category.__name__}: {warning_message.message}"
        self.send("warning", (text, warning_message.filename, warning_message.lineno, nodeid))


class _Worker:
    """A process as the first one sees it."""

    def __init__(self, process: multiprocessing.Process) -> None:
        self.process = process
        self.runs: tuple[str, tuple[str, int | None, str]] | None = None
        self.finished = False


class Workers:
    """The plugin. It stands aside for what pytest alone does: a debugger, or no tests at all."""

    def __init__(self, count: int, pieces: Callable[[list[pytest.Item]], Pieces]) -> None:
        self._count = count
        self._in_pieces = pieces
        self._stop = mmap.mmap(-1, 1)  # shared: 1 ends each process after its test

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        option = session.config.option
        broken = session.testsfailed and not option.continue_on_collection_errors
        if broken or option.collectonly or option.usepdb or len(session.items) < 2:
            return None
        reporter: Any = session.config.pluginmanager.getplugin("terminalreporter")
        reporter.showfspath = False  # several files at a time
        pieces = self._in_pieces(session.items)
        queue = _Queue(len(pieces))
        prepare_server()  # one for all processes
        folder: Path = session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        workers: dict[Connection, _Worker] = {}
        context = multiprocessing.get_context("fork")
        try:
            for number in range(min(self._count, len(pieces))):
                ours, theirs = context.Pipe(duplex=False)
                items = itertools.chain.from_iterable(pieces[taken] for taken in queue)
                arguments = (session, folder / f"w{number}", items, theirs, [*workers, ours])
                work = context.Process(target=self._work, args=arguments)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)  # of threads, such as numpy's, which survive it
                    work.start()
                theirs.close()
                workers[ours] = _Worker(work)  # type: ignore[arg-type]  # typeshed has several classes of processes
            self._listen(session, dict(workers))
        finally:
            self._stop[0] = 1
            for worker in workers.values():
                worker.process.join(_ENDS_WITHIN_S)
                worker.process.kill()
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
        return True

    def _listen(self, session: pytest.Session, workers: dict[Connection, _Worker]) -> None:
        """Takes what the processes send as if it had happened here, until all have ended."""
        hook = session.config.hook
        while workers:
            for ready in wait(list(workers)):
                assert isinstance(ready, Connection)
                worker = workers[ready]
                try:
                    kind, content = ready.recv()
                except EOFError:
                    del workers[ready]
                    if not worker.finished:
                        self._died(session, worker)
                    continue
                if kind == "began":
                    worker.runs = content
                elif kind == "report":
                    report = hook.pytest_report_from_serializable(config=session.config, data=content)
                    hook.pytest_runtest_logreport(report=report)
                elif kind == "warning":
                    text, filename, line, nodeid = content
                    message = warnings.WarningMessage(Warning(text), Warning, filename, line)
                    hook.pytest_warning_recorded.call_historic(
                        kwargs={"warning_message": message, "when": "runtest", "nodeid": nodeid, "location": None}
                    )
                else:
                    worker.finished = True
                    hook.pytest_worker_joined(output=content)
                if session.shouldfail or session.shouldstop:
                    self._stop[0] = 1

    def _died(self, session: pytest.Session, worker: _Worker) -> None:
        """A failure of the test that a process ran when it ended; the others stop, since its piece is not whole."""
        worker.process.join(_ENDS_WITHIN_S)
        why = f"the process that ran this test ended with {worker.process.exitcode}, before it had run all of its tests"
        nodeid, location = worker.runs or ("?", ("?", None, "?"))
        report = pytest.TestReport(nodeid, location, {}, "failed", why, "call")
        session.config.hook.pytest_runtest_logreport(report=report)
        session.shouldfail = f"{nodeid}: {why}"

    def _work(
        self,
        session: pytest.Session,
        folder: Path,
        items: Iterator[pytest.Item],
        connection: Connection,
        others: list[Connection],
    ) -> None:
        """What a forked process does: runs tests until none is left."""
        for other in others:
            other.close()  # or nobody would notice that the first process has gone
        config = session.config
        with contextlib.suppress(KeyboardInterrupt):  # everybody gets it, and the first process tells of it
            messages = _Messages(config, connection)
            self._make_own(config, folder)
            config.pluginmanager.register(messages, "worker-messages")
            try:
                self._run(session, items)
            except Exception:
                traceback.print_exc(file=sys.__stderr__)
                raise
            finally:
                session._setupstate.teardown_exact(None)
            output: dict[str, Any] = {}
            config.hook.pytest_worker_finished(output=output)
            messages.send("finished", output)
        atexit._run_exitfuncs()  # multiprocessing ends a process without them

    def _make_own(self, config: pytest.Config, folder: Path) -> None:
        """Separates what a fork shares, and two processes can't: the captured output, folders, the terminal."""
        reporter: Any = config.pluginmanager.getplugin("terminalreporter")
        reporter._tw._file = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # to the process's end
        capture: Any = config.pluginmanager.getplugin("capturemanager")
        capture.stop_global_capturing()
        capture.start_global_capturing()
        capture.suspend_global_capture()
        folder.mkdir()
        config._tmp_path_factory._basetemp = folder  # type: ignore[attr-defined]

    def _run(self, session: pytest.Session, items: Iterator[pytest.Item]) -> None:
        item = next(items, None)
        while item is not None and not self._stop[0]:
            following = next(items, None)  # pytest ends a module's fixtures when the next test is another's
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.shouldfail or session.shouldstop:
                return
            item = following
