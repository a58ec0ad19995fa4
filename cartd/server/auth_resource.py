"""The resource in front of the routes: they see only requests of which it is known who asks."""

from __future__ import annotations

from typing import Any

from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET

from cartd.auth.guard import Guard
from cartd.errors import CartdError, NoCredentials
from cartd.server import error_responses
from cartd.server.request_head import path_of
from cartd.server.route_table import is_open_to_all


class Guarded(Resource):
    """Passes on to ``routes``, with ``request.who`` set, or answers in their place.

    A request with a body was asked at its head (:class:`cartd.server.request.JudgedRequest`).
    """

    def __init__(self, routes: IResource, guard: Guard) -> None:
        super().__init__()
        self.isLeaf = True
        self._routes = routes
        self._guard = guard

    def render(self, request: Any) -> Any:
        if request.who is None and not is_open_to_all(request.method, path_of(request.postpath)):
            found = self._guard.find_out(request)
            if isinstance(found, CartdError):
                for name, value in self._guard.headers(found):
                    request.responseHeaders.addRawHeader(name, value)
                _refuse(request, found)
                return NOT_DONE_YET
            request.who = found
        return self._routes.render(request)


def _refuse(request: Any, refusal: CartdError) -> None:
    offence = not isinstance(refusal, NoCredentials)
    body = error_responses.error(request, refusal.code, str(refusal), offence=offence)
    if request.method != b"HEAD":
        request.write(body)
    request.finish()
