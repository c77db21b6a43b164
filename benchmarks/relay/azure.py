"""An Azure that takes a session and sends each audio append back as audio, as fast as picows can.

`python -m benchmarks.relay.azure [cert.pem key.pem]` prints its port. Every tenth frame comes back as a piece of
transcript, and every ten seconds of a talk two turns are finished, so that the relay has turns to read and to keep.
Every event has its id before its type, as recorded Voice Live writes it.
An event of the type `benchmark.flood` is answered with audio for as long as somebody takes it. A `response.create` is
answered with a call of the tool `clock`, and after the call's output with the times that it took, as a transcript.
"""

import asyncio
import gc
import json
import random
import ssl
import sys
import time
from typing import Any

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

_APPEND = b'{"type":"input_audio_buffer.append","audio":"'
_AUDIO = (
    b'{"event_id":"event_0","type":"response.audio.delta","response_id":"resp_0","item_id":"item_0",'
    b'"output_index":0,"content_index":0,"delta":"'
)
_TRANSCRIPT = _AUDIO.replace(b"response.audio.delta", b"response.audio_transcript.delta")
_EVERY = 10
_TURNS_EVERY_S = 10.0
_TURNS = (
    '{{"event_id":"event_1","type":"input_audio_buffer.committed","item_id":"user_{0}","previous_item_id":null}}',
    (
        '{{"event_id":"event_2","type":"conversation.item.input_audio_transcription.completed","item_id":"user_{0}",'
        '"content_index":0,"transcript":"What was said to the machine, in a sentence of some length."}}'
    ),
    (
        '{{"event_id":"event_3","type":"response.audio_transcript.done","response_id":"resp_{0}","item_id":"said_{0}",'
        '"output_index":0,"content_index":0,"transcript":"What the machine said to that, in a sentence as long."}}'
    ),
    (
        '{{"event_id":"event_4","type":"response.done","response":{{"id":"resp_{0}","status":"completed",'
        '"usage":{{"total_tokens":30,"input_tokens":10,"output_tokens":20}}}}}}'
    ),
)
_FLOOD = _AUDIO + b"A" * 12_000 + b'"}'
_FLOOD_FRAMES = 16  # in one go


class Echo(WSListener):
    """One connection."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._count = 0
        self._turns = 0
        self._turns_due_s = self._loop.time() + random.random() * _TURNS_EVERY_S
        self._flooded: WSTransport | None = None
        self._full = False
        self._answers = 0
        self._called_ns = 0
        self._times: str | None = None  # of a call that has its output

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code())
            transport.disconnect()
        elif frame.msg_type == WSMsgType.TEXT:
            payload = frame.get_payload_as_bytes()
            if payload.startswith(_APPEND):
                self._count += 1
                head = _AUDIO if self._count % _EVERY else _TRANSCRIPT
                transport.send(WSMsgType.TEXT, head + payload[len(_APPEND) :])
                if self._loop.time() >= self._turns_due_s:
                    self._finish_turns(transport)
            elif payload.startswith(b'{"type":"benchmark.flood"'):
                self._flooded = transport
                self._flood()
            elif payload.startswith(b'{"type":"response.create"'):
                self._answer(transport)
            elif payload.startswith(b'{"type":"conversation.item.create"'):
                self._take(transport, json.loads(payload)["item"])
            else:
                transport.send(WSMsgType.TEXT, b'{"event_id":"event_5","type":"session.updated","session":{}}')

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        del transport
        self._flooded = None

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._flood()

    def _finish_turns(self, transport: WSTransport) -> None:
        self._turns_due_s += _TURNS_EVERY_S
        self._turns += 1
        for event in _TURNS:
            transport.send(WSMsgType.TEXT, event.format(self._turns).encode())

    def _answer(self, transport: WSTransport) -> None:
        """Calls the tool, or says what the last call took."""
        self._answers += 1
        about = {"response_id": f"call_{self._answers}", "output_index": 0}
        response: dict[str, Any] = {"id": about["response_id"], "status": "in_progress", "output": []}
        _send(transport, "response.created", response=response)
        if (times := self._times) is not None:
            self._times = None
            item = {"id": f"told_{self._answers}", "type": "message", "role": "assistant", "content": []}
            _send(transport, "response.output_item.added", **about, item=item)
            about |= {"item_id": item["id"], "content_index": 0}
            _send(transport, "response.audio_transcript.done", **about, transcript=times)
        else:
            call_id = f"{about['response_id']}_{id(self)}_{time.monotonic_ns()}"
            item = {"id": f"item_{self._answers}", "type": "function_call", "call_id": call_id, "name": "clock"}
            _send(transport, "response.output_item.added", **about, item={**item, "arguments": ""})
            item |= {"status": "completed", "arguments": '{"place":"Brno"}'}
            self._called_ns = time.monotonic_ns()
            _send(transport, "response.output_item.done", **about, item=item)
        response |= {"status": "completed", "output": [item]}
        _send(transport, "response.done", response=response)

    def _take(self, transport: WSTransport, item: dict[str, Any]) -> None:
        now_ns = time.monotonic_ns()
        if item["type"] == "function_call_output":
            try:
                told = json.loads(item["output"])
                there_ns, back_ns = told["received_ns"] - self._called_ns, now_ns - told["answered_ns"]
                self._times = json.dumps({"there_ns": there_ns, "back_ns": back_ns})
            except ValueError:  # a failure, in a sentence
                self._times = json.dumps({"failed": item["output"]})
        _send(transport, "conversation.item.created", item=item)

    def _flood(self) -> None:
        if self._flooded is None or self._full:
            return
        for _ in range(_FLOOD_FRAMES):
            self._flooded.send(WSMsgType.TEXT, _FLOOD)
        if not self._full:
            self._loop.call_soon(self._flood)


def _send(transport: WSTransport, kind: str, **fields: Any) -> None:
    transport.send(WSMsgType.TEXT, json.dumps({"event_id": "event_6", "type": kind, **fields}).encode())


def _listener(request: WSUpgradeRequest) -> Echo:
    del request
    return Echo()


async def main(arguments: list[str]) -> None:
    tls = None
    if arguments:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(*arguments)
    server = await ws_create_server(_listener, "127.0.0.1", 0, ssl=tls, backlog=2048)
    gc.freeze()
    gc.disable()  # nothing here makes cycles that last
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1:]))
