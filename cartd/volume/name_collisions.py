"""Collisions: different paths of a manifest that are the same file on this volume.

Some file systems do not distinguish ``data`` from ``DATA`` (by default NTFS, exFAT, APFS and
others), or composed from decomposed characters (HFS+, and ZFS if configured so).  There, one file
of a cart would replace another.

Strategy: whether the volume folds names is detected with trial files.  If it does, the paths of a
cart are compared after folding, which finds too many pairs rather than too few; each pair is then
tested with trial files on the volume.  The functions here block: for threads.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Final

from twisted.logger import Logger

from cartd.deferreds.tasks import uncancellable
from cartd.deferreds.threads import ThreadRunner
from cartd.model import CartFile
from cartd.volume.identity import Identity
from cartd.volume.incoming import TRIAL, trial_file
from cartd.volume.paths import VolumePaths
from cartd.volume.remove import remove_tree
from cartd.volume.rooted_fs import CREATE_FLAGS, DISK_FULL, RootedFS

MAX_CANDIDATES: Final = 20
"""Paths compared of those with the same folded name."""
Pair = tuple[str, str]

log = Logger()


@dataclass(frozen=True, slots=True)
class Folding:
    """What the volume does not distinguish; false if it distinguishes all names."""

    case: bool = False
    """Upper and lower case."""
    normal_form: bool = False
    """A character that Unicode has composed and decomposed (UAX #15)."""

    def __bool__(self) -> bool:
        return self.case or self.normal_form

    def __str__(self) -> str:
        what = ["upper and lower case"] * self.case
        what += ["composed and decomposed characters"] * self.normal_form
        return ", or ".join(what)

    def key(self, path: str) -> str:
        """Return the folded path: equal for all paths that may be the same file."""
        if path.isascii():
            return path.lower() if self.case else path
        if self.normal_form:
            path = unicodedata.normalize("NFD", path)
        if self.case:
            # Some systems fold to upper case, others to lower case.
            path = path.upper().casefold()
        return unicodedata.normalize("NFD", path) if self.normal_form else path


class NameCollisions:
    """Finds collisions of the paths of a cart on this volume."""

    def __init__(self, paths: VolumePaths, identity: Identity, threads: ThreadRunner) -> None:
        self._paths = paths
        self._identity = identity
        self._threads = threads
        self._folding: Folding | None = None

    def folds(self) -> bool:
        """Whether the volume treats some names as the same, as far as that has been detected."""
        return bool(self._folding)

    async def folding(self) -> Folding:
        """Return which names the volume treats as the same; detected once, with trial files."""
        if self._folding is None:
            try:
                self._folding = await self._threads.run(self._detect_folding)
            except OSError as error:
                log.warn("Cannot detect whether the volume folds names: {error}", error=error)
                return Folding()
        return self._folding

    async def find(
        self, pages: Callable[[], AsyncIterator[Sequence[CartFile]]]
    ) -> tuple[str, str] | None:
        """Return the first two paths of a cart that are the same file on this volume.

        ``pages`` returns an iterator over the cart's files.
        """
        folding = await self.folding()
        if not folding:
            return None
        folded = CollisionFinder(folding)
        for step in (folded.scan, folded.collect):
            async for page in pages():
                await uncancellable(self._threads.run(step, [file.path for file in page]))
        return await self._threads.run(find_collision, self._paths, folded)

    def _detect_folding(self) -> Folding:
        self._identity.check()
        return detect_folding(self._paths)


class CollisionFinder:
    """Finds the paths of a cart that may collide, or of which one is a file above another.

    All paths must be passed twice: first to :meth:`scan`, then to :meth:`collect`.
    """

    def __init__(self, folding: Folding) -> None:
        self._folding = folding
        # Hashes instead of texts: there may be a million paths.
        self._files: set[int] = set()
        self._directories: set[int] = set()
        self._colliding_keys: set[str] = set()
        self._candidates: dict[str, list[tuple[str, bool]]] = {}

    def scan(self, paths: Iterable[str]) -> None:
        files, directories = self._files, self._directories
        for path in paths:
            key = self._folding.key(path)
            number = hash(key)
            if number in files or number in directories:
                self._colliding_keys.add(key)
            files.add(number)
            for parent in _parents(key):
                number = hash(parent)
                if number in directories:
                    break  # and so are those above it
                directories.add(number)
                if number in files:
                    self._colliding_keys.add(parent)

    def collect(self, paths: Iterable[str]) -> None:
        if not self._colliding_keys:
            return
        for path in paths:
            key = self._folding.key(path)
            for place in (key, *_parents(key)):
                if place in self._colliding_keys:
                    candidates = self._candidates.setdefault(place, [])
                    if len(candidates) < MAX_CANDIDATES:
                        candidates.append((path, place == key))

    def pairs(self) -> Iterator[Pair]:
        """Yield pairs with the same folded name, of which at least one is a file."""
        for candidates in self._candidates.values():
            for (first, is_file), (second, is_file_too) in combinations(candidates, 2):
                if is_file or is_file_too:
                    yield first, second


def _parents(key: str) -> Iterator[str]:
    """Yield the parent directories, the nearest first."""
    while (end := key.rfind("/")) > 0:
        key = key[:end]
        yield key


def detect_folding(paths: VolumePaths) -> Folding:
    """Detect what this volume does not distinguish.  Raises ``OSError``."""
    with trial_directory(paths) as (fs, directory):
        return Folding(
            case=_is_same_name(fs, directory, "a", "A"),
            normal_form=_is_same_name(fs, directory, "\u00e9", "e\u0301"),
        )


def first_same_path(paths: VolumePaths, pairs: Iterable[Pair]) -> Pair | None:
    """Return the first two paths that are the same file on this volume.  Raises ``OSError``."""
    known: dict[Pair, bool] = {}
    with trial_directory(paths) as (fs, directory):
        for first, second in pairs:
            for names in zip(first.split("/"), second.split("/"), strict=False):
                if names[0] != names[1] and names not in known:
                    known[names] = _is_same_name(fs, directory, *names)
                if names[0] != names[1] and not known[names]:
                    break
            else:
                return first, second
    return None


@contextmanager
def trial_directory(paths: VolumePaths) -> Iterator[tuple[RootedFS, Path]]:
    """Yield a temporary directory for trial files."""
    with trial_file(paths, TRIAL) as path, RootedFS(paths.root) as fs:
        fs.mkdir(path)
        try:
            yield fs, path
        finally:
            with suppress(OSError):  # the next start removes it
                remove_tree(fs, path)


def _is_same_name(fs: RootedFS, directory: Path, first: str, second: str) -> bool:
    try:
        os.close(fs.open(directory / first, CREATE_FLAGS))
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        return False  # the volume does not allow that name at all
    try:
        return fs.exists(directory / second)
    finally:
        fs.unlink(directory / first)


def find_collision(paths: VolumePaths, folded: CollisionFinder) -> Pair | None:
    """Return the first two of the collected paths that are the same file on this volume."""
    pairs: Sequence[Pair] = [*folded.pairs()]
    return first_same_path(paths, pairs) if pairs else None
