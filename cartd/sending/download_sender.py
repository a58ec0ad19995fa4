"""The sender of downloads: chooses between sendfile and push, and the size of each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from cartd.deferreds.threads import LimitedPool, ThreadRunner
from cartd.sending.interfaces import SendingReader
from cartd.sending.push import PushSender
from cartd.sending.sendfile import SocketSender, plain_socket
from cartd.text import escape

T = TypeVar("T")
CACHED_DATA_THREADS = 2
"""Threads that copy cached data to sockets: each keeps a processor busy."""
CHUNK_MEMORY = 32 * 2**20
"""Bytes that all downloads over TLS together hold in memory."""
MIN_CHUNK = 64 * 2**10

log = Logger()


class DownloadSender:
    """Sends directly to the socket where possible, else through the connection.

    ``transfer_size`` is in bytes; ``downloads`` returns their current number.  A download that
    takes more than ``max_seconds`` seconds is aborted, unless that is 0: it pins its cart.
    """

    def __init__(
        self,
        threads: ThreadRunner,
        reactor: Any,
        *,
        transfer_size: int,
        downloads: Callable[[], int],
        max_seconds: float,
    ) -> None:
        self._threads = threads
        self._cached_data_threads = LimitedPool(threads, CACHED_DATA_THREADS)
        self._reactor = reactor
        self._transfer_size = transfer_size
        self._downloads = downloads
        self._max_seconds = max_seconds

    def send(self, reader: SendingReader, request: Any) -> Deferred[None]:
        """As :meth:`cartd.sending.push.BaseSender.start`; ``request`` is a ``LimitedRequest``."""
        sending = self._start(reader, request)
        if self._max_seconds > 0 and not sending.called:
            timeout = self._reactor.callLater(self._max_seconds, self._abort, request)

            def ended(result: T) -> T:
                if timeout.active():
                    timeout.cancel()
                return result

            sending.addBoth(ended)
        return sending

    def _abort(self, request: Any) -> None:
        log.warn(
            "The download of {uri} is aborted after {seconds} s (server.max_download_time)",
            uri=escape(request.uri.decode("latin-1")),
            seconds=self._max_seconds,
        )
        if request.channel is not None:
            request.channel.transport.abortConnection()

    def _start(self, reader: SendingReader, request: Any) -> Deferred[None]:
        own_socket = None
        if request.responseHeaders.hasHeader("Content-Length"):
            own_socket = plain_socket(request.transport, self._reactor)
        # Without Content-Length the connection sends the response in chunked encoding.
        if own_socket is None:
            return PushSender(reader, self._threads, request, self._chunk).start()
        return SocketSender(
            reader,
            self._threads,
            self._cached_data_threads,
            request,
            own_socket,
            self._reactor,
            transfer_size=self._transfer_size,
        ).start()

    def _chunk(self) -> int:
        share = CHUNK_MEMORY // max(self._downloads(), 1)
        return max(min(share, self._transfer_size), MIN_CHUNK)
