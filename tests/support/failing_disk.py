"""A disk that fails on request, for a running service: a wrapper of ``twistd``.

``python failing_disk.py ORDERS ROOT CONSTANTS ARGUMENTS...`` runs ``twistd ARGUMENTS...``.  The
file ORDERS contains JSON that is applied to system calls on files below ROOT, until it changes::

    {"errno": 28, "calls": ["write"], "path": "/incoming/2/"}

``path`` is a substring of the affected paths.  Without an ``errno`` the calls do not fail but block
their threads until the file changes; ORDERS.waiting lists them.  A test switches faults on and off
with a :class:`FailingDisk` while the service runs.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.system_calls import path_of

CHANGES = ("write", "create", "fsync", "mkdir", "replace", "rename", "unlink", "symlink", "link")
"""The calls that fail on a read-only file system, one by one; the other one is ``read``."""


class FailingDisk:
    """The test's side; nothing fails until a fault is set."""

    def __init__(self, orders: Path, root: Path) -> None:
        self._orders = orders
        self._root = root
        self.heal()

    def program(self, twistd: tuple[str, ...], **removal: int) -> tuple[str, ...]:
        """Return the replacement of ``twistd``; ``removal``: constants of the deletion."""
        places = str(self._orders), str(self._root)
        return (sys.executable, __file__, *places, json.dumps(removal), *twistd[1:])

    def fail(self, number: int, *calls: str, path: str = "") -> None:
        self._write({"errno": number, "calls": calls, "path": path})

    def hold(self, *calls: str, path: str = "") -> None:
        """Block these calls, until the disk is healed."""
        self._write({"errno": None, "calls": calls, "path": path})

    def waiting(self) -> set[str]:
        """Return the paths of calls that block, or have blocked."""
        listed = self._orders.with_suffix(".waiting")
        return set(listed.read_text().splitlines()) if listed.exists() else set()

    def heal(self) -> None:
        self._write({"errno": 0, "calls": [], "path": ""})

    def _write(self, orders: dict[str, object]) -> None:
        new = self._orders.with_suffix(".new")
        new.write_text(json.dumps(orders))
        new.replace(self._orders)


class _Calls:
    """The service's side."""

    def __init__(self, orders: str, root: str) -> None:
        self._orders = orders
        self._root = root + os.sep
        self._paths: dict[int, str] = {}
        self._open = os.open

    def refuse(self, call: str, path: Any) -> None:
        """Raise or block if ORDERS says so for this call on this path or open file."""
        if isinstance(path, int):
            if not stat.S_ISREG(os.fstat(path).st_mode):
                return
            path = self._paths.get(path, "")
        name = str(Path(os.fsdecode(path)).absolute()) if path else ""
        if not name.startswith(self._root):
            return
        waits = False
        while True:
            orders = json.loads(Path(self._orders).read_text())
            if call not in orders["calls"] or orders["path"] not in name:
                return
            if orders["errno"] is not None:
                raise OSError(orders["errno"], os.strerror(orders["errno"]), name)
            if not waits:
                waits = True
                with Path(self._orders).with_suffix(".waiting").open("a") as listed:
                    listed.write(f"{name}\n")
            time.sleep(0.01)

    def open(self, path: Any, flags: int, *more: Any, **options: Any) -> int:
        whole = path_of([path], options)
        self.refuse("create" if flags & os.O_CREAT else "read", whole)
        fd = self._open(path, flags, *more, **options)
        self._paths[fd] = str(Path(whole).absolute())
        return fd

    def around(self, call: str, real: Callable[..., Any], argument: int = 0) -> Callable[..., Any]:
        def instead(*arguments: Any, **options: Any) -> Any:
            one = arguments[argument]
            self.refuse(
                call, one if isinstance(one, int) else path_of(arguments, options, argument)
            )
            return real(*arguments, **options)

        return instead


def _main() -> None:
    del sys.path[0]
    orders, root, removal, *arguments = sys.argv[1:]
    import cartd.carts.delete

    vars(cartd.carts.delete).update(json.loads(removal))
    calls = _Calls(orders, root)
    os.open = calls.open
    os.read = calls.around("read", os.read)
    os.pread = calls.around("read", os.pread)
    os.sendfile = calls.around("read", os.sendfile, 1)
    os.symlink = calls.around("symlink", os.symlink, 1)
    os.link = calls.around("link", os.link, 1)
    for name in ("write", "fsync", "mkdir", "replace", "rename", "unlink"):
        setattr(os, name, calls.around(name, getattr(os, name)))
    sys.argv = ["twistd", *arguments]
    from twisted.scripts.twistd import run

    run()


FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))

if __name__ == "__main__":
    _main()
