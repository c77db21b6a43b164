"""One WebRTC call: a talk whose audio goes over RTP, and whose events go over a data channel (docs/azure.md §5).

Needs aiortc, which is imported only where somebody calls.
"""

import asyncio
import base64
import json
import re
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import av
from aioice import Candidate
from aiortc import RTCConfiguration, RTCDataChannel, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from token_broker.simulator.audio import SAMPLE_RATE_HZ
from token_broker.simulator.faults.fault_table import DieAfterFault
from token_broker.simulator.realtime.server_events import Event
from token_broker.simulator.realtime.simulated_talk import SimulatedTalk
from token_broker.simulator.realtime.speech.voice_track import VoiceTrack

# A call whose client never connects is given up; how soon Azure does so is not known.
_CONNECT_S = 30.0
# Until the data channel opens the newest events wait; a client that never opens one must not fill the memory.
_MOST_WAITING_EVENTS = 200
# A page that does not read its channel is hung up, and a sideband that does not read loses events.
_MOST_BUFFERED_BYTES = 4 * 1024 * 1024
_MOST_UNREAD_EVENTS = 1000
# Audio goes over RTP: these become sound, and reach neither the data channel nor a sideband.
_AUDIO_DELTAS = frozenset({"response.output_audio.delta", "response.audio.delta"})
# What `webrtcfilter=on` lets through, in the names of both dialects (docs/azure.md §5.2).
_UNFILTERED = frozenset(
    {
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "output_audio_buffer.started",
        "output_audio_buffer.stopped",
        "conversation.item.input_audio_transcription.completed",
        "conversation.item.added",
        "conversation.item.created",
        "response.output_text.delta",
        "response.output_text.done",
        "response.text.delta",
        "response.text.done",
        "response.output_audio_transcript.delta",
        "response.output_audio_transcript.done",
        "response.audio_transcript.delta",
        "response.audio_transcript.done",
    }
)


