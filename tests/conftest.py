"""What all tests share: an environment of their own, a simulated Azure, and brokers that end with the test."""

import contextlib
import gc
import logging
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

gc.disable()  # until all is imported: a third of the CPU of starting was spent on looking for garbage in it

# isort: split
# ruff: noqa: E402
import trustme
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadGroupScheduling

from tests.support.broker import RunningBroker, make_settings, run_broker
from tests.support.costs import Costs
from tests.support.databases import PostgresServer, postgres_server
from tests.support.entra import IdentityEndpoint, run_identity_endpoint
from token_broker.simulator import RunningSimulator, serve

# A busy machine is no fault of an example's, and one that is found by chance fails somebody else's change.
settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


class _Loggers(dict[str, Any]):
    """Loggers by name, for pytest, which walks them while the thread of a broker may import a module that adds some."""

    def values(self) -> Any:
        return list(super().values())


logging.root.manager.loggerDict = _Loggers(logging.root.manager.loggerDict)

StartBroker = Callable[..., Awaitable[RunningBroker]]

_BROWSER_GROUPS = {
    "sound": ("tests/web/test_talk.py", "tests/web/test_with_broker.py"),
    "faults": (
        "tests/web/test_devices.py",
        "tests/web/test_failover.py",
        "tests/web/test_first_words.py",
        "tests/web/test_interruptions.py",
        "tests/web/test_missing_apis.py",
        "tests/web/test_starts_and_ends.py",
        "tests/web/test_voice_live.py",
    ),
    "turns": (
        "tests/web/test_demo_faults.py",
        "tests/web/test_page_turns.py",
        "tests/web/test_signalled_talks.py",
    ),
    "pages": ("tests/web/", "tests/clients/test_browser.py"),
}
"""Where tests drive a browser, by path: one at a time listens to how it sounds, and three do everything else. More on
one machine starve each other's audio; fewer are the last that a whole run waits for."""

_ENGINE = re.compile(r"\[(firefox|webkit)\b")
"""The other engine than Chromium that a test is parametrised with: a group of its own, since it shares the browser."""

_BROWSER_PATHS = tuple(path for paths in _BROWSER_GROUPS.values() for path in paths)

_GROUPS = {
    **_BROWSER_GROUPS,
    "clients": ("tests/clients/",),  # they share the processes that run the clients
    "replicas": ("tests/security/test_call_replicas.py",),  # they wait for leases: a PostgreSQL of their own costs less
    "postgres": (  # they share a PostgreSQL: starting one takes seconds
        "tests/infra/test_entra_password.py",
        "tests/memory/test_store_faults.py::test_blocklist_holds_while_store_is_away",
        "tests/security/test_ownership.py::test_two_replicas_give_a_new_id_once",
        "tests/security/test_replicas.py",
    ),
    # What a module's tests share here takes seconds, too.
    "commands": ("tests/docs/test_commands.py",),
    "house": ("tests/docs/test_house.py",),
    "schemathesis": ("tests/observability/test_schemathesis.py",),
}
"""Tests that one process runs, by path; the first group that matches. Others named `postgresql` are in `postgres`."""


