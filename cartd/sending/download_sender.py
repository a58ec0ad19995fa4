"""Which way a download goes to its client, and how much of it at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from cartd.sending.push import Sender
from cartd.sending.reader import SendingReader
from cartd.sending.socket_sender import SocketSender, plain_socket
from cartd.text import escape
from cartd.threads import LimitedPool, ThreadRunner

T = TypeVar("T")
QUICK_THREADS = 2
"""For bytes on their way from memory to memory: each of them keeps a processor busy."""
CHUNK_MEMORY = 32 * 2**20
"""Bytes that all downloads over TLS together read at once."""
SMALLEST_CHUNK = 64 * 2**10

log = Logger()


class Senders:
    """Sends straight into the socket where that can be, through the connection elsewhere.

    ``transfer_size`` is in bytes; ``downloads`` says how many there are now.  Whatever takes more
    than ``longest`` seconds is broken off, unless that is 0: until its end a cart is pinned.
    """

    def __init__(
        self,
        threads: ThreadRunner,
        reactor: Any,
        *,
        transfer_size: int,
        downloads: Callable[[], int],
        longest: float,
    ) -> None:
        self._threads = threads
        self._quick_threads = LimitedPool(threads, QUICK_THREADS)
        self._reactor = reactor
        self._transfer_size = transfer_size
        self._downloads = downloads
        self._longest = longest

    def send(self, reader: SendingReader, request: Any) -> Deferred[None]:
        """As :meth:`cartd.sending.push.Sending.start`; ``request`` is a ``LimitedRequest``."""
        sending = self._begun(reader, request)
        if self._longest > 0 and not sending.called:
            too_long = self._reactor.callLater(self._longest, self._break_off, request)

            def ended(result: T) -> T:
                if too_long.active():
                    too_long.cancel()
                return result

            sending.addBoth(ended)
        return sending

    def _break_off(self, request: Any) -> None:
        log.warn(
            "The download of {uri} is broken off after {seconds} s (server.max_download_time)",
            uri=escape(request.uri.decode("latin-1")),
            seconds=self._longest,
        )
        if request.channel is not None:
            request.channel.transport.abortConnection()

    def _begun(self, reader: SendingReader, request: Any) -> Deferred[None]:
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
