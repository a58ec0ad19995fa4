"""Message framing: the three ways of RFC 9112, section 6.3, in which a body may end.

Each takes bytes as they come from the connection, and returns those of the body.
"""

from __future__ import annotations

from typing import Final, Protocol

from httptools import HttpParserError, HttpResponseParser

from cartd.archive.head import BadResponse, Head

SMALL_CHUNK: Final = 4096
"""Bytes; chunks that are smaller on average are joined: passing each on costs more than copying."""


class Framing(Protocol):
    """The framing of one body."""

    @property
    def complete(self) -> bool:
        """Whether the body is complete."""

    def feed(self, data: bytes) -> tuple[list[bytes], bool]:
        """Return the body's bytes in ``data``, in pieces, and whether bytes follow the body.

        Raises :class:`~cartd.archive.head.BadResponse`.
        """


def framing(head: Head) -> Framing:
    if head.chunked:
        return Chunked()
    return UntilClosed() if head.length is None else Sized(head.length)


class Sized:
    """A body of a known number of bytes."""

    __slots__ = ("_left", "complete")

    def __init__(self, length: int) -> None:
        self._left = length
        self.complete = False

    def feed(self, data: bytes) -> tuple[list[bytes], bool]:
        left = self._left - len(data)
        if left < 0:
            data = data[: self._left]
        self._left = max(left, 0)
        self.complete = left <= 0
        return [data] if data else [], left < 0


class UntilClosed:
    """All bytes until the connection ends; never known to be complete."""

    __slots__ = ()

    complete: Final = False

    def feed(self, data: bytes) -> tuple[list[bytes], bool]:
        return [data] if data else [], False


class Chunked:
    """Chunks (RFC 9112, section 7.1), parsed by llhttp; trailer fields are ignored."""

    __slots__ = ("_parser", "_pieces", "complete")

    _HEAD: Final = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

    def __init__(self) -> None:
        self.complete = False
        self._pieces: list[bytes] = []
        self._parser = HttpResponseParser(self)
        self._parser.feed_data(self._HEAD)

    def feed(self, data: bytes) -> tuple[list[bytes], bool]:
        """As :meth:`Framing.feed`.

        llhttp does not report how many bytes it consumed, and skips empty lines after the body.
        But a body ends with the end of a line: no bytes follow if it is complete with the last byte
        and not before.
        """
        view = memoryview(data)
        until = len(data) - data.endswith(b"\n")
        try:
            self._parser.feed_data(view[:until])
            extra = self.complete
            if not extra:
                self._parser.feed_data(view[until:])
        except HttpParserError as error:
            if not self.complete:
                raise BadResponse(str(error)) from error
            extra = True
        pieces, self._pieces = self._pieces, []
        if len(pieces) * SMALL_CHUNK > len(data):
            pieces = [b"".join(pieces)]
        return pieces, extra

    def on_body(self, piece: bytes) -> None:
        if not self.complete:
            self._pieces.append(piece)

    def on_message_complete(self) -> None:
        self.complete = True
