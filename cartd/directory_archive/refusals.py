"""Why the archive refuses a request, each with the HTTP status that says so."""

from __future__ import annotations

from typing import ClassVar

from cartd.errors import CartdError, Unavailable


class NotInArchive(CartdError):
    """No file has this id.  (Pacifica's own service answers 500.)"""

    code: ClassVar[int] = 404

    def __init__(self, archive_id: str) -> None:
        super().__init__(f"No file with id {archive_id} found")


class Forbidden(CartdError):
    """The operating system does not let the service do this."""

    code: ClassVar[int] = 403


class Conflict(CartdError):
    """The id cannot name a file, because of what is there already."""

    code: ClassVar[int] = 409


class LengthRequired(CartdError):
    """A body came without a declared length (RFC 9110, section 15.5.12)."""

    code: ClassVar[int] = 411

    def __init__(self) -> None:
        super().__init__("a file needs a Content-Length")


class OnTape(Unavailable):
    """The file must be staged before it can be read."""

    def __init__(self, archive_id: str, wait: int) -> None:
        """``wait``: whole seconds after which it may be on disk."""
        super().__init__(f"{archive_id} is on tape")
        self.retry_after = wait


class Misfired(CartdError):
    """The request was made to fail, as the service was asked to let some do."""

    def __init__(self) -> None:
        super().__init__("pretended: the archive failed")
