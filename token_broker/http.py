"""Reading requests: bounded bodies, JSON that is checked against a model, bearer tokens."""

import asyncio
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from token_broker.problems import Problem

__all__ = ["bearer_token", "parse_json", "read_body"]

M = TypeVar("M", bound=BaseModel)

_MAX_NAME_CHARS = 64
_MAX_FIELDS_NAMED = 20


def bearer_token(request: Request) -> str | None:
    """What stands behind `Authorization: Bearer`, or None."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


async def read_body(request: Request, *, limit_bytes: int, timeout_s: float) -> bytes:
    """The whole body. Raises Problem: 413 when it is larger than `limit_bytes`, 408 when it takes too long."""
    declared = request.headers.get("content-length", "")
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


def parse_json(body: bytes, model: type[M]) -> M:
    """`body` as `model`; an empty one counts as `{}`. Raises Problem: 400 if it is no JSON, 422 naming the fields."""
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
    named = "; ".join(f"{field['field']}: {field['message']}" for field in fields)
    raise Problem(422, "invalid_request", f"Mend these fields: {named}.", extra={"errors": fields})
