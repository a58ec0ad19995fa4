"""What an ``OSError`` of a disk says: of one file, or of this moment.

Only what is said of a file itself is damage, for which the file is fetched again.  That the
process may open no more files, that the system has no memory, or that a file server does not
answer, is true of every file and passes: whoever asked is told to ask again, and nothing is taken
for missing.

Permissions and read errors (``EIO``) are said of the file: it is fetched again, into new blocks.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from cartd.errors import DiskUnavailable


def _numbers(*names: str) -> frozenset[int]:
    """Those of the names that this system has."""
    return frozenset(getattr(errno, name) for name in names if hasattr(errno, name))


_MISSING: Final = _numbers("ENOENT", "ENOTDIR", "ELOOP")
"""Missing, below something that is no directory, or a symbolic link (POSIX open)."""
_EXHAUSTED: Final = _numbers("EMFILE", "ENFILE", "ENOMEM", "ENOBUFS", "EINTR", "EAGAIN")
"""The process or the system has no more of what a call needs."""
_TRANSIENT: Final = _EXHAUSTED | _numbers(
    "ESTALE", "ETIMEDOUT", "ENOLCK", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH"
)
"""And what is said of a file server that cannot be asked."""


def is_missing(error: OSError) -> bool:
    """Whether there is no such file."""
    return error.errno in _MISSING


def is_exhausted(error: OSError) -> bool:
    """Whether the process or the system lacks the means for any call."""
    return error.errno in _EXHAUSTED


def raise_if_transient(error: Exception) -> None:
    """Raise :class:`~cartd.errors.DiskUnavailable` for what says nothing of the file itself."""
    if isinstance(error, OSError) and error.errno in _TRANSIENT:
        number = errno.errorcode[error.errno]
        reason = error.strerror or str(error)
        raise DiskUnavailable(f"{reason} ({number})") from error


@contextmanager
def transient_raised() -> Iterator[None]:
    """Around calls whose other errors, if any, go on as they are."""
    try:
        yield
    except OSError as error:
        raise_if_transient(error)
        raise
