"""A fake for today's Zep Cloud (its v4 API) on a loopback socket, made of the package's own types.

Every answer is a model of `zep_cloud`, and every body has to be one. It keeps idempotency keys and works on messages in
tasks, as Zep does: `working` says how often a task is asked before it ends, `ends` how the next ones end.
"""

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from zep_cloud import (
    AddMessage,
    AddMessagesResult,
    Message,
    MessagePage,
    Task,
    Thread,
    ThreadContextResponse,
    ThreadDeleteResult,
    User,
    UserDeleteResult,
)

from tests.memory.support.faults import CanFail, RefusedError, fail, next_fault
from tests.support.serving import serve_app

__all__ = ["KEY", "ZepCloud", "running_zep_cloud"]

KEY = "zep-cloud-canary-key-8841"
MAX_METADATA = 10


@dataclass
class Job:
    """A task, how often it has to be asked until it ends, and how."""

    uuid: str
    left: int
    ends: str
    thread: str | None = None
    messages: list[str] = field(default_factory=list)
    deletes: tuple[str, str] | None = None


@dataclass
class ZepCloud(CanFail):
    """What arrived, in order."""

    base_url: str = ""
    users: dict[str, dict[str, Any]] = field(default_factory=dict)  # by uuid
    threads: dict[str, dict[str, Any]] = field(default_factory=dict)
    messages: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # by thread
    jobs: dict[str, Job] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)  # answers by idempotency key
    context: str = ""
    working: int = 1
    ends: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    closing: asyncio.Event = field(default_factory=asyncio.Event)

    def turn_ids(self, user_id: str | None = None, *, processed: bool = True) -> list[str]:
        """The ids of the turns of a user's threads, or of all, as Zep has worked on them, or as they came."""
        threads = [
            uuid
            for uuid, thread in self.threads.items()
            if user_id is None or self.users[thread["user_uuid"]]["user_id"] == user_id
        ]
        every = [message for uuid in threads for message in self.messages[uuid]]
        return [m["metadata"]["turn_id"] for m in every if m["processed"] or not processed]


