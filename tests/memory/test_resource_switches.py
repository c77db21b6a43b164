"""The switches of Azure resources: all replicas follow the store, and keep what they knew while it is silent."""

import pytest

from token_broker.memory.drivers.database import Database
from token_broker.memory.maintenance import Maintenance
from token_broker.memory.resource_switches import ResourceSwitches
from token_broker.memory.store_errors import StoreAwayError


def maintenance_of(database: Database) -> Maintenance:
    return Maintenance(database, sinks=[], lease_s=1, session_token_s=1)


async def test_switch_reaches_who_watches(database: Database) -> None:
    told: list[frozenset[str]] = []
    switches, operator = ResourceSwitches(database), maintenance_of(database)
    switches.watch(told.append, None)
    await switches.refresh()
    assert await operator.switch_resource("two", enabled=False)
    assert not await operator.switch_resource("two", enabled=False)
    assert await operator.disabled_resources() == ["two"]
    await switches.refresh()
    await switches.refresh()
    assert await operator.switch_resource("two", enabled=True)
    assert not await operator.switch_resource("two", enabled=True)
    await switches.refresh()
    assert told == [frozenset({"two"}), frozenset()]


async def test_silent_store_changes_nothing(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[frozenset[str]] = []
    switches = ResourceSwitches(database)
    switches.watch(told.append, None)
    await maintenance_of(database).switch_resource("two", enabled=False)
    await switches.refresh()

    async def away(*_: object, **__: object) -> None:
        raise StoreAwayError("away")

    monkeypatch.setattr(database, "read", away)
    with pytest.raises(StoreAwayError):
        await switches.refresh()
    assert told == [frozenset({"two"})]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_replicas_are_counted(database: Database) -> None:
    told: dict[str, list[tuple[int, bool]]] = {"first": [], "second": []}
    replicas = {name: ResourceSwitches(database) for name in told}
    replicas["first"].watch(lambda _: None, lambda live, fresh: told["first"].append((live, fresh)))
    replicas["second"].watch(lambda _: None, lambda live, fresh: told["second"].append((live, fresh)))
    await replicas["first"].refresh()
    await replicas["second"].refresh()
    for _ in range(4):
        await replicas["first"].refresh()
    assert told == {"first": [(1, False), (2, False)], "second": [(2, True)]}


async def test_sqlite_has_one_process(database: Database) -> None:
    if database.dialect != "sqlite":
        pytest.skip("for the database that one process has for itself")
    told: list[int] = []
    switches = ResourceSwitches(database)
    switches.watch(lambda _: None, lambda live, _fresh: told.append(live))
    await switches.refresh()
    assert told == []
