"""Notifies systemd, or another service manager with its protocol: sd_notify(3).

Strategy: each message is one datagram, sent without waiting.  One that the manager does not take is
dropped, except ``READY=1``, which is repeated: the service does not depend on its manager.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Mapping

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

log = Logger()

POLL_INTERVAL = 1.0
"""Seconds between two polls of whether the service is ready, and of its status."""
STATUS_INTERVAL = 3.0
"""Minimum seconds between two status lines."""
MAX_STATUS = 200
"""Maximum characters of the status line."""


class Notifier:
    """Sends messages to the socket at ``address``; one that begins with ``@`` is abstract."""

    def __init__(self, address: str) -> None:
        encoded = os.fsencode(address)
        self._address = b"\0" + encoded[1:] if encoded.startswith(b"@") else encoded
        self._failed = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Notifier | None:
        """Return the one for ``NOTIFY_SOCKET``; None without a service manager."""
        address = environ.get("NOTIFY_SOCKET", "")
        if sys.platform == "win32" or not address.startswith(("/", "@")):
            return None
        return cls(address)

    def send(self, *assignments: str) -> bool:
        """Send assignments such as ``READY=1``; return whether the manager got them."""
        if sys.platform == "win32":
            return False
        message = "\n".join(assignments).encode()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
                sending.setblocking(False)
                sending.sendto(message, self._address)
        except OSError as error:
            if not self._failed:
                log.warn("Cannot notify the service manager: {error}", error=error)
            self._failed = True
            return False
        self._failed = False
        return True


def watchdog_seconds(environ: Mapping[str, str], pid: int) -> float | None:
    """Return within how many seconds the manager wants signs of life (sd_watchdog_enabled(3)).

    None if it wants none, or not of the process ``pid``.
    """
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    try:
        microseconds = int(environ.get("WATCHDOG_USEC", ""))
    except ValueError:
        return None
    return microseconds / 1e6 if microseconds > 0 else None


class ServiceManager:
    """Tells the manager when the service is ready, what it does, and that its reactor runs."""

    def __init__(
        self,
        notifier: Notifier,
        clock: IReactorTime,
        *,
        watchdog: float | None,
        started: Callable[[], bool],
        status: Callable[[], str],
    ) -> None:
        """``watchdog``: the result of :func:`watchdog_seconds`.

        ``started`` returns whether the start has ended, ``status`` one line for people.
        """
        self._notifier = notifier
        self._clock = clock
        self._watchdog = watchdog
        self._started = started
        self._status = status
        self._announced = False
        self._shown = ""
        self._shown_at = -STATUS_INTERVAL
        self._loops: list[LoopingCall] = []

    def start(self) -> None:
        self._loop(POLL_INTERVAL, self._poll)
        if self._watchdog is not None:
            self._loop(self._watchdog / 2, lambda: self._notifier.send("WATCHDOG=1"))

    def begin_stop(self) -> None:
        """Tell that the service stops; signs of life continue."""
        self._announced = True
        self._notifier.send("STOPPING=1")

    def stop(self) -> None:
        for loop in self._loops:
            if loop.running:
                loop.stop()

    def _loop(self, seconds: float, call: Callable[[], object]) -> None:
        loop = LoopingCall(call)
        loop.clock = self._clock
        loop.start(seconds)
        self._loops.append(loop)

    def _poll(self) -> None:
        if not self._announced and self._started():
            self._announced = self._notifier.send("READY=1")
        now, status = self._clock.seconds(), self._status()[:MAX_STATUS].replace("\n", " ")
        if status != self._shown and now - self._shown_at >= STATUS_INTERVAL:
            self._shown, self._shown_at = status, now
            self._notifier.send(f"STATUS={status}")
