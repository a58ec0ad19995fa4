"""Helpers for tests of the volume: carts, files, and manually run threads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import pytest_twisted
from twisted.internet.defer import Deferred, execute
from twisted.internet.interfaces import IPushProducer
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from cartd.checksum import Checksum
from cartd.model import Cart, CartFile, CartStatus
from cartd.volume import Volume

T = TypeVar("T")

P = ParamSpec("P")


class InThisThread:
    """A ``ThreadRunner`` that runs calls synchronously."""

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        return execute(work, *args, **kwargs)


class HeldThreads:
    """A ``ThreadRunner`` that delays each call until the test runs it.

    As in a real thread, a call whose Deferred was cancelled is run all the same.
    """

    def __init__(self) -> None:
        self.held: list[Callable[[], None]] = []
        self.made = 0
        self.gave: list[object] = []

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        result: Deferred[T] = Deferred()

        def go() -> None:
            done = execute(work, *args, **kwargs)
            done.addCallback(self._note)
            done.chainDeferred(result)

        self.held.append(go)
        self.made += 1
        return result

    def _note(self, value: T) -> T:
        self.gave.append(value)
        return value

    def run_one(self) -> None:
        self.held.pop(0)()

    def run_all(self) -> None:
        while self.held:
            self.run_one()

    def results_of_all(self) -> list[object]:
        """Run all; return their results, even of those that were cancelled."""
        given = len(self.gave)
        self.run_all()
        return self.gave[given:]


def in_the_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """An ``async`` test that runs in the reactor's loop."""
    return cast(Callable[P, None], pytest_twisted.ensureDeferred(test))


@implementer(IPushProducer)
class RecordingProducer:
    """A push producer that records the calls of its methods."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def pauseProducing(self) -> None:
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        self.calls.append("resume")

    def stopProducing(self) -> None:
        self.calls.append("stop")


def begin(coroutine: Coroutine[Any, Any, T]) -> list[T | Failure]:
    """Start ``coroutine``; its result or failure is in the list as soon as there is one."""
    return outcome(Deferred.fromCoroutine(coroutine))


def outcome(deferred: Deferred[T]) -> list[T | Failure]:
    results: list[T | Failure] = []
    deferred.addBoth(results.append)
    return results


def result_of(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run ``coroutine``, which must not wait; return its result."""
    (result,) = begin(coroutine)
    if isinstance(result, Failure):
        result.raiseException()
    return result


def failure_of(results: list[T | Failure]) -> BaseException:
    (result,) = results
    assert isinstance(result, Failure)
    assert result.value is not None
    return result.value


def a_cart(cart_id: int = 7, uid: str = "mine", *, bundle: bool = False) -> Cart:
    return Cart(cart_id, uid, CartStatus.STAGING, 0.0, 0.0, 0.0, bundle=bundle)


def a_file(body: bytes, path: str = "a/b.dat", *, position: int = 0) -> CartFile:
    """Return a file with the size and SHA-1 of ``body`` and an old time."""
    digest = hashlib.sha1(body).hexdigest()
    return CartFile(
        position, str(position), path, "sha1", digest, size=len(body), mtime=1_234_567_890
    )


def checksum_of(file: CartFile) -> Checksum:
    assert file.size is not None
    return Checksum(file.hash_type, file.hash_sum, file.size)


CART = a_cart()
BODY = b"what is staged"


def stage(volume: Volume, file: CartFile, body: bytes = BODY, cart: Any = CART) -> Path:
    incoming = volume.incoming.open(cart, file, checksum_of(file))
    incoming.write(body)
    result_of(incoming.finish())
    return volume.paths.member(cart, file.path)


class Bytes:
    """A reader of bytes in memory, which may fail at their end."""

    def __init__(self, data: bytes, failure: Exception | None = None) -> None:
        self._data = data
        self._failure = failure
        self.closed = 0

    def read(self, limit: int) -> bytes:
        data, self._data = self._data[:limit], self._data[limit:]
        if not data and self._failure is not None:
            raise self._failure
        return data

    def close(self) -> None:
        self.closed += 1


async def has(volume: Volume, file: CartFile) -> bool:
    """Whether the file is staged and intact."""
    return [
        one async for some in volume.verification.intact_files(CART, [file]) for one in some
    ] == [file]


def everything(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def open_below(root: Path) -> int:
    """Return how many files and directories below ``root`` this process has open.

    The test process opens and closes others.
    """
    root = root.resolve()
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            count += descriptor.readlink().is_relative_to(root)
        except FileNotFoundError:  # Closed since it was listed.
            continue
    return count


EMPTY = {"cartuids", "incoming"}


@contextmanager
def logged() -> Iterator[list[LogEvent]]:
    events: list[LogEvent] = []
    observer = cast(ILogObserver, events.append)
    globalLogPublisher.addObserver(observer)
    try:
        yield events
    finally:
        globalLogPublisher.removeObserver(observer)
