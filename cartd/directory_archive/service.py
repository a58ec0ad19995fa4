"""``twistd -n cartd-archive``: builds, starts and stops the archive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IReactorTime
from twisted.logger import Logger

from cartd.clocks import use_monotonic_clock
from cartd.deferreds.threads import Threads
from cartd.directory_archive.directory import Directory
from cartd.directory_archive.faults import FaultInjector
from cartd.directory_archive.options import Options
from cartd.directory_archive.routes import ArchiveInterface
from cartd.directory_archive.site import ArchiveSite
from cartd.directory_archive.tape import TapeLibrary

__all__ = ["DirectoryArchive", "Options", "makeService"]

THREADS = 8

log = Logger()


class DirectoryArchive(Service):
    """The service that twistd starts and stops."""

    def __init__(self, options: Options, reactor: Any, clock: IReactorTime) -> None:
        """``clock``: for the simulated tapes."""
        self._reactor = reactor
        self._address: str = options["address"]
        self._number: int = options["port"]
        self._directory = Directory(Path(options["root"]), replaces=bool(options["replace"]))
        self._threads = Threads(reactor, THREADS)
        delay = options["tape-delay"]
        tape = None if delay is None else TapeLibrary(clock, delay, options["tape-rate"])
        fault_injector = FaultInjector(options["fail-rate"], options["fail-seed"])
        interface = ArchiveInterface(self._directory, self._threads, tape, fault_injector)
        self._site = ArchiveSite(
            reactor,
            interface.app.resource(),
            self._directory,
            options["allowed-host"],
            options["allowed-origin"],
        )
        self.port: IListeningPort | None = None
        """The listening port, after the start."""

    def privilegedStartService(self) -> None:
        """Listen before twistd drops privileges, for ports below 1024."""
        if self.port is None:
            try:
                self.port = self._reactor.listenTCP(
                    self._number, self._site, interface=self._address
                )
            except CannotListenError as error:
                raise SystemExit(f"cartd-archive: {error}") from None

    def startService(self) -> None:
        self._directory.sweep()
        self._threads.start()
        self.privilegedStartService()
        super().startService()

    async def _stop(self) -> None:
        if self.port is not None:
            await maybeDeferred(self.port.stopListening)
            self.port = None
        if hanging := self._threads.stop():
            log.error("Stopping while a disk does not respond: {what}", what=hanging)

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._stop())


def makeService(
    options: Options, reactor: Any = None, clock: IReactorTime | None = None
) -> DirectoryArchive:
    """Return the service for twistd; tests pass their own reactor and clock."""
    if reactor is None:
        from twisted.internet import reactor  # twistd has installed it by now
    use_monotonic_clock(reactor)
    return DirectoryArchive(options, reactor, reactor if clock is None else clock)
