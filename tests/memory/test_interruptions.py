"""Marks of interruption, and history that a client puts back: on SQLite and on PostgreSQL."""

import asyncio
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.memory.conftest import MakeSettings
from tests.memory.support.stores import Obstinate, opened
from tests.memory.support.turns import NOW, SESSION, owner, turn
from tests.support.databases import sqlite_url
from tests.support.waiting import eventually
from token_broker.memory.drivers.connect import connect
from token_broker.memory.ingest.buffer import IngestBuffer
from token_broker.memory.ingest.group_commit import GroupWriter
from token_broker.memory.service import Memory
from token_broker.memory.store.turn_reads import list_turns
from token_broker.memory.store_errors import StoreAwayError
from token_broker.memory.types import Interruption, Outcome, Turn
from token_broker.security.tokens import Owner

S, D, F = Outcome.STORED, Outcome.DUPLICATE, Outcome.FOREIGN
LATER = NOW + timedelta(hours=1)


def said(content: str, turn_id: str | None = None, *, by: Owner | None = None, **fields: Any) -> Turn:
    return turn(turn_id, content, by=by, source="proxy", **fields)


def put_back(content: str, **fields: Any) -> Turn:
    """History at the start of a talk that begins an hour later."""
    return said(content, **{"created_at": LATER, "put_back_at": LATER, **fields})


async def marked(memory: Memory, by: Owner | None = None) -> dict[str, bool]:
    of = by or owner()
    turns = await memory.turns(of.session_id, principal=of.principal, limit=100)
    return {each.turn_id: each.interrupted for each in turns or []}


async def test_stored_turn_is_marked(make_settings: MakeSettings) -> None:
    async with Memory.open(make_settings()) as memory:
        await memory.ready()
        assert await memory.append([said("A story.", "a"), said("Another.", "b")]) == [S, S]
        assert memory.ingest.mark_interrupted(Interruption(owner(), "a"))
        await memory.ingest.flushed()
        assert await marked(memory) == {"a": True, "b": False}


async def test_mark_follows_its_turn_in_one_commit(make_settings: MakeSettings) -> None:
    async with Memory.open(make_settings()) as memory:
        await memory.ready()
        assert memory.ingest.offer(said("A story.", "a"))
        for _ in range(2):
            assert memory.ingest.mark_interrupted(Interruption(owner(), "a"))
        await memory.ingest.flushed()
        assert await marked(memory) == {"a": True}
        assert memory.status().commits == 1


async def test_mark_reaches_nobody_elses_turn(make_settings: MakeSettings) -> None:
    ann, bob = owner(principal="ann"), owner(principal="bob")
    async with Memory.open(make_settings()) as memory:
        await memory.ready()
        await memory.append([said("Mine.", "a", by=ann), said("Hers.", "a", by=owner("session-of-eve-0001"))])
        for foreign in (bob, owner("session-of-eve-0002", principal="ann")):
            memory.ingest.mark_interrupted(Interruption(foreign, "a"))
        memory.ingest.mark_interrupted(Interruption(ann, "unknown"))
        await memory.ingest.flushed()
        assert await marked(memory, ann) == {"a": False}
        assert await marked(memory, owner("session-of-eve-0001")) == {"a": False}


async def test_put_back_history_is_not_stored_again(make_settings: MakeSettings) -> None:
    async with Memory.open(make_settings()) as memory:
        await memory.ready()
        first = [said("My name is Robin."), said("Good day, Robin.", role="assistant"), said("Cancel order 17.")]
        assert await memory.append(first) == [S, S, S]
        replayed = [put_back("My name is Robin."), put_back("Cancel order 17."), put_back("And order 18.")]
        assert await memory.append(replayed) == [D, D, S]
        assert await memory.append([put_back("Good day, Robin.")]) == [S], "the agent said it, not the user"
        later = said("Cancel order 17.", created_at=LATER)
        assert await memory.append([later]) == [S], "said again in the talk itself"
        assert len(await marked(memory)) == 6


