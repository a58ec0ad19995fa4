"""Sending of downloads: from the page cache directly to the client's socket, or by push.

:class:`DownloadSender` chooses between the two, and the size of each step.

Strategy of :class:`SocketSender`, without buffering: a thread writes until the send buffer is full;
then the reactor waits until the socket is writable, and a thread writes again.  The reactor already
watches the connection's own descriptor, so the socket is watched by a duplicate, which is closed
before the connection is used for anything else.  The response head is sent by the connection as
usual: the socket is not used before that is done.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFDSet, IWriteDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from cartd.deferreds.threads import LimitedPool, ThreadRunner
from cartd.errors import VolumeDamaged, escape
from cartd.metrics import UNEXPOSED, Metrics
from cartd.sending.reader import SendingReader
from cartd.sending.sender import (
    TRANSITIONS,
    BaseSender,
    ClientDisconnected,
    Event,
    PushSender,
    State,
)

T = TypeVar("T")
CACHED_DATA_THREADS = 2
"""Threads that copy cached data to sockets: each keeps a processor busy."""
CHUNK_MEMORY = 32 * 2**20
"""Bytes that all downloads over TLS together hold in memory."""
MIN_CHUNK = 64 * 2**10
_UNREACHABLE_ERRNOS = frozenset({errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH})

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
        metrics: Metrics = UNEXPOSED,
    ) -> None:
        self._threads = threads
        self._cached_data_threads = LimitedPool(threads, CACHED_DATA_THREADS)
        self._reactor = reactor
        self._transfer_size = transfer_size
        self._downloads = downloads
        self._max_seconds = max_seconds
        self._metrics = metrics
        self._counted: dict[Any, int] = {}
        """By request in progress, the bytes that are counted already."""

    def count_sent(self) -> None:
        """Count what was sent so far of the downloads in progress, which may take days."""
        for request in list(self._counted):
            self._count_sent(request)

    def _count_sent(self, request: Any) -> None:
        sent: int = request.bytes_sent
        self._metrics.sent.inc(max(sent - self._counted[request], 0))
        self._counted[request] = sent

    def _count_end(self, result: T, request: Any) -> T:
        if isinstance(result, Failure) and result.check(ClientDisconnected):
            # It may have all bytes, of which a thread has sent the last.
            request.wait_sent().addCallback(lambda _: self._count_outcome(result, request))
        else:
            self._count_outcome(result, request)
        return result

    def _count_outcome(self, result: object, request: Any) -> None:
        self._count_sent(request)
        del self._counted[request]
        self._metrics.downloads_ended.labels(_outcome(result, request)).inc()

    def send(self, reader: SendingReader, request: Any) -> Deferred[None]:
        """As :meth:`cartd.sending.sender.BaseSender.start`; ``request`` is a ``LimitedRequest``."""
        self._metrics.first_byte_seconds.observe(request.seconds)
        sending = self._start(reader, request)
        self._counted[request] = 0
        sending.addBoth(self._count_end, request)
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


def _outcome(result: object, request: Any) -> str:
    """Return one of ``cartd.metrics.DOWNLOAD_OUTCOMES``."""
    if not isinstance(result, Failure) or _is_complete(request):
        return "range" if request.code == HTTPStatus.PARTIAL_CONTENT else "complete"
    if result.check(ClientDisconnected):
        return "disconnected"
    return "damaged" if result.check(VolumeDamaged) else "failed"


def _is_complete(request: Any) -> bool:
    """Whether the whole body was sent, although the client disconnected before that was known."""
    length: list[bytes] = request.responseHeaders.getRawHeaders(b"content-length", [])
    return length == [b"%d" % request.bytes_sent]


class SendableRequest(Protocol):
    """A request whose response is sent: that of twisted.web, with one more method."""

    transport: Any
    sentLength: int

    def registerProducer(self, producer: Any, streaming: bool) -> None: ...

    def unregisterProducer(self) -> None: ...

    def write(self, data: bytes) -> None: ...

    def on_send_pause(self, paused: bool) -> None:
        """Note that sending waits for the client (``paused``), or goes on."""


def plain_socket(transport: Any, reactor: Any) -> socket.socket | None:
    """Return a duplicate of the socket of ``transport``, for the caller to close.

    None if the bytes on the socket differ from those written to the transport, as over TLS, or if
    ``reactor`` does not watch descriptors.
    """
    handle = getattr(transport, "getHandle", lambda: None)()
    if isinstance(handle, socket.socket) and IReactorFDSet.providedBy(reactor):
        return handle.dup()
    return None


@implementer(IWriteDescriptor)
class SocketSender(BaseSender):
    """Sends the bytes of ``reader`` to ``own_socket``, that of ``request``; it closes both.

    After ``transfer_size`` bytes the thread is released.  ``cached_data_threads`` send data that is
    in the page cache: a few of them are as fast as many, and leave the processor to others.
    """

    _reader: SendingReader

    def __init__(
        self,
        reader: SendingReader,
        threads: ThreadRunner,
        cached_data_threads: ThreadRunner,
        request: SendableRequest,
        own_socket: socket.socket,
        reactor: Any,
        *,
        transfer_size: int,
    ) -> None:
        super().__init__(reader, threads, request)
        self._cached_data_threads = cached_data_threads
        self._request = request
        self._socket = own_socket
        self._reactor = reactor
        self._transfer_size = transfer_size
        self._idle_waiters: list[Deferred[None]] = []

    def pauseProducing(self) -> None:
        """Ignored: the connection buffers only the head; backpressure comes from the socket."""

    resumeProducing = pauseProducing

    @property
    def bytes_sent(self) -> int:
        """How many bytes the socket has accepted; while a thread sends, it may lag behind."""
        return self._reader.bytes_sent

    def wait_idle(self) -> Deferred[None]:
        """Fire when the running call of a thread has ended: ``bytes_sent`` is exact then."""
        idle: Deferred[None] = Deferred()
        if self._state in (State.WORKING, State.ENDING):
            self._idle_waiters.append(idle)
        else:
            idle.callback(None)
        return idle

    def fileno(self) -> int:
        return self._socket.fileno()

    def logPrefix(self) -> str:
        return type(self).__name__

    def doWrite(self) -> None:
        """The socket is writable."""
        if self._state is State.HEAD and self._connection_writes():
            return
        self._reactor.removeWriter(self)
        self._request.on_send_pause(False)
        self._state = TRANSITIONS[self._state, Event.START_WORK]
        cached = self._reader.is_cached(self._transfer_size)
        threads = self._cached_data_threads if cached else self._threads
        threads.run(self._reader.send, self._socket, self._transfer_size).addBoth(self._send_done)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor has detected it before the connection itself, or is shutting down."""
        self._fail(ClientDisconnected())

    def _connection_writes(self) -> bool:
        """Whether the connection has unsent bytes; the transport may be a wrapper of it."""
        descriptor = self._request.transport.fileno()
        return any(writer.fileno() == descriptor for writer in self._reactor.getWriters())

    def _begin(self) -> None:
        # A missing file must be detected before the head is sent.
        self._state = TRANSITIONS[self._state, Event.START_WORK]
        self._threads.run(self._reader.prepare).addBoth(self._prepare_done)

    def _prepare_done(self, result: Failure | None) -> None:
        self._thread_done()
        if self._state is State.CLOSED:
            self._close()
        elif isinstance(result, Failure):
            self._fail(result)
        else:
            self._state = TRANSITIONS[self._state, Event.SEND_HEAD]
            self._request.write(b"")
            self._wait_writable()

    def _send_done(self, result: int | Failure) -> None:
        self._thread_done()
        if self._state is State.CLOSED:
            self._close()
        elif isinstance(result, Failure):
            self._fail(ClientDisconnected() if _is_disconnect(result.value) else result)
        else:
            self._request.sentLength += result
            if self._reader.at_end:
                self._finish()
            else:
                self._wait_writable()

    def _thread_done(self) -> None:
        self._state = TRANSITIONS[self._state, Event.WORK_DONE]
        waiters, self._idle_waiters = self._idle_waiters, []
        for idle in waiters:
            idle.callback(None)

    def _wait_writable(self) -> None:
        self._request.on_send_pause(True)
        self._reactor.addWriter(self)

    def _release(self) -> None:
        self._reactor.removeWriter(self)
        self._request.on_send_pause(False)
        self._socket.close()


def _is_disconnect(error: BaseException | None) -> bool:
    return isinstance(error, ConnectionError | TimeoutError) or (
        isinstance(error, OSError) and error.errno in _UNREACHABLE_ERRNOS
    )
