"""Time and threads of one life of the service: every event comes from here, one after the other."""

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
"""Seconds that a trip to a thread may take, each as likely as the others."""
LONG_DELAY_CHANCE = 0.01
LONG_DELAY = 4.0
"""Seconds that it takes seldom: longer than whoever looks around waits."""


class SimulatedReactor(Clock):
    """A clock that runs one event at a time, for one process: with that it dies, and stays dead."""

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
        """Whether it dies before the next event."""
        self._kept_alive: list[object] = []
        """What will not happen.  Coroutines wait for it, and must not be collected before they are
        buried: they would run to their ends."""

    def die(self) -> None:
        """Nothing happens any more."""
        self.dead = True
        for call in self.calls:
            call.canceller = self.keep_alive  # what will not happen may be cancelled still
        self._kept_alive += self.calls
        self.calls.clear()

    def keep_alive(self, what: object) -> None:
        self._kept_alive.append(what)

    def never_fires(self) -> Deferred[Any]:
        """What the dead wait for."""
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
        """When the next event is due; none if there will be none."""
        self._sortCalls()
        return self.calls[0].getTime() if self.calls else None

    def step(self) -> None:
        """Run the next event; raises ``Killed`` when the process dies in it."""
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
    """``ThreadRunner``: the work is done in one event, what it gives arrives in another."""

    def __init__(self, reactor: SimulatedReactor, size: int = 1) -> None:
        self._reactor = reactor
        self._waiting: dict[Callable[[], None], IDelayedCall] = {}
        self._stopped = False

    def start(self) -> None:
        pass

    def stop(self) -> None:
        """As with real threads: what is under way is done before this returns."""
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
    """The worker of one connection to the database: what it is given is done in its order."""

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