_SLOW = (
    "tests/broker/test_breakers.py::test_missing_route_is_asked_once",
    "tests/broker/test_breakers.py::test_recovery_costs_one_probe",
    "tests/broker/test_canary.py",
    "tests/broker/test_commands.py",
    "tests/broker/test_entra.py::test_cold_burst_makes_one_credential_call",
    "tests/broker/test_failover_matrix.py",
    "tests/broker/test_fault_matrix.py",
    "tests/broker/test_foundry_agents.py::test_each_agent_talks_or_is_told",
    "tests/broker/test_fuzz.py",
    "tests/broker/test_resource_faults.py",
    "tests/broker/test_resources.py::test_commands_switch_a_resource",
    "tests/broker/test_signalled_ends.py::test_call_ends_as_on_the_proxy",
    "tests/broker/test_signalled_webrtc.py::test_unified_alone_is_live_by_webrtc",
    "tests/broker/test_transcription_model.py",
    "tests/calls/test_relayed_calls.py",
    "tests/calls/test_sideband_tools.py::test_forged_output_is_not_the_tools",
    "tests/clients/",
    "tests/compat/test_calls.py",
    "tests/docs/test_commands.py",
    "tests/docs/test_house.py::test_every_target_holds",
    "tests/docs/test_house.py::test_no_file_names_an_outside_document",
    "tests/docs/test_house.py::test_request_passes_the_modules_it_must",
    "tests/docs/test_house.py::test_table_has_every_figure",
    "tests/docs/test_scripts.py::test_collection_selects_by_marks",
    "tests/doctor/test_against_azure.py::test_hang_is_named_and_the_run_ends",
    "tests/doctor/test_command.py::test_failure_exits_1_and_json_agrees",
    "tests/doctor/test_command.py::test_success_exits_0_with_a_line_a_check",
    "tests/live/test_live_calls.py",
    "tests/memory/test_admin.py",
    "tests/memory/test_commands.py",
    "tests/memory/test_delivery.py",
    "tests/memory/test_endpoints.py::test_concurrent_turns_get_own_answers",
    "tests/memory/test_http_sink.py::test_backlog_of_an_hour_does_not_rush",
    "tests/memory/test_kill.py",
    "tests/memory/test_pages.py",
    "tests/memory/test_quotas.py",
    "tests/memory/test_sizes.py",
    "tests/memory/test_store_faults.py::test_blocklist_holds_while_store_is_away",
    "tests/memory/test_store_faults.py::test_broker_with_full_disk_still_mints",
    "tests/memory/test_store_faults.py::test_locked_database_recovers",
    "tests/observability/test_logs.py",
    "tests/observability/test_openapi.py::test_500_is_as_described",
    "tests/observability/test_openapi.py::test_call_answers_are_as_described",
    "tests/observability/test_openapi.py::test_every_raised_code_is_described",
    "tests/observability/test_schemathesis.py",
    "tests/observability/test_tracing.py",
    "tests/relay/test_autobahn.py",
    "tests/relay/test_drain.py",
    "tests/relay/test_hostile_frames.py",
    "tests/relay/test_idle.py::test_client_that_pings_is_not_idle",
    "tests/relay/test_media_talks.py::test_tool_runs_once_and_is_answered",
    "tests/relay/test_model_handoff.py::test_talk_ends_after_its_goodbye",
    "tests/relay/test_resident_memory.py",
    "tests/relay/test_whole_talk.py::test_realtime_speech_comes_back_as_sent",
    "tests/security/test_block.py::test_blocking_hangs_up_own_calls_only",
    "tests/security/test_block.py::test_command_blocks_beside_running_broker",
    "tests/security/test_block.py::test_command_warns_of_unknown_principal",
    "tests/security/test_call_replicas.py",
    "tests/security/test_forgery.py",
    "tests/security/test_hostile.py",
    "tests/security/test_odd_requests.py",
    "tests/security/test_ownership.py::test_restart_keeps_sessions_owned",
    "tests/security/test_ownership.py::test_silent_store_gives_anonymous_no_session",
    "tests/security/test_ownership.py::test_silent_store_requires_session_token",
    "tests/security/test_replicas.py",
    "tests/simulator/test_simulator_calls.py::test_barge_in_clears_unheard_audio",
    "tests/simulator/test_simulator_calls.py::test_spoken_talk_comes_back_over_rtp",
    "tests/simulator/test_simulator_mint_ga.py::test_bodies_of_openai_types_pass",
    "tests/simulator/test_simulator_mint_ga.py::test_unknown_field_is_named_at_any_depth",
    "tests/simulator/test_simulator_voice_live_calls.py::test_function_call_comes_by_control_socket",
    "tests/simulator/test_simulator_voice_live_calls.py::test_spoken_talk_on_both_channels",
)
"""Tests, files and folders that `scripts/test --fast` leaves out, since their tests take long, mostly as they start
processes. `pytest.mark.slow` leaves out a test that takes half a second of CPU or waits for a second by itself."""


def group_of(nodeid: str) -> str | None:
    """The group that a test is in, if it is in one."""
    if engine := _ENGINE.search(nodeid):
        return engine[1]
    by_path = (group for group, paths in _GROUPS.items() if nodeid.startswith(paths))
    return next(by_path, "postgres" if "postgresql" in nodeid else None)


