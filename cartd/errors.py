"""Errors that cross layers, with status, problem and JSON form; transient disk errors; escaping.

Only an error of the file itself is damage, for which the file is fetched again: it is missing, or
access is denied, or its blocks cannot be read (``EIO``; it is fetched into new blocks).  A lack of
descriptors or memory, or a file server that does not answer, affects every file and is transient:
the client is asked to retry, and no file counts as missing.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import ClassVar, Final

from cartd import __version__

INTERNAL_ERROR = "Internal error: see the log of the service"
"""The message for a client if an exception was not expected; the log has its traceback."""


class Problem(StrEnum):
    """What went wrong: one vocabulary for requests, carts and files, in responses and the store.

    :mod:`cartd.http.problem_types` explains each of them to users.
    """

    INVALID_MANIFEST = "invalid-manifest"
    INVALID_UID = "invalid-uid"
    INVALID_REQUEST = "invalid-request"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    CROSS_SITE = "cross-site"
    UNKNOWN_HOST = "unknown-host"
    NO_SUCH_CART = "no-such-cart"
    NOT_FOUND = "not-found"
    NOT_READY = "not-ready"
    CART_FAILED = "cart-failed"
    CONFLICT = "conflict"
    NO_COMMON_HASH = "no-common-hash"
    PRECONDITION_FAILED = "precondition-failed"
    RANGE_NOT_SATISFIABLE = "range-not-satisfiable"
    LIMIT_EXCEEDED = "limit-exceeded"
    NO_SPACE = "no-space"
    ARCHIVE_UNAVAILABLE = "archive-unavailable"
    ARCHIVE_REFUSED = "archive-refused"
    FILE_NOT_IN_ARCHIVE = "file-not-in-archive"
    HASH_MISMATCH = "hash-mismatch"
    SIZE_MISMATCH = "size-mismatch"
    VOLUME_UNAVAILABLE = "volume-unavailable"
    DATABASE_UNAVAILABLE = "database-unavailable"
    STOPPING = "stopping"
    UNAVAILABLE = "unavailable"
    INTERNAL_ERROR = "internal-error"


class CartdError(Exception):
    """An error with a message for the user.

    ``str(error)`` is the message, escaped for logs and terminals; ``code`` is the HTTP status of
    the response; ``problem`` tells programs what went wrong.
    """

    code: ClassVar[int] = 500
    problem: Problem = Problem.INTERNAL_ERROR

    def __init__(self, message: str = "", *, limit: str | None = None) -> None:
        """``limit``: the setting that was exceeded, as ``server.max_manifest_size``, if any."""
        super().__init__(escape(message))
        self.limit = limit
        if limit is not None:
            self.problem = Problem.LIMIT_EXCEEDED


class InvalidInput(CartdError):
    """The client's input is invalid; nothing was changed."""

    code = 400
    problem = Problem.INVALID_REQUEST


