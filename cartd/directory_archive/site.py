"""The HTTP server around the routes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from io import BytesIO
from math import inf
from typing import IO, Any

from twisted.internet.interfaces import IAddress
from twisted.web.resource import IResource
from twisted.web.server import Site

from cartd.directory_archive.files import Directory
from cartd.server.channel import LimitedChannel
from cartd.server.limits import Limits
from cartd.server.request import ValidatedRequest
from cartd.server.request_head import RequestRules
from cartd.server.request_normalizer import RequestNormalizer

METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
IN_MEMORY = 100_000
"""Bytes; a longer body that comes in is kept in a file until it is whole."""
LIMITS = Limits(
    max_manifest_size=0,  # there are none
    temp_file_limit=0,
    max_header_size=16384,
    max_headers=100,
    header_timeout=60.0,
    body_timeout=inf,
    idle_timeout=60.0,
    keepalive_timeout=75.0,
    stall_timeout=3600.0,
    max_connections=0,  # as many as come
    max_connections_per_address=0,
)
"""A file may be of any size and take any time, as long as some of it comes every minute."""


class ArchiveChannel(LimitedChannel):
    """Has limits that are no settings."""

    limits = LIMITS
    limit_name = staticmethod(lambda limit: None)

    def on_disconnect(self) -> None:
        """Connections are not counted."""


class ArchiveSite(Site):
    """Keeps bodies on the archive's own file system, never in ``/tmp``, and logs no request."""

    protocol: Any = ArchiveChannel

    def __init__(
        self,
        reactor: Any,
        routes: IResource,
        directory: Directory,
        hosts: Collection[str],
        origins: Collection[str],
    ) -> None:
        """``hosts`` are names by which it may be asked; pages of ``origins`` may change files."""
        self._rules = RequestRules(
            _methods,
            METHODS,
            length_required=(b"PUT",),
            allowed_hosts=frozenset(hosts),
            hosts_setting="its option --allowed-host",
            allowed_origins=origins,
            origins_setting="its option --allowed-origin",
        )
        super().__init__(
            RequestNormalizer(routes, self._rules),
            requestFactory=ValidatedRequest,
            parsePOSTFormSubmission=False,  # no body of a POST is of use
            reactor=reactor,
        )
        self.timeOut = None  # the channels have timers of their own
        self._directory = directory

    def buildProtocol(self, addr: IAddress | None) -> Any:
        channel: Any = super().buildProtocol(addr)
        channel.rules = self._rules
        return channel

    def getContentFile(self, length: int | None) -> IO[bytes]:
        """What :meth:`twisted.web.server.Request.gotLength` asks for; None: unknown."""
        if length is not None and length < IN_MEMORY:
            return BytesIO()
        return self._directory.spool()

    def log(self, request: object) -> None:
        """A line for each of thousands of requests a second would cost more than they do."""

    def log_rejection(self, channel: LimitedChannel, code: int, sent: int) -> None:
        """What was refused has its line already, as a refusal."""


def _methods(path: Sequence[str]) -> Sequence[str]:
    return METHODS if path else ("GET", "HEAD")
