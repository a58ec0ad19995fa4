"""SIGTERM, SIGINT and SIGHUP: the first signal stops the service, a second one forces the stop.

SIGHUP does not reload anything; without a handler it would kill the process.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.logger import Logger

log = Logger()


class StopSignals(Service):
    """Handles the signals instead of the reactor, whose exit status would not be 0."""

    def __init__(self, reactor: Any, force_stop: Callable[[], None]) -> None:
        self._reactor = reactor
        self._force_stop = force_stop
        self._stopping = False

    def privilegedStartService(self) -> None:
        """Install the handlers before any port is open."""
        self._install()
        # The reactor installs its own handlers when it starts; replace these again.
        self._reactor.callWhenRunning(self._install)

    def _install(self) -> None:
        numbers = [signal.SIGTERM, signal.SIGINT]
        # nohup ignores SIGHUP: keep that.
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        for number in numbers:
            signal.signal(number, lambda *_: self._reactor.callFromThread(self._stop))

    def _stop(self) -> None:
        if self._stopping:
            log.info("Stopping without waiting for downloads")
            self._force_stop()
        else:
            self._stopping = True
            log.info("Stopping; a second signal aborts running downloads")
            self._reactor.stop()
