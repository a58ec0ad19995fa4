"""The few errors that cross floors, each with the HTTP status that it becomes."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import ClassVar

from cartd import __version__
from cartd.text import escape


class CartdError(Exception):
    """Something that a user can be told about in one sentence.

    ``str(error)`` is that sentence, fit for a log or a terminal whatever names it quotes; ``code``
    is the HTTP status that answers it.
    """

    code: ClassVar[int] = 500

    def __init__(self, message: str = "", *, limit: str | None = None) -> None:
        """``limit``: the setting that was exceeded, as ``server.max_manifest_size``, if any."""
        super().__init__(escape(message))
        self.limit = limit


class InvalidInput(CartdError):
    """What the client sent breaks a rule; nothing was changed."""

    code = 400


class Unauthenticated(CartdError):
    """Who asks has not said who that is, or it is not so (RFC 9110, section 15.5.2)."""

    code = 401


class NoCredentials(Unauthenticated):
    """The request names nobody.  The answer asks for a name, as HTTP clients expect before they
    send one (RFC 9110, section 11.6.1): no attempt has failed."""


class CartNotFound(CartdError):
    """No cart of that uid exists, or it has been deleted."""

    code = 404


class PreconditionFailed(CartdError):
    """A condition of the client's does not hold; nothing was done (RFC 9110, section 13.1)."""

    code = 412


class TooLarge(CartdError):
    """The client sent more than a limit allows."""

    code = 413


class RangeNotSatisfiable(CartdError):
    """No byte of the asked range exists (RFC 9110, section 15.5.17)."""

    code = 416


class QuotaExceeded(CartdError):
    """The client has as much under way as a limit allows (RFC 6585, section 4)."""

    code = 429


class Unavailable(CartdError):
    """The service cannot answer now, but may soon: it stops, or its store is away."""

    code = 503


class DatabaseUnavailable(Unavailable):
    """The database cannot be used now.  What a client is told names no host, account or table."""

    def __init__(self, reason: str, *, transient: bool = True) -> None:
        """``transient``: by waiting, and not only when an administrator mends it."""
        super().__init__("The database cannot be used at the moment; ask again")
        self.reason = escape(reason)
        self.transient = transient

    @property
    def admin_message(self) -> str:
        """For the log, and for whoever runs a command."""
        return f"The database cannot be used: {self.reason}"


class StatementRejected(CartdError):
    """The database takes a statement amiss for what it is given: it would again."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"Internal error: the database refused what was to be recorded ({reason})")


class VolumeUnavailable(Unavailable):
    """The directory of the volume is not the volume now: its disk is not mounted, for example."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The volume is away ({reason}); once its disk is mounted again, all goes on by itself"
        )


class DiskUnavailable(Unavailable):
    """The disk cannot be asked now, for a reason that says nothing of the files on it."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"The volume cannot be used now ({reason}); ask again in a moment")


class VolumeNotWritable(Unavailable):
    """A cart is damaged, but no file of it can be fetched again: the volume cannot be written."""

    def __init__(self, reason: str) -> None:
        """``reason`` is what the system says."""
        super().__init__(
            f"The cart is damaged, and the volume cannot be written ({reason}): it is staged again"
            " when somebody asks for it once the disk is well"
        )
        self.reason = reason


class NoSpace(CartdError):
    """The volume has no room for a cart and nothing on it may be evicted."""

    code = 507

    def __init__(self) -> None:
        super().__init__("No Space Available")


class EvictionFailed(CartdError):
    """Carts could be evicted to make room, but the file system refuses to remove their files."""

    code = 507

    def __init__(self, reason: str) -> None:
        """``reason`` is what the system says."""
        super().__init__(f"The volume cannot be freed: {reason}")


class PathCollision(CartdError):
    """Two paths of a cart are one on the volume."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(
            f"{first} and {second} are one file on this volume: it cannot hold both of them"
        )


class LeaseLost(CartdError):
    """Another process has taken over the cart that this one was staging."""


class VolumeDamaged(CartdError):
    """A file on the volume is missing or has another size than was recorded."""


class FileUnreadable(VolumeDamaged):
    """A file on the volume is there, but the disk does not give its bytes."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path} cannot be read on the volume: {reason}")
        self.path = path


class ConfigError(CartdError):
    """The configuration cannot be used; the message names the key and the reason."""


def admin_message(error: CartdError) -> str:
    """The sentence of an error, with what clients are not told."""
    return error.admin_message if isinstance(error, DatabaseUnavailable) else str(error)


_REASON_PHRASES = {
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
}
"""Of RFC 9110, section 15.5; Python has them since 3.13, and before it those of RFC 2616."""


def reason_phrase(code: int) -> str:
    """What a status is called, whichever Python this is; '' for one that has no name."""
    try:
        return _REASON_PHRASES.get(code) or HTTPStatus(code).phrase
    except ValueError:
        return ""


def error_body(code: int, message: str, limit: str | None = None) -> bytes:
    """The JSON of an error, in the form of Pacifica's services; a trace only goes to the log.

    ``limit`` is the setting that was gone over, if one was, and stands there by that name.
    """
    status = f"{code} {reason_phrase(code)}".rstrip()
    error = {"status": status, "message": message, "traceback": "", "version": __version__}
    if limit is not None:
        error["limit"] = limit
    return json.dumps(error).encode("ascii")
