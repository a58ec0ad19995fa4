"""Raises the limit of open files (RLIMIT_NOFILE) and derives the number of connections."""

from __future__ import annotations

import sys
from contextlib import suppress

from twisted.logger import Logger

FILES_PER_CONNECTION = 4
"""Maximum open files per connection: its socket, the duplicate that a download is sent with, a file
of the cart and the lock of its directory."""
OTHER_FILES = 400
"""For everything else: database, overflow connections, staging and Python."""

log = Logger()


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
