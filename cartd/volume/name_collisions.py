"""Names that are one on this volume, though they are not one in a manifest.

Some file systems do not tell ``data`` from ``DATA`` (NTFS, exFAT, APFS and others as they come), or
an accented letter from a letter with an accent (HFS+, and ZFS where it is told so).  Two files of a
cart would take each other's place there.

Strategy: whether the volume is such a one is tried out, not asked.  If it is, the paths of a cart
are compared as a file system of that kind might, which finds too many rather than too few; of what
is found, the volume itself says whether it is one name.  Everything here but the arithmetic blocks.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Final

from cartd.rooted_fs import CREATE_FLAGS, RootedFS
from cartd.volume.partial import DISK_FULL
from cartd.volume.paths import VolumePaths
from cartd.volume.remove import remove_tree
from cartd.volume.trial_files import TRIAL, trial_file

MAX_CANDIDATES: Final = 20
"""Paths that are looked at of those that may be one name."""
Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Folding:
    """What the volume does not tell apart; false if it tells all names apart."""

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
        """Equal for all paths that may be one."""
        if path.isascii():
            return path.lower() if self.case else path
        if self.normal_form:
            path = unicodedata.normalize("NFD", path)
        if self.case:
            # Some systems fold by capitals, and others by small letters.
            path = path.upper().casefold()
        return unicodedata.normalize("NFD", path) if self.normal_form else path


class CollisionFinder:
    """Finds the paths of a cart that may be one, or one of which may lie below another's file.

    They are to be given twice: to :meth:`look` all of them, then to :meth:`claim`.
    """

    def __init__(self, folding: Folding) -> None:
        self._folding = folding
        # Of a million paths, numbers and not texts.
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
        """Two that may claim one name, at least one of them for a file."""
        for candidates in self._candidates.values():
            for (first, is_file), (second, is_file_too) in combinations(candidates, 2):
                if is_file or is_file_too:
                    yield first, second


def _parents(key: str) -> Iterator[str]:
    """The directories that it lies in, the nearest first."""
    while (end := key.rfind("/")) > 0:
        key = key[:end]
        yield key


def detect_folding(paths: VolumePaths) -> Folding:
    """What this volume does not tell apart.  Raises ``OSError``."""
    with trial_directory(paths) as (fs, directory):
        return Folding(
            case=_is_same_name(fs, directory, "a", "A"),
            normal_form=_is_same_name(fs, directory, "\u00e9", "e\u0301"),
        )


def first_same_path(paths: VolumePaths, pairs: Iterable[Pair]) -> Pair | None:
    """The first two paths that are one on this volume.  Raises ``OSError``."""
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
    """A directory of nobody's, for a moment."""
    with trial_file(paths, TRIAL) as path, RootedFS(paths.root) as fs:
        fs.mkdir(path)
        try:
            yield fs, path
        finally:
            with suppress(OSError):  # the next start sweeps it
                remove_tree(fs, path)


def _is_same_name(fs: RootedFS, directory: Path, first: str, second: str) -> bool:
    try:
        os.close(fs.open(directory / first, CREATE_FLAGS))
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        return False  # it cannot have that name at all
    try:
        return fs.exists(directory / second)
    finally:
        fs.unlink(directory / first)


def find_collision(paths: VolumePaths, folded: CollisionFinder) -> Pair | None:
    """The first two of the claimed paths that are one on this volume."""
    pairs: Sequence[Pair] = [*folded.pairs()]
    return first_same_path(paths, pairs) if pairs else None
