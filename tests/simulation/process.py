"""Simulated processes of the service, one after the other, on one volume and one database."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import LogEvent, globalLogPublisher
from twisted.python.failure import Failure

from cartd import components
from cartd.carts.delete import Removal
from cartd.carts.download import Pins
from cartd.components import Components
from cartd.config import Config, load
from cartd.errors import Unavailable
from cartd.integrity.recovery import bind_volume
from cartd.sending import tar_index_cache
from cartd.service import Cartd
from cartd.staging import fetch, pipeline
from cartd.store import connections, database, sync
from cartd.volume import Volume, bundles, incoming, links, verify
from tests.simulation.archive import ArchiveState, SimulatedArchive
from tests.simulation.database import Database
from tests.simulation.disk import Disk, Killed, SimulatedFileSystem
from tests.simulation.reactor import LONG_DELAY, SimulatedReactor, SimulatedThreads, SimulatedWorker
from tests.support.databases import sqlite_url

SMALL_BUFFERS = (
    (incoming, "BLOCK", 64),
    (incoming, "HIGH_WATERMARK", 128),
    (bundles, "BLOCK", 4096),
)
SMALL_PAGES = (
    (links, "BATCH", 2),
    (verify, "BATCH", 2),
    (tar_index_cache, "PAGE_SIZE", 3),
    (pipeline, "PAGE", 6),
    (fetch, "PAGE", 6),
    (fetch, "WINDOW", 6),
)
"""Page sizes of loops, made so small that small carts need several steps."""
MAX_DEAD = 40


class _Connections:
    def closeCachedConnections(self) -> Deferred[None]:
        return succeed(None)


class Machine:
    """What outlives a process: volume and database with their faults; and dead processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.volume = root / "volume"
        self.database_file = root / "cartd.sqlite3"
        self._template = root / "template.sqlite3"
        sync(sqlite_url(self._template))
        self.database = Database(sqlite_url(self.database_file))
        self.disk = Disk(self.volume)
        self.logged: list[str] = []
        """Unexpected failures in the log."""
        self._dead: list[SimulatedProcess] = []
        self.scenarios = self.starts = self.steps = 0

    @contextmanager
    def simulated(self) -> Iterator[None]:
        """Replace reactor, threads, archive and disk by simulated ones while the block runs."""
        with ExitStack() as stack:
            for module, name, value in (
                *SMALL_BUFFERS,
                *SMALL_PAGES,
                (components, "Threads", SimulatedThreads),
                (components, "DedicatedThread", SimulatedThreads),
                (components, "ArchiveClient", SimulatedArchive),
                (components, "FileSystem", lambda _: SimulatedFileSystem(self.disk)),
                (components, "http_client", lambda *_, **__: (None, _Connections())),
                (connections, "WorkerThread", SimulatedWorker),
                (database, "reading_engine", lambda _: self.database.reading),
                (database, "writing_engine", lambda _: self.database.writing),
            ):
                stack.enter_context(patch.object(module, name, value))
            stack.enter_context(self.disk.installed())
            stack.enter_context(self._log_watched())
            gc.collect()
            gc.freeze()
            yield
            self.discard_dead()

    def clean(self, random: Random) -> None:
        """Empty everything for a new scenario."""
        # Not earlier: the last scenario has held its last process.
        self._discard_dead_if_many()
        self.scenarios += 1
        shutil.rmtree(self.volume, ignore_errors=True)
        for left in self.root.glob(f"{self.database_file.name}*"):
            left.unlink()
        shutil.copy(self._template, self.database_file)
        self.database.reset(random)
        self.disk.reset(random)
        self.logged.clear()

    def discard_dead(self) -> None:
        """Free the dead processes; what their coroutines do while being collected has no effect."""
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            self._dead.clear()
            logged = list(self.logged)
            while gc.collect():
                pass  # a collected coroutine may resume another one
            self.logged[:] = logged
        finally:
            sys.unraisablehook = hook

    def keep_alive(self, process: SimulatedProcess) -> None:
        """Keep a process from garbage collection, which would resume its coroutines."""
        self._dead.append(process)

    def on_death(self, process: SimulatedProcess) -> None:
        self.keep_alive(process)
        self.disk.on_death()
        self.database.on_death()

    def _discard_dead_if_many(self) -> None:
        if len(self._dead) > MAX_DEAD:
            self.discard_dead()

    @contextmanager
    def _log_watched(self) -> Iterator[None]:
        others = list(globalLogPublisher._observers)
        for other in others:
            globalLogPublisher.removeObserver(other)
        observer: Any = self._observe
        globalLogPublisher.addObserver(observer)
        try:
            yield
        finally:
            globalLogPublisher.removeObserver(observer)
            for other in others:
                globalLogPublisher.addObserver(other)

    def _observe(self, event: LogEvent) -> None:
        failure = event.get("log_failure")
        if failure is None:
            return
        if isinstance(failure.value, OSError) and failure.value.errno in self.disk.failed:
            return
        if isinstance(failure.value, Unavailable):
            return
        text = str(event.get("log_format"))
        self.logged.append(f"{text}: {failure.value!r}\n{failure.getTraceback()}")


