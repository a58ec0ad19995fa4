"""Waiting for work that cannot be interrupted."""

from __future__ import annotations

from typing import TypeVar

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

T = TypeVar("T")


async def uncancellable(job: Deferred[T]) -> T:
    """The result of ``job``, waited for to its end even by a coroutine that is cancelled.

    A thread goes on after its Deferred was cancelled.  Whoever lets go of a lock or removes a
    file when its coroutine ends must know that no thread is still at it: so a cancellation is
    raised only after ``job`` has ended, and then in place of whatever that gave.
    """
    outcome: list[T | Failure] = []
    cancelled: CancelledError | None = None
    waiting: Deferred[None] = Deferred()

    def ended(result: T | Failure) -> None:
        outcome.append(result)
        waiting.callback(None)

    job.addBoth(ended)
    while not outcome:
        try:
            await waiting
        except CancelledError as error:
            cancelled = error
            waiting = Deferred()
    if cancelled is not None:
        raise cancelled
    result = outcome[0]
    if isinstance(result, Failure):
        result.raiseException()
    return result


def with_timeout(seconds: float, work: Deferred[T], clock: IReactorTime) -> Deferred[T]:
    """The result of ``work``, or ``TimeoutError`` after so many seconds.

    ``work`` is cancelled then, but not waited for even if that does not end it, as in
    :func:`uncancellable` work of a disk that hangs: unlike ``Deferred.addTimeout``, this always
    fires.  What becomes of the work then is ignored.
    """
    waiting: Deferred[T] = Deferred(lambda _: work.cancel())

    def too_long() -> TimeoutError:
        return TimeoutError(f"it took more than {seconds:g} s")

    def late() -> None:
        work.cancel()
        if not waiting.called:
            waiting.errback(too_long())

    timer = clock.callLater(seconds, late)

    def ended(result: T | Failure) -> None:
        if timer.active():
            timer.cancel()
        elif not waiting.called and isinstance(result, Failure) and result.check(CancelledError):
            result = Failure(too_long())
        if not waiting.called:
            waiting.callback(result)

    work.addBoth(ended)
    return waiting
