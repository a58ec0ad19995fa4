"""Layouts of a cart's tar: which members stand before its files, and in which folder these are.

A tar is the head of its layout, then the files of the cart.  The members of the head are folders,
and files whose bytes are computed: any range of them, in pieces of bounded size.
:class:`PlainLayout` has the files in the top folder; :mod:`cartd.tar.bag` has the other layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Protocol

from cartd.tar.headers import BLOCK, header_length
from cartd.tar.members import Columns, Members

TOP_FOLDER: Final = "/"
"""The suffix of the top folder itself."""
MISSING: Final = ".missing.json"
"""The suffix of the list of missing files, which stands beside the top folder."""
MAX_NAME: Final = 255
"""Bytes of a name that the common file systems allow."""
_CUT: Final = MAX_NAME - 2 * len(MISSING)
"""Bytes of a truncated top folder: with the suffix, it is shorter than any that is truncated."""


class Content(Protocol):
    """The bytes of a computed file; they do not depend on the top folder."""

    @property
    def size(self) -> int: ...
    @property
    def digest(self) -> str:
        """A cryptographic hash of the bytes, in hex."""

    @property
    def weight(self) -> int:
        """Bytes of memory that it takes."""

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from ``start`` up to ``stop``, which are in range; no piece is empty."""


@dataclass(frozen=True, slots=True)
class Text:
    """A short file, which is in memory."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def digest(self) -> str:
        return sha256(self.data).hexdigest()

    @property
    def weight(self) -> int:
        return len(self.data)

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        if start < stop:
            yield self.data[start:stop]


NO_CONTENT: Final = Text(b"")
"""That of a folder."""


@dataclass(frozen=True, slots=True)
class HeadMember:
    """A folder or a file that stands before the files of the cart."""

    suffix: str
    """What follows the name of the top folder in its own; that of a folder ends in ``/``."""
    content: Content = NO_CONTENT


class Layout(Protocol):
    """Computes the head of a tar while the index of its files is built."""

    @property
    def version(self) -> int | str:
        """Part of every ETag, so that no client joins the bytes of two layouts into one file."""

    @property
    def prefix(self) -> str:
        """What precedes the path of each file below the top folder: empty, or ends in ``/``."""

    @property
    def mtime(self) -> int:
        """Of the computed files; not negative."""

    @property
    def missing(self) -> Content | None:
        """The list of files that could not be staged, if there are any."""

    def add(self, members: Members) -> None:
        """Add a page of files, after the index has accepted it."""

    def head(self, columns: Columns) -> Sequence[HeadMember]:
        """Return the head, once all files were added; its last member is a folder."""


@dataclass(frozen=True, slots=True)
class PlainLayout:
    """All files below the top folder, and the list of missing files before it."""

    missing: Content | None = None
    mtime: int = 0
    version: int | str = 1
    """Increment it with every change to a byte of any tar of this layout."""
    prefix: str = ""

    def add(self, members: Members) -> None:
        """Do nothing: the head does not depend on the files."""

    def head(self, columns: Columns) -> Sequence[HeadMember]:
        top = HeadMember(TOP_FOLDER)
        return [top] if self.missing is None else [HeadMember(MISSING, self.missing), top]


def head_name(top: str, suffix: str) -> str:
    """Return the name of a member of the head below ``top``.

    That of the list of missing files, which is in no folder, is a valid file name for any ``top``
    of at most 255 bytes, and never equal to it.
    """
    if suffix == MISSING and len(top.encode()) + len(MISSING) > MAX_NAME:
        top = top.encode()[:_CUT].decode(errors="ignore")
    return f"{top}{suffix}"


def head_length(top: str, head: Sequence[tuple[str, int]]) -> int:
    """Return the bytes of a head, whose members are given by suffix and size."""
    return sum(
        header_length(head_name(top, suffix), size, 0) + size + -size % BLOCK
        for suffix, size in head
    )