class InvalidUid(InvalidInput):
    """No cart can have this uid."""

    problem = Problem.INVALID_UID


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of a manifest."""

    pointer: str
    """A JSON pointer as the fragment of a URI (RFC 6901, section 6)."""
    detail: str


class InvalidManifest(InvalidInput):
    """The manifest is invalid; the message is that of its first fault."""

    problem = Problem.INVALID_MANIFEST

    def __init__(self, message: str, faults: Sequence[Fault] = ()) -> None:
        super().__init__(message)
        self.faults = tuple(faults)


class Unauthenticated(CartdError):
    """The client sent no valid credentials (RFC 9110, section 15.5.2)."""

    code = 401
    problem = Problem.UNAUTHENTICATED


class NoCredentials(Unauthenticated):
    """The request has no credentials.

    Not a failed attempt: HTTP clients send credentials only after a response has asked for them
    (RFC 9110, section 11.6.1).
    """


class Forbidden(CartdError):
    """The client may not do this, whatever its credentials."""

    code = 403
    problem = Problem.FORBIDDEN


class CartNotFound(CartdError):
    """No cart with this uid exists, or it has been deleted."""

    code = 404
    problem = Problem.NO_SUCH_CART


class CartFailed(CartdError):
    """The cart is in error; the message is the reason."""

    problem = Problem.CART_FAILED

    def __init__(self, reason: str, cause: str | None) -> None:
        """``cause``: the :class:`Problem` that the cart failed with, if it is known."""
        super().__init__(reason)
        self.cause = cause


class Conflict(CartdError):
    """The cart is not in the state that the request is for (RFC 9110, section 15.5.10)."""

    code = 409
    problem = Problem.CONFLICT


class NoCommonHash(Conflict):
    """The files of the cart do not all have the hash that is needed."""

    problem = Problem.NO_COMMON_HASH


class PreconditionFailed(CartdError):
    """A precondition of the request is false; nothing was done (RFC 9110, section 13.1)."""

    code = 412
    problem = Problem.PRECONDITION_FAILED


class TooLarge(CartdError):
    """The client sent more than a limit allows."""

    code = 413
    problem = Problem.LIMIT_EXCEEDED


class RangeNotSatisfiable(CartdError):
    """No byte of the requested range exists (RFC 9110, section 15.5.17)."""

    code = 416
    problem = Problem.RANGE_NOT_SATISFIABLE


class QuotaExceeded(CartdError):
    """The client has reached a limit of carts or files in progress (RFC 6585, section 4)."""

    code = 429
    problem = Problem.LIMIT_EXCEEDED


class Unavailable(CartdError):
    """The service cannot answer now: it is stopping, or the database or volume is unavailable."""

    code = 503
    problem = Problem.UNAVAILABLE


class Stopping(Unavailable):
    """The service is stopping; another process may take over."""

    problem = Problem.STOPPING


class DatabaseUnavailable(Unavailable):
    """The database is unavailable.  ``str(error)`` is for clients: it names no host, account or
    table."""

    problem = Problem.DATABASE_UNAVAILABLE

    def __init__(self, reason: str, *, transient: bool = True) -> None:
        """``transient``: a retry may succeed; otherwise an administrator has to act."""
        super().__init__("The database is unavailable; try again later")
        self.reason = escape(reason)
        self.transient = transient

    @property
    def admin_message(self) -> str:
        """The message with the reason, for the log and for administrators."""
        return f"The database cannot be used: {self.reason}"


class StatementRejected(CartdError):
    """The database rejected a statement because of its values; a retry would fail, too."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"Internal error: the database rejected a statement ({reason})")


class VolumeUnavailable(Unavailable):
    """The directory of the volume is not the volume: its disk is not mounted, for example."""

    problem = Problem.VOLUME_UNAVAILABLE

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The volume is unavailable ({reason}); work resumes when its disk is mounted again"
        )


class DiskUnavailable(Unavailable):
    """The disk fails for a reason that is independent of the files on it."""

    problem = Problem.VOLUME_UNAVAILABLE

    def __init__(self, reason: str) -> None:
        super().__init__(f"The volume cannot be used now ({reason}); try again later")


class VolumeNotWritable(Unavailable):
    """A cart is damaged and cannot be restaged, because the volume is not writable."""

    problem = Problem.VOLUME_UNAVAILABLE

    def __init__(self, reason: str) -> None:
        """``reason`` is the system's error message."""
        super().__init__(
            f"The cart is damaged, and the volume is not writable ({reason}): the cart is restaged"
            " on the next request after the volume is writable again"
        )
        self.reason = reason


class NoSpace(CartdError):
    """The volume has no space for a cart, and no cart on it may be evicted."""

    code = 507
    problem = Problem.NO_SPACE

    def __init__(self) -> None:
        super().__init__("No Space Available")


class EvictionFailed(CartdError):
    """Carts may be evicted, but the file system fails to remove their files."""

    code = 507
    problem = Problem.NO_SPACE

    def __init__(self, reason: str) -> None:
        """``reason`` is the system's error message."""
        super().__init__(f"Cannot free space on the volume: {reason}")


