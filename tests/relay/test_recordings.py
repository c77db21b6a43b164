"""Recorded frames of live Azure, as the proxy and both compatible endpoints hand them to a client."""

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from strategies.base import Dialect
from tests.calls.test_sideband import listen
from tests.relay.support.azure import AzureTalk, scripted_azure
from tests.relay.support.broker import RecordingIngest, broker
from tests.relay.support.official_models import ga_server_event, preview_server_event
from tests.relay.support.recordings import RECORDED, VARIATIONS, Event, dialect_of, recorded, varied
from tests.relay.support.translated_talk import without_live_extras
from tests.relay.test_streamed_turns import OWNER, run, words
from token_broker.relay.adapters import CompatAdapter, ProtocolAdapter, ProxyAdapter
from token_broker.relay.answers.actions import Tool
from token_broker.relay.answers.answer_retries import AnswerRetries
from token_broker.relay.answers.hidden_calls import HiddenCalls
from token_broker.relay.answers.sequencer import AnswerSequencer
from token_broker.relay.answers.turn_clock import TurnClock
from token_broker.relay.azure.connector import Route, UpstreamConnection
from token_broker.relay.counters import RelayCounters, TalkCounters
from token_broker.relay.event_handler import EventHandler
from token_broker.relay.resume.held_audio import HeldAudio
from token_broker.relay.resume.ledger import TalkLedger
from token_broker.relay.resume.restored import Restored
from token_broker.relay.transcripts.recorder import TurnRecorder

each_recording = pytest.mark.parametrize("name", RECORDED)
each_variation = pytest.mark.parametrize("variation", VARIATIONS)


def frames(events: list[Event]) -> list[str]:
    """As Azure writes them."""
    return [json.dumps(event, separators=(",", ":")) for event in events]


class Handled:
    """A handler for one adapter, without a talk around it."""

    def __init__(self, adapter: ProtocolAdapter, upstream: Dialect) -> None:
        self.broken: list[UpstreamConnection] = []
        self.answered: list[str] = []
        self.ingest = RecordingIngest()
        turns = TurnRecorder(
            OWNER, "elena", ingest=self.ingest, counters=TalkCounters(), on_lost=lambda: pytest.fail("a turn was lost")
        )
        self.turns = turns
        handoff = SimpleNamespace(
            agent=SimpleNamespace(id="elena"),
            session_told=lambda event, upstream: None,
            owns_error=lambda event, upstream: False,
            holds=False,
        )
        ledger = TalkLedger(HeldAudio(1_000))
        tools = SimpleNamespace(get=lambda name: Tool(name, "client"))  # the recorded calls were the client's
        sequencer = AnswerSequencer(lambda: cast("Any", tools), facts=ledger.facts)
        sequencer.begin(upstream, 100.0)
        answers = SimpleNamespace(azure_sent=lambda event: sequencer.azure_sent(event, 100.0), sequencer=sequencer)
        guard = SimpleNamespace(azure_sent=lambda event: True, for_client=lambda event: event)
        self.handler = EventHandler(
            adapter,
            OWNER,
            turns=turns,
            handoff=cast("Any", handoff),
            ledger=ledger,
            answers=cast("Any", answers),
            hidden=HiddenCalls(lambda name: True, sequencer.calls.withholds),
            guard=cast("Any", guard),
            restored=Restored(),
            clock=TurnClock(),
            retries=AnswerRetries(asks=True),
            counters=RelayCounters(),
            talk=TalkCounters(),
            broken=self.broken.append,
            user_spoke=lambda: None,
            gives_no_answers=self.broken.append,
            answered=lambda turn, upstream: self.answered.append(turn.begins),
            time_s=lambda: 100.0,
            redact=lambda text: text,
        )
        route = Route(
            "voice_live" if upstream == "preview" else "openai_realtime", upstream, "http://azure", lambda _: {}
        )
        self.upstream = UpstreamConnection(route, cast("Any", None))

    def told(self, events: list[Event]) -> list[str]:
        """What the client gets of the recording, by the fast path or by the tasks."""
        told: list[str] = []
        for text in frames(events):
            told += [text] if self.handler.forwards(text.encode()) else self.handler.handle(text, self.upstream)
        return told


