"""Reads a WebSocket handshake, as uvicorn's HTTP protocol hands it over.

`BoundedHttpProtocol` has parsed the head before and holds it to its limits, which then hold for handshakes too. The
parser of websockets has limits of its own, 8 KiB a line and 128 lines: a browser with a large cookie, or a platform's
header about a user in a hundred groups, would pass over HTTP and fail here.
"""

import re

from websockets.datastructures import Headers
from websockets.http11 import Request

__all__ = ["read_handshake"]

# RFC 9110 §5.5, §5.6.2: a token, and a value without the folded lines of old.
_FIELD_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[\t ]*([\t\x20-\x7e\x80-\xff]*)")


def read_handshake(head: bytes) -> Request | None:
    """The request of a whole head, or None where it is not well-formed or announces a body."""
    request_line, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    method, _, target = request_line.removesuffix(b" HTTP/1.1").partition(b" ")
    if not request_line.isascii() or b" " in target:
        return None
    headers = Headers()
    for line in lines:
        if (field := _FIELD_LINE.fullmatch(line)) is None:
            return None
        # Not checked again: `Headers` would, character by character.
        headers.set_insecure(field[1].decode(), field[2].strip(b" \t").decode("latin-1"))
    if "Transfer-Encoding" in headers or not {"0"}.issuperset(headers.get_all("Content-Length")):
        return None
    return Request(target.decode(), headers, method.decode())
