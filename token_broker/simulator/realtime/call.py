"""One WebRTC call: a talk whose audio goes over RTP, and whose events go over a data channel (docs/azure.md §5).

Needs aiortc, which is imported only where somebody calls.
"""

import asyncio
import base64
import json
import re
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import av
from aioice import Candidate
from aiortc import RTCConfiguration, RTCDataChannel, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from token_broker.simulator.audio import SAMPLE_RATE_HZ
from token_broker.simulator.faults.call_faults import DataChannelFault, DieAfterFault
from token_broker.simulator.realtime.speech.voice_track import VoiceTrack
from token_broker.simulator.records.transcript import EndedBy, TalkRecord

Event = dict[str, Any]

_AUDIO_LINE = re.compile(r"(?m)^m=audio ")
_OWN_LABEL = "voice-live-events"
# A call whose client never connects is given up; how soon Azure does so is not known.
_CONNECT_S = 30.0
# Until the data channel opens the newest events wait; a client that never opens one must not fill the memory.
_MOST_WAITING_EVENTS = 200
# A page that does not read its channel is hung up.
_MOST_BUFFERED_BYTES = 4 * 1024 * 1024
# Audio goes over RTP: these become sound, and reach neither the data channel nor a sideband.
_AUDIO_DELTAS = frozenset({"response.output_audio.delta", "response.audio.delta", "session.output_audio.delta"})
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


class TalkEnding(Protocol):
    """How the server ends a talk by itself."""

    @property
    def code(self) -> int: ...
    @property
    def reason(self) -> str: ...


class HeldTalk(Protocol):
    """What a call holds, whichever API it is of: client events, sound and the time go in, server events come out."""

    record: TalkRecord

    @property
    def ending(self) -> TalkEnding | None: ...
    @property
    def due_s(self) -> float: ...
    def open(self, now_s: float) -> list[Event]: ...
    def receive(self, message: str | bytes, now_s: float) -> list[Event]: ...
    def hear(self, pcm: bytes, now_s: float) -> list[Event]: ...
    def played(self) -> list[Event]: ...
    def leave(self, now_s: float) -> list[Event]: ...
    def advance(self, now_s: float) -> list[Event]: ...
    def describe(self) -> Event: ...


@dataclass(frozen=True, slots=True)
class Lines:
    """Which events go to the page's data channel and which to the observers, and whether the page is listened to."""

    page: Callable[[Event], bool] = lambda _event: True
    observers: Callable[[Event], bool] = lambda _event: True
    heeds_page: Callable[[str | bytes], bool] = lambda _text: True
    reflects_sound: bool = False
    """Whether observers get sound as events."""
    one_sound: bool = False
    """Whether an offer with two lines of sound is negotiated, and gets no media (docs/azure.md §12.1)."""
    channel: DataChannelFault | None = None
    """What is wrong with the data channel."""


