"""The HTTP server around the routes."""

from __future__ import annotations

from io import BytesIO
from typing import IO, Any
from urllib.parse import unquote_to_bytes

from twisted.web.resource import IResource, Resource
from twisted.web.server import Request, Site

from cartd.directory_archive.files import Directory
from cartd.directory_archive.wire import error_body

IN_MEMORY = 100_000
"""Bytes; a longer body that comes in is kept in a file until it is whole."""


class ArchiveSite(Site):
    """Keeps bodies on the archive's own file system, never in ``/tmp``, and logs no request."""

    def __init__(self, routes: IResource, directory: Directory) -> None:
        super().__init__(_TextPaths(routes))
        self._directory = directory

    def getContentFile(self, length: int | None) -> IO[bytes]:
        """What :meth:`twisted.web.server.Request.gotLength` asks for; None: unknown."""
        if length is not None and length < IN_MEMORY:
            return BytesIO()
        return self._directory.spool()

    def log(self, request: object) -> None:
        """A line for each of thousands of requests a second would cost more than they do."""


class _TextPaths(Resource):
    """Passes on to ``routes`` what has a path that is text; Klein would log a trace."""

    def __init__(self, routes: IResource) -> None:
        super().__init__()
        self.isLeaf = True
        self._routes = routes

    def render(self, request: Request) -> Any:
        try:
            unquote_to_bytes(request.path).decode()
        except UnicodeDecodeError:
            request.setResponseCode(400)
            request.responseHeaders.setRawHeaders("Content-Type", ["application/json"])
            return error_body(400, "an id is UTF-8")
        return self._routes.render(request)
