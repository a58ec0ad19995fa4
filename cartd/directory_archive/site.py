"""The HTTP server around the routes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from io import BytesIO
from typing import IO

from twisted.web.resource import IResource
from twisted.web.server import Site

from cartd.directory_archive.files import Directory
from cartd.server.caching import UncachedRequest
from cartd.server.heads import Rules
from cartd.server.text_paths import TextPaths

METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
IN_MEMORY = 100_000
"""Bytes; a longer body that comes in is kept in a file until it is whole."""


class ArchiveSite(Site):
    """Keeps bodies on the archive's own file system, never in ``/tmp``, and logs no request."""

    def __init__(
        self,
        routes: IResource,
        directory: Directory,
        hosts: Collection[str],
        origins: Collection[str],
    ) -> None:
        """``hosts`` are names by which it may be asked; pages of ``origins`` may change files."""
        rules = Rules(
            _methods,
            METHODS,
            hosts=frozenset(hosts),
            hosts_setting="its option --host",
            origins=origins,
            origins_setting="its option --origin",
        )
        super().__init__(TextPaths(routes, rules), requestFactory=UncachedRequest)
        self._directory = directory

    def getContentFile(self, length: int | None) -> IO[bytes]:
        """What :meth:`twisted.web.server.Request.gotLength` asks for; None: unknown."""
        if length is not None and length < IN_MEMORY:
            return BytesIO()
        return self._directory.spool()

    def log(self, request: object) -> None:
        """A line for each of thousands of requests a second would cost more than they do."""


def _methods(path: Sequence[str]) -> Sequence[str]:
    return METHODS if path else ("GET", "HEAD")
