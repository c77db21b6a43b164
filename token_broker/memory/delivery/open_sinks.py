"""The sinks that the settings name, opened. Each module that knows a sink's library is imported where it is used."""

import asyncio
from dataclasses import replace

from token_broker.memory.delivery.worker import DeliveryPolicy
from token_broker.memory.drivers.database import Database
from token_broker.memory.types import Sink, SinkName
from token_broker.settings import Settings

__all__ = ["open_sink", "policy_of"]

_BACKLOG_PER_S = 20.0  # of the sink `http`, whose receiver may be small


def policy_of(name: SinkName, settings: Settings) -> DeliveryPolicy:
    """The limits of a sink's deliveries."""
    policy = DeliveryPolicy.of(settings)
    return replace(policy, backlog_per_s=_BACKLOG_PER_S) if name == "http" else policy


async def open_sink(name: SinkName, settings: Settings, database: Database) -> Sink:
    """The sink; close it with `aclose`. Raises ImportError where a package of it is not installed."""
    timeout_s, proxy = settings.delivery_timeout_s, settings.proxy
    if name == "http":
        from token_broker.memory.delivery.http import HttpSink

        url, secret = settings.memory_http_url, settings.memory_http_secret
        assert url is not None  # noqa: S101  # the settings were checked
        assert secret is not None  # noqa: S101
        return await HttpSink.open(url, secret, timeout_s=timeout_s, proxy=proxy)

    def make() -> Sink:
        key = settings.zep_api_key
        assert key is not None  # noqa: S101
        if name == "zep":
            from token_broker.memory.delivery.zep import ZepMemory

            return ZepMemory(key, settings.zep_api_url, timeout_s=timeout_s, proxy=proxy)
        from token_broker.memory.delivery.zep_cloud import ZepCloudMemory

        return ZepCloudMemory(key, settings.zep_api_url, database, timeout_s=timeout_s, proxy=proxy)

    # In a thread: these packages take up to half a second to import, and talks would wait for them.
    return await asyncio.to_thread(make)
