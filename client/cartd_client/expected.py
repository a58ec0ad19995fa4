"""The files that a tar or a directory must contain, in the order in which they are expected.

The list may have a million entries: it is kept in a temporary file without a name.  The members of
a cart's tar have the order of its list, so that each look-up reads the next line; only for a tar
in another order is an index built, in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple

from cartd_client.hashing import is_known
from cartd_client.model import FileEntry, FileProblem

MAX_LISTED = 10_000
"""Files with a problem that are kept in memory, and listed."""


class Wanted(NamedTuple):
    """What a file must be; ``None`` is unknown."""

    path: str
    size: int | None
    algorithm: str | None
    """One that :mod:`hashlib` has; None if there is no sum to compare with."""
    hash_sum: str | None


class ExpectedFiles:
    """A list of files, each of which is looked up once."""

    def __init__(self, directory: Path | None = None) -> None:
        """``directory`` gets the temporary file; default: that of the system."""
        self._file = TemporaryFile(dir=directory)  # noqa: SIM115
        self._cursor = 0
        self._end = 0
        self._index: dict[int, int] | None = None
        self.count = 0
        """Number of files that must be there."""
        self.seen = 0
        """Number of files that were looked up, or skipped."""
        self.bytes: int | None = 0
        """Their size; None if it is not known of all."""
        self.absent: set[str] = set()
        """Paths that are not looked up, as the tar says that it does not have them."""
        self.missing: list[FileProblem] = []
        """Files that the cart does not have."""

    @classmethod
    def of(cls, entries: Iterable[FileEntry], directory: Path | None = None) -> ExpectedFiles:
        """Return the list of the files of a cart or a manifest; those in error are missing."""
        files = cls(directory)
        for entry in entries:
            if entry.status == "error":
                files.add_missing(
                    FileProblem(
                        entry.path,
                        entry.error or "the service could not stage it",
                        entry.problem,
                        entry.position,
                        entry.id,
                    )
                )
            else:
                files.add(_wanted(entry))
        files.rewind()
        return files

    def add(self, wanted: Wanted) -> None:
        """Append a file; all are appended before the first look-up."""
        line = _line(wanted)
        self._file.write(line)
        self._end += len(line)
        self.count += 1
        if wanted.size is None or self.bytes is None:
            self.bytes = None
        else:
            self.bytes += wanted.size

    def add_missing(self, problem: FileProblem) -> None:
        """Note a file that is not expected, as the cart does not have it."""
        if len(self.missing) < MAX_LISTED:
            self.missing.append(problem)

    def rewind(self) -> None:
        """Start with the first look-up."""
        self._file.seek(0)
        self._cursor, self._index, self.seen = 0, None, 0

    @property
    def is_in_order(self) -> bool:
        """Whether all look-ups so far had the order of the list."""
        return self._index is None

    def skip(self, count: int) -> None:
        """Count the next ``count`` files as looked up."""
        for _ in range(count):
            self.seen += self._next() is not None

    def find(self, path: str) -> Wanted | None:
        """Return what is expected of ``path``; None if it is not, or was looked up before."""
        if self._index is None:
            found = self._next()
            if found is not None and found[1].path == path:
                self.seen += 1
                return found[1]
            if found is not None:
                self._cursor = found[0]
                self._file.seek(found[0])
            self._index = {_digest(wanted.path): at for at, wanted in self._rest()}
        at = self._index.pop(_digest(path), -1)
        if at < 0:
            return None
        self._file.seek(at)
        wanted = _parsed(self._file.readline())
        if wanted.path != path:
            return None
        self.seen += 1
        return wanted

    def unseen(self) -> Iterator[Wanted]:
        """Yield the files that were not looked up; ends the look-ups."""
        if self._index is None:
            for _, wanted in self._rest():
                yield wanted
            return
        for at in sorted(self._index.values()):
            self._file.seek(at)
            yield _parsed(self._file.readline())

    def __iter__(self) -> Iterator[Wanted]:
        """Yield all files; look-ups begin anew afterwards."""
        self.rewind()
        for _, wanted in self._rest():
            yield wanted
        self.rewind()

    def close(self) -> None:
        """Remove the temporary file."""
        self._file.close()

    def _next(self) -> tuple[int, Wanted] | None:
        """Return the next file and its offset; None at the end."""
        while self._cursor < self._end:
            at = self._cursor
            line = self._file.readline()
            self._cursor += len(line)
            wanted = _parsed(line)
            if wanted.path not in self.absent:
                return at, wanted
        return None

    def _rest(self) -> Iterator[tuple[int, Wanted]]:
        while (found := self._next()) is not None:
            yield found


def _line(wanted: Wanted) -> bytes:
    """Return a file as a line: ``ALGORITHM SUM SIZE PATH``, without spaces in the first three."""
    path, size, algorithm, hash_sum = wanted
    if "\n" in path or "%" in path:
        path = path.replace("%", "%25").replace("\n", "%0A")
    size_text = "-" if size is None else str(size)
    text = f"{algorithm or '-'} {hash_sum or '-'} {size_text} {path}\n"
    return text.encode("utf-8", "surrogatepass")


def _parsed(line: bytes) -> Wanted:
    algorithm, hash_sum, size, path = line[:-1].decode("utf-8", "surrogatepass").split(" ", 3)
    if "%" in path:
        path = path.replace("%0A", "\n").replace("%25", "%")
    if algorithm == "-":
        return Wanted(path, None if size == "-" else int(size), None, None)
    return Wanted(path, None if size == "-" else int(size), algorithm, hash_sum)


def _wanted(entry: FileEntry) -> Wanted:
    for algorithm, hash_sum in (
        (entry.hash_type, entry.hash_sum),
        (entry.also_hash_type, entry.also_hash_sum),
    ):
        if hash_sum and is_known(algorithm):
            return Wanted(entry.path, entry.size, algorithm, hash_sum.lower())
    return Wanted(entry.path, entry.size, None, None)


def _digest(path: str) -> int:
    raw = path.encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(raw, digest_size=8).digest(), "big")
