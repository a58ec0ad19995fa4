"""Interfaces of the readers of downloads and bundles; blocking, for a thread."""

from __future__ import annotations

import socket
from typing import Protocol


class Reader(Protocol):
    """A sequence of bytes, read from its beginning to its end."""

    def read(self, limit: int) -> bytes:
        """Return the next ``limit`` bytes, fewer only before the end, none at the end.

        Raises :class:`VolumeDamaged` if they are missing, :class:`OSError` if the disk fails.
        """

    def close(self) -> None:
        """Close every file; may be called repeatedly, but not while another method runs."""


class SendingReader(Reader, Protocol):
    """A reader that can also send its bytes to a socket."""

    at_end: bool
    """Whether ``send`` has sent the last byte and detected the end."""
    bytes_sent: int
    """How many bytes ``send`` has sent; grows while it runs."""

    def prepare(self) -> None:
        """Read the first bytes ahead; raises as ``read`` does."""

    def is_cached(self, limit: int) -> bool:
        """Whether the next ``limit`` bytes are known to be in the page cache; never waits."""

    def send(self, out: socket.socket, limit: int) -> int:
        """Send the next bytes to ``out``, a non-blocking socket; return how many.

        At least ``limit``; fewer at the end, or when the send buffer is full.
        Raises as ``read`` does, and :class:`OSError` for the socket.
        """


class CartLock(Protocol):
    """A lock that keeps a cart on the volume."""

    def acquire(self) -> None:
        """Acquire, unless held; raises :class:`VolumeDamaged` if the cart is being removed."""

    def release(self) -> None:
        """Release; idempotent."""
