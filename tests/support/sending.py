"""Test doubles for senders: a reader, a disk, a consumer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IConsumer
from twisted.python.failure import Failure
from zope.interface import implementer

from cartd.deferreds.threads import P, T
from cartd.errors import VolumeDamaged
from cartd.sending.sender import PushSender


class Bytes:
    """A reader of given bytes that asserts its correct use."""

    def __init__(self, data: bytes, *, fail_after: int | None = None) -> None:
        self.data = data
        self.fail_after = fail_after
        self.at = 0
        self.reads: list[int] = []
        self.running = False
        self.closed = 0

    def read(self, limit: int) -> bytes:
        assert not self.running and not self.closed
        self.running = True
        try:
            self.reads.append(limit)
            if len(self.reads) - 1 == self.fail_after:
                raise VolumeDamaged("a.bin is missing on the volume")
            part = self.data[self.at : self.at + limit]
            self.at += len(part)
            return part
        finally:
            self.running = False

    def close(self) -> None:
        assert not self.running
        self.closed += 1


class AtOnce:
    """Runs calls in the calling thread."""

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        return maybeDeferred(work, *args, **kwargs)


class OneByOne:
    """Delays each call until the test runs it, as a slow disk would."""

    def __init__(self) -> None:
        self.held: list[Callable[[], None]] = []

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        result: Deferred[T] = Deferred()

        def do() -> None:
            maybeDeferred(work, *args, **kwargs).addBoth(result.callback)

        self.held.append(do)
        return result

    def finish(self) -> None:
        """Finish the one call that is pending."""
        (do,) = self.held
        self.held = []
        do()


@implementer(IConsumer)
class Sink:
    """A consumer that records writes, and may react during a write."""

    def __init__(self) -> None:
        self.producer: Any = None
        self.written: list[bytes] = []
        self.on_write: Callable[[], None] = lambda: None
        self.on_register: Callable[[], None] = lambda: None

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert self.producer is None and streaming
        self.producer = producer
        self.on_register()

    def unregisterProducer(self) -> None:
        assert self.producer is not None
        self.producer = None

    def write(self, data: bytes) -> None:
        assert data
        self.written.append(data)
        self.on_write()


class Sending:
    """A sender of ``data`` in chunks of four bytes, with its reader and consumer."""

    def __init__(
        self, data: bytes = b"abcdefghij", *, fail_after: int | None = None, at_once: bool = False
    ) -> None:
        self.reader = Bytes(data, fail_after=fail_after)
        self.disk = OneByOne()
        self.sink = Sink()
        self.sender = PushSender(self.reader, AtOnce() if at_once else self.disk, self.sink, 4)
        self.outcomes: list[Any] = []

    def start(self) -> Deferred[None]:
        done = self.sender.start()
        done.addBoth(self.outcomes.append)
        return done

    @property
    def written(self) -> bytes:
        return b"".join(self.sink.written)

    def assert_open(self) -> None:
        assert self.outcomes == [] and self.reader.closed == 0

    def assert_sent(self) -> None:
        assert self.outcomes == [None]
        assert self.written == self.reader.data
        assert self.reader.closed == 1
        assert self.sink.producer is None

    def assert_failed(self, kind: type[Exception], *, unregistered: bool) -> None:
        (outcome,) = self.outcomes
        assert isinstance(outcome, Failure) and isinstance(outcome.value, kind)
        assert self.reader.closed == 1
        assert (self.sink.producer is None) == unregistered
