"""Classification of disk errors: permanent errors of one file, or transient ones.

Only an error of the file itself is damage, for which the file is fetched again.  A lack of
descriptors or memory, or a file server that does not answer, affects every file and is transient:
the client is asked to retry, and no file counts as missing.

Permission and read errors (``EIO``) are errors of the file: it is fetched again, into new blocks.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from cartd.errors import DiskUnavailable


def _numbers(*names: str) -> frozenset[int]:
    """Return the errnos of those names that exist on this system."""
    return frozenset(getattr(errno, name) for name in names if hasattr(errno, name))


_MISSING: Final = _numbers("ENOENT", "ENOTDIR", "ELOOP")
"""Missing, below a file, or a symbolic link (POSIX open)."""
_EXHAUSTED: Final = _numbers("EMFILE", "ENFILE", "ENOMEM", "ENOBUFS", "EINTR", "EAGAIN")
"""The process or the system is out of a resource."""
_TRANSIENT: Final = _EXHAUSTED | _numbers(
    "ESTALE", "ETIMEDOUT", "ENOLCK", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH"
)
"""Those, and errors of a file server that does not answer."""


def is_missing(error: OSError) -> bool:
    """Whether the file does not exist."""
    return error.errno in _MISSING


def is_exhausted(error: OSError) -> bool:
    """Whether the process or the system is out of a resource."""
    return error.errno in _EXHAUSTED


def raise_if_transient(error: Exception) -> None:
    """Raise :class:`~cartd.errors.DiskUnavailable` for a transient error."""
    if isinstance(error, OSError) and error.errno in _TRANSIENT:
        number = errno.errorcode[error.errno]
        reason = error.strerror or str(error)
        raise DiskUnavailable(f"{reason} ({number})") from error


@contextmanager
def transient_raised() -> Iterator[None]:
    """As :func:`raise_if_transient`, for errors of the block; other errors are not changed."""
    try:
        yield
    except OSError as error:
        raise_if_transient(error)
        raise
