"""The errors of the archive, each with its HTTP status."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from cartd.errors import CartdError, RangeNotSatisfiable, Unavailable


class ErrorWithHeaders(CartdError):
    """An error whose response has extra headers."""

    headers: Mapping[str, str] = MappingProxyType({})


class NotInArchive(CartdError):
    """No file has this id.  (Pacifica's own service answers 500.)"""

    code: ClassVar[int] = 404

    def __init__(self, archive_id: str) -> None:
        super().__init__(f"No file with id {archive_id} found")


class Forbidden(CartdError):
    """The operating system denies the access."""

    code: ClassVar[int] = 403


class Conflict(CartdError):
    """The id conflicts with an existing file or directory."""

    code: ClassVar[int] = 409


class LengthRequired(CartdError):
    """A body without a declared length (RFC 9110, section 15.5.12)."""

    code: ClassVar[int] = 411

    def __init__(self) -> None:
        super().__init__("PUT needs a Content-Length")


class OnTape(ErrorWithHeaders, Unavailable):
    """The file must be recalled before it can be read (RFC 9110, section 10.2.3)."""

    def __init__(self, archive_id: str, wait: int) -> None:
        """``wait``: seconds after which it may be on disk, an integer."""
        super().__init__(f"{archive_id} is on tape")
        self.headers = {"Retry-After": str(wait)}


class BeyondEnd(ErrorWithHeaders, RangeNotSatisfiable):
    """A range begins after the last byte of the file (RFC 9110, section 15.5.17)."""

    def __init__(self, size: int) -> None:
        super().__init__(f"the file has {size} bytes")
        self.headers = {"Content-Range": f"bytes */{size}"}


class InjectedError(CartdError):
    """An injected fault."""

    def __init__(self) -> None:
        super().__init__("injected fault: the archive failed")