class Call:
    """A call from its offer to its end. Observers get events without sound, and may send: sidebands and the like."""

    def __init__(self, talk: HeldTalk, lines: Lines) -> None:
        self.ended = asyncio.Event()
        self.connected = asyncio.Event()
        self._talk = talk
        self._lines = lines
        self._ended_by: EndedBy = "client"
        self._mute = False
        self.begun = asyncio.Event()
        self._observers: set[Callable[[Event], None]] = set()
        self._connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._voice = VoiceTrack(lambda: self._publish(talk.played()))
        self._microphone: asyncio.Future[MediaStreamTrack] = asyncio.get_running_loop().create_future()
        self._channel: RTCDataChannel | None = None
        self._late_channel: asyncio.Task[None] | None = None
        self._waiting: deque[str] = deque(maxlen=_MOST_WAITING_EVENTS)
        self._changed = asyncio.Event()

        @self._connection.on("track")
        def take_track(track: MediaStreamTrack) -> None:
            if track.kind == "audio" and not self._microphone.done():
                self._microphone.set_result(track)

        @self._connection.on("datachannel")
        def take_channel(channel: RTCDataChannel) -> None:
            # The first channel counts, whatever its label: Azure seems not to check it (docs/azure.md §5.1).
            if self._channel is None:
                self._join(channel)

        @self._connection.on("connectionstatechange")
        def take_state() -> None:
            if self._connection.connectionState == "connected":
                self.connected.set()
            elif self._connection.connectionState in ("failed", "closed"):
                self.ended.set()

    async def answer(self, offer: str, addresses: Sequence[str]) -> str:
        """The SDP answer, with a candidate on each of `addresses`.

        Raises:
            ValueError: the offer can't be answered.

        """
        try:
            self._mute = self._lines.one_sound and len(_AUDIO_LINE.findall(offer)) > 1
            self._connection.addTrack(_NoMedia() if self._mute else self._voice)
            await self._connection.setRemoteDescription(RTCSessionDescription(offer, "offer"))
            if not self._microphone.done():
                raise ValueError("the offer sends no audio")
            self._break_channel()
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
            self.begun.set()
            await self.ended.wait()
            self._talk.record.closed("server" if self._talk.ending else self._ended_by)
            self._publish(self._talk.leave(_now_s()))
        finally:
            self.ended.set()
            self._talk.record.closed("server")
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            await self.close()

    async def close(self) -> None:
        """Closes the connection."""
        if self._late_channel is not None:
            self._late_channel.cancel()
        self._voice.stop()
        await self._connection.close()

    @property
    def ending(self) -> TalkEnding | None:
        """How the server has ended the talk by itself, if it has."""
        return self._talk.ending

    def end(self, by: EndedBy = "client") -> None:
        """Ends the call; `run` cleans up."""
        if not self.ended.is_set():
            self._ended_by = by
        self.ended.set()

    def receive(self, text: str | bytes) -> None:
        """A client event, from an observer or the data channel."""
        self._publish(self._talk.receive(text, _now_s()))

    def observe(self, tell: Callable[[Event], None], *, states_session: bool = False) -> Callable[[], None]:
        """Has `tell` called with the events from now on; gives what ends that."""
        if states_session:
            tell(self._talk.describe())
        self._observers.add(tell)
        return lambda: self._observers.discard(tell)

    async def die(self, fault: DieAfterFault) -> None:
        """So long after it connected, the call ends in the fault's way."""
        await self.connected.wait()
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
        if self._mute:
            return
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
                if not self._lines.reflects_sound:
                    continue
            if event["type"] == "output_audio_buffer.cleared":
                self._voice.clear()
            for tell in self._observers if self._lines.observers(event) else ():
                tell(event)
            if self._lines.page(event) and event["type"] not in _AUDIO_DELTAS:
                self._send(json.dumps(event, separators=(",", ":")))
        self._changed.set()

    def _join(self, channel: RTCDataChannel) -> None:
        """Makes this the data channel; what waits goes out over it."""
        self._channel = channel

        @channel.on("message")
        def take(text: str | bytes) -> None:
            if self._lines.heeds_page(text):
                self.receive(text)

        while self._waiting and channel.readyState == "open":
            self._send(self._waiting.popleft())

    def _break_channel(self) -> None:
        """Has the data channel open late, never, or from this side, where a fault says so."""
        fault, sctp = self._lines.channel, self._connection.sctp
        if fault is None or sctp is None:
            return
        if fault.how == "own":
            own = self._connection.createDataChannel(_OWN_LABEL)
            self._channel = own
            own.on("open", lambda: self._join(own))
            return
        begin = sctp.start

        async def begin_later(*args: Any) -> None:
            async def begin_now() -> None:
                await asyncio.sleep(fault.seconds)
                await begin(*args)

            if fault.how == "late":
                self._late_channel = asyncio.create_task(begin_now())

        sctp.start = begin_later  # type: ignore[method-assign,assignment]

    def _send(self, text: str) -> None:
        channel = self._channel
        if channel is None or channel.readyState == "connecting":
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
            await asyncio.wait_for(self.connected.wait(), _CONNECT_S)
        except TimeoutError:
            self.ended.set()


class _NoMedia(MediaStreamTrack):
    """A track that never has anything to send."""

    kind = "audio"

    async def recv(self) -> Any:
        """Waits for ever."""
        await asyncio.Event().wait()


def unfiltered(event: Event) -> bool:
    """Whether `webrtcfilter=on` lets this event through to the page."""
    return event["type"] in _UNFILTERED


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