class Call:
    """A call from its offer to its end. `observers` see all events but audio, and may send: that is the sideband."""

    def __init__(self, talk: SimulatedTalk, *, filtered: bool) -> None:
        self.ended = asyncio.Event()
        self._talk = talk
        self._filtered = filtered
        self._observers: set[asyncio.Queue[Event]] = set()
        self._connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._connected = asyncio.Event()
        self._voice = VoiceTrack(lambda: self._publish(talk.played()))
        self._microphone: asyncio.Future[MediaStreamTrack] = asyncio.get_running_loop().create_future()
        self._channel: RTCDataChannel | None = None
        self._waiting: deque[str] = deque(maxlen=_MOST_WAITING_EVENTS)
        self._changed = asyncio.Event()

        @self._connection.on("track")
        def take_track(track: MediaStreamTrack) -> None:
            if track.kind == "audio" and not self._microphone.done():
                self._microphone.set_result(track)

        @self._connection.on("datachannel")
        def take_channel(channel: RTCDataChannel) -> None:
            # The first channel counts, whatever its label: Azure seems not to check it (docs/azure.md §5.1).
            if self._channel is not None:
                return
            self._channel = channel
            channel.on("message", self.receive)
            while self._waiting:
                self._send(self._waiting.popleft())

        @self._connection.on("connectionstatechange")
        def take_state() -> None:
            if self._connection.connectionState == "connected":
                self._connected.set()
            elif self._connection.connectionState in ("failed", "closed"):
                self.ended.set()

    async def answer(self, offer: str, addresses: Sequence[str]) -> str:
        """The SDP answer, with a candidate on each of `addresses`.

        Raises:
            ValueError: the offer can't be answered.

        """
        try:
            self._connection.addTrack(self._voice)
            await self._connection.setRemoteDescription(RTCSessionDescription(offer, "offer"))
            if not self._microphone.done():
                raise ValueError("the offer sends no audio")
            transports = [transceiver.receiver.transport for transceiver in self._connection.getTransceivers()]
            if self._connection.sctp is not None:
                transports.append(self._connection.sctp.transport)
            # aioice never offers loopback, and has no public way to choose addresses.
            for ice in {id(dtls): dtls.transport.iceGatherer._connection for dtls in transports}.values():  # noqa: SLF001
                gather = ice.get_component_candidates
                ice.get_component_candidates = _with_addresses(gather, addresses)  # type: ignore[method-assign]
            await self._connection.setLocalDescription(await self._connection.createAnswer())
        # aiortc's parser raises any error at all over a malformed offer: KeyError, IndexError, AttributeError.
        except Exception as error:
            raise ValueError(str(error) or type(error).__name__) from error
        return with_tcp_candidate(str(self._connection.localDescription.sdp))

    async def run(self, fault: DieAfterFault | None) -> None:
        """Holds the talk until either side, or the fault, ends it, and cleans up."""
        parts = [self._keep_time(), self._listen(), self._give_up(), *([self.die(fault)] if fault else [])]
        work = [asyncio.create_task(part) for part in parts]
        try:
            self._publish(self._talk.open(_now_s()))
            await self.ended.wait()
        finally:
            self.ended.set()
            self._talk.record.closed("server" if self._talk.ending else "client")
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            await self.close()

    async def close(self) -> None:
        """Closes the connection."""
        self._voice.stop()
        await self._connection.close()

    def receive(self, text: str | bytes) -> None:
        """A client event, from the data channel or an observer."""
        self._publish(self._talk.receive(text, _now_s()))

    def observe(self, *, states_session: bool) -> "asyncio.Queue[Event]":
        """Events from now on. An observer that leaves too many unread loses those after them."""
        queue: asyncio.Queue[Event] = asyncio.Queue(_MOST_UNREAD_EVENTS)
        if states_session:
            queue.put_nowait(self._talk.describe())
        self._observers.add(queue)
        return queue

    def leave(self, queue: "asyncio.Queue[Event]") -> None:
        self._observers.discard(queue)

    async def die(self, fault: DieAfterFault) -> None:
        """So long after it connected, the call ends in the fault's way."""
        await self._connected.wait()
        await asyncio.sleep(fault.seconds)
        if fault.how == "channel" and self._channel is not None:
            self._channel.close()
        elif fault.how == "silent":
            for transceiver in self._connection.getTransceivers():
                await transceiver.receiver.transport.transport.stop()
        else:
            self.ended.set()

    # --- Audio ----------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        track = await self._microphone
        resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE_HZ)
        try:
            while True:
                received = await track.recv()
                if not isinstance(received, av.AudioFrame):
                    continue
                for frame in resampler.resample(received):
                    pcm = bytes(frame.planes[0])[: frame.samples * 2]
                    self._publish(self._talk.hear(pcm, _now_s()))
        except MediaStreamError:
            self.ended.set()

    # --- Events ---------------------------------------------------------------------------------------------------

    def _publish(self, events: list[Event]) -> None:
        for event in events:
            self._talk.record.sent(event)
            # Nobody gets these as events: whatever `webrtcfilter` says, audio goes over RTP.
            if event["type"] in _AUDIO_DELTAS:
                self._voice.queue(base64.b64decode(event["delta"]))
                continue
            if event["type"] == "output_audio_buffer.cleared":
                self._voice.clear()
            for observer in self._observers:
                if not observer.full():
                    observer.put_nowait(event)
            if not self._filtered or event["type"] in _UNFILTERED:
                self._send(json.dumps(event, separators=(",", ":")))
        self._changed.set()

    def _send(self, text: str) -> None:
        channel = self._channel
        if channel is None:
            self._waiting.append(text)
        elif channel.readyState == "open":
            channel.send(text)
            if channel.bufferedAmount > _MOST_BUFFERED_BYTES:
                self.ended.set()

    async def _keep_time(self) -> None:
        while self._talk.ending is None:
            self._changed.clear()
            try:
                async with asyncio.timeout_at(self._talk.due_s):
                    await self._changed.wait()
            except TimeoutError:
                self._publish(self._talk.advance(_now_s()))
        self.ended.set()

    async def _give_up(self) -> None:
        """Ends a call that nobody joins."""
        try:
            await asyncio.wait_for(self._connected.wait(), _CONNECT_S)
        except TimeoutError:
            self.ended.set()


def _with_addresses(gather: Callable[..., Awaitable[list[Candidate]]], addresses: Sequence[str]) -> Any:
    async def gathered(component: int, **options: Any) -> list[Candidate]:
        return await gather(component=component, **(options | {"addresses": list(addresses)}))

    return gathered


def with_tcp_candidate(answer: str) -> str:
    """The answer with ICE over TCP offered as well, as Azure does (docs/azure.md §5.3). Nobody listens there."""

    def after(candidates: re.Match[str]) -> str:
        tcp = f"a=candidate:3002556175 1 tcp 1671430143 {candidates['host']} 3478 typ host tcptype passive"
        return f"{candidates[0]}{tcp}\r\n"

    # After the first media section's own, since it is bundled with the others.
    return re.sub(r"a=candidate:\S+ 1 udp \d+ (?P<host>\S+) .*\r\n(?!a=candidate)", after, answer, count=1)


def unusable(answer: str) -> str:
    """The answer with candidates that nobody can reach: addresses that are kept for documentation."""
    elsewhere = re.sub(r"(?m)^(a=candidate:\S+ \d+ \S+ \d+) \S+ \d+", r"\1 198.51.100.1 9", answer)
    return re.sub(r"(?m)^c=IN IP4 \S+", "c=IN IP4 198.51.100.1", elsewhere)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
