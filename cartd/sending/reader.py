"""What gives the bytes of a download, or of a bundle that is written; blocking, for a thread."""

from __future__ import annotations

import socket
from typing import Protocol


class Reader(Protocol):
    """A run of bytes, read from its beginning to its end."""

    def read(self, limit: int) -> bytes:
        """Give the next ``limit`` bytes, fewer only before the end, none at the end.

        Raises :class:`VolumeDamaged` if they are not there, :class:`OSError` if the disk fails.
        """

    def close(self) -> None:
        """Let go of every file; may be called again, but not while another method runs."""


class SendingReader(Reader, Protocol):
    """A reader that can give its bytes to a socket as well."""

    at_end: bool
    """Whether ``send`` has given the last byte, and has noticed."""
    bytes_sent: int
    """How many bytes ``send`` has given, which grows while it runs."""

    def prepare(self) -> None:
        """Find out whether the first bytes are there; raises as ``read`` does."""

    def is_cached(self, limit: int) -> bool:
        """Whether the next ``limit`` bytes are in memory, if that can be told without waiting."""

    def send(self, out: socket.socket, limit: int) -> int:
        """Give the next bytes to ``out``, which does not block; gives how many that were.

        That is ``limit`` or some more; fewer at the end, or when the socket takes no more now.
        Raises as ``read`` does, and :class:`OSError` for the socket.
        """


class CartLock(Protocol):
    """What keeps a cart on the volume."""

    def acquire(self) -> None:
        """Raises :class:`VolumeDamaged` if the cart goes already; again does nothing."""

    def release(self) -> None:
        """Again does nothing."""
