"""Senders that push bytes from a reader to a consumer with backpressure.

Strategy: events only change the state, and resources are released in ``_end`` and ``_close``,
whichever event comes first.  At most one thread works for a sender; nothing is closed before it has
returned.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from cartd.deferreds.threads import ThreadRunner
from cartd.errors import CartdError
from cartd.sending.reader import Reader


class ClientDisconnected(CartdError):
    """The client disconnected, or the sending was cancelled, before all was written."""

    def __init__(self) -> None:
        super().__init__("The client disconnected")


@implementer(IPushProducer)
class BaseSender(ABC):
    """Start and end of every sender.

    It owns the reader and closes it once, when no thread uses it any more.
    """

    def __init__(self, reader: Reader, threads: ThreadRunner, consumer: Any) -> None:
        """``consumer`` provides ``IConsumer``."""
        self._reader = reader
        self._threads = threads
        self._consumer = consumer
        self._done: Deferred[None] = Deferred(self._cancel)
        self._busy = False
        """Whether a thread is working."""
        self._ended = False
        self._failure: Failure | Exception | None = None

    def start(self) -> Deferred[None]:
        """Register with the consumer and send; call it once.

        The Deferred fires when the reader is closed: with None when all was written, with the
        failure of a read, or with :class:`ClientDisconnected` when the consumer stopped the sender
        or the Deferred was cancelled.  After a failure the response is truncated, so the caller
        must abort the connection.
        """
        self._consumer.registerProducer(self, True)
        self._begin()
        return self._done

    @abstractmethod
    def pauseProducing(self) -> None: ...

    @abstractmethod
    def resumeProducing(self) -> None: ...

    def stopProducing(self) -> None:
        """End because the consumer has disconnected; it is not unregistered."""
        self._end(ClientDisconnected())

    @abstractmethod
    def _begin(self) -> None: ...

    @abstractmethod
    def _release(self) -> None:
        """Release all resources but the reader."""

    def _finish(self) -> None:
        self._consumer.unregisterProducer()
        self._end(None)

    def _fail(self, failure: Failure | Exception) -> None:
        if not self._ended:
            self._consumer.unregisterProducer()
            self._end(failure)

    def _cancel(self, done: Deferred[None]) -> None:
        """Stop for the caller; delay ``done`` while a thread still works."""
        self._fail(ClientDisconnected())
        if not done.called:
            done.pause()
            done.errback(ClientDisconnected())

    def _end(self, failure: Failure | Exception | None) -> None:
        if self._ended:
            return
        self._ended = True
        self._failure = failure
        if not self._busy:
            self._close()

    def _close(self) -> None:
        self._release()
        self._reader.close()
        if self._done.called:
            self._done.unpause()
        elif self._failure is None:
            self._done.callback(None)
        else:
            self._done.errback(self._failure)


class PushSender(BaseSender):
    """Writes the bytes of ``reader`` to ``consumer``, ``chunk`` bytes at a time.

    A read runs in a thread, its bytes are written when the client is ready for them, and the next
    read runs meanwhile.  So at most one chunk is buffered here, whatever the client does.
    ``chunk`` may be a callable, called in the reactor's thread before each read.
    """

    def __init__(
        self,
        reader: Reader,
        threads: ThreadRunner,
        consumer: IConsumer,
        chunk: Callable[[], int] | int,
    ) -> None:
        super().__init__(reader, threads, consumer)
        self._chunk = chunk
        self._buffer = b""
        """Bytes that were read and not yet written."""
        self._at_end = False
        self._paused = False
        self._pumping = False

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._pump()

    def _begin(self) -> None:
        self._pump()

    def _release(self) -> None:
        self._buffer = b""

    def _pump(self) -> None:
        """Write and read until the sender has to wait.

        A write may pause, resume or stop this sender before it returns, and a read may be done at
        once: they change the state, and the running loop acts on it.
        """
        if self._pumping:
            return
        self._pumping = True
        try:
            while not self._ended and self._step():
                pass
        except Exception as error:
            self._fail(error)
        finally:
            self._pumping = False

    def _step(self) -> bool:
        """Do the next step; return False if the sender has to wait."""
        if self._buffer:
            if self._paused:
                return False
            data, self._buffer = self._buffer, b""
            self._consumer.write(data)
        elif self._at_end:
            if self._paused:
                # The client has not received all yet.  Once the sender has ended, the connection
                # counts as idle, and would soon be closed on a slow client.
                return False
            self._finish()
        elif self._busy:
            return False
        else:
            self._read()
        return True

    def _read(self) -> None:
        limit = self._chunk() if callable(self._chunk) else self._chunk
        self._busy = True
        reading = self._threads.run(self._reader.read, limit)
        reading.addBoth(self._read_done, limit)

    def _read_done(self, result: bytes | Failure, limit: int) -> None:
        self._busy = False
        if self._ended:
            self._close()
        elif isinstance(result, Failure):
            self._fail(result)
        else:
            self._buffer = result
            self._at_end = len(result) < limit
            self._pump()
