"""What SIGTERM, SIGINT and SIGHUP do: the first stops the service, the second hurries it.

There is nothing to read anew on SIGHUP, and left alone it would kill without a word.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.logger import Logger

log = Logger()


class StopSignals(Service):
    """Takes the signals over from the reactor, which would end with the signal's status, not 0."""

    def __init__(self, reactor: Any, force_stop: Callable[[], None]) -> None:
        self._reactor = reactor
        self._force_stop = force_stop
        self._stopping = False

    def privilegedStartService(self) -> None:
        """Take them over before there is a port to connect to."""
        self._install()
        # The reactor installs its own when it starts: take over again after that.
        self._reactor.callWhenRunning(self._install)

    def _install(self) -> None:
        numbers = [signal.SIGTERM, signal.SIGINT]
        # Ignored is what nohup makes of it.
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        for number in numbers:
            signal.signal(number, lambda *_: self._reactor.callFromThread(self._stop))

    def _stop(self) -> None:
        if self._stopping:
            log.info("Stopping at once")
            self._force_stop()
        else:
            self._stopping = True
            log.info("Stopping; a second signal ends running downloads at once")
            self._reactor.stop()
