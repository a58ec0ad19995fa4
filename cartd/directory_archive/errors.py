"""Why the archive refuses a request, each with the HTTP status that says so."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from cartd.errors import CartdError, RangeNotSatisfiable, Unavailable


class ErrorWithHeaders(CartdError):
    """A refusal with header fields of its own."""

    headers: Mapping[str, str] = MappingProxyType({})


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


class OnTape(ErrorWithHeaders, Unavailable):
    """The file must be staged before it can be read (RFC 9110, section 10.2.3)."""

    def __init__(self, archive_id: str, wait: int) -> None:
        """``wait``: whole seconds after which it may be on disk."""
        super().__init__(f"{archive_id} is on tape")
        self.headers = {"Retry-After": str(wait)}


class BeyondEnd(ErrorWithHeaders, RangeNotSatisfiable):
    """A range begins behind the file's last byte (RFC 9110, section 15.5.17)."""

    def __init__(self, size: int) -> None:
        super().__init__(f"the file has {size} bytes")
        self.headers = {"Content-Range": f"bytes */{size}"}


class InjectedError(CartdError):
    """The request was made to fail, as the service was asked to let some do."""

    def __init__(self) -> None:
        super().__init__("pretended: the archive failed")
