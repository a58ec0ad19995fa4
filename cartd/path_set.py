"""The set of paths of a manifest, up to millions; finds paths that are a file and a directory.

Strategy: to grow, sort or free a set of a million strings holds the interpreter's lock for a tenth
of a second; so the set is partitioned into many small ones.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from itertools import chain, islice

_SORTED_AT_ONCE = 4096


class PathSet:
    """Normalised paths of files, and the directories that contain them."""

    def __init__(self) -> None:
        self._files = _PartitionedSet()
        self._directories = _PartitionedSet()

    def add(self, paths: Sequence[str]) -> None:
        self._files.update(paths)
        self._directories.update({path[: path.rfind("/") + 1] for path in paths})

    def __len__(self) -> int:
        """The number of different paths."""
        return len(self._files)

    def file_as_directory(self) -> str | None:
        """Return a path that is both a file and a directory of another path, if there is any."""
        return _file_as_directory(self._files, self._directories)

    def clear(self) -> None:
        """Empty the set step by step; its destruction would free all of it at once."""
        self._files.clear()
        self._directories.clear()


class _PartitionedSet(Collection[str]):
    """A set of strings, partitioned by hash."""

    # A prime, as each set uses the last bits of the hash.
    _PARTS = 251

    def __init__(self) -> None:
        self._parts: list[set[str]] = [set() for _ in range(self._PARTS)]

    def update(self, texts: Iterable[str]) -> None:
        parts = self._parts
        for text in texts:
            parts[hash(text) % self._PARTS].add(text)

    def clear(self) -> None:
        """Empty the set, partition by partition."""
        for part in self._parts:
            part.clear()

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self._parts)

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __contains__(self, text: object) -> bool:
        return text in self._parts[hash(text) % self._PARTS]


def _file_as_directory(files: Container[str], directories: Collection[str]) -> str | None:
    """Return one of ``files`` that is also one of ``directories`` or their parents, if any.

    Such a file is itself in one of the directories.  In sorted order, with their final ``/``, each
    directory follows its parents, and the nearest parent is on top of the stack: only its first
    component below that parent has to be checked.  So the work grows with the length of the text,
    not with its depth.
    """
    stack = [""]
    for directory in _in_order(directories):
        while not directory.startswith(stack[-1]):
            stack.pop()
        step = directory[: directory.find("/", len(stack[-1]))]
        if step in files:
            return step
        stack.append(directory)
    return None


def _in_order(texts: Collection[str]) -> Iterator[str]:
    """Yield ``texts`` sorted, in batches of some thousands, which are split by a sample."""
    bounds = sorted(islice(texts, 0, None, _SORTED_AT_ONCE))
    between: list[list[str]] = [[] for _ in range(len(bounds) + 1)]
    for text in texts:
        between[bisect(bounds, text)].append(text)
    for some in between:
        yield from sorted(some)
