"""Coverage data of processes that a signal ends, for ``make coverage``.

A process saves its data when the interpreter exits, and a signal prevents that: Twisted's for
SIGTERM, once the service has stopped, as well as SIGKILL.  Without coverage, nothing here has an
effect.
"""

from __future__ import annotations

import os
import signal
import sys

MEASURING = "COVERAGE_PROCESS_CONFIG" in os.environ
"""Whether this process, and those that it starts, are measured."""
SAVE_AND_DIE = signal.SIGUSR2
"""It has a process that called :func:`save_before_signals` save its data, then end by SIGKILL."""


def save_before_signals() -> None:
    """Save the data of this process, and of its forks, before each signal that ends it.

    This excludes SIGKILL of another process, which sends ``SAVE_AND_DIE`` instead.
    """
    if not MEASURING:
        return
    kill = os.kill

    def kill_saved(pid: int, number: int) -> None:
        ends = number == signal.SIGKILL or signal.getsignal(number) is signal.SIG_DFL
        if pid == os.getpid() and ends:
            _save()
        kill(pid, number)

    os.kill = kill_saved
    signal.signal(SAVE_AND_DIE, lambda *_: kill_saved(os.getpid(), signal.SIGKILL))


def _save() -> None:
    coverage = sys.modules.get("coverage")  # Python has imported it if it measures this process.
    measuring = coverage and coverage.Coverage.current()
    if measuring:
        measuring.save()
