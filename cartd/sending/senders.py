"""Which way a download goes to its client, and how much of it at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from cartd.sending.reader import SendingReader
from cartd.sending.sender import Sender
from cartd.sending.socket_sender import SocketSender, plain_socket
from cartd.threads import Few, RunsInThread

QUICK_THREADS = 2
"""For bytes on their way from memory to memory: each of them keeps a processor busy."""
CHUNK_MEMORY = 32 * 2**20
"""Bytes that all downloads over TLS together read at once."""
SMALLEST_CHUNK = 64 * 2**10


class Senders:
    """Sends straight into the socket where that can be, through the connection elsewhere.

    ``transfer_size`` is in bytes; ``downloads`` says how many there are now.
    """

    def __init__(
        self,
        threads: RunsInThread,
        reactor: Any,
        *,
        transfer_size: int,
        downloads: Callable[[], int],
    ) -> None:
        self._threads = threads
        self._quick_threads = Few(threads, QUICK_THREADS)
        self._reactor = reactor
        self._transfer_size = transfer_size
        self._downloads = downloads

    def send(self, reader: SendingReader, request: Any) -> Deferred[None]:
        """As :meth:`cartd.sending.sender.Sending.start`; ``request`` is a ``LimitedRequest``."""
        own_socket = None
        if request.responseHeaders.hasHeader("Content-Length"):
            own_socket = plain_socket(request.transport, self._reactor)
        # Without a length the answer goes in chunks, which the connection frames.
        if own_socket is None:
            return Sender(reader, self._threads, request, self._chunk).start()
        return SocketSender(
            reader,
            self._threads,
            self._quick_threads,
            request,
            own_socket,
            self._reactor,
            turn=self._transfer_size,
        ).start()

    def _chunk(self) -> int:
        share = CHUNK_MEMORY // max(self._downloads(), 1)
        return max(min(share, self._transfer_size), SMALLEST_CHUNK)
