"""Which names of a tar can be paths on this computer, and which of them would be one file.  Pure.

A tar may come from a hostile server, and a cart from a system that permits more names than this
one.  So names are checked before anything is written: :meth:`NameRules.parts` for a single one,
:class:`Collisions` for all of a cart.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from dataclasses import dataclass
from hashlib import blake2b

MAX_NAME_BYTES = 255
MAX_DEPTH = 500
MAX_PATH_BYTES = 1 << 15
MAX_KNOWN = 10_000
"""Directories whose names are remembered while names are compared."""


class UnsafeName(ValueError):
    """The name cannot be a path here; the message says why."""


@dataclass(frozen=True)
class NameRules:
    """What the file system below one directory does with names."""

    ignores_case: bool = False
    normalizes: bool = False
    """Whether names that differ only in Unicode normalisation are the same."""
    windows: bool = False
    max_name_bytes: int = MAX_NAME_BYTES

    def parts(self, name: str) -> tuple[str, ...]:
        """Return the components of a name of the tar; ``.`` is dropped.

        :raises UnsafeName: it leaves the directory, or this system does not permit it.
        """
        if name.startswith("/"):
            raise UnsafeName("the path is absolute")
        if "\0" in name or not name:
            raise UnsafeName("the path is empty or has a NUL")
        parts = tuple(name.split("/"))
        if "" in parts or "." in parts:
            parts = tuple(part for part in parts if part not in ("", "."))
        if not parts:
            raise UnsafeName("the path is the directory itself")
        if len(parts) > MAX_DEPTH or len(name) > MAX_PATH_BYTES:
            raise UnsafeName("the path is too long")
        if ".." in parts:
            raise UnsafeName("the path has a component '..'")
        # A character has four bytes at most.
        if 4 * len(name) > self.max_name_bytes or self.windows:
            self._check(parts)
        return parts

    def _check(self, parts: tuple[str, ...]) -> None:
        for part in parts:
            if self._length(part) > self.max_name_bytes:
                raise UnsafeName(
                    f"a component of the path has more than {self.max_name_bytes} bytes"
                )
            if self.windows:
                _check_windows(part)

    def fold(self, path: str) -> str:
        """Return the same text for all spellings of a path that are one file here."""
        if path.isascii():
            return path.lower() if self.ignores_case else path
        if self.normalizes:
            path = unicodedata.normalize("NFD", path)
        if self.ignores_case:
            # Twice, as folding may give characters that are normalised and folded again.
            path = unicodedata.normalize("NFD", path.casefold()).casefold()
            if not self.normalizes:
                path = unicodedata.normalize("NFC", path)
        return path

    def _length(self, part: str) -> int:
        if self.windows:
            return len(part.encode("utf-16-le", "surrogatepass")) // 2
        return len(part.encode("utf-8", "surrogateescape"))


def _check_windows(part: str) -> None:
    found = re.search(r'[<>:"|?*\\\x00-\x1f]', part)
    if found:
        raise UnsafeName(f"Windows does not permit {found[0]!r} in a name")
    if part[-1] in ". ":
        raise UnsafeName("Windows does not permit a name that ends in a space or a dot")
    if _DEVICE.match(part):
        raise UnsafeName(f"{part!r} is a device on Windows")


_DEVICE = re.compile(
    r"(?:CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(?:COM|LPT)[0-9\u00b9\u00b2\u00b3])[ ]*(?:[.].*)?$",
    re.IGNORECASE | re.DOTALL,
)


class Collisions:
    """Finds names that would be one file, or a file and a directory, below one directory.

    Of each path it keeps eight bytes.  :meth:`suspects` returns digests that occur with different
    meanings: a second pass over the same names with :meth:`digests` finds the names.
    """

    def __init__(self, rules: NameRules) -> None:
        self._rules = rules
        self._files = array("Q")
        self._directories: dict[int, int] = {}
        self._wrong: set[int] = set()
        self._known: set[str] = set()

    def add(self, parts: tuple[str, ...]) -> None:
        """Note the path of a file; its directories count, too."""
        folded = self._rules.fold("/".join(parts))
        self._files.append(_digest(folded))
        directory = "/".join(parts[:-1])
        if directory in self._known:
            return
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known.add(directory)
        for depth in range(1, len(parts)):
            exact = "/".join(parts[:depth])
            key = _digest(self._rules.fold(exact))
            # Two spellings of a directory become one: its files are then not where the cart has
            # them, even if none is lost.
            if self._directories.setdefault(key, _digest(exact)) != _digest(exact):
                self._wrong.add(key)

    def suspects(self) -> frozenset[int]:
        """Return the digests of all names that collide; empty if none does."""
        wrong = set(self._wrong)
        previous = None
        for digest in sorted(self._files):
            if digest == previous or digest in self._directories:
                wrong.add(digest)
            previous = digest
        return frozenset(wrong)

    def digests(self, parts: tuple[str, ...]) -> list[int]:
        """Return the digests of a path and of the directories above it."""
        return [
            _digest(self._rules.fold("/".join(parts[:depth]))) for depth in range(len(parts), 0, -1)
        ]


def _digest(text: str) -> int:
    raw = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(raw, digest_size=8).digest(), "big")
