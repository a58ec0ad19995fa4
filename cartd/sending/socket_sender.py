"""From a reader straight into a client's socket: neither copied nor held here.

Strategy: a thread gives the socket what it takes; when it takes no more, the reactor watches for
room, and then a thread is asked again.  The reactor knows the connection by its own descriptor
already, so the socket is watched by a duplicate, which is closed before the connection is used for
anything else.  The head of the answer goes through the connection as any does: until that has
been sent the socket is left alone.
"""

from __future__ import annotations

import errno
import socket
from typing import Any, Protocol

from twisted.internet.interfaces import IReactorFDSet, IWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from cartd.sending.push import Sending, SendStopped
from cartd.sending.reader import SendingReader
from cartd.threads import ThreadRunner

_NO_WAY_THERE = frozenset({errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH})


class Answer(Protocol):
    """A request whose answer is sent: twisted.web's, with one thing more."""

    transport: Any
    sentLength: int

    def registerProducer(self, producer: Any, streaming: bool) -> None: ...

    def unregisterProducer(self) -> None: ...

    def write(self, data: bytes) -> None: ...

    def waits_for_client(self, waits: bool) -> None:
        """The client has yet to take what was sent; or it has taken some."""


def plain_socket(transport: Any, reactor: Any) -> socket.socket | None:
    """Another descriptor of the socket below ``transport``, for the caller to close.

    None if what goes into the socket is not what is written to the transport, as over TLS; or if
    ``reactor`` watches no descriptors.
    """
    handle = getattr(transport, "getHandle", lambda: None)()
    if isinstance(handle, socket.socket) and IReactorFDSet.providedBy(reactor):
        return handle.dup()
    return None


@implementer(IWriteDescriptor)
class SocketSender(Sending):
    """Sends what ``reader`` gives to ``own_socket``, the one below ``answer``; it closes both.

    After ``turn`` bytes the thread may serve others.  ``quick_threads`` are for what is in memory
    already: a few of them send as much as many do, and leave the processor to others in between.
    """

    _reader: SendingReader

    def __init__(
        self,
        reader: SendingReader,
        threads: ThreadRunner,
        quick_threads: ThreadRunner,
        answer: Answer,
        own_socket: socket.socket,
        reactor: Any,
        *,
        turn: int,
    ) -> None:
        super().__init__(reader, threads, answer)
        self._quick_threads = quick_threads
        self._answer = answer
        self._socket = own_socket
        self._reactor = reactor
        self._turn = turn
        self._head_sent = False

    def pauseProducing(self) -> None:
        """The connection holds the head alone: that it is full is seen in the socket itself."""

    resumeProducing = pauseProducing

    @property
    def given(self) -> int:
        """How many bytes the socket has taken, those of a thread that still works included."""
        return self._reader.given

    def fileno(self) -> int:
        return self._socket.fileno()

    def logPrefix(self) -> str:
        return type(self).__name__

    def doWrite(self) -> None:
        """The socket has room."""
        if not self._head_sent:
            if self._connection_writes():
                return
            self._head_sent = True
        self._reactor.removeWriter(self)
        self._answer.waits_for_client(False)
        self._busy = True
        at_hand = self._reader.is_at_hand(self._turn)
        threads = self._quick_threads if at_hand else self._threads
        threads.run(self._reader.send, self._socket, self._turn).addBoth(self._sent)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor has seen it before the connection itself, or is being shut down."""
        self._fail(SendStopped())

    def _connection_writes(self) -> bool:
        """Whether the connection has something to send; the transport may be a wrapper of it."""
        descriptor = self._answer.transport.fileno()
        return any(writer.fileno() == descriptor for writer in self._reactor.getWriters())

    def _begin(self) -> None:
        # What is missing shall be known before there is a head that promises it.
        self._busy = True
        self._threads.run(self._reader.prepare).addBoth(self._prepared)

    def _prepared(self, result: Failure | None) -> None:
        self._busy = False
        if self._ended:
            self._close()
        elif isinstance(result, Failure):
            self._fail(result)
        else:
            self._answer.write(b"")
            self._wait_for_room()

    def _sent(self, result: int | Failure) -> None:
        self._busy = False
        if self._ended:
            self._close()
        elif isinstance(result, Failure):
            self._fail(SendStopped() if _client_left(result.value) else result)
        else:
            self._answer.sentLength += result
            if self._reader.at_end:
                self._finish()
            else:
                self._wait_for_room()

    def _wait_for_room(self) -> None:
        self._answer.waits_for_client(True)
        self._reactor.addWriter(self)

    def _let_go(self) -> None:
        self._reactor.removeWriter(self)
        self._answer.waits_for_client(False)
        self._socket.close()


def _client_left(error: BaseException | None) -> bool:
    return isinstance(error, ConnectionError | TimeoutError) or (
        isinstance(error, OSError) and error.errno in _NO_WAY_THERE
    )
