"""How many connections the system's limit of open files allows."""

from __future__ import annotations

import sys
from contextlib import suppress

from twisted.logger import Logger

EACH = 4
"""Open files of one connection, at most: its socket, the one by which a download is sent, a file of
the cart and the lock of its directory."""
OTHERS = 400
"""For all the rest: the database, those who are turned away, what is being staged, and Python."""

log = Logger()


def connections_that_fit(wanted: int, archive_connections: int) -> int:
    """Raise the process's limit as far as is needed, and give how many connections it allows.

    That is ``wanted``, or fewer, with a line in the log, if the system does not give as many.
    Each of ``archive_connections`` has a socket, and a file that it writes.
    """
    others = OTHERS + 2 * archive_connections
    allowed = _allow(wanted * EACH + others)
    fit = max((allowed - others) // EACH, 1)
    if fit >= wanted:
        return wanted
    log.warn(
        "Only {fit} of max_connections = {wanted} are taken: a process may have {allowed} open"
        " files here (ulimit -Hn, LimitNOFILE=), and would need {needed}",
        fit=fit,
        wanted=wanted,
        allowed=allowed,
        needed=wanted * EACH + others,
    )
    return fit


if sys.platform == "win32":

    def _allow(needed: int) -> int:
        """There is no such limit."""
        return needed

else:
    import resource

    def _allow(needed: int) -> int:
        """Have at least ``needed`` open files allowed, if that can be; gives how many are."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY:
            return needed
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        if soft < most:
            with suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
                return most
        return soft