class SimulatedProcess:
    """One process: started, and then killed or stopped."""

    def __init__(
        self, machine: Machine, archive_state: ArchiveState, now: float, quota: int | None
    ) -> None:
        self.machine = machine
        self.deleting: Counter[str] = Counter()
        """Number of deletions under way, by uid."""
        self.clients: list[Deferred[Any]] = []
        machine.starts += 1
        machine.disk.on_start()
        self.reactor = SimulatedReactor(
            now, machine.database.random, machine.disk, machine.database, archive_state
        )
        self.config = _config(machine, quota)
        number = bind_volume(self.config.database_url, self.config.volume_path)
        self.components = Components(self.config, self.reactor, number, self.reactor.seconds)
        # Durations of thread calls are not measured in real time here.
        self.components.volume.incoming._batch_threads._timer = self.reactor.seconds
        self.service = Cartd(self.components, None, form_key=b"")
        self.submissions = self.service._submissions
        self.other_removal = _removal_of_other_process(self.components, self.config)
        # There are no connections to close; disconnect the clients instead.
        self.service._site.close_connections = self._disconnect_all  # type: ignore[method-assign]
        self.service.startService()

    def begin(self, coroutine: Coroutine[Any, Any, Any]) -> Deferred[Any]:
        """Start a client; its exceptions are failures of the simulation or of the service."""
        client = Deferred.fromCoroutine(coroutine)
        client.addErrback(self._unexpected)
        if not client.called:
            self.clients.append(client)
            client.addBoth(self._client_done, client)
        return client

    def _disconnect_all(self) -> None:
        for client in list(self.clients):
            client.cancel()

    def _unexpected(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return  # the client was disconnected
        self.machine.logged.append(f"a client got {failure.value!r}\n{failure.getTraceback()}")

    def _client_done(self, result: Any, client: Deferred[Any]) -> Any:
        self.clients.remove(client)
        return result

    def step(self) -> bool:
        """Run the next event; return false if the process died in it."""
        self.machine.steps += 1
        try:
            self.reactor.step()
        except Killed:
            self.kill()
        return not self.reactor.dead

    def run_until(self, when: float, done: Callable[[], bool] = lambda: False) -> bool:
        """Run all events up to a time, or until ``done()``; return false if the process died."""
        while not done():
            due = self.reactor.next_time()
            if due is None or due > when:
                self.reactor.rightNow = max(when, self.reactor.rightNow)
                break
            if not self.step():
                return False
        return True

    def run_events(self, count: int) -> bool:
        for _ in range(count):
            if self.reactor.next_time() is None or not self.step():
                break
        return not self.reactor.dead

    def kill(self, *, seen: bool = True) -> None:
        """Kill the process; ``seen``: its lock is released, so that others detect it."""
        self.reactor.die()
        if seen:
            self.release_lock()
        self.machine.on_death(self)

    def release_lock(self) -> None:
        """Release the lock that a process on another machine would still seem to hold."""
        process_locks = self.components.stager._process_locks
        if process_locks._lock_fd is not None:
            os.close(process_locks._lock_fd)
            process_locks._lock_fd = None

    def stop(self) -> bool:
        """Stop the process as SIGTERM does; return false if it died meanwhile."""
        stopped: list[object] = []
        self.service.stopService().addBoth(stopped.append)
        if not self.run_until(self.reactor.seconds() + 600, lambda: bool(stopped)):
            return False
        assert stopped, "the service does not stop"
        # The results of threads that ended last.
        return self.run_until(self.reactor.seconds() + 2 * LONG_DELAY)

    def pending_calls(self) -> list[str]:
        """Return the calls that are still scheduled after a stop."""
        return [str(call) for call in self.reactor.calls]


def _removal_of_other_process(components: Components, config: Config) -> Removal:
    """Return the removal of another process on the same store and volume."""

    async def stages_nothing(_cart_id: int) -> None:
        pass

    other = Volume(config.volume_path, components.threads, None)
    return Removal(
        components.store, other, Pins(), stages_nothing, components.now, components.reactor
    )


def _config(machine: Machine, quota: int | None) -> Config:
    ini = f"""
    [cartd]
    volume_path = {machine.volume}
    volume_quota = {quota or ""}
    volume_reserve = 0
    lru_interval = 30
    [archiveinterface]
    url = http://archive.example/
    max_attempts = 3
    [database]
    url = {machine.database.url}
    """
    text = "\n".join(line.strip() for line in ini.splitlines())
    if quota is None:
        text = text.replace("volume_quota = \n", "")
    return load(options={}, environ={}, ini=text)


def files_below(directory: Path) -> Iterator[Path]:
    for found, _, names in os.walk(directory):
        for name in names:
            yield Path(found) / name
