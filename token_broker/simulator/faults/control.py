"""The simulator's own routes, under `/_simulator`: set faults, look at what was asked, see what is simulated."""

import json
from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from token_broker.simulator.faults.fault_table import FaultsError, FaultTable, parse_faults
from token_broker.simulator.request_log import RequestLog
from token_broker.simulator.resource import Resource
from token_broker.simulator.session_bodies.check import InvalidRequest, parse_json

PREFIX = "/_simulator"


@dataclass(frozen=True, slots=True)
class Control:
    """The control endpoints. They answer whatever faults are set."""

    resource: Resource
    faults: FaultTable
    log: RequestLog
    running: Callable[[], int]
    calls: Callable[[], int]

    def routes(self) -> list[Route]:
        return [
            Route(PREFIX, self.describe, methods=["GET"]),
            Route(f"{PREFIX}/faults", self.get_faults, methods=["GET"]),
            Route(f"{PREFIX}/faults", self.put_faults, methods=["PUT"]),
            Route(f"{PREFIX}/faults", self.delete_faults, methods=["DELETE"]),
            Route(f"{PREFIX}/requests", self.get_requests, methods=["GET"]),
            Route(f"{PREFIX}/requests", self.delete_requests, methods=["DELETE"]),
        ]

    async def describe(self, _request: Request) -> Response:
        config = self.resource.config
        return _json(
            {
                "simulated": True,
                "what": "A simulation of Azure's GPT Realtime and Voice Live. No Azure and no model is behind it.",
                "kinds": sorted(config.kinds),
                "deployments": sorted(config.deployments),
                "faults": self.faults.listed(),
                "running": self.running(),
                "calls": self.calls(),
            }
        )

    async def get_faults(self, _request: Request) -> Response:
        return _json(self.faults.listed())

    async def put_faults(self, request: Request) -> Response:
        try:
            self.faults.replace(parse_faults(parse_json(await request.body())))
        except InvalidRequest as invalid:
            return _bad_faults([invalid.message])
        except FaultsError as bad:
            return _bad_faults(bad.problems)
        return _json(self.faults.listed())

    async def delete_faults(self, _request: Request) -> Response:
        self.faults.replace([])
        return Response(status_code=204)

    async def get_requests(self, _request: Request) -> Response:
        return _json([entry.to_json() for entry in self.log.entries()])

    async def delete_requests(self, _request: Request) -> Response:
        self.log.clear()
        return Response(status_code=204)


def _bad_faults(problems: list[str]) -> Response:
    return _json({"error": {"code": "BadFaults", "message": "; ".join(problems), "problems": problems}}, status=400)


def _json(value: object, status: int = 200) -> Response:
    """JSON in plain ASCII: what was seen may hold text that UTF-8 can't."""
    return Response(json.dumps(value), status, media_type="application/json")
