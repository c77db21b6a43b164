"""The broker, which notes when the item of a tool's call came from Azure, and when the tool's output left.

`python -m benchmarks.relay.clocked_broker FILE` serves, and adds a line to FILE for each call of `timed_tool`: the
nanoseconds from the item's arrival to the last byte of the tool's request, and from the first byte of the tool's answer
to its output.
"""

import json
import sys
import time
from pathlib import Path

from picows import WSFrame, WSTransport

from token_broker.cli.main import main
from token_broker.relay.azure.socket import AzureSocket

_ITEM, _OUTPUT = b'"response.output_item.done"', "function_call_output"


def serve(file: Path) -> None:
    hear, send = AzureSocket.on_ws_frame, AzureSocket.send
    called_ns = 0

    def clocked_hear(self: AzureSocket, transport: WSTransport, frame: WSFrame) -> None:
        nonlocal called_ns
        now_ns = time.monotonic_ns()
        if _ITEM in frame.get_payload_as_bytes():
            called_ns = now_ns
        hear(self, transport, frame)

    def clocked_send(self: AzureSocket, text: str | bytes) -> None:
        send(self, text)
        now_ns, sent = time.monotonic_ns(), text if isinstance(text, str) else text.decode()
        if _OUTPUT in sent:
            told = json.loads(json.loads(sent)["item"]["output"])
            with file.open("a") as lines:
                lines.write(f"{told['received_ns'] - called_ns} {now_ns - told['answered_ns']}\n")

    AzureSocket.on_ws_frame = clocked_hear  # type: ignore[method-assign]
    AzureSocket.send = clocked_send  # type: ignore[method-assign]
    main(["serve"])


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
