"""A talk measures each turn's wait, tells its client, and counts it by transport, agent and resource."""

import pytest

from tests.relay.support.azure import scripted_azure
from tests.relay.support.broker import broker
from token_broker.observability.events import Event, TalkEnded, TurnAnswered

pytestmark = pytest.mark.usefixtures("late_transcripts_are_missed")


@pytest.mark.parametrize(
    ("path", "transport"), [("", "websocket_proxy"), ("/realtime", "compat_websocket")], ids=["proxy", "compatible"]
)
async def test_turns_wait_is_measured(path: str, transport: str) -> None:
    seen: list[Event] = []
    async with scripted_azure() as azure, broker(azure.url, observe=seen.append) as running:
        async with running.client(path=path) as client:
            await client.until("session.created" if path else "broker.ready")
            talk = await azure.talk()
            await talk.send({"type": "input_audio_buffer.speech_started", "item_id": "item_1", "audio_start_ms": 0})
            await talk.send({"type": "input_audio_buffer.speech_stopped", "item_id": "item_1", "audio_end_ms": 900})
            await talk.commit("item_1")
            await talk.say("item_2", "Here I am.")
            await client.until("response.done")
            await talk.say("item_3", "I say more, unasked.", response_id="resp_2")
            await client.until("response.done")
        await running.quiet()
        told = [event for event in client.events if event["type"] == "broker.latency"]
        (turn,) = [event for event in seen if isinstance(event, TurnAnswered)]
        (ended,) = [event for event in seen if isinstance(event, TalkEnded)]
        assert (turn.transport, turn.agent_id, turn.resource) == (transport, "elena", "default")
        assert ended.turn_latencies_ms == (round(turn.wait_s * 1000, 1),)
        assert running.relay.snapshot().turn_latency_ms.p95 == ended.turn_latencies_ms[0]
        if path:
            assert told == []
            return
        assert [(event["turn_ms"], event["from"]) for event in told] == [(round(turn.wait_s * 1000), "speech_stopped")]
        kinds = [event["type"] for event in client.events]
        assert kinds[kinds.index("broker.latency") + 1] == "response.audio.delta"
