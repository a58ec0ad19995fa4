"""Ctrl-C, SIGTERM and a terminal that is closed: the first ends the command in order.

It raises :class:`KeyboardInterrupt` in the main thread, so that what was downloaded is noted and
the message says how to go on.  The second ends the process at once; what a killed process leaves
can be resumed, too.  A signal that the process was started with as ignored, such as that of a
closed terminal under nohup, stays ignored.

Windows: Ctrl-C is seen when the current wait for the network ends; Ctrl-Break ends at once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cartd_client.errors import ExitStatus

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
SHOW_CURSOR = b"\x1b[?25h"


class Signals:
    """The signals that this process has received."""

    def __init__(self) -> None:
        self.received: int | None = None

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Interrupt the main thread; at the second time, end the process."""
        if self.received is not None:
            if sys.stderr is not None and sys.stderr.isatty():
                os.write(2, SHOW_CURSOR + b"\n")
            os._exit(ExitStatus.INTERRUPTED)
        self.received = number
        raise KeyboardInterrupt


@contextmanager
def handled() -> Iterator[Signals]:
    """Handle the signals; afterwards as before."""
    signals = Signals()
    before = {}
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, signals.handle)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
