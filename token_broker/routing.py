"""Routes by exact path: what is asked most is looked up, where Starlette tries one pattern after another.

Starlette's own way to a route also wraps `send` three times and catches exceptions twice, for handlers and middleware
that these routes do not need: it costs more than answering a health probe.
"""

from collections.abc import Iterable

from starlette.requests import Request
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from token_broker.problems import Problem, problem_response

__all__ = ["ExactRoutes"]


class ExactRoutes:
    """Serves those of `routes` whose paths have no parameters, and leaves everything else to `app`.

    They may raise `Problem`, which is answered as it is everywhere; a path's other methods are `app`'s to refuse.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._routes: dict[tuple[str, str], Route] = {}
        for route in routes:
            if isinstance(route, Route) and not route.param_convertors:
                for method in route.methods or ():
                    self._routes.setdefault((method, route.path), route)  # the first one counts, as in Starlette

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        scope["path_params"] = {}
        request = Request(scope, receive, send)
        try:
            response = await route.endpoint(request)
        except Problem as problem:
            response = problem_response(problem, scope)
        await response(scope, receive, send)
