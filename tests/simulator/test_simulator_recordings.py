"""The simulator says what recorded Azure said: each recording's client is replayed, and the answers are compared."""

import copy
import functools
import itertools
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter

from tests.simulator.models import PACKAGE_LEAVES_OUT, extras
from token_broker.simulator import SimulatorConfig, serve
from token_broker.simulator.realtime.dialects import GA, VOICE_LIVE
from token_broker.simulator.realtime.response_plan import ScriptedResponse
from token_broker.simulator.realtime.simulated_talk import SimulatedTalk, TalkOptions
from token_broker.simulator.session_bodies import ga_session, voice_live_session

Event = dict[str, Any]

RECORDINGS = Path(__file__).parent / "recordings"
TALKS = sorted(path.stem for path in RECORDINGS.glob("*.yaml") if path.stem != "ga_call")
_ID = re.compile(r"(item|resp|conv|sess|call)_\w+")
# What stands in a frame by chance, or is a model's own choice.
_VARIES = {"event_id", "delta", "obfuscation", "expires_at"}


@functools.cache
def _interactions(name: str) -> list[dict[str, Any]]:
    """What was exchanged. It is shared: no test may change it."""
    # PyYAML's parser in C: the one in Python takes a second a recording.
    loaded = yaml.load((RECORDINGS / f"{name}.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)
    return list(loaded["interactions"])


def _received(name: str) -> list[Event]:
    return [each["data"] for each in _interactions(name) if each["direction"] == "received"]


def _script(event: Event) -> ScriptedResponse:
    """What makes the simulator say and call what a recorded response did."""
    said, calls = None, []
    for item in event["response"]["output"]:
        if item["type"] == "message":
            (part,) = item["content"]
            said = part.get("transcript") or part.get("text")
        else:
            calls.append({"name": item["name"], "arguments": item["arguments"]})
    return ScriptedResponse.model_validate({"say": said, "calls": calls, "status": event["response"]["status"]})


class _Replay:
    """A recorded client's part in a talk with the simulator. `came` is what the simulator answered."""

    def __init__(self, name: str) -> None:
        answers = [_script(event) for event in _received(name) if event["type"] == "response.done"]
        options = TalkOptions(next_response=lambda: answers.pop(0))
        model = "gpt-realtime"
        if name.startswith("ga"):
            session: Any = ga_session.RealtimeSession(type="realtime", model=model)
            self._talk = SimulatedTalk(GA, session, options, 1_800_000_000)
        else:
            session = voice_live_session.VoiceLiveSession(model=model)
            self._talk = SimulatedTalk(VOICE_LIVE, session, options, 1_800_000_000)
        self._now_s = 100.0
        self._call_ids: dict[str, str] = {}
        opened = self._talk.open(self._now_s)
        self.came: list[Event] = [] if name == "ga_sideband" else opened
        recorded_ids = [event["call_id"] for event in _received(name) if event["type"].endswith("arguments.done")]
        for interaction in _interactions(name):
            if interaction["direction"] == "sent":
                self._wait()
                text = json.dumps(interaction["data"])
                for recorded, ours in zip(recorded_ids, self._called(), strict=False):
                    text = text.replace(recorded, ours)
                self.came += self._talk.receive(text, self._now_s)
        self._wait()

    def _wait(self) -> None:
        until_s = self._now_s + 60
        while self._talk.due_s <= until_s:
            self._now_s = max(self._talk.due_s, self._now_s)
            self.came += self._talk.advance(self._now_s)

    def _called(self) -> list[str]:
        return [event["call_id"] for event in self.came if event["type"].endswith("arguments.done")]


@functools.cache
def _answers(name: str) -> list[Event]:
    """What the simulator answers the recorded client."""
    return _Replay(name).came


def _comparable(events: list[Event]) -> list[Event]:
    """Events with numbers for ids, and of each run of deltas the first of each kind."""
    numbers: dict[str, str] = {}
    counts: dict[str, Any] = {}

    def plain(value: Any, name: str = "") -> Any:
        if name in _VARIES and value is not None:
            return "…"
        if name == "usage" and value is not None:
            return _shape(value)
        if isinstance(value, dict):
            return {inner: plain(part, inner) for inner, part in value.items()}
        if isinstance(value, list):
            return [plain(part) for part in value]
        if isinstance(value, str) and (found := _ID.fullmatch(value)):
            if value not in numbers:
                numbers[value] = f"{found[1]} {next(counts.setdefault(found[1], itertools.count(1)))}"
            return numbers[value]
        return value

    compared: list[Event] = []
    run: set[str] = set()
    for event in events:
        if not event["type"].endswith(".delta"):
            run.clear()
        elif event["type"] in run:
            continue
        else:
            run.add(event["type"])
        compared.append(plain(event))
    return compared


def _shape(value: Any) -> Any:
    """The fields of a usage, and that all of them are numbers."""
    if isinstance(value, dict):
        return {name: _shape(part) for name, part in value.items()}
    return type(value).__name__


def _as_of_the_newest(event: Event) -> Event:
    """Two recordings are of an older Voice Live, which had fewer fields and no format yet in `session.created`."""
    session = event.get("session", {})
    if "truncation_strategy" in session:
        session = {"greeting": None, "handoff": None} | session
        session["output_audio_format"] = session["output_audio_format"] or "pcm16"
        return event | {"session": session}
    return event


@pytest.mark.parametrize("name", TALKS)
def test_replayed_client_is_answered_as_recorded(name: str) -> None:
    recorded = _comparable([_as_of_the_newest(event) for event in _received(name)])
    came = _comparable(_answers(name))
    assert [event["type"] for event in came] == [event["type"] for event in recorded]
    for ours, azures in zip(came, recorded, strict=True):
        assert ours == azures
        # Voice Live writes the id first, and a reader may go by the frame's beginning.
        assert list(ours)[:2] == list(azures)[:2]


@pytest.mark.parametrize("name", TALKS)
def test_obfuscation_pads_deltas_as_recorded(name: str) -> None:
    for events in (_received(name), _answers(name)):
        padded = {
            event["type"]: len(event["delta"]) + len(event["obfuscation"]) for event in events if "obfuscation" in event
        }
        assert bool(padded) == name.startswith("ga")
        assert all(length % 16 == 0 for length in padded.values())


def test_extra_fields_are_those_of_recordings() -> None:
    parser: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)
    recorded = {
        field
        for name in TALKS
        if name.startswith("ga")
        for event in _received(name)
        for field in extras(parser.validate_python(event, strict=True))
    }
    assert recorded == PACKAGE_LEAVES_OUT


# --- HTTP: the mint and the call ----------------------------------------------------------------------------------


def _fields(value: Any) -> Any:
    """JSON with its values' types in place of values that Azure makes up."""
    if isinstance(value, dict):
        return {name: _fields(part) for name, part in value.items()}
    return value if value is None or isinstance(value, str | bool | list) else type(value).__name__


async def test_mint_and_call_answer_as_recorded() -> None:
    mint, offer = _interactions("ga_call")
    async with (
        serve(SimulatorConfig(ice_addresses=("127.0.0.1",))) as azure,
        httpx.AsyncClient(base_url=azure.base_url, timeout=10) as client,
    ):
        path = httpx.URL(mint["request"]["uri"]).raw_path.decode()
        minted = await client.post(path, json=mint["request"]["parsed_body"], headers={"api-key": "simulated-key"})
        _compare_heads(minted, mint["response"])
        azures, ours = copy.deepcopy(mint["response"]["parsed_body"]), minted.json()
        for answer in (azures, ours):
            assert re.fullmatch(r"sess_\w+", answer["session"].pop("id"))
            assert answer.pop("value").startswith("ek_")
        assert _fields(ours) == _fields(azures)

        path = httpx.URL(offer["request"]["uri"]).raw_path.decode()
        secret = minted.json()["value"]
        headers = {"authorization": f"Bearer {secret}", "content-type": "application/sdp"}
        answered = await client.post(path, content=offer["request"]["body"], headers=headers)
        _compare_heads(answered, offer["response"])
        assert answered.headers["content-type"] == offer["response"]["headers"]["content-type"][0]
        location = r"/v1/realtime/calls/rtc_[0-9a-f]{32}"
        for found in (answered.headers["location"], offer["response"]["headers"]["location"][0]):
            assert re.fullmatch(location, found)
        azures_sdp = offer["response"]["body"]["string"]
        assert _sections(answered.text) == _sections(azures_sdp)
        assert _candidates(answered.text) == _candidates(azures_sdp) == {"udp", "tcp"}


def _compare_heads(answer: httpx.Response, recorded: dict[str, Any]) -> None:
    assert answer.status_code == recorded["status"]["code"]
    assert set(recorded["headers"]) <= set(answer.headers)
    exposed = recorded["headers"].get("access-control-expose-headers")
    assert exposed is None or answer.headers["access-control-expose-headers"] == exposed[0]


def _sections(sdp: str) -> list[str]:
    return [line.split()[0] for line in sdp.splitlines() if line.startswith("m=")]


def _candidates(sdp: str) -> set[str]:
    return {line.split()[2] for line in sdp.splitlines() if line.startswith("a=candidate")}