class PathCollision(CartdError):
    """Two paths of a cart name the same file on the volume (case or Unicode folding)."""

    problem = Problem.INVALID_MANIFEST

    def __init__(self, first: str, second: str) -> None:
        super().__init__(
            f"{first} and {second} name the same file on this volume, which cannot hold both"
        )


class LeaseLost(CartdError):
    """Another process has taken over the cart that this process was staging."""


class VolumeDamaged(CartdError):
    """A file on the volume is missing or differs in size from the recorded one."""

    problem = Problem.VOLUME_UNAVAILABLE


class FileUnreadable(VolumeDamaged):
    """A file on the volume exists, but reading it fails."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path} cannot be read on the volume: {reason}")
        self.path = path


class ConfigError(CartdError):
    """The configuration is invalid; the message names the key and the reason."""


def problem_of(error: Exception) -> Problem:
    """Return the problem that a cart or a file has that failed with ``error``."""
    if isinstance(error, CartdError):
        return error.problem
    if isinstance(error, OSError):
        if error.errno in _FULL:
            return Problem.NO_SPACE
        return Problem.INVALID_MANIFEST if is_path_error(error) else Problem.VOLUME_UNAVAILABLE
    return Problem.INTERNAL_ERROR


def admin_message(error: CartdError) -> str:
    """Return the message of an error, with details that clients do not get."""
    return error.admin_message if isinstance(error, DatabaseUnavailable) else str(error)


_REASON_PHRASES = {
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
}
"""Of RFC 9110, section 15.5.  Python before 3.13 has those of RFC 2616."""


def reason_phrase(code: int) -> str:
    """Return the reason phrase of a status, the same in each Python version; '' if it has none."""
    try:
        return _REASON_PHRASES.get(code) or HTTPStatus(code).phrase
    except ValueError:
        return ""


def error_body(code: int, message: str, limit: str | None = None) -> bytes:
    """Return an error as JSON, in the form of Pacifica's services; tracebacks only go to the log.

    ``limit`` is the setting that was exceeded, if any; it is added under that key.
    """
    status = f"{code} {reason_phrase(code)}".rstrip()
    error = {"status": status, "message": message, "traceback": "", "version": __version__}
    if limit is not None:
        error["limit"] = limit
    return json.dumps(error).encode("ascii")


def _numbers(*names: str) -> frozenset[int]:
    """Return the errnos of those names that exist on this system."""
    return frozenset(getattr(errno, name) for name in names if hasattr(errno, name))


_MISSING: Final = _numbers("ENOENT", "ENOTDIR", "ELOOP")
"""Missing, below a file, or a symbolic link (POSIX open)."""
_FULL: Final = _numbers("ENOSPC", "EDQUOT")
_PATH: Final = _numbers("ENAMETOOLONG", "EILSEQ", "EINVAL", "ENOTDIR", "EISDIR")
_EXHAUSTED: Final = _numbers("EMFILE", "ENFILE", "ENOMEM", "ENOBUFS", "EINTR", "EAGAIN")
"""The process or the system is out of a resource."""
_TRANSIENT: Final = _EXHAUSTED | _numbers(
    "ESTALE", "ETIMEDOUT", "ENOLCK", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH"
)
"""Those, and errors of a file server that does not answer."""


def is_missing(error: OSError) -> bool:
    """Whether the file does not exist."""
    return error.errno in _MISSING


def is_path_error(error: OSError) -> bool:
    """Whether the file system rejects this path, not others."""
    return error.errno in _PATH


def is_exhausted(error: OSError) -> bool:
    """Whether the process or the system is out of a resource."""
    return error.errno in _EXHAUSTED


def raise_if_transient(error: Exception) -> None:
    """Raise :class:`DiskUnavailable` for a transient error."""
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


MAX_LINE = 200


def one_line(text: str, limit: int = MAX_LINE) -> str:
    """Return ``text`` on one line, without control or formatting characters, cut to ``limit``."""
    printable = "".join(c if c.isprintable() else " " for c in text[: 4 * limit])
    return " ".join(printable.split())[:limit].rstrip()


def escape(name: str) -> str:
    """Return ``name`` with unprintable characters escaped as in Python."""
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
