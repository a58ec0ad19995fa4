"""Periodic work that goes on after its own failures."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from cartd.errors import CartdError, DatabaseUnavailable, VolumeUnavailable

log = Logger()


class Periodic:
    """Call ``work`` at once and then every ``seconds``; never twice at a time.

    A failure that repeats is logged once, and its end is logged once.
    """

    def __init__(
        self, clock: IReactorTime, seconds: float, work: Callable[[], Awaitable[None]]
    ) -> None:
        self._work = work
        self._seconds = seconds
        self._failure: str | None = None
        """The message of the last run, if it failed."""
        self._loop = LoopingCall(self._run)
        self._loop.clock = clock
        self._ended: Deferred[LoopingCall] | None = None
        self._current: Deferred[None] | None = None

    def start(self) -> None:
        self._ended = self._loop.start(self._seconds)

    async def stop(self) -> None:
        """End the loop; cancel running work and wait for its end."""
        if self._ended is None:
            return
        self._loop.stop()
        if self._current is not None:
            self._current.cancel()
        await self._ended
        self._ended = None

    def _run(self) -> Deferred[None]:
        self._current = Deferred.fromCoroutine(self._run_and_log())
        return self._current

    async def _run_and_log(self) -> None:
        # A LoopingCall whose function fails stops for good.
        try:
            await self._work()
        except (CancelledError, DatabaseUnavailable, VolumeUnavailable):
            pass  # the volume and the database log their outages themselves
        except (CartdError, OSError) as error:
            if str(error) != self._failure:
                self._failure = str(error)
                log.warn("{error}; retrying every {s} s", error=error, s=self._seconds)
        except Exception:
            log.failure("Periodic work failed; retrying in {s} s", s=self._seconds)
        else:
            if self._failure is not None:
                log.info("No longer failing: {failure}", failure=self._failure)
            self._failure = None
