"""Waiting for work that cannot be interrupted."""

from __future__ import annotations

from typing import TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

T = TypeVar("T")


async def shielded(job: Deferred[T]) -> T:
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
