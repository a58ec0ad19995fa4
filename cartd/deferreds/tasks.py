"""Wait for work that cannot be interrupted: to its end, or at most for some seconds."""

from __future__ import annotations

from typing import TypeVar

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

T = TypeVar("T")


async def uncancellable(job: Deferred[T]) -> T:
    """Return the result of ``job``; if cancelled, raise that only after ``job`` has ended.

    A thread goes on after its Deferred was cancelled.  A coroutine that releases a lock or removes
    a file at its end must be sure that no thread still uses it.  A cancellation replaces the result
    or the failure of ``job``.
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
    """Fire with the result of ``work``, or fail with ``TimeoutError`` after so many seconds.

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
