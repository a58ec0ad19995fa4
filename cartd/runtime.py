"""How Python itself is set for a service whose small answers must not wait for its large work."""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress
from typing import Final

SWITCH_INTERVAL = 0.001
"""Seconds after which a thread that computes lets another one go on.

Python's own 5 ms are waited for several times within one request: by the reactor whenever it comes
back from ``epoll``, and by the store's thread after every step of a query.
"""


MAX_ARENAS: Final = 2
"""Heaps that threads allocate from.

By itself the C library of Linux gives each thread its own, up to eight a core, and each keeps what
the largest manifest that its thread has read took: with 24 clients twice the memory.
"""
_M_ARENA_MAX: Final = -8  # malloc.h of glibc


def tune() -> None:
    """Set it, for the whole process, when everything is loaded and built.

    What is there by then stays for good.  To look through it for garbage takes about 50 ms, in
    which no thread runs, and happens all the more often the more is under way; so it is left out.
    """
    sys.setswitchinterval(SWITCH_INTERVAL)
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, MAX_ARENAS)
    gc.collect()
    gc.freeze()
