"""The resource in front of the routes that authenticates every request."""

from __future__ import annotations

from typing import Any

from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET

from cartd.auth.authenticator import Authenticator
from cartd.errors import CartdError, NoCredentials
from cartd.http import error_responses
from cartd.http.request_head import route_path
from cartd.http.route_table import is_public


class AuthResource(Resource):
    """Sets ``request.authenticated_user`` and passes the request to ``routes``, or rejects it.

    A request with a body is authenticated already, when its head is complete
    (:class:`cartd.http.request.ValidatedRequest`).
    """

    def __init__(self, routes: IResource, authenticator: Authenticator) -> None:
        super().__init__()
        self.isLeaf = True
        self._routes = routes
        self._authenticator = authenticator

    def render(self, request: Any) -> Any:
        if request.authenticated_user is None and not is_public(
            request.method, route_path(request.postpath)
        ):
            found = self._authenticator.try_authenticate(request)
            if isinstance(found, CartdError):
                for name, value in self._authenticator.headers(found):
                    request.responseHeaders.addRawHeader(name, value)
                _reject(request, found)
                return NOT_DONE_YET
            request.authenticated_user = found
        return self._routes.render(request)


def _reject(request: Any, error: CartdError) -> None:
    logged = not isinstance(error, NoCredentials)
    body = error_responses.prepare_error(request, error.code, str(error), logged=logged)
    if request.method != b"HEAD":
        request.write(body)
    request.finish()
