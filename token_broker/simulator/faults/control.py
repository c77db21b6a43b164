"""The simulator's own routes, under `/_simulator`: set faults and responses, read the log, see what is simulated."""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from token_broker.simulator.faults.fault_table import FaultsError, parse_faults
from token_broker.simulator.records.request_log import RequestLog
from token_broker.simulator.resource import Resource
from token_broker.simulator.scripted_responses import ScriptError
from token_broker.simulator.session_bodies.check import InvalidRequest, parse_json

PREFIX = "/_simulator"


class Peer(Protocol):
    """A resource of the process, as an ASGI application."""

    @property
    def base_url(self) -> str: ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


@dataclass(frozen=True, slots=True)
class Control:
    """The control endpoints. They answer whatever faults are set."""

    resource: Resource
    log: RequestLog
    running: Callable[[], int]
    calls: Callable[[], int]
    end_calls: Callable[[], Awaitable[None]]
    peers: Mapping[str, Peer]

    def routes(self) -> list[Route | Mount]:
        return [
            Route(f"{PREFIX}/resources", self.list_resources, methods=["GET"]),
            Mount(f"{PREFIX}/resources/{{name}}", app=self.of_peer),
            Route(f"{PREFIX}/transcript", self.get_transcript, methods=["GET"]),
            Route(f"{PREFIX}/transcript", self.delete_transcript, methods=["DELETE"]),
            Route(PREFIX, self.describe, methods=["GET"]),
            Route(f"{PREFIX}/faults", self.get_faults, methods=["GET"]),
            Route(f"{PREFIX}/faults", self.put_faults, methods=["PUT"]),
            Route(f"{PREFIX}/faults", self.delete_faults, methods=["DELETE"]),
            Route(f"{PREFIX}/responses", self.get_responses, methods=["GET"]),
            Route(f"{PREFIX}/responses", self.put_responses, methods=["PUT"]),
            Route(f"{PREFIX}/requests", self.get_requests, methods=["GET"]),
            Route(f"{PREFIX}/requests", self.delete_requests, methods=["DELETE"]),
            Route(f"{PREFIX}/calls", self.delete_calls, methods=["DELETE"]),
        ]

    async def describe(self, _request: Request) -> Response:
        config = self.resource.config
        return _json(
            {
                "simulated": True,
                "resource": self.resource.name,
                "what": "A simulation of Azure's GPT Realtime and Voice Live. No Azure and no model is behind it.",
                "kinds": sorted(config.kinds),
                "deployments": sorted(config.deployments),
                "faults": self.resource.faults.listed(),
                "running": self.running(),
                "calls": self.calls(),
            }
        )

    async def list_resources(self, _request: Request) -> Response:
        """Their names, and where they listen."""
        return _json({name: peer.base_url for name, peer in self.peers.items()})

    async def of_peer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The control routes of a resource of this process, at every resource: one that refuses has none itself."""
        peer = self.peers.get(scope["path_params"]["name"])
        rest = scope["path"].removeprefix(scope["root_path"]).rstrip("/")
        if peer is None or scope["type"] != "http":
            await Response(status_code=404)(scope, receive, send)
        else:
            await peer({**scope, "path": PREFIX + rest, "root_path": ""}, receive, send)

    async def get_transcript(self, request: Request) -> Response:
        """Of all resources of the process, or of the one that `resource` names."""
        return _json(self.resource.transcript.to_json(request.query_params.get("resource")))

    async def delete_transcript(self, _request: Request) -> Response:
        self.resource.transcript.clear()
        return Response(status_code=204)

    async def get_faults(self, _request: Request) -> Response:
        return _json(self.resource.faults.listed())

    async def put_faults(self, request: Request) -> Response:
        try:
            self.resource.faults.replace(parse_faults(parse_json(await request.body())))
        except InvalidRequest as invalid:
            return _invalid("BadFaults", [invalid.message])
        except FaultsError as error:
            return _invalid("BadFaults", error.problems)
        return _json(self.resource.faults.listed())

    async def delete_faults(self, _request: Request) -> Response:
        self.resource.faults.replace([])
        return Response(status_code=204)

    async def get_responses(self, _request: Request) -> Response:
        return _json(self.resource.scripted.listed())

    async def put_responses(self, request: Request) -> Response:
        try:
            self.resource.scripted.replace(parse_json(await request.body()))
        except InvalidRequest as invalid:
            return _invalid("BadResponses", [invalid.message])
        except ScriptError as error:
            return _invalid("BadResponses", error.problems)
        return _json(self.resource.scripted.listed())

    async def get_requests(self, _request: Request) -> Response:
        return _json([entry.to_json() for entry in self.log.entries()])

    async def delete_requests(self, _request: Request) -> Response:
        self.log.clear()
        return Response(status_code=204)

    async def delete_calls(self, _request: Request) -> Response:
        """Ends the WebRTC calls, which no fault reaches once they are connected."""
        await self.end_calls()
        return Response(status_code=204)


def _invalid(code: str, problems: list[str]) -> Response:
    return _json({"error": {"code": code, "message": "; ".join(problems), "problems": problems}}, status=400)


def _json(value: object, status: int = 200) -> Response:
    """JSON in plain ASCII: the log may hold lone surrogates, which UTF-8 can't."""
    return Response(json.dumps(value), status, media_type="application/json")
