"""The guardrail's answer, or what its failure means."""

import asyncio
from dataclasses import dataclass
from typing import Literal

import pytest
from standardwebhooks import Webhook

from tests.hooks.support import SECRET, Answer, answered, hangs, raw_server
from tests.memory.support.turns import SESSION, owner
from tests.support.sockets import refused_port
from tests.tools.support import agent
from token_broker.hooks.sender import HookSender
from token_broker.observability.events import Event, GuardrailAsked
from token_broker.tools.guardrail import HttpGuardrail
from token_broker.tools.verdict import Verdict, parse_verdict


@dataclass(frozen=True)
class Guarded:
    url: str
    timeout_ms: int = 10_000
    fail: Literal["open", "closed"] = "open"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"action": "allow"}', Verdict("allow")),
        ('{"action": "allow", "score": 0.1}', Verdict("allow")),
        ('{"action": "replace", "text": " better "}', Verdict("replace", text="better")),
        ('{"action": "refuse"}', Verdict("refuse")),
        ('{"action": "refuse", "say": "I can\'t help with that."}', Verdict("refuse", say="I can't help with that.")),
        ('{"action": "replace"}', None),
        ('{"action": "replace", "text": ""}', None),
        ('{"action": "replace", "text": 7}', None),
        ('{"action": "refuse", "say": []}', None),
        ('{"action": "Allow"}', None),
        ('{"action": true}', None),
        ("{}", None),
        ("[]", None),
        ("allow", None),
        ("", None),
    ],
)
def test_verdict_is_read_strictly(body: str, expected: Verdict | None) -> None:
    assert parse_verdict(body) == expected


async def test_words_are_posted(sender: HookSender) -> None:
    events: list[Event] = []
    async with raw_server(answered(b'{"action": "replace", "text": "x"}')) as server:
        ann = agent(guardrail=Guarded(server.url))
        guardrail = HttpGuardrail(sender, observe=events.append)
        verdict = await guardrail.check(ann, owner(principal="ann"), "Größe?", "speech")
    assert verdict == Verdict("replace", text="x")
    (got,) = server.received
    assert Webhook(SECRET).verify(got.body, got.headers) == {
        "type": "guardrail.check",
        "session_id": SESSION,
        "agent_id": "elena",
        "principal": "ann",
        "text": "Größe?",
        "source": "speech",
    }
    assert [event.outcome for event in events if isinstance(event, GuardrailAsked)] == ["replace"]


async def test_agent_without_guardrail_allows(sender: HookSender) -> None:
    assert await HttpGuardrail(sender).check(agent(guardrail=None), owner(), "x", "typed") == Verdict("allow")


async def test_ended_connection_is_no_failure(sender: HookSender) -> None:
    """The server closes an idle connection as the next check is written to it."""

    async def second_answers(writer: asyncio.StreamWriter) -> None:
        if len(server.received) > 1:
            await answered(b'{"action": "allow"}')(writer)

    async with raw_server(second_answers) as server:
        verdict = await HttpGuardrail(sender).check(agent(guardrail=Guarded(server.url)), owner(), "x", "typed")
    assert verdict == Verdict("allow")
    assert len({got.headers["webhook-id"] for got in server.received}) == 1


@pytest.mark.parametrize("fail", ["open", "closed"])
@pytest.mark.parametrize(
    ("answer", "timeout_ms"),
    [
        pytest.param(answered(status=500), 10_000, id="500"),
        pytest.param(answered(b'{"action": "perhaps"}'), 10_000, id="malformed"),
        pytest.param(answered(status=302, headers="Location: /\r\n"), 10_000, id="redirect"),
        pytest.param(hangs, 300, id="late"),
        pytest.param(None, 10_000, id="refused"),
    ],
)
async def test_failure_is_as_the_agent_says(
    sender: HookSender, answer: Answer | None, timeout_ms: int, fail: Literal["open", "closed"]
) -> None:
    events: list[Event] = []
    async with raw_server(answer or hangs) as server:
        with refused_port() as port:
            url = server.url if answer else f"http://127.0.0.1:{port}/"
            ann = agent(guardrail=Guarded(url, timeout_ms, fail))
            verdict = await HttpGuardrail(sender, observe=events.append).check(ann, owner(), "words", "typed")
    assert verdict == Verdict("allow" if fail == "open" else "refuse", failed=True)
    assert [event.outcome for event in events if isinstance(event, GuardrailAsked)] == ["failed"]
