"""Recorded frames of live Azure, as the proxy and both compatible endpoints hand them to a client."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from strategies.base import Dialect
from tests.relay.support.official_models import ga_server_event, preview_server_event
from tests.relay.support.translated_talk import without_live_extras
from token_broker.relay.adapters import CompatAdapter, ProtocolAdapter, ProxyAdapter
from token_broker.relay.azure.connector import Route, UpstreamConnection
from token_broker.relay.counters import RelayCounters, TalkCounters
from token_broker.relay.event_handler import EventHandler
from token_broker.relay.resume.held_audio import HeldAudio
from token_broker.relay.resume.ledger import TalkLedger
from token_broker.relay.resume.restored import Restored
from token_broker.relay.transcripts.assembler import TurnAssembler
from token_broker.security.tokens import Owner

Event = dict[str, Any]

RECORDINGS = Path(__file__).parents[1] / "simulator/recordings"
TALKS = sorted(path.stem for path in RECORDINGS.glob("*.yaml") if path.stem != "ga_call")


def frames(name: str) -> list[str]:
    """What Azure sent, in its own order of fields."""
    loaded = yaml.safe_load((RECORDINGS / f"{name}.yaml").read_text(encoding="utf-8"))
    return [
        json.dumps(each["data"], separators=(",", ":"))
        for each in loaded["interactions"]
        if each["direction"] == "received"
    ]


class Handled:
    """A handler for one adapter, without a talk around it."""

    def __init__(self, adapter: ProtocolAdapter, upstream: Dialect) -> None:
        self.broken: list[UpstreamConnection] = []
        turns = SimpleNamespace(assembler=TurnAssembler(), feed=lambda event, now_s: None)
        handoff = SimpleNamespace(
            agent=SimpleNamespace(id="elena"),
            confirm=lambda upstream: None,
            owns_error=lambda event, upstream: False,
            owns_item=lambda event: False,
        )
        self.handler = EventHandler(
            adapter,
            Owner("session", "somebody", 1),
            turns=cast("Any", turns),
            handoff=cast("Any", handoff),
            ledger=TalkLedger(HeldAudio(1_000)),
            restored=Restored(),
            counters=RelayCounters(),
            talk=TalkCounters(),
            broken=self.broken.append,
            time_s=lambda: 100.0,
            redact=lambda text: text,
        )
        route = Route(
            "voice_live" if upstream == "preview" else "openai_realtime", upstream, "http://azure", lambda _: {}
        )
        self.upstream = UpstreamConnection(route, cast("Any", None))

    def told(self, name: str) -> list[str]:
        """What the client gets of the recording, by the fast path or by the tasks."""
        told: list[str] = []
        for text in frames(name):
            told += [text] if self.handler.forwards(text.encode()) else self.handler.handle(text, self.upstream)
        return told


def dialect_of(name: str) -> Dialect:
    return "preview" if name.startswith("voice_live") else "ga"


@pytest.mark.parametrize("name", TALKS)
@pytest.mark.parametrize("client", ["ga", "preview"])
def test_recorded_talk_fits_official_models(client: Dialect, name: str) -> None:
    handled = Handled(CompatAdapter(client), dialect_of(name))
    told = [json.loads(text) for text in handled.told(name)]
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


@pytest.mark.parametrize("name", TALKS)
def test_proxy_passes_recorded_frames_unchanged(name: str) -> None:
    handled = Handled(ProxyAdapter(), dialect_of(name))
    sent, told = frames(name), handled.told(name)
    assert handled.broken == []
    assert len(told) == len(sent)
    for before, after in zip(sent, told, strict=True):
        kind = json.loads(before)["type"]
        if kind in {"session.created", "session.updated", "response.created", "response.done"}:
            shown = json.loads(after).get("session", {})
            assert not {"instructions", "tools", "voice", "greeting", "handoff"} & set(shown)
        else:
            assert after == before
