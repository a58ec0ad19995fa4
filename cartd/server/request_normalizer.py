"""What of a request the routes could not tell is put right, or refused, before they see it."""

from __future__ import annotations

from typing import Any

from twisted.web.resource import IResource, Resource
from twisted.web.server import Request

from cartd.server import error_responses
from cartd.server.request_head import RequestHead, RequestRules, validate_head


class RequestNormalizer(Resource):
    """Passes on to ``routes`` what the head of a request does not refuse.

    Those have a path in UTF-8; for others Klein would answer HTML and log a trace.
    """

    def __init__(self, routes: IResource, rules: RequestRules) -> None:
        super().__init__()
        self.isLeaf = True
        self._routes = routes
        self._rules = rules

    def render(self, request: Request) -> Any:
        head = RequestHead(request.method, request.uri, request.clientproto, request.requestHeaders)
        if not getattr(request, "head_validated", False):  # else that was before its body was read
            early = validate_head(head, self._rules)
            if early is not None:
                return error_responses.respond(request, early)
        request.postpath = head.segments
        # Klein takes the host apart, and fails over what is no name; no route asks for it.
        request.requestHeaders.setRawHeaders(b"Host", [b"localhost"])
        return self._routes.render(request)
