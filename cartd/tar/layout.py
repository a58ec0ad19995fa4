"""From a cart's files, page by page, to the bundle of them all."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from tarfile import BLOCKSIZE, LENGTH_NAME, RECORDSIZE

from msgspec import Struct, msgpack

from cartd.tar.bundle import SEPARATOR, Bundle, Columns
from cartd.tar.headers import NUMBER_LIMIT, header_length

PATHS_TOGETHER = 250
"""Paths in one string: whoever reads the tar has so many apart, about 20 KiB."""


class Members(Struct, frozen=True, gc=False):
    """Files of a tar in columns: sizes in bytes, ``mtimes`` in whole Unix seconds."""

    paths: list[str]
    """Relative and normalised: no empty, ``.`` or ``..`` component."""
    sizes: list[int]
    mtimes: list[int]
    hash_types: list[str]
    hash_sums: list[str]


class Layout:
    """Lays out a tar by one running sum; what was added is kept in a compact form.

    That no two members claim one path is the manifest's matter.
    """

    def __init__(self, *, top: str, created: int) -> None:
        """Raises :class:`ValueError` if ``top`` is not the name of a folder."""
        if "/" in top or not _normalised([top]):
            raise ValueError(f"not the name of a folder: {top!r}")
        self._top = top
        self._created = created
        self._columns = Columns()
        self._known = {""}
        """The directories that stand in the tar already."""
        self._end = header_length(f"{top}/", 0, created)
        # All that the bytes follow from; msgpack tells where each value ends.
        self._digest = sha256(msgpack.encode((top, created)))

    def add(self, members: Members) -> None:
        """Go on with these members.

        Raises :class:`ValueError` for a path that is not normalised or a size below zero; the
        layout is of no use then.
        """
        paths, sizes, mtimes = members.paths, members.sizes, members.mtimes
        if not paths:
            return
        self._digest.update(msgpack.encode(members))
        _check(paths, sizes)
        columns = self._columns
        for first in range(0, len(paths), PATHS_TOGETHER):
            columns.firsts.append(len(columns.ends) + first)
            columns.joined.append(SEPARATOR.join(paths[first : first + PATHS_TOGETHER]))
        columns.sizes.extend(sizes)
        columns.mtimes.extend(mtimes)
        prefix = f"{self._top}/"
        plain = _all_plain(prefix, members)
        known, end = self._known, self._end
        for path, size, mtime in zip(paths, sizes, mtimes, strict=True):
            end += -end % BLOCKSIZE
            fresh = 0
            directory = path.rpartition("/")[0]
            if directory not in known:
                fresh, length = self._enter(directory)
                end += length
            end += size + (BLOCKSIZE if plain else header_length(prefix + path, size, mtime))
            columns.ends.append(end)
            columns.fresh.append(fresh)
        self._end = end

    def bundle(self) -> Bundle:
        """The tar of all members that were added; there must come no more."""
        unpadded = self._end + -self._end % BLOCKSIZE + 2 * BLOCKSIZE
        length = unpadded + -unpadded % RECORDSIZE
        etag = f'"{self._digest.hexdigest()}"'
        return Bundle(self._top, self._created, self._columns, length, etag)

    def _enter(self, directory: str) -> tuple[int, int]:
        """Note ``directory`` and its parents; give how many are new and their headers' bytes."""
        fresh = length = 0
        while directory not in self._known:
            self._known.add(directory)
            fresh += 1
            length += header_length(f"{self._top}/{directory}/", 0, self._created)
            directory = directory.rpartition("/")[0]
        return fresh, length


def _check(paths: Sequence[str], sizes: Sequence[int]) -> None:
    if not _normalised(paths):
        bad = next(path for path in paths if not _normalised([path]))
        raise ValueError(f"not a normalised relative path: {bad!r}")
    if min(sizes) < 0:
        raise ValueError(f"not a member of a tar: {paths[sizes.index(min(sizes))]!r}, {min(sizes)}")


def _normalised(paths: Sequence[str]) -> bool:
    """Whether none has a NUL, or a component that is empty, ``.`` or ``..``; of all at once."""
    framed = f"/{f'/{SEPARATOR}/'.join(paths)}/"
    return framed.count(SEPARATOR) == len(paths) - 1 and not any(
        bad in framed for bad in ("//", "/./", "/../")
    )


def _all_plain(prefix: str, members: Members) -> bool:
    """Whether every header is one block; seldom false, and cheaper than to ask of each."""
    return (
        prefix.isascii()
        and all(map(str.isascii, members.paths))
        and len(prefix) + max(map(len, members.paths)) <= LENGTH_NAME
        and max(members.sizes) < NUMBER_LIMIT
        and 0 <= min(members.mtimes) <= max(members.mtimes) < NUMBER_LIMIT
    )
