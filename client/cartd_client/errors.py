"""The client's errors: each has an exit status of the command and a problem document (RFC 9457).

A problem document is the service's own if it has sent one, else the client makes it.  Its ``type``
is then ``urn:cartd-client:NAME``; the names are those of the classes below:

=====================  ======  ====================================================================
name                   exit    meaning
=====================  ======  ====================================================================
``error``              1       any other error
``invalid-response``   1       the answer is not one of a cartd or a Pacifica Cartd
``not-supported``      1       the service does not have what the request needs
``request-rejected``   1       the service rejects the request: sending it again does not help
``invalid-manifest``   1       the manifest cannot be read, or breaks a rule
``invalid-setting``    1       a setting, or a file that it names, is missing or invalid
``usage``              2       the command line, or an argument of a method, is wrong
``no-such-cart``       3       no cart of this uid exists
``partial``            4       what came is right, but files are missing
``cart-failed``        5       the cart is in error
``verification``       6       content differs from its hash sum or size
``time-out``           7       the cart was not ready in time
``unavailable``        8       the network or the service is in trouble, which may pass
``not-allowed``        9       no valid credentials, or they do not permit this
``no-space``           10      no space on a disk of this computer
``cart-changed``       11      the cart is not the one of which a part was downloaded
``interrupted``        130     interrupted; what was downloaded is kept
=====================  ======  ====================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any, ClassVar

PROBLEM_PREFIX = "urn:cartd-client:"
"""What ``type`` of the client's own problem documents begins with."""

MAX_MESSAGE = 4096
"""Characters of a message that are kept."""


class ExitStatus(IntEnum):
    """Exit statuses of the command; each has one meaning."""

    OK = 0
    ERROR = 1
    USAGE = 2
    NO_SUCH_CART = 3
    PARTIAL = 4
    CART_FAILED = 5
    VERIFICATION_FAILED = 6
    TIMEOUT = 7
    UNAVAILABLE = 8
    NOT_ALLOWED = 9
    NO_SPACE = 10
    CART_CHANGED = 11
    INTERRUPTED = 130


def printable(text: str, limit: int = MAX_MESSAGE) -> str:
    """Return foreign text for a terminal: up to ``limit`` characters, those of control escaped."""
    short = text if len(text) <= limit else text[: limit - 1] + "…"
    if short.isprintable():
        return short
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in short
    )


class ClientError(Exception):
    """An error with a message for the user: what happened, to what, and what to do.

    ``status`` is the HTTP status if the error is an answer of the service.
    """

    exit_status: ClassVar[ExitStatus] = ExitStatus.ERROR
    name: ClassVar[str] = "error"
    title: ClassVar[str] = "The command has failed"

    def __init__(
        self,
        message: str,
        *,
        problem: Mapping[str, Any] | None = None,
        status: int | None = None,
        **members: Any,
    ) -> None:
        """``problem`` is the service's document; ``members`` are added to that of the client."""
        self.message = printable(message)
        super().__init__(self.message)
        self.status = status
        self._problem = problem
        self._members = members

    @property
    def problem(self) -> dict[str, Any]:
        """The problem document: the service's, else one of the client's own."""
        if self._problem is not None:
            return dict(self._problem)
        document: dict[str, Any] = {
            "type": PROBLEM_PREFIX + self.name,
            "title": self.title,
            "detail": self.message,
        }
        if self.status is not None:
            document["status"] = self.status
        return {**document, **self._members}


class InvalidResponse(ClientError):
    """The answer is not one of a cartd or a Pacifica Cartd."""

    name = "invalid-response"
    title = "The answer of the service is invalid"


class NotSupported(ClientError):
    """The service does not have what the request needs, such as one of Pacifica's."""

    name = "not-supported"
    title = "The service does not support this"


class RequestRejected(ClientError):
    """The service rejects the request; sending it again does not help."""

    name = "request-rejected"
    title = "The service rejects the request"


class InvalidManifest(ClientError):
    """The manifest cannot be read, or breaks a rule; nothing was sent."""

    name = "invalid-manifest"
    title = "The manifest is invalid"


class InvalidSetting(ClientError):
    """A setting of the command, or a file that it names, is missing or invalid."""

    name = "invalid-setting"
    title = "A setting is missing or invalid"


class UsageError(ClientError):
    """The command line, or an argument of a method, is wrong."""

    exit_status = ExitStatus.USAGE
    name = "usage"
    title = "The command line is wrong"


class NoSuchCart(ClientError):
    """No cart of this uid exists: never posted, deleted, evicted, or of another user."""

    exit_status = ExitStatus.NO_SUCH_CART
    name = "no-such-cart"
    title = "There is no such cart"


class PartialCart(ClientError):
    """What came is right, but files are missing."""

    exit_status = ExitStatus.PARTIAL
    name = "partial"
    title = "Files are missing"


class CartFailed(ClientError):
    """The cart is in error."""

    exit_status = ExitStatus.CART_FAILED
    name = "cart-failed"
    title = "The cart could not be staged"


class VerificationFailed(ClientError):
    """Content differs from its hash sum or size."""

    exit_status = ExitStatus.VERIFICATION_FAILED
    name = "verification"
    title = "Content differs from its hash sum or size"


class WaitTimeout(ClientError):
    """The cart was not ready in time; it is still being staged."""

    exit_status = ExitStatus.TIMEOUT
    name = "time-out"
    title = "The time has passed"


class ServiceUnavailable(ClientError):
    """The network or the service is in trouble, which may pass.

    ``retry_after`` is what the service asks for, in seconds, if it does.
    """

    exit_status = ExitStatus.UNAVAILABLE
    name = "unavailable"
    title = "The service cannot be used now"

    def __init__(
        self,
        message: str,
        *,
        problem: Mapping[str, Any] | None = None,
        status: int | None = None,
        retry_after: float | None = None,
        **members: Any,
    ) -> None:
        super().__init__(message, problem=problem, status=status, **members)
        self.retry_after = retry_after


class NotAllowed(ClientError):
    """The service requires valid credentials, or they do not permit this."""

    exit_status = ExitStatus.NOT_ALLOWED
    name = "not-allowed"
    title = "Valid credentials are missing"


class NoSpace(ClientError):
    """A disk of this computer has no space."""

    exit_status = ExitStatus.NO_SPACE
    name = "no-space"
    title = "There is no space on the disk"


class CartChanged(ClientError):
    """The cart is not the one of which a part was downloaded."""

    exit_status = ExitStatus.CART_CHANGED
    name = "cart-changed"
    title = "The cart has changed"


class Interrupted(ClientError):
    """The command was interrupted; what was downloaded is kept."""

    exit_status = ExitStatus.INTERRUPTED
    name = "interrupted"
    title = "The command was interrupted"
