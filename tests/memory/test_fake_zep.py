"""The Zep fake, checked against zep-python's own client and types."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from zep_python.client import AsyncZep
from zep_python.core.api_error import ApiError
from zep_python.errors import BadRequestError, NotFoundError
from zep_python.types import Message

from tests.memory.support.zep import KEY, Zep


@pytest.fixture
async def client(zep: Zep) -> AsyncIterator[AsyncZep]:
    client = AsyncZep(api_key=KEY, base_url=zep.base_url)
    yield client
    await client._client_wrapper.httpx_client.httpx_client.aclose()


def a_message(turn_id: str = "t1", **fields: Any) -> Message:
    said: dict[str, Any] = {"role": "user", "role_type": "user", "content": "hi", "created_at": "2026-11-23T12:00:00Z"}
    return Message(**{**said, "metadata": {"turn_id": turn_id}, **fields})


async def with_session(client: AsyncZep) -> None:
    await client.user.add(user_id="u1")
    await client.memory.add_session(session_id="s1", user_id="u1")


async def test_users_and_sessions_are_made_once(client: AsyncZep) -> None:
    await with_session(client)
    assert (await client.user.get("u1")).user_id == "u1"
    assert (await client.memory.get_session("s1")).user_id == "u1"
    with pytest.raises(BadRequestError):
        await client.user.add(user_id="u1")
    with pytest.raises(BadRequestError):
        await client.memory.add_session(session_id="s1", user_id="u1")


async def test_messages_are_paged_in_order(client: AsyncZep) -> None:
    await with_session(client)
    await client.memory.add("s1", messages=[a_message(f"t{number}") for number in range(5)])
    first = await client.memory.get_session_messages("s1", limit=3, cursor=0)
    second = await client.memory.get_session_messages("s1", limit=3, cursor=3)
    ids = [m.metadata["turn_id"] for page in (first, second) for m in page.messages or [] if m.metadata]
    assert ids == ["t0", "t1", "t2", "t3", "t4"]
    assert first.total_count == 5


async def test_memory_has_facts_and_last_messages(client: AsyncZep, zep: Zep) -> None:
    await with_session(client)
    zep.facts = {"s1": ["likes tea"], "u1": ["lives in Bergen"]}
    await client.memory.add("s1", messages=[a_message("t1"), a_message("t2")])
    memory = await client.memory.get("s1", lastn=1)
    assert [fact.fact for fact in memory.relevant_facts or []] == ["likes tea"]
    assert len(memory.messages or []) == 1
    found = await client.memory.search_sessions(user_id="u1", text="where", search_scope="facts", limit=3)
    assert [result.fact.fact for result in found.results or [] if result.fact] == ["lives in Bergen"]


async def test_deleting_user_deletes_sessions(client: AsyncZep) -> None:
    await with_session(client)
    await client.user.delete("u1")
    with pytest.raises(NotFoundError):
        await client.memory.get("s1")
    with pytest.raises(NotFoundError):
        await client.memory.delete("s1")


@pytest.mark.parametrize(
    "messages",
    [
        [a_message() for _ in range(31)],
        [],
        [a_message(role_type="narrator")],
        [a_message(created_at="yesterday")],
        [a_message(content="")],
    ],
    ids=["31 messages", "none", "an unknown role", "an unreadable time", "no content"],
)
async def test_invalid_requests_are_refused(client: AsyncZep, messages: list[Message]) -> None:
    await with_session(client)
    with pytest.raises(ApiError) as caught:
        await client.memory.add("s1", messages=messages)
    assert caught.value.status_code == 400


async def test_wrong_key_and_unknown_session(client: AsyncZep, zep: Zep) -> None:
    with pytest.raises(ApiError) as caught:
        await client.memory.add("s9", messages=[a_message()])
    assert caught.value.status_code == 404
    stranger = AsyncZep(api_key="other", base_url=zep.base_url)
    with pytest.raises(ApiError) as caught:
        await stranger.user.add(user_id="u1")
    assert caught.value.status_code == 401
    await stranger._client_wrapper.httpx_client.httpx_client.aclose()
