"""The head of a response: status, fields, and the length or framing of the body.

Strategy: llhttp parses the lines, in its strict mode; the rest is decided here (RFC 9112, section
6.3).  A response in which two parsers could see different bodies is rejected.  A head is parsed
only when all of it has come, so its end is known to the byte.
"""

from __future__ import annotations

import re
from typing import Final

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
from twisted.web.http_headers import Headers

END: Final = b"\r\n\r\n"
START: Final = b"HTTP/1."

MAX_BYTES: Final = 64 * 1024
"""Bytes of a head, including the interim responses before it."""
MAX_LINES: Final = 256

_NO_BODY: Final = frozenset({204, 304})
_FOLD = re.compile(rb"\r\n[ \t]+")


class BadResponse(Exception):
    """The response is not HTTP/1.1, or its end is ambiguous."""


class Head:
    """The head of one response.

    ``length`` is that of the body in bytes, or None if it ends by ``chunked`` framing or else with
    the connection.  ``persistent``: the connection stays open after the response.
    """

    __slots__ = ("chunked", "code", "headers", "length", "persistent", "phrase")

    def __init__(self, data: bytes, *, to_head: bool) -> None:
        """``data`` ends with the empty line; ``to_head``: it is the response to a HEAD request.

        Raises :class:`BadResponse`.
        """
        if not data.startswith(START):
            raise BadResponse("it does not begin with HTTP/1.")
        if data.count(b"\n") > MAX_LINES:
            raise BadResponse(f"it has more than {MAX_LINES} lines")
        self.phrase = b""
        self.headers = Headers()
        self.code = self._parse(data)
        options = _tokens(self.headers, b"Connection")
        codings = _tokens(self.headers, b"Transfer-Encoding")
        self.persistent = b"close" not in options
        if data.startswith(b"HTTP/1.0"):
            # A sender of codings in 1.0 may not implement them (RFC 9112, section 6.1).
            self.persistent = b"keep-alive" in options and not codings
        self.chunked = False
        self.length: int | None = 0
        if not (to_head or self.code in _NO_BODY or self.code < 200):
            self._find_body(codings)

    def on_status(self, phrase: bytes) -> None:
        self.phrase = phrase

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.addRawHeader(name, value)

    def _parse(self, data: bytes) -> int:
        """Return the status; llhttp rejects several lengths, and a length beside a coding."""
        if b"\r\n " in data or b"\r\n\t" in data:
            data = _unfolded(data)
        parser = HttpResponseParser(self)
        try:
            parser.feed_data(data)
        except HttpParserUpgrade:
            raise BadResponse("it switches to another protocol, which was not requested") from None
        except HttpParserError as error:
            raise BadResponse(str(error)) from error
        code: int = parser.get_status_code()
        if code < 100:
            raise BadResponse(f"its status is {code}")
        return code

    def _find_body(self, codings: list[bytes]) -> None:
        lengths = self.headers.getRawHeaders(b"Content-Length")
        if codings:
            if codings != [b"chunked"]:
                raise BadResponse(f"its transfer coding is {b', '.join(codings)!r}")
            self.chunked = True
            self.length = None
        elif lengths:
            self.length = int(lengths[0])
        else:
            self.length = None
            self.persistent = False


def _unfolded(data: bytes) -> bytes:
    """Join continued lines (RFC 9112, section 5.2), except to the status line."""
    status, end, fields = data.partition(b"\r\n")
    return status + end + _FOLD.sub(b" ", fields)


def _tokens(headers: Headers, name: bytes) -> list[bytes]:
    """Return the lower-case members of a list field (RFC 9110, section 5.6.1)."""
    values = headers.getRawHeaders(name)
    if values is None:
        return []
    return [token for part in b",".join(values).lower().split(b",") if (token := part.strip())]
