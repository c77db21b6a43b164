"""Arguments of a call: an object that fits the parameters, or a sentence that names the wrong field."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.memory.support.turns import owner
from token_broker.sessions.agent_tools import FunctionTool
from token_broker.tools.arguments import MAX_ARGUMENTS_BYTES, bound_arguments, checked_arguments

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "number": {"type": "string", "pattern": "^[0-9]+$"},
        "lines": {"type": "array", "maxItems": 2, "items": {"type": "object", "required": ["sku"]}},
        "size": {"enum": ["s", "m"]},
        "amount": {"type": "number", "minimum": 1},
        "customer": {"type": "string"},
        "session": {"type": "string"},
    },
    "required": ["number", "customer"],
    "additionalProperties": False,
}


_names = st.sampled_from(["number", "lines", "size", "amount", "customer", "session", "other", ""])
_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)


def tool(**fields: Any) -> FunctionTool:
    said = {"type": "function", "name": "order", "parameters": PARAMETERS, "bind": {"customer": "principal"}}
    return FunctionTool.model_validate(said | fields)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"number": "7"}', {"number": "7"}),
        ('{"number": "7", "lines": [{"sku": 1}]}', {"number": "7", "lines": [{"sku": 1}]}),
        ('{"number": "7", "customer": "eve@example.com"}', {"number": "7"}),  # bound: the model's word is dropped
        ('{"number": "7", "customer": 3}', {"number": "7"}),
    ],
)
def test_fitting_arguments(text: str, expected: dict[str, Any]) -> None:
    assert checked_arguments(tool(), text) == expected


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "`number` is missing"),
        ("{}", "`number` is missing"),
        ('{"number": 7}', "`number` does not fit type"),
        ('{"number": "x"}', "`number` does not fit pattern ^[0-9]+$"),
        ('{"number": "7", "nummer": 1}', "`nummer` is not known"),
        ('{"number": "7", "size": "xl"}', '`size` does not fit enum ["s", "m"]'),
        ('{"number": "7", "amount": 0}', "`amount` does not fit minimum 1"),
        ('{"number": "7", "lines": [{"sku": 1}, {}]}', "`lines.1.sku` is missing"),
        ('{"number": "7", "lines": [{}, {}, {}]}', "`lines` does not fit maxItems 2"),
        ('{"number": "7", "lines": 1}', "`lines` does not fit type"),
        ("[]", "not a JSON object"),
        ("null", "not a JSON object"),
        ('"{}"', "not a JSON object"),
        ('{"number": "7"', "not complete JSON"),
        ('{"number": "7"} and more', "not complete JSON"),
        ('{"number": "7", "amount": NaN}', "not complete JSON"),
        ('{"number": "\\ud800"}', "not complete JSON"),
        ("[" * 3000, "not complete JSON"),
        ('{"number": "' + "7" * MAX_ARGUMENTS_BYTES + '"}', "too long"),
    ],
)
def test_wrong_arguments_are_named(text: str, named: str) -> None:
    sentence = checked_arguments(tool(), text)
    assert isinstance(sentence, str)
    assert named in sentence
    assert len(sentence) < 400


@pytest.mark.slow
@given(st.text(max_size=200) | st.recursive(_scalars, lambda inner: st.lists(inner) | st.dictionaries(_names, inner)))
def test_anything_is_judged(said: Any) -> None:
    """Whatever a model says becomes arguments that fit, or a sentence."""
    found = checked_arguments(tool(), said if isinstance(said, str) else json.dumps(said))
    if isinstance(found, str):
        assert found.endswith(("Nothing was called.", "Nothing was called; correct it and call again."))
    else:
        assert tool().validator.is_valid(found)


def test_values_are_not_repeated() -> None:
    sentence = checked_arguments(tool(), '{"number": "the user\'s secret"}')
    assert isinstance(sentence, str)
    assert "secret" not in sentence


def test_broker_fills_bound_names() -> None:
    bound = tool(bind={"customer": "principal", "session": "session_id", "label": "user_id"})
    ann = owner("session-of-ann-0001", principal="ann@example.com")
    told = {"number": "7", "customer": "eve@example.com"}
    assert bound_arguments(bound, told, ann) == {
        "number": "7",
        "customer": "ann@example.com",
        "session": "session-of-ann-0001",
        "label": None,
    }


def test_model_does_not_see_bound_names() -> None:
    declared = tool(bind={"customer": "principal", "extra": "user_id"}).declared()
    assert declared["parameters"]["required"] == ["number"]
    assert not {"customer", "extra"} & declared["parameters"]["properties"].keys()
    assert PARAMETERS["required"] == ["number", "customer"]


def test_pattern_cannot_keep_the_loop() -> None:
    """The model's text against a pattern that backtracks for years."""
    slow = {"type": "object", "properties": {"a": {"type": "string", "pattern": r"^(?=(a+)+$)\1*b"}}}
    sentence = checked_arguments(tool(parameters=slow, bind={}), '{"a": "' + "a" * 5000 + '!"}')
    assert isinstance(sentence, str)
