"""Sortable ids, and the id of a request."""

import os
import time

from starlette.types import Scope

__all__ = ["correlation_id", "uuid7"]


def uuid7() -> str:
    """A UUID of version 7 (RFC 9562): 48 bits of unix milliseconds, then 74 random ones."""
    # By hand: the standard library has uuid7 from Python 3.14 on.
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def correlation_id(scope: Scope) -> str:
    """The request's id, as in `X-Request-ID`. Empty where RequestContextMiddleware did not see the request."""
    return str(scope.get("state", {}).get("correlation_id", ""))