@each_recording
@pytest.mark.parametrize("client", ["ga", "preview"])
def test_recorded_talk_fits_official_models(client: Dialect, name: str) -> None:
    handled = Handled(CompatAdapter(client), dialect_of(name))
    told = [json.loads(text) for text in handled.told(recorded(name))]
    assert handled.broken == []
    assert {"response.created", "response.done"} <= {event["type"] for event in told}
    for event in told:
        assert event["event_id"]
        (ga_server_event if client == "ga" else preview_server_event)(without_live_extras(event))
    ids = [event["event_id"] for event in told]
    assert len(set(ids)) == len(ids)
    ends = [event["item"]["id"] for event in told if event["type"] == "conversation.item.done"]
    assert len(set(ends)) == len(ends)
    assert bool(ends) is (client == "ga")


@each_recording
def test_proxy_passes_recorded_frames_unchanged(name: str) -> None:
    handled = Handled(ProxyAdapter(), dialect_of(name))
    sent, told = frames(recorded(name)), handled.told(recorded(name))
    assert handled.broken == []
    assert len(told) == len(sent)
    for before, after in zip(sent, told, strict=True):
        kind = json.loads(before)["type"]
        if kind in {"session.created", "session.updated", "response.created", "response.done"}:
            shown = json.loads(after).get("session", {})
            assert not {"instructions", "tools", "voice", "greeting", "handoff"} & set(shown)
        else:
            assert after == before


# --- Whatever else a recording may have ------------------------------------------------------------------------------


@each_recording
@each_variation
def test_no_prefix_of_a_recording_loses_words(variation: str, name: str) -> None:
    events = varied(name, variation)
    assert words(events)
    for length in range(1, len(events) + 1):
        kept = {turn.item_id: turn.content for turn in run(events[:length])}
        assert kept == words(events[:length]), length


@each_recording
@each_variation
@pytest.mark.parametrize("client", ["proxy", "ga", "preview"])
def test_replay_is_told_without_a_fault(client: str, variation: str, name: str) -> None:
    adapter = ProxyAdapter() if client == "proxy" else CompatAdapter(cast("Dialect", client))
    handled = Handled(adapter, dialect_of(name))
    events = varied(name, variation)
    told = [json.loads(text) for text in handled.told(events)]
    handled.turns.flush()
    assert handled.broken == []
    assert {turn.turn_id: turn.content for turn in handled.ingest.turns} == words(events)
    assert not [event for event in told if event["type"] == "error"]
    # Everything that is said reaches the client, by whatever name its dialect has for it.
    assert said(told) == said(events)
    usual = {event["type"] for event in map(json.loads, Handled(adapter, dialect_of(name)).told(recorded(name)))}
    assert usual <= {event["type"] for event in told}


def said(events: list[Event]) -> list[str]:
    return [event["delta"] for event in events if event["type"].endswith(("transcript.delta", "text.delta"))]


@pytest.mark.usefixtures("late_transcripts_are_missed")
@pytest.mark.parametrize("name", [name for name in RECORDED if dialect_of(name) == "ga"])
@pytest.mark.parametrize("variation", ["as recorded", "all at once"])
async def test_replay_by_sideband_keeps_its_turns(variation: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_broker.calls.listener._PAUSES_S", (0.02, 0.02, 0.02))
    events = varied(name, variation)

    async def script(talk: AzureTalk) -> None:
        for event in events:
            await talk.send(event)
        await talk.connection.wait_closed()

    async with scripted_azure(script) as azure, broker(azure.url) as running:
        listen(running, azure)
        await running.ingest.reach(len(words(events)))
        assert {turn.turn_id: turn.content for turn in running.ingest.turns} == words(events)
        assert running.relay.snapshot().turns_lost == 0
        running.limits.end("rtc_1")
        await running.quiet()
