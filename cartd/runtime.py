"""What the process needs: timers' clock, stop signals, open files, tuned Python, pid file."""

from __future__ import annotations

import ctypes
import gc
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from twisted.application.service import Service
from twisted.logger import Logger
from twisted.python import usage

FILES_PER_CONNECTION = 4
"""Maximum open files per connection: its socket, the duplicate that a download is sent with, a file
of the cart and the lock of its directory."""
OTHER_FILES = 400
"""For everything else: database, overflow connections, staging and Python."""
SWITCH_INTERVAL = 0.001
"""Seconds after which a computing thread releases the interpreter lock.

One request waits several times for Python's default of 5 ms: in the reactor after each ``epoll``,
and in the store's thread after each step of a query.
"""
MAX_ARENAS: Final = 2
"""Malloc arenas of the process.

By default glibc creates up to eight arenas per core, and each keeps the memory of the largest
manifest that its thread has read: with 24 clients, memory doubles.
"""
_M_ARENA_MAX: Final = -8  # malloc.h of glibc
DEFAULT_PIDFILE = "twistd.pid"

log = Logger()


def monotonic_clock_from(
    wall: Callable[[], float], monotonic: Callable[[], float]
) -> Callable[[], float]:
    """Return a clock that equals ``wall`` now, and advances as ``monotonic`` does."""
    offset = wall() - monotonic()
    return lambda: offset + monotonic()


def use_monotonic_clock(reactor: Any) -> None:
    """Make the timers of ``reactor`` use the monotonic clock; dates use the system clock.

    Twisted's reactor uses the system clock.  If that is set back by an hour, every timer waits an
    hour longer: leases are not renewed, stalled connections not closed.  If it is set ahead, all
    timers fire at once.

    The clock starts at the present time, so that calls scheduled before remain correct; but
    ``reactor.seconds()`` is no longer a date once the system clock is changed.
    """
    reactor.seconds = monotonic_clock_from(time.time, time.monotonic)


class StopSignals(Service):
    """Handles SIGTERM, SIGINT and SIGHUP: the first stops the service, a second forces the stop.

    It does so instead of the reactor, whose exit status would not be 0.  SIGHUP does not reload
    anything; without a handler it would kill the process.
    """

    def __init__(self, reactor: Any, force_stop: Callable[[], None]) -> None:
        self._reactor = reactor
        self._force_stop = force_stop
        self._stopping = False

    def privilegedStartService(self) -> None:
        """Install the handlers before any port is open."""
        self._install()
        # The reactor installs its own handlers in the first step of its start; replace these again
        # in the next one, before all that is called when it runs.
        self._reactor.addSystemEventTrigger("during", "startup", self._install)

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


def raise_nofile_limit(wanted: int, archive_max_connections: int) -> int:
    """Raise the process's limit of open files; return how many connections it allows.

    That is ``wanted``, or less, with a warning, if the hard limit is too low.  Each of
    ``archive_max_connections`` uses a socket and a file on the volume.
    """
    others = OTHER_FILES + 2 * archive_max_connections
    allowed = _raise_nofile(wanted * FILES_PER_CONNECTION + others)
    fit = max((allowed - others) // FILES_PER_CONNECTION, 1)
    if fit >= wanted:
        return wanted
    log.warn(
        "max_connections reduced from {wanted} to {fit}: the process may open {allowed} files"
        " (ulimit -Hn, LimitNOFILE=), and needs {needed}",
        fit=fit,
        wanted=wanted,
        allowed=allowed,
        needed=wanted * FILES_PER_CONNECTION + others,
    )
    return fit


if sys.platform == "win32":

    def _raise_nofile(needed: int) -> int:
        """Return ``needed``: Windows has no such limit."""
        return needed

else:
    import resource

    def _raise_nofile(needed: int) -> int:
        """Raise the limit to ``needed`` if possible; return the resulting limit."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY:
            return needed
        target = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        if soft < target:
            with suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
                return target
        return soft


def tune_interpreter() -> None:
    """Tune the process, once everything is loaded and built.

    The objects that exist by then are never freed, so they are excluded from garbage collection: to
    traverse them blocks all threads for about 50 ms, and happens more often under load.
    """
    sys.setswitchinterval(SWITCH_INTERVAL)
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # not glibc
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, MAX_ARENAS)
    gc.collect()
    gc.freeze()


def disable_pidfile(twistd: usage.Options | None) -> None:
    """Make ``twistd -n`` write no ``twistd.pid`` unless ``--pidfile`` names a file.

    In the foreground it serves no purpose, and after a SIGKILL it prevents a start: in a container
    the new process has the same pid, 1.
    """
    if twistd is not None and twistd["nodaemon"] and twistd.get("pidfile") == DEFAULT_PIDFILE:
        twistd["pidfile"] = ""
