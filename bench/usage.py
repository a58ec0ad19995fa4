"""CPU seconds and resident memory of processes and of all that they started, from ``/proc``."""

from __future__ import annotations

import os
import time
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")
_CHILDREN_CPU = slice(13, 15)  # cutime and cstime, counted after the name


def tree(*roots: int) -> list[int]:
    """The processes ``roots`` and their descendants that are there now."""
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
    """CPU time, of the user's and the system's, that these trees have taken so far.

    What a process took is read from its CPU clock, to the nanosecond; what its ended children
    took, from ``/proc``, in hundredths of a second.
    """
    return sum(_own_cpu(pid) + _ended_children_cpu(pid) for pid in tree(*roots))


def resident(*roots: int) -> int:
    """Bytes of memory that these trees have in RAM; pages shared within a tree count once."""
    pids = tree(*roots)
    if len(pids) == 1:
        return _status_bytes(pids[0], "VmRSS")
    return sum(_proportional_bytes(pid) for pid in pids)


def peak(pid: int) -> int:
    """The most bytes that the process had in RAM since :func:`forget_peak`."""
    return _status_bytes(pid, "VmHWM")


def forget_peak(pid: int) -> None:
    """Count the peak from now on."""
    (_PROC / str(pid) / "clear_refs").write_text("5")


def busy_cores(seconds: float) -> float:
    """How many cores the whole machine has at work, on the average of the next ``seconds``."""
    before = _busy_seconds()
    time.sleep(seconds)
    return (_busy_seconds() - before) / seconds


def _busy_seconds() -> float:
    user, nice, system, _idle, _waiting, irq, soft, steal = (
        int(ticks) for ticks in (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + soft + steal) / _TICKS


def _stat(pid: int) -> list[str]:
    """The fields after the name, which may itself hold blanks; none if the process is gone."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _own_cpu(pid: int) -> float:
    try:
        # What clock_getcpuclockid(3) makes of a process's id.
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
