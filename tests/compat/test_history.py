"""Clients that put their history back: what the memory has already is not stored again."""

from typing import Any

import pytest

from tests.compat.conftest import OpenCompat
from tests.simulator.support import Caller

PATH = "/v1/realtime?model=gpt-realtime"


def message(role: str, text: str, **fields: Any) -> dict[str, Any]:
    kind = "input_text" if role == "user" else "output_text"
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text}], **fields}


async def ask(caller: Caller, *items: dict[str, Any]) -> None:
    for item in items:
        await caller.send("conversation.item.create", item=item)
    await caller.send("response.create")
    await caller.hear("response.done")


@pytest.mark.parametrize("ids", [False, True], ids=["without ids", "with its own ids"])
async def test_put_back_history_is_stored_once(compat_endpoints: OpenCompat, ids: bool) -> None:
    texts = ["My name is Robin.", "I have a question.", "Please cancel order 17."]
    history = [message("user", text, **({"id": f"msg_{number}"} if ids else {})) for number, text in enumerate(texts)]
    async with compat_endpoints(recall_budget_s=0) as compat:
        secret = await compat.secret()
        async with compat.connect(PATH, secret=secret) as caller:
            await caller.hear("session.created")
            await ask(caller, *history)
        before = await compat.turns_once_there(secret, 4)
        assert [turn["content"] for turn in before if turn["role"] == "user"] == texts
        async with compat.connect(PATH, secret=secret) as caller:
            await caller.hear("session.created")
            await ask(caller, history[0], message("assistant", "Good day, Robin."), *history[1:])
            await ask(caller, message("user", "Please cancel order 17."))
        after = await compat.turns_once_there(secret, 7)
        said = [turn["content"] for turn in after if turn["role"] == "user"]
        assert said == [*texts, "Please cancel order 17."], "the last was said in the second talk itself"


async def test_first_question_may_repeat_an_old_one(compat_endpoints: OpenCompat) -> None:
    async with compat_endpoints() as compat:
        secret = await compat.secret()
        for talks in (1, 2):
            async with compat.connect(PATH, secret=secret) as caller:
                await caller.hear("session.created")
                await ask(caller, message("user", "Hello."))
            turns = await compat.turns_once_there(secret, 2 * talks)
            assert [turn["content"] for turn in turns if turn["role"] == "user"] == ["Hello."] * talks
