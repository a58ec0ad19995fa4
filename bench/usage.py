"""CPU seconds and resident memory of process trees, from ``/proc``."""

from __future__ import annotations

import os
import time
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")
_CHILDREN_CPU = slice(13, 15)  # cutime and cstime, counted after the name


def tree(*roots: int) -> list[int]:
    """Return the existing processes among ``roots`` and their descendants."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: list[int] = []
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.append(pid)
            waiting += children.get(pid, [])
    return found


def cpu_seconds(*roots: int) -> float:
    """Return the user and system CPU time of these process trees so far.

    The time of a process is read from its CPU clock, in nanoseconds; that of its ended children
    from ``/proc``, in hundredths of a second.
    """
    return sum(_own_cpu(pid) + _ended_children_cpu(pid) for pid in tree(*roots))


def resident(*roots: int) -> int:
    """Return the resident bytes of these trees; pages shared within a tree count once."""
    pids = tree(*roots)
    if len(pids) == 1:
        return _status_bytes(pids[0], "VmRSS")
    return sum(_proportional_bytes(pid) for pid in pids)


def peak(pid: int) -> int:
    """Return the peak of the process's resident bytes since :func:`forget_peak`."""
    return _status_bytes(pid, "VmHWM")


def forget_peak(pid: int) -> None:
    """Reset the peak."""
    (_PROC / str(pid) / "clear_refs").write_text("5")


def busy_cores(seconds: float) -> float:
    """Return the average number of busy cores of the machine over ``seconds``."""
    before = _busy_seconds()
    time.sleep(seconds)
    return (_busy_seconds() - before) / seconds


def _busy_seconds() -> float:
    user, nice, system, _idle, _waiting, irq, soft, steal = (
        int(ticks) for ticks in (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + soft + steal) / _TICKS


def _stat(pid: int) -> list[str]:
    """Return the fields after the name, which may contain blanks; none if the process has ended."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _own_cpu(pid: int) -> float:
    try:
        # As clock_getcpuclockid(3) derives it from a process id.
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def _ended_children_cpu(pid: int) -> float:
    return sum(int(ticks) for ticks in _stat(pid)[_CHILDREN_CPU]) / _TICKS


def _status_bytes(pid: int, key: str) -> int:
    for line in (_PROC / str(pid) / "status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(f"process {pid} has ended")


def _proportional_bytes(pid: int) -> int:
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
