"""A fake for Zep on a loopback socket: strict about what it takes, and able to fail as Zep does.

It keeps what it is given, so that tests ask it what arrived. Its answers are checked against zep-python's own client in
`test_fake_zep.py`.
"""

import asyncio
import contextlib
import itertools
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.memory.support.faults import CanFail, RefusedError, fail, next_fault
from tests.support.serving import serve_app

KEY = "zep-canary-key-5518"
ROLES = {"norole", "system", "assistant", "user", "function", "tool"}
MESSAGE_FIELDS = {"role", "role_type", "content", "created_at", "metadata", "token_count", "updated_at", "uuid"}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


@dataclass
class Zep(CanFail):
    """What arrived, in order."""

    base_url: str = ""
    users: dict[str, dict[str, Any]] = field(default_factory=dict)
    sessions: dict[str, dict[str, Any]] = field(default_factory=dict)
    messages: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    facts: dict[str, list[str]] = field(default_factory=dict)  # by session or user
    requests: list[str] = field(default_factory=list)
    calls: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)  # session, turn ids of each `memory.add`
    in_flight: dict[str, int] = field(default_factory=dict)
    overlapped: set[str] = field(default_factory=set)  # sessions that were delivered to twice at once
    most_at_once: int = 0
    slow_s: float = 0
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def turn_ids(self, session_id: str) -> list[str]:
        """The ids of a session's turns as they arrived, repetitions and all."""
        return [message["metadata"]["turn_id"] for message in self.messages.get(session_id, [])]

    async def has(self, count: int, *, timeout_s: float = 20) -> None:
        """Returns when so many messages are there."""
        async with asyncio.timeout(timeout_s):
            while sum(map(len, self.messages.values())) < count:
                self.changed.clear()
                await self.changed.wait()


