"""Tests of calls run on uvloop, as those of the relay do, and end as soon."""

from tests.relay.conftest import calls_end_soon, pytest_asyncio_loop_factories

__all__ = ["calls_end_soon", "pytest_asyncio_loop_factories"]
