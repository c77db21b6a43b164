"""The command line: `token-broker`. Exit codes: 0, 1 (a check failed), 2 (usage or configuration).

Each command imports what it needs when it runs, so that `--help` and completion load none of the broker.
"""

import asyncio
import contextlib
import importlib
import os
import re
import sys
from collections.abc import AsyncIterator, Collection, Coroutine, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from pydantic import SecretStr

from token_broker import __version__
from token_broker.settings import Settings, SettingsError, doubts, load_settings, unknown_variables

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from token_broker.simulator.fleet import RunningResources
    from token_broker.simulator.speech.actor import Actor

__all__ = ["main"]

T = TypeVar("T")

# Two, so that one can be seen to fail: docs/api.md §11.
_DEMO_RESOURCES = ("eastus2", "swedencentral")


class ConfigurationError(click.ClickException):
    """Faults of the configuration. They are printed to stderr, one a line, and the exit code is 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        del file
        click.echo(self.message, err=True)


_LAZY_COMMANDS = {
    "block": ("token_broker.cli.memory", "block"),
    "doctor": ("token_broker.doctor.command", "doctor_command"),
    "export": ("token_broker.cli.memory", "export"),
    "forget": ("token_broker.cli.memory", "forget"),
    "outbox": ("token_broker.cli.memory", "outbox"),
    "resources": ("token_broker.cli.azure_resources", "resources"),
    "unblock": ("token_broker.cli.memory", "unblock"),
    "usage": ("token_broker.cli.usage_report", "usage"),
}


class _Commands(click.Group):
    """The commands of this module, and those of `_LAZY_COMMANDS`, which are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_LAZY_COMMANDS])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _LAZY_COMMANDS:
            return super().get_command(ctx, cmd_name)
        module, name = _LAZY_COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="token-broker")
def main() -> None:
    """Give browsers plans for talking to Azure's GPT Realtime and Voice Live.

    Configuration comes from the environment and from a .env file; .env.example lists every variable. `demo` needs none.
    """


@main.command()
def serve() -> None:
    """Run the broker on HOST and PORT until SIGTERM or Ctrl-C."""
    settings = _load_settings()
    if not settings.resources:
        _warn("AZURE_VOICELIVE_ENDPOINT: unset, so nothing can be minted; `token-broker demo` simulates Azure")
    _run(_serve(settings, "Voice token broker"))


@main.command()
@click.option("--echo", is_flag=True, help="The simulated agent plays back what it hears, instead of speaking.")
def demo(*, echo: bool) -> None:
    """Run the broker with a built-in, simulated Azure: nothing to configure, and nothing leaves this machine."""
    from token_broker.cli.demo import demo_agents, open_actor

    async def run(actor: "Actor | None") -> None:
        # Whatever Azure the environment names, nothing may leave this machine.
        probe = _load_settings(endpoint=None, agents_file=None, resources_file=None)
        simulating = _simulator(probe.simulator_key, [probe.simulator_port], "all", _DEMO_RESOURCES, actor=actor)
        async with simulating as azure:
            resources_file, agents_file = Path("var/demo-resources.toml"), Path("var/demo-agents.toml")
            resources_file.parent.mkdir(exist_ok=True)
            text = azure.resources_file("SIMULATOR_KEY")
            resources_file.write_text(text, encoding="utf-8")  # noqa: ASYNC240  # nothing else runs by now
            agents_file.write_text(demo_agents(), encoding="utf-8")  # noqa: ASYNC240
            # The file names the variable of its key, which may have been left at its default.
            os.environ["SIMULATOR_KEY"] = probe.simulator_key.get_secret_value()
            settings = load_settings(
                resources_file=resources_file,
                agents_file=agents_file,
                endpoint=None,
                openai_endpoint=None,
                key=None,
                azure_auth="auto",
                project_name=None,
                model="gpt-realtime",
                auth="none",
                # A store of its own: talks with the simulator must not get into a real one.
                database_url=SecretStr("sqlite+aiosqlite:///var/demo.db"),
                memory_sinks=(),
                zep_api_key=None,
                # A demo is shown from one address, often by many people at once: limits would end it.
                rate_limit_per_minute=0,
                turns_per_minute=0,
                turn_bytes_per_minute=0,
                max_sessions_per_principal=0,
                max_sessions=0,
            )
            where = ", ".join(f"{each.name} at {each.url}" for each in azure)
            title = f"DEMO with a SIMULATED Azure ({where}); open the page and press Talk"
            # At the page's own origin, so that its button may break a resource and no other page may.
            await _serve(settings, title, also=[azure.control()])

    with contextlib.nullcontext() if echo else open_actor(_warn) as actor:
        _run(run(actor))