async def test_one_talks_repetition_is_history_twice(make_settings: MakeSettings) -> None:
    """Of what the memory does not know, each is stored, though one repeats the other."""
    async with Memory.open(make_settings()) as memory:
        await memory.ready()
        assert await memory.append([put_back("Yes."), put_back("Yes.")]) == [S, S]
        assert await memory.append([put_back("Yes.")]) == [S]


async def test_history_is_compared_with_ones_own(make_settings: MakeSettings) -> None:
    ann, bob = owner(principal="ann"), owner(principal="bob")
    async with Memory.open(make_settings()) as memory:
        await memory.ready()
        assert await memory.append([said("A secret.", by=ann)]) == [S]
        assert await memory.append([put_back("A secret.", by=bob)]) == [F], "which tells nothing of what is stored"
        other = owner("session-of-ann-0002", principal="ann")
        assert await memory.append([put_back("A secret.", by=other)]) == [S], "another session"


async def test_question_that_repeats_an_old_one_is_kept(make_settings: MakeSettings) -> None:
    """It looked like history, and was answered: it is offered again as what it is."""
    async with Memory.open(make_settings()) as memory:
        await memory.ready()
        await memory.append([said("Hello.", "old")])
        looked = put_back("Hello.", turn_id="new")
        assert await memory.append([looked]) == [D]
        assert await memory.append([said("Hello.", "new", created_at=LATER)]) == [S]
        assert list(await marked(memory)) == ["old", "new"]


async def test_mark_waits_for_a_store_that_is_away(tmp_path: Path) -> None:
    async with opened(connect(SecretStr(sqlite_url(tmp_path)), timeout_s=10, patience_s=5)) as real:
        database = Obstinate(real)
        writer = GroupWriter(database, gather_s=0, clock=lambda: 1000.0, on_stored=lambda _sessions: None)
        buffer = IngestBuffer(writer, max_turns=100, max_bytes=1_000_000)
        tasks = [asyncio.create_task(work()) for work in (writer.run, buffer.run)]
        database.error = StoreAwayError("disk full")
        buffer.offer(said("A story.", "a"))
        await asyncio.wait_for(database.asked.wait(), 10)
        assert buffer.mark_interrupted(Interruption(owner(), "a"))
        database.error = None
        await asyncio.wait_for(buffer.flushed(), 20)
        assert writer.counts.stored == 1
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_full_buffer_counts_what_it_loses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with opened(connect(SecretStr(sqlite_url(tmp_path)), timeout_s=10, patience_s=5)) as real:
        writer = GroupWriter(real, gather_s=0, clock=lambda: 1000.0, on_stored=lambda _sessions: None)
        buffer = IngestBuffer(writer, max_turns=1, max_bytes=1_000_000)
        assert buffer.offer(said("A story.", "a"))
        assert not buffer.mark_interrupted(Interruption(owner(), "a"))
        assert buffer.counts.unmarked == 1
    assert "interruption_lost" in capsys.readouterr().out


async def test_refused_turn_does_not_take_the_mark_with_it(tmp_path: Path) -> None:
    async with opened(connect(SecretStr(sqlite_url(tmp_path)), timeout_s=10, patience_s=5)) as real:
        database = Obstinate(real)
        database.refuses = "bad"
        writer = GroupWriter(database, gather_s=0, clock=lambda: 1000.0, on_stored=lambda _sessions: None)
        buffer = IngestBuffer(writer, max_turns=100, max_bytes=1_000_000)
        buffer.offer(said("A story.", "a"))
        buffer.offer(said("Spoilt.", "bad"))
        buffer.mark_interrupted(Interruption(owner(), "a"))
        tasks = [asyncio.create_task(work()) for work in (writer.run, buffer.run)]
        await asyncio.wait_for(buffer.flushed(), 20)

        async def is_marked() -> bool:
            page = await real.read(partial(list_turns, session_id=SESSION, limit=9, after=None, principal="anonymous"))
            return [(each.turn_id, each.interrupted) for each in page or []] == [("a", True)]

        await eventually(is_marked)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
