"""Where a body ends: the three ways of RFC 9112, section 6.3, that an answer's head may name.

Each takes bytes as they come from the connection, and gives those of the body among them.
"""

from __future__ import annotations

from typing import Final, Protocol

from httptools import HttpParserError, HttpResponseParser

from cartd.archive.agent.head import BadResponse, Head

SMALL_CHUNK: Final = 4096
"""Bytes; chunks that are smaller on average are joined, since each costs more than its copying."""


class Framing(Protocol):
    """One body's end."""

    @property
    def whole(self) -> bool:
        """Whether it has come."""

    def feed(self, data: bytes) -> tuple[list[bytes], bool]:
        """Gives the body's bytes in ``data``, in pieces, and whether more came than belongs to it.

        Raises :class:`~cartd.archive.agent.head.BadResponse`.
        """


def framing(head: Head) -> Framing:
    if head.chunked:
        return Chunked()
    return UntilClosed() if head.length is None else Sized(head.length)


class Sized:
    """So many bytes."""

    __slots__ = ("_left", "whole")

    def __init__(self, length: int) -> None:
        self._left = length
        self.whole = False

    def feed(self, data: bytes) -> tuple[list[bytes], bool]:
        left = self._left - len(data)
        if left < 0:
            data = data[: self._left]
        self._left = max(left, 0)
        self.whole = left <= 0
        return [data] if data else [], left < 0


class UntilClosed:
    """All that comes until the connection ends, which is never known to be whole."""

    __slots__ = ()

    whole: Final = False

    def feed(self, data: bytes) -> tuple[list[bytes], bool]:
        return [data] if data else [], False


class Chunked:
    """Chunks (RFC 9112, section 7.1), taken apart by llhttp; trailer fields are read past."""

    __slots__ = ("_parser", "_pieces", "whole")

    _HEAD: Final = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

    def __init__(self) -> None:
        self.whole = False
        self._pieces: list[bytes] = []
        self._parser = HttpResponseParser(self)
        self._parser.feed_data(self._HEAD)

    def feed(self, data: bytes) -> tuple[list[bytes], bool]:
        """llhttp does not say how much it took, and skips empty lines after the body.

        But a body's end is a line's end, so: nothing is left over if it is whole with the last byte
        and not before.
        """
        view = memoryview(data)
        until = len(data) - data.endswith(b"\n")
        try:
            self._parser.feed_data(view[:until])
            extra = self.whole
            if not extra:
                self._parser.feed_data(view[until:])
        except HttpParserError as error:
            if not self.whole:
                raise BadResponse(str(error)) from error
            extra = True
        pieces, self._pieces = self._pieces, []
        if len(pieces) * SMALL_CHUNK > len(data):
            pieces = [b"".join(pieces)]
        return pieces, extra

    def on_body(self, piece: bytes) -> None:
        if not self.whole:
            self._pieces.append(piece)

    def on_message_complete(self) -> None:
        self.whole = True