def make_app(zep: ZepCloud) -> Starlette:
    numbers = itertools.count(1)

    def new_uuid() -> str:
        return str(UUID(int=next(numbers)))

    def job(**fields: Any) -> Task:
        made = Job(new_uuid(), zep.working, zep.ends.pop(0) if zep.ends else "succeeded", **fields)
        zep.jobs[made.uuid] = made
        return Task(uuid=made.uuid, status="pending", type="message")

    async def answer(request: Request) -> Response:
        path = request.url.path.removeprefix("/api/v4")
        zep.requests.append(f"{request.method} {path}")
        body = await request.body()
        fault = next_fault(zep.faults, request.method, path, body.decode())
        if fault is not None and not fault.stored:
            return await fail(zep.closing, fault)
        try:
            response = carry_out(request, path, json.loads(body) if body else {})
        except RefusedError as error:
            response = JSONResponse({"error": {"message": str(error)}}, error.status)
        return await fail(zep.closing, fault) if fault is not None else response

    def carry_out(request: Request, path: str, body: dict[str, Any]) -> Response:
        if request.headers.get("authorization") != f"Api-Key {KEY}":
            raise RefusedError(401, "unauthorized")
        key = request.headers.get("idempotency-key")
        if request.method != "GET" and not key:
            raise RefusedError(400, "no idempotency key")
        if key is not None and key in zep.keys and not path.endswith("/lookup"):
            before, status, made = zep.keys[key]
            if before != (path, body):
                raise RefusedError(422, "the key was used for something else")
            return JSONResponse(made, status)
        status, model = route(request, path, body)
        made = json.loads(model.json(by_alias=True, exclude_none=True))
        if key is not None:
            zep.keys[key] = ((path, body), status, made)
        return JSONResponse(made, status)

    def route(request: Request, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        match [request.method, *path.strip("/").split("/")]:
            case ["POST", "users"]:
                return 201, add_user(body)
            case ["POST", "users", "lookup"]:
                found = [user for user in zep.users.values() if user["user_id"] == body.get("user_id")]
                if not found:
                    raise RefusedError(404, "no such user")
                return 200, User(**found[0])
            case ["GET", "users", uuid]:
                return 200, User(**known(zep.users, uuid))
            case ["DELETE", "users", uuid]:
                known(zep.users, uuid)
                return 202, UserDeleteResult(task=job(deletes=("user", uuid)))
            case ["POST", "threads"]:
                if "user_uuid" not in body:
                    raise RefusedError(400, "user_uuid is required")
                known(zep.users, body["user_uuid"])
                uuid = new_uuid()
                zep.threads[uuid] = {"uuid": uuid, "user_uuid": body["user_uuid"]}
                zep.messages[uuid] = []
                return 201, Thread(**zep.threads[uuid])
            case ["DELETE", "threads", uuid]:
                known(zep.threads, uuid)
                return 202, ThreadDeleteResult(task=job(deletes=("thread", uuid)))
            case ["GET", "threads", uuid, "context"]:
                known(zep.threads, uuid)
                return 200, ThreadContextResponse(context=zep.context)
            case ["GET", "threads", uuid, "messages"]:
                known(zep.threads, uuid)
                return 200, page_of(request, zep.messages[uuid])
            case ["POST", "threads", uuid, "messages"]:
                known(zep.threads, uuid)
                return 202, add_messages(uuid, body)
            case ["GET", "tasks", uuid]:
                return 200, task_of(uuid)
        raise RefusedError(404, "no such route")

    def page_of(request: Request, messages: list[dict[str, Any]]) -> MessagePage:
        ordered = messages[::-1] if request.query_params.get("order") == "desc" else messages
        begin = int(request.query_params.get("cursor") or 0)
        end = begin + int(request.query_params.get("page_size") or 10)
        more = str(end) if end < len(ordered) else None
        return MessagePage(items=[Message(**message) for message in ordered[begin:end]], next_cursor=more)

    def known(table: dict[str, Any], key: str) -> Any:
        if key not in table:
            raise RefusedError(404, "not found")
        return table[key]

    def add_user(body: dict[str, Any]) -> User:
        if any(user["user_id"] == body["user_id"] for user in zep.users.values()):
            raise RefusedError(409, "user already exists")
        uuid = new_uuid()
        zep.users[uuid] = {**body, "uuid": uuid}
        return User(**zep.users[uuid])

    def add_messages(thread: str, body: dict[str, Any]) -> AddMessagesResult:
        messages = [AddMessage(**message) for message in body["messages"]]
        if not 1 <= len(messages) <= 30:
            raise RefusedError(400, "between 1 and 30 messages")
        added = []
        for message in messages:
            if message.role not in {"user", "assistant"} or not message.content or len(message.content) > 2_500:
                raise RefusedError(400, "role and content are required, and content has a limit")
            values = (message.metadata or {}).values()
            if len(values) > MAX_METADATA or any(isinstance(value, dict) or value is None for value in values):
                raise RefusedError(400, "metadata")
            added.append({**json.loads(message.json(exclude_none=True)), "uuid": new_uuid(), "processed": False})
        zep.messages[thread] += added
        task = job(thread=thread, messages=[message["uuid"] for message in added])
        return AddMessagesResult(messages=[Message(**message) for message in added], task=task)

    def task_of(uuid: str) -> Task:
        found: Job = known(zep.jobs, uuid)
        found.left -= 1
        if found.left > 0:
            return Task(uuid=uuid, status="processing")
        if found.ends == "succeeded":
            succeed(found)
        return Task(uuid=uuid, status=found.ends)

    def succeed(done: Job) -> None:
        for message in zep.messages.get(done.thread or "", []):
            message["processed"] |= message["uuid"] in done.messages
        if done.deletes is not None:
            kind, uuid = done.deletes
            gone = [uuid] if kind == "thread" else [k for k, v in zep.threads.items() if v["user_uuid"] == uuid]
            for thread in gone:
                zep.threads.pop(thread, None)
                zep.messages.pop(thread, None)
            if kind == "user":
                zep.users.pop(uuid, None)

    return Starlette(routes=[Route("/api/v4/{path:path}", answer, methods=["GET", "POST", "DELETE", "PATCH"])])


@contextlib.asynccontextmanager
async def running_zep_cloud() -> AsyncIterator[ZepCloud]:
    """The fake on 127.0.0.1, at a free port."""
    zep = ZepCloud()
    async with serve_app(make_app(zep), timeout_graceful_shutdown=0) as base_url:
        zep.base_url = base_url
        try:
            yield zep
        finally:
            zep.closing.set()
