"""The private names of twisted.web that the server uses: only here, under public names.

They may change with any release of Twisted, so ``setup.py`` has an upper bound for its version, and
``tests/http/test_twisted_web.py`` fails if a name is missing.
"""

from __future__ import annotations

from typing import Any

from twisted.web.http import HTTPChannel
from twisted.web.server import Request


class BaseChannel(HTTPChannel):
    """Adds to Twisted's ``HTTPChannel`` what it parses, and two points to override."""

    _networkProducer: Any
    # Twisted has these from the request line to the end of the request.
    _command = b""
    _path = b""
    _version = b""

    def first_line(self) -> tuple[bytes, bytes, bytes]:
        """Return method, target and version of the request being received, empty if none is."""
        return self._command, self._path, self._version

    @property
    def unparsed(self) -> bytes:
        """Bytes received that are no complete line yet."""
        received: bytes = self._buffer
        return received

    @property
    def header_size(self) -> int:
        """Bytes of the complete lines of the head being received."""
        size: int = self._receivedHeaderSize
        return size

    @property
    def header_count(self) -> int:
        """Number of the header fields received of that head."""
        count: int = self._receivedHeaderCount
        return count

    def unregister_from_transport(self) -> None:
        """Stop being the producer of the transport, as before a close."""
        self._networkProducer.unregisterProducer()

    def on_bad_request(self) -> None:
        """Reject a request that Twisted cannot parse."""
        super()._respondToBadRequestAndDisconnect()

    def is_rejected_later(self, header: bytes, data: bytes) -> bool:
        """Return whether Twisted must not interpret a field of the head, which is rejected later.

        Twisted interprets the values of Content-Length and Transfer-Encoding.
        """
        return False

    def _respondToBadRequestAndDisconnect(self) -> None:
        self.on_bad_request()

    def _maybeChooseTransferDecoder(self, header: bytes, data: bytes) -> bool:
        if self.is_rejected_later(header, data):
            return True
        return bool(super()._maybeChooseTransferDecoder(header, data))


class BaseRequest(Request):
    """Twisted's ``Request``, with a point to override."""

    def on_asterisk(self) -> None:
        """Respond to a request whose target is ``*``."""
        super()._handleStar()

    def _handleStar(self) -> None:
        self.on_asterisk()
