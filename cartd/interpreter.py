"""How Python itself is set for a service whose small answers must not wait for its large work."""

from __future__ import annotations

import gc
import sys

SWITCH_INTERVAL = 0.001
"""Seconds after which a thread that computes lets another one go on.

Python's own 5 ms are waited for several times within one request: by the reactor whenever it comes
back from ``epoll``, and by the store's thread after every step of a query.
"""


def prepare() -> None:
    """Set it, for the whole process, when everything is loaded and built.

    What is there by then stays for good.  To look through it for garbage takes about 50 ms, in
    which no thread runs, and happens all the more often the more is under way; so it is left out.
    """
    sys.setswitchinterval(SWITCH_INTERVAL)
    gc.collect()
    gc.freeze()
