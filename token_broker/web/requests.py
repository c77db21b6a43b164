"""Request bodies within limits, JSON checked against a model, and bearer tokens."""

import asyncio
import re
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from token_broker.web.problems import Problem

__all__ = ["MAX_JSON_VALUES", "bearer_token", "ensure_few_values", "parse_json", "read_body", "without_half_surrogates"]

M = TypeVar("M", bound=BaseModel)

MAX_JSON_VALUES = 5_000
"""The most strings, and the most commas and colons, of a body: four times those of a hundred transcripts.

Each key and value may cost an error of pydantic. The 80,000 that fit into a megabyte block the event loop for 250 ms.
"""

# Half a surrogate pair, as an escape or as the three bytes that some writers make of it. A text that was cut within an
# emoji ends with one. JSON allows the escape (RFC 8259 §8.2), and neither UTF-8 nor a database has such a character.
_HIGH, _LOW = rb"\\u[dD][89abAB][0-9a-fA-F]{2}", rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_HALF_ESCAPED = re.compile(rb"%b(?!%b)|(?<!%b)%b" % (_HIGH, _LOW, _HIGH, _LOW))
_HALF_ENCODED = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")

_MAX_NAME_CHARS = 64
_MAX_FIELDS_NAMED = 8
_MAX_LENGTH_DIGITS = 20  # enough for 64 bits; Python's int() raises above 4,300 digits


def bearer_token(request: Request[Any]) -> str | None:
    """What stands behind `Authorization: Bearer`, or None."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


async def read_body(request: Request[Any], *, limit_bytes: int, timeout_s: float) -> bytes:
    """The whole body. Raises Problem: 413 when it is larger than `limit_bytes`, 408 when it takes too long."""
    declared = request.headers.get("content-length", "")
    if len(declared) > _MAX_LENGTH_DIGITS:
        raise Problem(400, "malformed_request", "Send a Content-Length without leading zeros.")
    # Before anything is read; the loop below bounds chunked bodies, which declare no length.
    if declared.isdecimal() and int(declared) > limit_bytes:
        raise _too_large(limit_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            more = True
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise Problem(400, "client_left", "The connection ended before the body did.")
                body += message.get("body", b"")
                if len(body) > limit_bytes:
                    raise _too_large(limit_bytes)
                more = message.get("more_body", False)
    except TimeoutError:
        raise Problem(408, "body_timeout", f"Send the whole body within {timeout_s:g} s.") from None
    return bytes(body)


def _too_large(limit_bytes: int) -> Problem:
    return Problem(413, "body_too_large", f"Send at most {limit_bytes} bytes.")


def ensure_few_values(body: bytes) -> None:
    """Raises Problem 422 where JSON has more values than MAX_JSON_VALUES, which is counted without parsing it."""
    if body.count(b'"') <= 2 * MAX_JSON_VALUES and body.count(b",") + body.count(b":") <= MAX_JSON_VALUES:
        return
    unescaped = body.replace(rb"\\", b"").replace(rb"\"", b"")
    if unescaped.count(b'"') <= 2 * MAX_JSON_VALUES:
        outside = b"".join(unescaped.split(b'"')[::2])  # commas and colons inside strings do not count
        if outside.count(b",") + outside.count(b":") <= MAX_JSON_VALUES:
            return
    raise _invalid([{"field": "body", "message": f"has more than {MAX_JSON_VALUES} keys and values"}])


def without_half_surrogates(body: bytes) -> bytes:
    """A JSON object with U+FFFD in place of half surrogate pairs, so that the rest of its text is kept.

    Any other body is left as it is: no route takes a text that stands alone.
    """
    if not body.lstrip().startswith(b"{"):
        return body
    if rb"\u" in body and _HALF_ESCAPED.search(body):
        # Escaped backslashes are written otherwise first: in `\\ud83d` the `u` escapes nothing.
        body = _HALF_ESCAPED.sub(rb"\\ufffd", body.replace(rb"\\", rb"\u005c"))
    return _HALF_ENCODED.sub("\ufffd".encode(), body)


def parse_json(body: bytes, model: type[M]) -> M:
    """`body` as `model`. An empty body counts as `{}`, half a surrogate pair as U+FFFD.

    Raises Problem: 400 for invalid JSON, 422 naming the fields.
    """
    body = without_half_surrogates(body)
    ensure_few_values(body)
    try:
        return model.model_validate_json(body or b"{}")
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
    if any(item["type"] == "json_invalid" for item in found):
        raise Problem(400, "invalid_json", "Send a body that is valid JSON, in UTF-8.")
    fields = [
        {"field": ".".join(str(part)[:_MAX_NAME_CHARS] for part in item["loc"]) or "body", "message": item["msg"]}
        for item in found[:_MAX_FIELDS_NAMED]
    ]
    raise _invalid(fields, more=len(found) - len(fields))


def _invalid(fields: list[dict[str, str]], *, more: int = 0) -> Problem:
    named = "; ".join(f"{field['field']}: {field['message']}" for field in fields)
    others = f"; and {more} more" if more else ""
    return Problem(422, "invalid_request", f"Invalid request: {named}{others}.", extra={"errors": fields})
