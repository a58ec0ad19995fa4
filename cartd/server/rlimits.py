"""How many connections the system's limit of open files allows."""

from __future__ import annotations

import sys
from contextlib import suppress

from twisted.logger import Logger

FILES_PER_CONNECTION = 4
"""Open files of one connection, at most: its socket, the one by which a download is sent, a file of
the cart and the lock of its directory."""
OTHER_FILES = 400
"""For all the rest: the database, those who are turned away, what is being staged, and Python."""

log = Logger()


def raise_nofile_limit(wanted: int, archive_max_connections: int) -> int:
    """Raise the process's limit as far as is needed, and give how many connections it allows.

    That is ``wanted``, or fewer, with a line in the log, if the system does not give as many.
    Each of ``archive_max_connections`` has a socket, and a file that it writes.
    """
    others = OTHER_FILES + 2 * archive_max_connections
    allowed = _raise_nofile(wanted * FILES_PER_CONNECTION + others)
    fit = max((allowed - others) // FILES_PER_CONNECTION, 1)
    if fit >= wanted:
        return wanted
    log.warn(
        "Only {fit} of max_connections = {wanted} are taken: a process may have {allowed} open"
        " files here (ulimit -Hn, LimitNOFILE=), and would need {needed}",
        fit=fit,
        wanted=wanted,
        allowed=allowed,
        needed=wanted * FILES_PER_CONNECTION + others,
    )
    return fit


if sys.platform == "win32":

    def _raise_nofile(needed: int) -> int:
        """There is no such limit."""
        return needed

else:
    import resource

    def _raise_nofile(needed: int) -> int:
        """Have at least ``needed`` open files allowed, if that can be; gives how many are."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY:
            return needed
        target = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        if soft < target:
            with suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
                return target
        return soft
