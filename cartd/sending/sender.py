"""Senders of downloads: their state machine, and the one that pushes bytes with backpressure.

Strategy: events only change the state (:class:`State`), and resources are released in ``_end`` and
``_close``, whichever event comes first.  At most one thread works for a sender; nothing is closed
before it has returned.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import Enum, auto
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from cartd.deferreds.threads import ThreadRunner
from cartd.errors import CartdError
from cartd.sending.reader import Reader


class State(Enum):
    """What the sender of a download does."""

    WAITING = auto()
    """No thread works: it waits for the client, or was not started."""
    HEAD = auto()
    """It waits until the connection has sent the head of the response
    (:class:`~cartd.sending.sendfile.SocketSender`)."""
    WORKING = auto()
    """A thread reads, and may send to the socket."""
    ALL_READ = auto()
    """The client has not received all yet (:class:`PushSender`)."""
    ENDING = auto()
    """It has ended, but a thread still works."""
    CLOSED = auto()
    """Everything is released."""

    __hash__ = object.__hash__  # faster: there are two transitions for each chunk


class Event(Enum):
    START_WORK = auto()
    """A thread is called."""
    WORK_DONE = auto()
    """The thread has returned."""
    SEND_HEAD = auto()
    """The first file has been opened, so the head can be sent."""
    LAST_READ = auto()
    """The last bytes were read."""
    END = auto()
    """All is sent, a read or a write has failed, or the client has disconnected."""

    __hash__ = object.__hash__


TRANSITIONS: Final = {
    (State.WAITING, Event.START_WORK): State.WORKING,
    (State.HEAD, Event.START_WORK): State.WORKING,
    (State.WORKING, Event.WORK_DONE): State.WAITING,
    (State.WAITING, Event.SEND_HEAD): State.HEAD,
    (State.WAITING, Event.LAST_READ): State.ALL_READ,
    (State.WAITING, Event.END): State.CLOSED,
    (State.HEAD, Event.END): State.CLOSED,
    (State.ALL_READ, Event.END): State.CLOSED,
    (State.WORKING, Event.END): State.ENDING,
    (State.ENDING, Event.WORK_DONE): State.CLOSED,
}
"""No other event occurs in a state."""
ENDED: Final = (State.ENDING, State.CLOSED)


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
        self._state = State.WAITING
        self._failure: Failure | Exception | None = None

    @property
    def state(self) -> State:
        return self._state

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
        if self._state not in ENDED:
            self._consumer.unregisterProducer()
            self._end(failure)

    def _cancel(self, done: Deferred[None]) -> None:
        """Stop for the caller; delay ``done`` while a thread still works."""
        self._fail(ClientDisconnected())
        if not done.called:
            done.pause()
            done.errback(ClientDisconnected())

    def _end(self, failure: Failure | Exception | None) -> None:
        if self._state in ENDED:
            return
        self._state = TRANSITIONS[self._state, Event.END]
        self._failure = failure
        if self._state is State.CLOSED:
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
            while self._state not in ENDED and self._step():
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
        elif self._state is State.ALL_READ:
            if self._paused:
                # The client has not received all yet.  Once the sender has ended, the connection
                # counts as idle, and would soon be closed on a slow client.
                return False
            self._finish()
        elif self._state is State.WORKING:
            return False
        else:
            self._read()
        return True

    def _read(self) -> None:
        limit = self._chunk() if callable(self._chunk) else self._chunk
        self._state = TRANSITIONS[self._state, Event.START_WORK]
        reading = self._threads.run(self._reader.read, limit)
        reading.addBoth(self._read_done, limit)

    def _read_done(self, result: bytes | Failure, limit: int) -> None:
        self._state = TRANSITIONS[self._state, Event.WORK_DONE]
        if self._state is State.CLOSED:
            self._close()
        elif isinstance(result, Failure):
            self._fail(result)
        else:
            self._buffer = result
            if len(result) < limit:
                self._state = TRANSITIONS[self._state, Event.LAST_READ]
            self._pump()
