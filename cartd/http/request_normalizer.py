"""Validates requests and normalizes path and Host before the routes see them."""

from __future__ import annotations

from typing import Any

from twisted.web.resource import IResource, Resource
from twisted.web.server import Request

from cartd.http import error_responses
from cartd.http.request_head import RequestHead, RequestRules, validate_head


class RequestNormalizer(Resource):
    """Passes requests with a valid head to ``routes``, and rejects all others.

    For a path that is not UTF-8, Klein would send HTML and log a traceback.
    """

    def __init__(self, routes: IResource, rules: RequestRules) -> None:
        super().__init__()
        self.isLeaf = True
        self._routes = routes
        self._rules = rules

    def render(self, request: Request) -> Any:
        head = RequestHead(request.method, request.uri, request.clientproto, request.requestHeaders)
        if not getattr(request, "head_validated", False):  # else done before its body was received
            early = validate_head(head, self._rules)
            if early is not None:
                return error_responses.respond(request, early)
        request.postpath = head.segments
        # Klein fails on some values of Host, which no route uses.
        request.requestHeaders.setRawHeaders(b"Host", [b"localhost"])
        return self._routes.render(request)
