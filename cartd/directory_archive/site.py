"""The HTTP server around the routes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from io import BytesIO
from math import inf
from typing import IO, Any

from twisted.internet.interfaces import IAddress
from twisted.web.resource import IResource
from twisted.web.server import Site

from cartd.directory_archive.directory import Directory
from cartd.server.channel import LimitedChannel
from cartd.server.limits import Limits
from cartd.server.request import ValidatedRequest
from cartd.server.request_head import RequestRules
from cartd.server.request_normalizer import RequestNormalizer

METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
IN_MEMORY = 100_000
"""Bytes; a longer body is written to a temporary file."""
LIMITS = Limits(
    max_manifest_size=0,  # the archive has no manifests
    temp_file_limit=0,
    max_header_size=16384,
    max_headers=100,
    header_timeout=60.0,
    body_timeout=inf,
    idle_timeout=60.0,
    keepalive_timeout=75.0,
    stall_timeout=3600.0,
    max_connections=0,  # unlimited
    max_connections_per_address=0,
)
"""A file may have any size and take any time, if bytes arrive at least every minute."""


class ArchiveChannel(LimitedChannel):
    """A channel with fixed limits."""

    limits = LIMITS
    limit_name = staticmethod(lambda limit: None)

    def on_disconnect(self) -> None:
        """Connections are not counted."""


class ArchiveSite(Site):
    """Spools bodies to the archive's own file system, not to ``/tmp``; has no access log."""

    protocol: Any = ArchiveChannel

    def __init__(
        self,
        reactor: Any,
        routes: IResource,
        directory: Directory,
        hosts: Collection[str],
        origins: Collection[str],
    ) -> None:
        """``hosts``: accepted host names; ``origins``: sites whose pages may change files."""
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
            parsePOSTFormSubmission=False,  # bodies of POST are ignored
            reactor=reactor,
        )
        self.timeOut = None  # the channels have their own timeouts
        self._directory = directory

    def buildProtocol(self, addr: IAddress | None) -> Any:
        channel: Any = super().buildProtocol(addr)
        channel.rules = self._rules
        return channel

    def getContentFile(self, length: int | None) -> IO[bytes]:
        """Called by :meth:`twisted.web.server.Request.gotLength`; None: unknown length."""
        if length is not None and length < IN_MEMORY:
            return BytesIO()
        return self._directory.spool()

    def log(self, request: object) -> None:
        """Log nothing: a line would cost more than most requests."""

    def log_rejection(self, channel: LimitedChannel, code: int, sent: int) -> None:
        """Log nothing: the rejection log has a line already."""


def _methods(path: Sequence[str]) -> Sequence[str]:
    return METHODS if path else ("GET", "HEAD")
