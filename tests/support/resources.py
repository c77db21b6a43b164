"""Several simulated Azure resources, and a broker of all of them."""

import contextlib
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from pydantic import SecretStr

from tests.support.broker import RunningBroker, make_settings, run_broker
from token_broker.settings import Settings
from token_broker.simulator import RunningSimulator, SimulatorConfig, serve

__all__ = [
    "SeveralResources",
    "config_of",
    "key_of",
    "key_variables",
    "resources_file",
    "run_resources",
    "settings_of",
    "simulator",
]


@dataclass(frozen=True, slots=True)
class SeveralResources:
    """A broker, and its resources by name."""

    broker: RunningBroker
    azures: Mapping[str, RunningSimulator]

    async def plan_at(self, name: str, **body: Any) -> dict[str, Any]:
        """A plan whose session prefers that resource."""
        for number in range(200):
            session_id = f"session-{name}-{number:04}"
            order = self.broker.state["minting"].pool.order(self.broker.agents["elena"].wanted(session_id))
            if order[0].name == name:
                return await self.broker.plan({"session_id": session_id, **body})
        raise AssertionError(f"no session prefers {name}")


def key_of(name: str) -> str:
    """The key of the simulated resource of that name, which no other one takes."""
    return f"simulated-key-of-{name}"


def key_variables(names: Iterable[str]) -> dict[str, str]:
    """The variables that hold the resources' keys."""
    return {f"AZURE_KEY_OF_{name.upper()}": key_of(name) for name in names}


def config_of(name: str, **config: Any) -> SimulatorConfig:
    """How to simulate the resource of that name: with its own key."""
    return SimulatorConfig(key=SecretStr(key_of(name)), **config)


def simulator(name: str, **config: Any) -> contextlib.AbstractAsyncContextManager[RunningSimulator]:
    """Runs a simulated resource with its own key."""
    return serve(config_of(name, **config))


def resources_file(folder: Path, endpoints: Mapping[str, str], **options: Mapping[str, Any]) -> Path:
    """A file of resources at these endpoints, by name; `options` have further keys for some of them, by name."""
    path = folder / "resources.toml"
    tables = []
    for name, endpoint in endpoints.items():
        keys = {
            "name": name,
            "endpoint": endpoint,
            "kind": "unified",
            "key_env": f"AZURE_KEY_OF_{name.upper()}",
            **options.get(name, {}),
        }
        lines = [f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}" for key, value in keys.items()]
        tables.append("\n".join(["[[resources]]", *lines, ""]))
    path.write_text("\n".join(tables))
    return path


def settings_of(folder: Path, endpoints: Mapping[str, str], options: Mapping[str, Any], **overrides: Any) -> Settings:
    """Settings of a broker of these resources; their key is the simulator's."""
    chosen: dict[str, Any] = {
        "key": None,
        "azure_auth": "auto",
        "project_name": None,
        "endpoint_kind": "auto",
        "resources_file": resources_file(folder, endpoints, **options),
    }
    with mock.patch.dict(os.environ, key_variables(endpoints)):
        return make_settings(folder, None, **chosen | overrides)


@contextlib.asynccontextmanager
async def run_resources(
    folder: Path, *names: str, options: Mapping[str, Any] | None = None, **overrides: Any
) -> AsyncIterator[SeveralResources]:
    """A broker of simulated resources of these names; nothing may be left running in them."""
    async with contextlib.AsyncExitStack() as stack:
        azures = {name: await stack.enter_async_context(simulator(name)) for name in names}
        endpoints = {name: azure.base_url for name, azure in azures.items()}
        settings = settings_of(folder, endpoints, options or {}, **overrides)
        broker = await stack.enter_async_context(run_broker(settings))
        yield SeveralResources(broker, azures)
