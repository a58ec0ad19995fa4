"""Runs a script with a cartd that runs on Windows, as far as Python's own modules tell.

::

    cartd.program = on_windows(cartd.twistd)

Only modules of cartd are affected, in what they import: ``sys.platform`` is ``win32``, modules and
names of ``os``, ``signal`` and ``socket`` that Windows lacks are missing, a directory cannot be
opened, and ``msvcrt`` locks as on Windows.  Other differences (an open file cannot be removed,
other paths) need a real Windows.  Without a script, all modules of cartd are imported, and those
that fail are printed.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import os
import pkgutil
import runpy
import signal
import socket
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

HIDDEN = frozenset({"fcntl", "grp", "pwd", "resource", "termios", "pty", "syslog", "readline"})
NOT_THERE = {
    "os": frozenset({
        "O_CLOEXEC", "O_DIRECTORY", "O_DSYNC", "O_NOCTTY", "O_NOFOLLOW", "O_NONBLOCK", "O_SYNC",
        "POSIX_FADV_DONTNEED", "RWF_NOWAIT", "chown", "chroot", "fchdir", "fchmod", "fchown",
        "fdatasync", "fork", "fpathconf", "getegid", "geteuid", "getgid", "getgrouplist",
        "getgroups", "getloadavg", "getpgid", "getuid", "getxattr", "killpg", "lchown", "listxattr",
        "major", "minor", "mkfifo", "mknod", "nice", "openpty", "pathconf", "posix_fadvise",
        "posix_fallocate", "pread", "preadv", "pwrite", "pwritev", "removexattr",
        "sched_getaffinity", "sendfile", "setegid", "seteuid", "setgid", "setpriority", "setsid",
        "setuid", "setxattr", "statvfs", "sync", "sysconf", "uname", "wait",
    }),
    "signal": frozenset({"SIGALRM", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGUSR1"}),
    "socket": frozenset({"AF_UNIX", "MSG_DONTWAIT", "MSG_MORE", "MSG_NOSIGNAL"}),
}  # fmt: skip


def on_windows(command: Sequence[str]) -> tuple[str, ...]:
    """Return a command line that runs ``command``, a script, with cartd as on Windows."""
    return sys.executable, __file__, *command


class Seen(ModuleType):
    """A module as on Windows; attributes that are set on it are set on the real one."""

    def __init__(self, real: ModuleType, missing: frozenset[str], other: Mapping[str, Any]) -> None:
        super().__init__(real.__name__)
        vars(self).update(_real=real, _missing=missing, _other=dict(other))

    def __getattr__(self, name: str) -> Any:
        seen = vars(self)
        if name in seen["_missing"]:
            raise AttributeError(f"module {seen['_real'].__name__!r} has no attribute {name!r}")
        if name in seen["_other"]:
            return seen["_other"][name]
        return getattr(seen["_real"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(vars(self)["_real"], name, value)


def _open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
    if dir_fd is not None:
        raise NotImplementedError("dir_fd unavailable on this platform")
    if not isinstance(path, int) and Path(os.fsdecode(path)).is_dir():
        raise PermissionError(errno.EACCES, "Permission denied", path)
    return os.open(path, flags, mode)


def _locking(fd: int, mode: int, _count: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PermissionError(errno.EACCES, "Permission denied") from None


def _modules() -> dict[str, ModuleType]:
    msvcrt = ModuleType("msvcrt")
    vars(msvcrt).update(locking=_locking, LK_NBLCK=2)
    no_calls: dict[str, Any] = {
        name: frozenset() for name in ("supports_dir_fd", "supports_fd", "supports_effective_ids")
    }
    no_calls["supports_follow_symlinks"] = frozenset({os.stat})
    return {
        "msvcrt": msvcrt,
        "sys": Seen(sys, frozenset({"abiflags"}), {"platform": "win32"}),
        "os": Seen(os, NOT_THERE["os"], {**no_calls, "open": _open, "O_BINARY": 0}),
        "signal": Seen(signal, NOT_THERE["signal"], {}),
        "socket": Seen(socket, NOT_THERE["socket"], {}),
    }


def _pretend() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "cartd"]:
        del sys.modules[name]
    modules, real = _modules(), builtins.__import__

    def imported(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        importer = str((globals or {}).get("__name__"))
        if level == 0 and importer.partition(".")[0] == "cartd":
            if name in HIDDEN:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            if name in modules:
                return modules[name]
        return real(name, globals, locals, fromlist, level)

    builtins.__import__ = imported


def _import_all() -> None:
    import cartd

    for module in pkgutil.walk_packages(cartd.__path__, "cartd."):
        if module.name.endswith(".__main__"):
            continue  # it runs
        try:
            import_module(module.name)
        except Exception:
            print(f"{module.name}: {traceback.format_exc(limit=-1)}")


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    _pretend()
    if sys.argv:
        sys.path[0] = str(Path(sys.argv[0]).parent)
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        _import_all()
