"""``kill_points.py ORDER ARGUMENTS``: run ``twistd ARGUMENTS``, killed at the point in ORDER.

ORDER is a file: while it exists and contains ``POINT:N``, the N-th passage of that point kills the
process, whether it was running already or is starting.

A point is before or after a call that changes the volume, or before or after the commit of a
transaction, which is named after the method of the store.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from tests.support.system_calls import path_of

POINTS = (
    *("before-post", "after-post", "after-claim", "after-reserve"),
    *(
        "after-link-duplicate",
        "after-replace-duplicate",
        "before-record_linked",
        "after-record_linked",
    ),
    *("during-write", "before-replace-file", "after-replace-file"),
    *("before-record_staged", "after-record_staged"),
    *("during-write-tar", "before-replace-tar", "after-replace-tar"),
    *("after-rename-tree", "after-record_bundled"),
    *("after-symlink", "after-replace-link", "before-record_ready", "after-record_ready"),
    *("before-record_error", "after-record_error", "before-restage", "after-restage"),
    *("before-mark_deleted", "after-mark_deleted"),
    *("after-begin_eviction", "before-unlink-staged", "after-unlink-staged"),
    *("after-unlink-link", "after-rename-removed", "after-unlink-file"),
)
"""The points that the tests use; each leaves another state behind."""
RARE_POINTS = (
    *("before-restage", "after-restage"),
    *("after-begin_eviction", "before-unlink-staged", "after-unlink-staged"),
)
"""Points that a load may not reach for many seconds."""

_KINDS = re.compile(r"(duplicate|link|tar|tree|removed|\d+)-[0-9a-f]{16}-\d+$")
"""The purpose of a name in ``incoming/``; a number is that of a file."""
_BEING_REMOVED = re.compile(r"/incoming/[0-9]+/[^/]+/")
"""Paths in a tree that is being removed."""
_STAGED = re.compile(r"/volume/[0-9]+/[^/]+")
"""Paths in a cart's directory."""


class KillPoint:
    """Counts the passages of the point in the order file."""

    def __init__(self, order: Path) -> None:
        self._order = order
        self._passages = 0
        self._lock = threading.Lock()

    def reached(self, point: str) -> bool:
        """Whether this passage is the one to die at."""
        try:
            wanted, _, number = self._order.read_text().partition(":")
        except FileNotFoundError:
            return False
        if wanted != point:
            return False
        with self._lock:
            self._passages += 1
            return self._passages == int(number)

    def kill_if_reached(self, point: str) -> None:
        if self.reached(point):
            kill_self()


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def watch_volume(kill_point: KillPoint) -> None:
    """Intercept the calls of :mod:`os` that change names, and ``os.write``."""

    def watched(name: str, kind: Callable[[Sequence[Any], Mapping[str, Any]], str]) -> None:
        call = getattr(os, name)

        def passing(*arguments: Any, **more: Any) -> Any:
            point = f"{name}{kind(arguments, more)}"
            kill_point.kill_if_reached(f"before-{point}")
            result = call(*arguments, **more)
            kill_point.kill_if_reached(f"after-{point}")
            return result

        setattr(os, name, passing)

    watched("replace", lambda names, _: _kind(names[0]))
    watched("rename", lambda names, _: _kind(names[1]))
    watched("link", lambda names, _: _kind(names[1]))
    watched("symlink", lambda *_: "")
    watched("unlink", _kind_of_unlinked)
    watch_writes(kill_point)


def watch_writes(kill_point: KillPoint) -> None:
    write = os.write

    def passing(fd: int, data: Any) -> int:
        # The reactor wakes itself up with single bytes, of another type.
        if isinstance(data, memoryview) and len(data) > 1:
            tar = _kind(Path(f"/proc/self/fd/{fd}").readlink()) == "-tar"
            if kill_point.reached("during-write-tar" if tar else "during-write"):
                write(fd, data[: len(data) // 2])
                kill_self()
        return write(fd, data)

    os.write = passing


def _kind(path: object) -> str:
    found = _KINDS.search(str(path))
    if found is None:
        return ""
    return "-file" if found[1].isdigit() else f"-{found[1]}"


def _kind_of_unlinked(names: Sequence[Any], options: Mapping[str, Any]) -> str:
    path = path_of(names, options)
    if "/cartuids/" in path:
        return "-link"
    if _STAGED.search(path):
        return "-staged"
    return "-file" if _BEING_REMOVED.search(path) else ""


def watch_store(kill_point: KillPoint) -> None:
    """Intercept transactions before and after their commit."""
    from cartd.store.database import Database, Transaction

    begun = Database.transaction

    @asynccontextmanager
    async def passing(database: Database, name: str) -> AsyncIterator[Transaction]:
        async with begun(database) as transaction:
            yield transaction
            kill_point.kill_if_reached(f"before-{name}")
        kill_point.kill_if_reached(f"after-{name}")

    def transaction(database: Database) -> Any:
        return passing(database, _method(sys._getframe(1)))

    Database.transaction = transaction  # type: ignore[method-assign,assignment]


def _method(frame: FrameType | None) -> str:
    while frame is not None and frame.f_code.co_name.startswith("_"):
        frame = frame.f_back
    return "" if frame is None else frame.f_code.co_name


def main() -> None:
    order, *arguments = sys.argv[1:]
    assert (
        shutil.rmtree.avoids_symlink_attacks
    )  # it inspects os's functions before they are replaced
    kill_point = KillPoint(Path(order))
    watch_volume(kill_point)
    watch_store(kill_point)
    from twisted.scripts.twistd import run

    sys.argv = ["twistd", *arguments]
    run()


if __name__ == "__main__":
    main()