def make_app(zep: Zep) -> Starlette:
    uuids = itertools.count(1)

    async def answer(request: Request) -> Response:
        path = request.url.path.removeprefix("/api/v2")
        zep.requests.append(f"{request.method} {path}")
        body = await request.body()
        fault = next_fault(zep.faults, request.method, path, body.decode())
        if fault is not None and not fault.stored:
            return await fail(zep.closing, fault)
        await asyncio.sleep(zep.slow_s)
        response = await _carry_out(request, path, body)
        zep.changed.set()
        return await fail(zep.closing, fault) if fault is not None else response

    async def _carry_out(request: Request, path: str, body: bytes) -> Response:
        try:
            if request.headers.get("authorization") != f"Api-Key {KEY}":
                raise RefusedError(401, "unauthorized")
            if path.endswith("/memory") and request.method == "POST":
                return await add_memory(path.split("/")[2], json.loads(body))
            return JSONResponse(route(request, path, json.loads(body) if body else {}))
        except RefusedError as error:
            return JSONResponse({"message": str(error)}, error.status)

    def route(request: Request, path: str, body: Any) -> Any:
        match [request.method, *path.strip("/").split("/")]:
            case ["POST", "users"]:
                return add_user(body)
            case ["GET", "users", user_id]:
                return known(zep.users, user_id)
            case ["DELETE", "users", user_id]:
                known(zep.users, user_id)
                del zep.users[user_id]
                for session_id in [key for key, value in zep.sessions.items() if value["user_id"] == user_id]:
                    forget(session_id)
                return {"message": "user deleted"}
            case ["POST", "sessions"]:
                return add_session(body)
            case ["POST", "sessions", "search"]:
                known(zep.users, body["user_id"])
                if not body.get("text"):
                    raise RefusedError(400, "text is required")
                facts = zep.facts.get(body["user_id"], [])
                return {"results": [{"fact": {"fact": fact, "uuid": f"f{i}"}} for i, fact in enumerate(facts)]}
            case ["GET", "sessions", session_id]:
                return known(zep.sessions, session_id)
            case ["GET", "sessions", session_id, "memory"]:
                known(zep.sessions, session_id)
                facts = zep.facts.get(session_id, [])
                last = zep.messages[session_id][-int(request.query_params.get("lastn", 6)) :]
                return {"relevant_facts": [{"fact": fact} for fact in facts], "messages": last, "metadata": {}}
            case ["DELETE", "sessions", session_id, "memory"]:
                known(zep.sessions, session_id)
                forget(session_id)
                return {"message": "memory deleted"}
            case ["GET", "sessions", session_id, "messages"]:
                known(zep.sessions, session_id)
                begin, limit = (number(request, name) for name in ("cursor", "limit"))
                page = zep.messages[session_id][begin : begin + limit]
                return {"messages": page, "row_count": len(page), "total_count": len(zep.messages[session_id])}
        raise RefusedError(404, "no such route")

    def number(request: Request, name: str) -> int:
        """zep-python sends an argument that was left out as an empty one, which a server may take for no number."""
        value = request.query_params.get(name, "")
        if not value.isdecimal():
            raise RefusedError(400, f"{name} is no number")
        return int(value)

    def known(table: dict[str, Any], key: str) -> Any:
        if key not in table:
            raise RefusedError(404, "not found")
        return table[key]

    def forget(session_id: str) -> None:
        zep.sessions.pop(session_id, None)
        zep.messages.pop(session_id, None)

    def add_user(body: dict[str, Any]) -> Any:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", body.get("user_id") or ""):
            raise RefusedError(400, "user_id is required")
        if body["user_id"] in zep.users:
            raise RefusedError(400, "user already exists")
        zep.users[body["user_id"]] = body | {"uuid": str(next(uuids)), "created_at": _now()}
        return zep.users[body["user_id"]]

    def add_session(body: dict[str, Any]) -> Any:
        if not body.get("session_id"):
            raise RefusedError(400, "session_id is required")
        if body["session_id"] in zep.sessions:
            raise RefusedError(400, "session already exists")
        if body.get("user_id") not in zep.users:
            raise RefusedError(400, "user does not exist")
        zep.sessions[body["session_id"]] = body | {"uuid": str(next(uuids)), "created_at": _now()}
        zep.messages[body["session_id"]] = []
        return zep.sessions[body["session_id"]]

    async def add_memory(session_id: str, body: dict[str, Any]) -> Response:
        known(zep.sessions, session_id)
        messages = body.get("messages") or []
        if not 1 <= len(messages) <= 30:
            raise RefusedError(400, "between 1 and 30 messages")
        for message in messages:
            _check_message(message)
        zep.in_flight[session_id] = zep.in_flight.get(session_id, 0) + 1
        zep.most_at_once = max(zep.most_at_once, sum(zep.in_flight.values()))
        if zep.in_flight[session_id] > 1:
            zep.overlapped.add(session_id)
        await asyncio.sleep(0)
        zep.in_flight[session_id] -= 1
        zep.messages[session_id] += [message | {"uuid": str(next(uuids))} for message in messages]
        zep.calls.append((session_id, tuple(message["metadata"]["turn_id"] for message in messages)))
        return JSONResponse({"message": "OK"})

    return Starlette(routes=[Route("/api/v2/{path:path}", answer, methods=["GET", "POST", "DELETE", "PATCH"])])


def _check_message(message: dict[str, Any]) -> None:
    if unknown := set(message) - MESSAGE_FIELDS:
        raise RefusedError(400, f"unknown fields {sorted(unknown)}")
    if message.get("role_type") not in ROLES or not message.get("role"):
        raise RefusedError(400, "role and role_type are required")
    if not message.get("content"):
        raise RefusedError(400, "content is required")
    if not TIME.fullmatch(message.get("created_at") or ""):
        raise RefusedError(400, "created_at is no RFC 3339 time")
    if not isinstance(message.get("metadata"), dict):
        raise RefusedError(400, "metadata is no object")


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


@contextlib.asynccontextmanager
async def running_zep(port: int = 0, **options: Any) -> AsyncIterator[Zep]:
    """The fake on 127.0.0.1, at a free port unless one is given. `options` are `uvicorn.Config`'s."""
    zep = Zep()
    async with serve_app(make_app(zep), port=port, timeout_graceful_shutdown=0, **options) as base_url:
        zep.base_url = base_url
        try:
            yield zep
        finally:
            zep.closing.set()
