"""Tests of GPT-Live run on uvloop, as those of the relay do."""

from tests.relay.conftest import pytest_asyncio_loop_factories

__all__ = ["pytest_asyncio_loop_factories"]
