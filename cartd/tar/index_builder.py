"""Builds the index of a cart's tar from its files, page by page."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from typing import Final

from msgspec import Struct, msgpack

from cartd.tar.headers import BLOCK, NAME_BYTES, NUMBER_LIMIT, number_records_length
from cartd.tar.index import SEPARATOR, Columns, LongHeaders, TarIndex
from cartd.tar.lengths import Lengths, Shape, steps_of

PATHS_PER_STRING: Final = 250
"""Paths in one string: a reader of the tar splits so many at a time, about 20 KiB."""
_NEVER: Final = -(2**63)
"""Earlier than any time."""


class Members(Struct, frozen=True, gc=False):
    """Files of a tar in columns: sizes in bytes, ``mtimes`` in whole Unix seconds."""

    paths: list[str]
    """Relative and normalised: no empty, ``.`` or ``..`` component."""
    sizes: list[int]
    mtimes: list[int]
    hash_types: list[str]
    hash_sums: list[str]


class TarIndexBuilder:
    """Computes the positions of members by a running sum, and stores them in compact columns.

    Every directory occurs once, before the first member below it, with the time of the newest file
    below it.  The manifest ensures that paths are unique.
    """

    def __init__(self) -> None:
        self._columns = Columns()
        self._long = LongHeaders()
        self._end = 0
        self._numbers = {"": 0}
        """Of the directories that are in the tar already."""
        self._parents = [0]
        self._times = [_NEVER]
        """The newest of the files in each directory itself."""
        self._shapes: dict[Shape, int] = {}
        self._digests = [sha256() for _ in Members.__struct_fields__]
        """One for each column, so that they do not depend on the size of pages."""

    def add(self, members: Members) -> None:
        """Add members.

        Raises :class:`ValueError` for a path that is not normalised or a size below zero; the
        builder must not be used afterwards.
        """
        paths, sizes, mtimes = members.paths, members.sizes, members.mtimes
        if not paths:
            return
        for digest, name in zip(self._digests, Members.__struct_fields__, strict=True):
            digest.update(_values(getattr(members, name)))
        _check(paths, sizes)
        columns, times = self._columns, self._times
        first = len(columns.ends)
        for place in range(0, len(paths), PATHS_PER_STRING):
            columns.firsts.append(first + place)
            columns.joined.append(SEPARATOR.join(paths[place : place + PATHS_PER_STRING]))
        columns.sizes.extend(sizes)
        columns.mtimes.extend(mtimes)
        plain = _all_plain(members)
        end, last, directory = self._end, None, 0
        directories = len(times)
        for number, (path, size, mtime) in enumerate(zip(paths, sizes, mtimes, strict=True), first):
            end += -end % BLOCK
            parent = path.rpartition("/")[0]
            if parent != last:
                last, directory = parent, self._directory(parent, number)
                end += (len(times) - directories) * BLOCK
                directories = len(times)
            if times[directory] < mtime:
                times[directory] = mtime
            end += size + BLOCK
            if not plain:
                self._record_header(number, Shape.of(path, number_records_length(size, mtime)))
            columns.ends.append(end)
            columns.directories.append(directories - 1)
        self._end = end

    def index(self) -> TarIndex:
        """Return the index of all members; none may be added afterwards."""
        long, columns = self._long, self._columns
        number = len(columns.ends)
        times = self._newest()
        shapes = Counter(long.shapes)
        counted = {shape: shapes[place] for shape, place in self._shapes.items()}
        lengths = Lengths(
            self._end,
            number + len(times) - 1,
            len(long.threes),
            steps_of(counted, short=True),
            steps_of(counted, short=False),
        )
        digest = sha256(b"".join(digest.digest() for digest in self._digests)).hexdigest()
        return TarIndex(columns, times, long, lengths, digest)

    def _directory(self, path: str, member: int) -> int:
        """Return the number of a directory; a new one is added with its parents."""
        numbers = self._numbers
        found = numbers.get(path)
        if found is not None:
            return found
        new = []
        while path not in numbers:
            new.append(path)
            path = path.rpartition("/")[0]
        number = numbers[path]
        for path in reversed(new):
            self._parents.append(number)
            number = numbers[path] = len(self._times)
            self._times.append(_NEVER)
            self._record_header(member, Shape.of(f"{path}/"))
        return number

    def _record_header(self, member: int, shape: Shape) -> None:
        """Record the header of ``member``, or of a directory before it, unless it is one block."""
        if shape.always_three:
            self._long.threes.append(member)
        elif shape.path > NAME_BYTES or shape.records:
            number = self._shapes.get(shape)
            if number is None:
                number = self._shapes[shape] = len(self._long.known)
                self._long.known.append(shape)
            self._long.members.append(member)
            self._long.shapes.append(number)

    def _newest(self) -> array[int]:
        """Return the time of each directory: the newest below it, within the range of a field."""
        times = self._times
        for number in range(len(times) - 1, 0, -1):  # no directory comes before its parent
            parent = self._parents[number]
            times[parent] = max(times[parent], times[number])
        return array("q", [min(max(time, 0), NUMBER_LIMIT - 1) for time in times])


def _values(column: list[str] | list[int]) -> memoryview:
    """Return the concatenated values in msgpack, in which each value's end is unambiguous."""
    encoded = msgpack.encode(column)
    head = 1 if len(column) < 16 else 3 if len(column) < 2**16 else 5
    return memoryview(encoded)[head:]


def _check(paths: Sequence[str], sizes: Sequence[int]) -> None:
    if not _normalised(paths):
        bad = next(path for path in paths if not _normalised([path]))
        raise ValueError(f"not a normalised relative path: {bad!r}")
    if min(sizes) < 0:
        raise ValueError(f"not a member of a tar: {paths[sizes.index(min(sizes))]!r}, {min(sizes)}")


def _normalised(paths: Sequence[str]) -> bool:
    """Whether no path has a NUL, or a component that is empty, ``.`` or ``..``."""
    framed = f"/{f'/{SEPARATOR}/'.join(paths)}/"
    return framed.count(SEPARATOR) == len(paths) - 1 and not any(
        bad in framed for bad in ("//", "/./", "/../")
    )


def _all_plain(members: Members) -> bool:
    """Whether every header is one block below a short top; rarely false, and cheap to test."""
    return (
        all(map(str.isascii, members.paths))
        and max(map(len, members.paths)) <= NAME_BYTES
        and max(members.sizes) < NUMBER_LIMIT
        and 0 <= min(members.mtimes) <= max(members.mtimes) < NUMBER_LIMIT
    )
