"""Process-wide tuning of Python: thread switching, malloc arenas and garbage collection."""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress
from typing import Final

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


def tune() -> None:
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
