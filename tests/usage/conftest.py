"""The stores of the memory's tests."""

from tests.memory.conftest import database, database_url

__all__ = ["database", "database_url"]
