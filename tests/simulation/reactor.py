"""Simulated time and threads of one process: all events run here, one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tests.simulation.archive import ArchiveState
from tests.simulation.database import Database
from tests.simulation.disk import Disk, Killed

P = ParamSpec("P")
T = TypeVar("T")
DELAYS = (0.0, 0.0, 0.0, 0.0, 0.001, 0.003, 0.02, 0.3)
"""Seconds that a call in a thread may take, with equal probability."""
LONG_DELAY_CHANCE = 0.01
LONG_DELAY = 4.0
"""Seconds that a call rarely takes: longer than the timeouts of periodic checks."""


class SimulatedReactor(Clock):
    """A clock that runs one event at a time, for one process, and stops for ever when that dies."""

    def __init__(
        self,
        now: float,
        random: Random,
        disk: Disk,
        database: Database,
        archive_state: ArchiveState,
    ) -> None:
        super().__init__()
        self.rightNow = now
        self.random = random
        self.disk = disk
        self.database = database
        self.archive_state = archive_state
        self.dead = False
        self.dies_next = False
        """Whether the process dies before the next event."""
        self._kept_alive: list[object] = []
        """Calls that will never run.  Coroutines wait for them, and would run to their ends if they
        were collected before the process is discarded."""

    def die(self) -> None:
        """Stop for ever: no further event runs."""
        self.dead = True
        for call in self.calls:
            call.canceller = self.keep_alive  # cancelling a call that will not run is still allowed
        self._kept_alive += self.calls
        self.calls.clear()

    def keep_alive(self, what: object) -> None:
        self._kept_alive.append(what)

    def never_fires(self) -> Deferred[Any]:
        """Return a Deferred for a dead process to wait for."""
        waiting: Deferred[Any] = Deferred()
        self.keep_alive(waiting)
        return waiting

    def callLater(
        self, delay: float, callable: Callable[..., object], *args: object, **kw: object
    ) -> IDelayedCall:
        call = super().callLater(delay, callable, *args, **kw)
        if self.dead:
            self.die()
        return call

    def callFromThread(self, callable: Callable[..., object], *args: Any, **kw: Any) -> None:
        self.callLater(0, callable, *args, **kw)

    def delay(self) -> float:
        return (
            LONG_DELAY if self.random.random() < LONG_DELAY_CHANCE else self.random.choice(DELAYS)
        )

    def next_time(self) -> float | None:
        """Return when the next event is due, or ``None``."""
        self._sortCalls()
        return self.calls[0].getTime() if self.calls else None

    def step(self) -> None:
        """Run the next event; raise ``Killed`` if the process dies in it."""
        call = self.calls.pop(0)
        self.rightNow = max(self.rightNow, call.getTime())
        call.called = 1
        try:
            call.func(*call.args, **call.kw)
        except Killed:
            self.keep_alive(call)
            raise
        if self.dies_next:
            raise Killed


class SimulatedThreads:
    """``ThreadRunner`` in two events: the work runs in one, its result arrives in another."""

    def __init__(self, reactor: SimulatedReactor, size: int = 1) -> None:
        self._reactor = reactor
        self._waiting: dict[Callable[[], None], IDelayedCall] = {}
        self._stopped = False

    def start(self) -> None:
        pass

    def stop(self) -> None:
        """Run all pending work before returning, as real threads do."""
        self._stopped = True
        for work, call in list(self._waiting.items()):
            call.cancel()
            try:
                work()
            except Killed:
                self._reactor.dies_next = True
                self._reactor.keep_alive(work)

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        if self._reactor.dead or self._stopped:
            return self._reactor.never_fires()
        result: Deferred[T] = Deferred()

        def go() -> None:
            del self._waiting[go]
            try:
                with self._reactor.disk.thread_running():
                    outcome: T | Failure = work(*args, **kwargs)
            except Exception:
                outcome = Failure()
            later = 0.0 if self._stopped else self._reactor.delay()
            self._reactor.callLater(later, result.callback, outcome)

        self._waiting[go] = self._reactor.callLater(self._reactor.delay(), go)
        return result


class SimulatedWorker:
    """The worker of one database connection; runs its work in order."""

    def __init__(self, reactor: SimulatedReactor) -> None:
        self._reactor = reactor
        self._queue: deque[Callable[[], None] | None] = deque()
        self._busy = False
        self.ended: Deferred[None] = Deferred()

    def do(self, work: Callable[[], None]) -> None:
        self._put(work)

    def quit(self) -> None:
        self._put(None)

    def _put(self, work: Callable[[], None] | None) -> None:
        self._queue.append(work)
        if not self._busy and not self._reactor.dead:
            self._busy = True
            self._reactor.callLater(self._reactor.database.delay(), self._run)

    def _run(self) -> None:
        work = self._queue.popleft()
        if work is None:
            self._reactor.callFromThread(self.ended.callback, None)
            return
        work()
        self._busy = bool(self._queue)
        if self._busy:
            self._reactor.callLater(self._reactor.database.delay(), self._run)
