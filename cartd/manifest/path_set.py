"""The paths of a manifest of millions, and whether two of them cannot be in one tree.

Strategy: to enlarge, sort or free a set of a million is a single step of a tenth of a second, in
which no other thread runs; so there is none, but many small ones.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from itertools import chain, islice

_SORTED_AT_ONCE = 4096


class PathSet:
    """Normalised paths of files, and the directories that they lie in."""

    def __init__(self) -> None:
        self._files = _PartitionedSet()
        self._directories = _PartitionedSet()

    def add(self, paths: Sequence[str]) -> None:
        self._files.update(paths)
        self._directories.update({path[: path.rfind("/") + 1] for path in paths})

    def __len__(self) -> int:
        """How many different ones there are."""
        return len(self._files)

    def file_as_directory(self) -> str | None:
        """A path that is claimed for a file, and is on the way to another one; if there is any."""
        return _file_as_directory(self._files, self._directories)

    def clear(self) -> None:
        """Empty it step by step, where its end would free all of it at once."""
        self._files.clear()
        self._directories.clear()


class _PartitionedSet(Collection[str]):
    """A set of texts in many parts."""

    # A prime: the sets themselves go by the last bits of the hash.
    _PARTS = 251

    def __init__(self) -> None:
        self._parts: list[set[str]] = [set() for _ in range(self._PARTS)]

    def update(self, texts: Iterable[str]) -> None:
        parts = self._parts
        for text in texts:
            parts[hash(text) % self._PARTS].add(text)

    def clear(self) -> None:
        """Empty it part by part."""
        for part in self._parts:
            part.clear()

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self._parts)

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __contains__(self, text: object) -> bool:
        return text in self._parts[hash(text) % self._PARTS]


def _file_as_directory(files: Container[str], directories: Collection[str]) -> str | None:
    """Give a path that is among ``files`` and on the way to one of ``directories``, if any.

    A file that is in the way lies itself in one of the directories.  Sorted, with their final
    ``/``, each of them follows those that it lies in, and the last of these is on top of the
    stack: of the way from there on, only the first step is new.  So the work grows with the
    text, not with its depth.
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
    """What ``sorted`` gives, some thousands at a time: a sample says what belongs together."""
    bounds = sorted(islice(texts, 0, None, _SORTED_AT_ONCE))
    between: list[list[str]] = [[] for _ in range(len(bounds) + 1)]
    for text in texts:
        between[bisect(bounds, text)].append(text)
    for some in between:
        yield from sorted(some)
