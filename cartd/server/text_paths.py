"""What of a request the routes could not tell is put right, or refused, before they see it."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote_to_bytes

from twisted.web.resource import IResource, Resource
from twisted.web.server import Request

from cartd.server import short_answers

_HOST = re.compile(rb"https?://[^/]+", re.IGNORECASE)
"""A target may name the host, too (RFC 9112, section 3.2.2)."""


class TextPaths(Resource):
    """Passes on to ``routes`` what has a path in UTF-8; Klein would answer HTML and log a trace."""

    def __init__(self, routes: IResource) -> None:
        super().__init__()
        self.isLeaf = True
        self._routes = routes

    def render(self, request: Request) -> Any:
        if request.method != request.method.upper():
            # Klein would take it for that method (RFC 9110, section 9.1).
            return _refused(request, "The method is not written in capitals")
        path = request.path
        if host := _HOST.match(path):
            path = path[host.end() :] or b"/"
        if not path.startswith(b"/"):
            return _refused(request, "The path does not begin with /")
        segments = [unquote_to_bytes(segment) for segment in path[1:].split(b"/")]
        try:
            b"/".join(segments).decode()
        except UnicodeDecodeError:
            return _refused(request, "The path is not UTF-8")
        request.postpath = segments
        # Klein takes the host apart, and fails over what is no name; no route asks for it.
        request.requestHeaders.setRawHeaders(b"Host", [b"localhost"])
        return self._routes.render(request)


def _refused(request: Request, message: str) -> bytes:
    body = short_answers.error(request, 400, message)
    # Twisted notes in the log that it leaves out the body of an answer to HEAD.
    return b"" if request.method == b"HEAD" else body