@main.command()
@click.option("--port", type=click.IntRange(0, 65_535), default=9100, show_default=True, help="Port to listen on.")
@click.option(
    "--kind",
    type=click.Choice(["direct", "unified", "project", "all"]),
    default="all",
    show_default=True,
    help="Which kind of Azure endpoint to be.",
)
@click.option(
    "--resources",
    "listed",
    metavar="NAME,…",
    default="",
    help="Simulate several resources, on --port and those after it; prints a BROKER_RESOURCES_FILE to stdout.",
)
@click.option(
    "--deployment",
    "deployments",
    metavar="NAME=MODEL",
    multiple=True,
    help="What a resource of --resources has deployed, repeatable; the others have all models.",
)
def simulate(port: int, kind: str, listed: str, deployments: tuple[str, ...]) -> None:
    """Run a simulated Azure alone, for your own tests; its key is SIMULATOR_KEY (simulated-key)."""
    import signal

    settings = _load_settings()
    names = tuple(filter(None, listed.split(",")))
    if any(not re.fullmatch(r"[a-z0-9-]{1,32}", name) for name in names) or len(set(names)) < len(names):
        message = "names are of the form [a-z0-9-]{1,32}, and each stands there once"
        raise click.BadParameter(message, param_hint="--resources")
    models: dict[str, set[str]] = {}
    for given in deployments:
        name, _, model = given.partition("=")
        if name not in names or not model:
            raise click.BadParameter(f"'{given}' is no NAME=MODEL of --resources", param_hint="--deployment")
        models.setdefault(name, set()).add(model)
    ports = [port + number if port else 0 for number in range(max(len(names), 1))]

    async def run() -> None:
        done = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):  # before it listens: who reaches it may also end it
            asyncio.get_running_loop().add_signal_handler(number, done.set)
        simulating = _simulator(settings.simulator_key, ports, kind, names or ("default",), models)
        async with simulating as azure:
            where = ", ".join(f"{each.name} at {each.url}" if names else f"at {each.url}" for each in azure)
            if names:
                click.echo(azure.resources_file())
            click.echo(f"SIMULATED Azure ({kind}) {where}; nothing here is real. Ctrl-C ends it.", err=True)
            await done.wait()

    _run(run())


@main.command()
@click.option("--agent", "agent_id", help="The agent to mint for; the default one where it is left out.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
def token(agent_id: str | None, *, as_json: bool) -> None:
    """Mint once, and show the plan and what each strategy did; tokens are masked."""
    from token_broker.cli.mint_once import UnknownAgentError, mint_once, print_report

    try:
        report = _run(mint_once(_load_settings(), agent_id))
    except UnknownAgentError as error:
        raise click.BadParameter(str(error), param_hint="--agent") from None
    print_report(report, as_json=as_json)
    sys.exit(0 if report.plan else 1)


def _load_settings(**overrides: Any) -> Settings:
    """Loads the settings, sets up logging, and prints what is odd. A fault ends the command with exit code 2."""
    from token_broker.observability.logging import configure_logging
    from token_broker.sessions.agents import agents_secrets

    with _exit_code_2_for_faults():
        settings = load_settings(**overrides)
    configure_logging(settings, secrets=agents_secrets(settings.agents_file))
    for line in [*unknown_variables(), *doubts(settings)]:
        _warn(line)
    return settings


async def _serve(settings: Settings, title: str, also: "Sequence[BaseRoute]" = ()) -> None:
    from token_broker.cli.serve import run_server

    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    line = f"{title}, version {__version__}: http://{host}:{settings.port}/"
    await run_server(settings, listening=lambda: click.echo(line, err=True), also=also)


@contextlib.asynccontextmanager
async def _simulator(
    key: SecretStr,
    ports: Sequence[int],
    kind: str,
    names: Sequence[str] = ("default",),
    models: Mapping[str, Collection[str]] | None = None,
    *,
    actor: "Actor | None" = None,
) -> AsyncIterator["RunningResources"]:
    """Simulated Azure resources in this process; `models` are what some of them have deployed, `actor` plays agents."""
    try:
        from token_broker.simulator.azure_errors import AzureError
        from token_broker.simulator.calls.ongoing import load_webrtc
        from token_broker.simulator.config import ALL_KINDS, SimulatorConfig
        from token_broker.simulator.fleet import serve_resources
    except ImportError:
        raise ConfigurationError("The simulator is not part of this installation.") from None
    kinds = ALL_KINDS if kind == "all" else frozenset(k for k in ALL_KINDS if k == kind)
    configs = {name: SimulatorConfig(kinds=kinds, key=key, actor=actor) for name in names}
    for name, deployed in (models or {}).items():
        configs[name] = replace(configs[name], deployments=frozenset(deployed))
    try:
        async with serve_resources(ports=ports, configs=configs) as running:
            # Before anybody calls: on a busy machine it takes longer than a first call may.
            with contextlib.suppress(AzureError):
                await load_webrtc()
            yield running
    except OSError as error:
        tried = ", ".join(map(str, ports))
        raise ConfigurationError(f"SIMULATOR_PORT: {tried} can't be listened on ({error.strerror})") from None


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Runs `work`, on uvloop where it is installed. A fault of the configuration ends it with exit code 2."""
    try:
        import uvloop
    except ImportError:  # it has no wheels for some platforms, and the broker runs without it
        factory = None
    else:
        factory = uvloop.new_event_loop
    with _exit_code_2_for_faults(), asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)


@contextlib.contextmanager
def _exit_code_2_for_faults() -> Iterator[None]:
    from token_broker.memory.store_errors import StoreInUseError
    from token_broker.sessions.agents import AgentsFileError

    try:
        yield
    except (SettingsError, AgentsFileError) as error:
        raise ConfigurationError(str(error)) from None
    except StoreInUseError as error:
        raise ConfigurationError(f"BROKER_DATABASE_URL: {error}") from None


def _warn(line: str) -> None:
    click.secho(line, err=True, fg="yellow")
