"""A cache of the directories of the last opened file, for reading many files in sequence."""

from __future__ import annotations

import os
from pathlib import Path

from cartd.volume.rooted_fs import HAS_DIR_FD, READ_FLAGS, check_name, open_directory, open_root


class DirFdCache:
    """Opens files below ``root`` for reading, one after the other; for one thread at a time.

    Strategy: most files are small, so each gets as few system calls as possible: the directory of
    the last file and its parent stay open until :meth:`close`.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._prefix = str(root / "_")[:-1]
        self._open: list[tuple[str, int]] = []
        """Path and descriptor of the parent, and of the directory itself."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        while self._open:
            os.close(self._open.pop()[1])

    def open(self, path: str) -> int:
        """Open ``path``, relative to ``root``, with ``/``; errors are those of RootedFS."""
        if not HAS_DIR_FD:
            return os.open(self._prefix + path, READ_FLAGS)
        parent, _, name = path.rpartition("/")
        if not self._open or self._open[-1][0] != parent:
            self._change_directory(parent)
        return os.open(check_name(name), READ_FLAGS, dir_fd=self._open[-1][1])

    def _change_directory(self, directory: str) -> None:
        grandparent, _, name = directory.rpartition("/")
        if name and len(self._open) == 2 and self._open[0][0] == grandparent:
            os.close(self._open.pop()[1])  # it is a sibling of the last one
            self._enter(name, directory)
        else:
            self.close()
            self._open.append(("", open_root(self._root)))
            path = ""
            for name in directory.split("/") if directory else ():
                path = f"{path}/{name}" if path else name
                self._enter(name, path)

    def _enter(self, name: str, path: str) -> None:
        self._open.append((path, open_directory(self._open[-1][1], name, path)))
        if len(self._open) > 2:
            os.close(self._open.pop(0)[1])
