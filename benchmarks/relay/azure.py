"""An Azure that takes a session and sends each audio append back as audio, as fast as picows can.

`python -m benchmarks.relay.azure [cert.pem key.pem]` prints its port. Every tenth frame comes back as a piece of
transcript, so that the relay has turns to read.
"""

import ssl
import sys

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

_APPEND = b'{"type":"input_audio_buffer.append","audio":"'
_AUDIO = (
    b'{"type":"response.audio.delta","event_id":"event_0","response_id":"resp_0","item_id":"item_0",'
    b'"output_index":0,"content_index":0,"delta":"'
)
_TRANSCRIPT = _AUDIO.replace(b"response.audio.delta", b"response.audio_transcript.delta")
_EVERY = 10


class Echo(WSListener):
    """One connection."""

    def __init__(self) -> None:
        self._count = 0

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
            else:
                transport.send(WSMsgType.TEXT, b'{"type":"session.updated","session":{}}')


def _listener(request: WSUpgradeRequest) -> Echo:
    del request
    return Echo()


async def main(arguments: list[str]) -> None:
    tls = None
    if arguments:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(*arguments)
    server = await ws_create_server(_listener, "127.0.0.1", 0, ssl=tls, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1:]))
