"""Paths of requests that are no text are refused before the routes see them."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote_to_bytes

from twisted.web.resource import IResource, Resource
from twisted.web.server import Request

from cartd.errors import error_body


class TextPaths(Resource):
    """Passes on to ``routes`` what has a path in UTF-8; Klein would answer HTML and log a trace."""

    def __init__(self, routes: IResource) -> None:
        super().__init__()
        self.isLeaf = True
        self._routes = routes

    def render(self, request: Request) -> Any:
        try:
            unquote_to_bytes(request.path).decode()
        except UnicodeDecodeError:
            request.setResponseCode(400)
            request.setHeader(b"content-type", b"application/json")
            return error_body(400, "The path is not UTF-8")
        return self._routes.render(request)
