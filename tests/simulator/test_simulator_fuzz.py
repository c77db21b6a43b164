"""Whatever a client sends is answered, and the talk goes on."""

import base64
import copy
import json
import random
from typing import Any

import pytest

from tests.simulator.scene import DIALECTS, Scene, user_text
from tests.simulator.support import silence, speech
from token_broker.simulator.realtime.dialects import GA, PREVIEW, Dialect

Event = dict[str, Any]

SPOKEN = base64.b64encode(speech(0.4) + silence(0.6)).decode()
CLOCK = {"type": "function", "name": "clock", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}
DOCS = {"type": "mcp", "server_label": "docs", "server_url": "https://mcp.example", "allowed_tools": ["search"]}
TEXTS = ["hi", "[call clock {}]", "[call search {}]", "[fail]", "[incomplete]"]
ODD: list[Any] = [None, True, 0, -1, 2.5, "", "odd", [], {}, [None], [[]], {"type": None}]
# Stands for the id of some item of the talk.
ID = "an item"


def _events(dialect: Dialect) -> list[Event]:
    whisper = {"model": "gpt-realtime-whisper"}
    nested = {"audio": {"input": {"transcription": whisper}}}
    tools = [CLOCK] if dialect is PREVIEW else [CLOCK, DOCS]
    session: Event = {"tools": tools, **(nested if dialect is GA else {"input_audio_transcription": whisper})}
    items: list[Event] = [
        *map(user_text, TEXTS),
        {"type": "message", "role": "assistant", "content": [{"type": dialect.text_part, "text": "a"}]},
        {"type": "function_call_output", "call_id": "c", "output": "o"},
        {"type": "mcp_approval_response", "approval_request_id": ID, "approve": True},
    ]
    return [
        {"type": "session.update", "session": session | ({"type": "realtime"} if dialect is GA else {})},
        {"type": "input_audio_buffer.append", "audio": SPOKEN},
        *({"type": f"input_audio_buffer.{name}"} for name in ("commit", "clear")),
        {"type": "output_audio_buffer.clear"},
        *({"type": "conversation.item.create", "item": item} for item in items),
        {"type": "conversation.item.truncate", "item_id": ID, "content_index": 0, "audio_end_ms": 0},
        *({"type": f"conversation.item.{name}", "item_id": ID} for name in ("delete", "retrieve")),
        {"type": "response.create"},
        {"type": "response.create", "response": {"conversation": "none", "tools": [CLOCK], "tool_choice": "required"}},
        {"type": "response.cancel"},
    ]


def _spoilt(event: Event, dice: random.Random) -> Event:
    """The event with something odd in it, or something missing."""
    event = copy.deepcopy(event)
    at: Any = event
    while True:
        key = dice.choice(list(at) if isinstance(at, dict) else range(len(at)))
        if isinstance(at[key], dict | list) and at[key] and dice.random() < 0.75:
            at = at[key]
        elif dice.random() < 0.6:
            at[key] = dice.choice(ODD)
            return event
        else:
            del at[key]
            return event


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("server_plays", [False, True])
def test_any_event_is_answered_and_talk_goes_on(dialect: Dialect, server_plays: bool) -> None:
    dice = random.Random(dialect.name)
    for _ in range(12):
        scene = Scene(
            dialect, server_plays=server_plays, transcript_timing=dice.choice(["during_answer", "after_answer"])
        )
        for _ in range(30):
            event = dice.choice(_events(dialect))
            text = json.dumps(_spoilt(event, dice) if dice.random() < 0.4 else event)
            ids = [each["item"]["id"] for each in scene.events if "item" in each]
            scene.receive(text.replace(ID, dice.choice(ids)) if ids else text)
            scene.wait(dice.choice([0, 0.02, 0.1, 1]))
        scene.wait(30)
        created = [event["response"]["id"] for event in scene.all("response.created")]
        assert [event["response"]["id"] for event in scene.all("response.done")] == created
        scene.events.clear()
        scene.update(instructions="Still here.")
        assert scene.only("session.updated")["session"]["instructions"] == "Still here."
