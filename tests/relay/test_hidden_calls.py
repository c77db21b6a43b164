"""Calls that the broker runs are in nothing that a client sees."""

from typing import Any

import pytest

from token_broker.relay.answers.hidden_calls import HiddenCalls

CALL = {"id": "item_2", "type": "function_call", "call_id": "call_1", "name": "order"}
OUTPUT = {"id": "item_3", "type": "function_call_output", "call_id": "call_1", "output": "sent"}
OWN = {"id": "item_9", "type": "function_call", "call_id": "call_9", "name": "map"}


def hidden(*withheld: str) -> HiddenCalls:
    calls = HiddenCalls(lambda name: name == "map", lambda call_id: call_id in withheld)
    assert calls.for_client({"type": "response.output_item.added", "item": CALL}) is None
    return calls


@pytest.mark.parametrize(
    "event",
    [
        {"type": "conversation.item.added", "item": CALL},
        {"type": "conversation.item.created", "item": {**CALL, "name": "map"}},
        {"type": "conversation.item.retrieved", "item": CALL},
        {"type": "response.function_call_arguments.delta", "item_id": "item_2", "delta": "{"},
        {"type": "response.function_call_arguments.done", "call_id": "call_1", "arguments": "{}"},
        {"type": "response.output_item.done", "item": CALL},
        {"type": "conversation.item.done", "item": OUTPUT},
    ],
    ids=lambda event: event["type"],
)
def test_event_of_a_hidden_call_is_hidden(event: dict[str, Any]) -> None:
    assert hidden().for_client(event) is None


@pytest.mark.parametrize(
    "event",
    [
        {"type": "conversation.item.added", "item": OWN, "previous_item_id": "item_1"},
        {"type": "response.function_call_arguments.done", "item_id": "item_9", "call_id": "call_9"},
        {"type": "conversation.item.done", "item": {**OUTPUT, "call_id": "call_9"}},
        {"type": "response.done", "response": {"id": "r", "output": [OWN, {"type": "message"}, None]}},
        {"type": "response.done", "response": {"output": None}},
        {"type": "response.created", "response": "odd"},
        {"type": "response.output_item.done", "item": None},
    ],
    ids=str,
)
def test_other_events_stay_as_they_are(event: dict[str, Any]) -> None:
    assert hidden().for_client(event) is event


def test_response_is_shown_without_them() -> None:
    response = {"id": "r", "status": "completed", "output": [CALL, OWN, OUTPUT]}
    shown = hidden().for_client({"type": "response.done", "response": response})
    assert shown == {"type": "response.done", "response": {**response, "output": [OWN]}}


def test_items_follow_what_is_shown() -> None:
    calls = hidden()
    for item, previous in ((CALL, "item_1"), (OUTPUT, "item_2")):
        assert calls.for_client({"type": "conversation.item.added", "item": item, "previous_item_id": previous}) is None
    said = {"type": "conversation.item.added", "item": {"id": "item_4", "type": "message"}}
    assert calls.for_client({**said, "previous_item_id": "item_3"}) == {**said, "previous_item_id": "item_1"}


def test_clients_call_may_be_withheld() -> None:
    calls = hidden("call_9")
    for kind in ("response.output_item.done", "conversation.item.done"):
        assert calls.for_client({"type": kind, "item": OWN}) is None
    assert calls.for_client({"type": "response.function_call_arguments.done", "call_id": "call_9"}) is None
    assert calls.for_client({"type": "conversation.item.added", "item": {**OUTPUT, "call_id": "call_9"}}) is None