class _Scheduling(LoadGroupScheduling):  # type: ignore[misc]  # xdist ships no types
    """Gives each group to one process. By path: xdist 3.8 writes its marks where pytest 9.2 does not look."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid) or str(super()._split_scope(nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadGroupScheduling | None:
    return _Scheduling(config, log) if config.getoption("dist") == "loadgroup" else None


_LEANS_ON_THE_MACHINE = frozenset({"browser", "postgres"})
"""Marks of tests that lean on processes beside their own, which a busy machine holds up, as those in `_SLOW` do. One
that fails is run once more, and the closing lines count and name it; all others have to pass at once."""

_LOOP = os.environ.get("TEST_LOOP", "")
"""The one event loop for tests that run on several, `uvloop` or `asyncio`; all of them where it is empty."""


def pytest_configure(config: pytest.Config) -> None:
    if _LOOP not in {"", "asyncio", "uvloop"}:
        raise pytest.UsageError(f"TEST_LOOP is asyncio or uvloop, not {_LOOP!r}")
    config.pluginmanager.register(Costs(), "costs")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    try:
        return (yield)
    finally:
        gc.freeze()  # it stays: no collection looks through it again
        gc.enable()


@pytest.hookimpl(tryfirst=True)  # before `-m` selects by the marks given here
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith(_BROWSER_PATHS):
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.filterwarnings(_LEFT_BY_BROWSERS))
        if _ENGINE.search(item.nodeid):
            item.add_marker(pytest.mark.engines)
        if item.nodeid.startswith(_SLOW):
            item.add_marker(pytest.mark.slow)
        if needs_postgres(item):
            item.add_marker(pytest.mark.postgres)
        if item.nodeid.startswith(_SLOW) or _LEANS_ON_THE_MACHINE & {mark.name for mark in item.iter_markers()}:
            item.add_marker(pytest.mark.flaky(reruns=1))
    if left_out := _on_other_loops(items):
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=list(left_out))


def needs_postgres(item: pytest.Item) -> bool:
    """Whether a test starts a PostgreSQL: by a fixture that is one, or because its store is parametrised to be one."""
    fixtures: list[str] = getattr(item, "fixturenames", [])
    return any(name.endswith("postgres") for name in fixtures) or _parameters(item).get("database_url") == "postgresql"


def _on_other_loops(items: list[pytest.Item]) -> set[pytest.Item]:
    """The tests on another loop than TEST_LOOP, where the same test with the same parameters is there on that one."""
    if not _LOOP:
        return set()
    loops = {item: loop_of(item) for item in items}
    wanted = {_apart_from_loop(item) for item, loop in loops.items() if loop == _LOOP}
    return {item for item, loop in loops.items() if loop not in {None, _LOOP} and _apart_from_loop(item) in wanted}


def loop_of(item: pytest.Item) -> str | None:
    """The event loop that a test is parametrised with: by pytest-asyncio, or as its own `loop`."""
    ids = re.search(r"\[(.*)\]$", item.name)
    return next((loop for loop in ("asyncio", "uvloop") if ids and loop in ids[1].split("-")), None)


def _apart_from_loop(item: pytest.Item) -> str:
    return re.sub(r"(?<=[\[-])(asyncio|uvloop)(?=[\]-])", "", item.nodeid)


def _parameters(item: pytest.Item) -> dict[str, Any]:
    parameters: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
    return parameters


_LEFT_BY_BROWSERS = "ignore:unclosed (<socket|transport):ResourceWarning"
"""A browser connects in advance, also to a server that is just ending: what it opened then ends with the test."""

_SHARED = frozenset({"HOST", "PORT", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"})  # with other programs
_OURS = ("BROKER_", "AZURE_", "ZEP_", "SIMULATOR_", "IDENTITY_", "MSI_", "OTEL_", "TEST_COVERAGE")


@pytest.fixture(autouse=True, scope="session")
def _environment_of_its_own() -> Iterator[None]:
    """Nothing of the developer's environment reaches a test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(_OURS) or name.upper() in _SHARED:
                patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def _nobodys_authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "authority.pem"
    trustme.CA().cert_pem.write_to_path(path)
    return path


@pytest.fixture(autouse=True)
def _nobody_is_believed(_nobodys_authority: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS believes one authority that signs nothing, until a test says otherwise; and the system's hundred and fifty,
    which take 50 ms to read, are not read for each client."""
    monkeypatch.setenv("SSL_CERT_FILE", str(_nobodys_authority))
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL, for as many databases as there are tests."""
    with postgres_server() as server:
        yield server


@pytest.fixture
async def azure() -> AsyncIterator[RunningSimulator]:
    """A healthy simulated Azure of every kind, in the test's own event loop. Nothing may be left running in it."""
    async with serve() as running:
        yield running
    assert running.running == 0


@pytest.fixture
async def start_broker(tmp_path: Path) -> AsyncIterator[StartBroker]:
    """Starts brokers that end with the test: `await start_broker(azure, token_budget_s=1)`; settings by field name."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(azure: RunningSimulator | str | None, **settings: Any) -> RunningBroker:
            endpoint = azure.base_url if isinstance(azure, RunningSimulator) else azure
            return await stack.enter_async_context(run_broker(make_settings(tmp_path, endpoint, **settings)))

        yield start


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test's own WebRTC peer has an address of loopback alone, which aioice leaves out by itself."""
    monkeypatch.setattr("aioice.ice.get_host_addresses", lambda use_ipv4, use_ipv6: ["127.0.0.1"])


@pytest.fixture
async def identity(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[IdentityEndpoint]:
    """A managed identity endpoint that azure-identity finds in the environment."""
    async with run_identity_endpoint() as endpoint:
        for name, value in endpoint.variables.items():
            monkeypatch.setenv(name, value)
        yield endpoint
