"""A measured server: its address, and the resources of its processes."""

from __future__ import annotations

from dataclasses import dataclass

from bench import usage


@dataclass(frozen=True, slots=True)
class Server:
    """A running server; ``pids`` are the roots of its process trees."""

    port: int
    pids: tuple[int, ...]
    path: str = "/"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.path}"

    def cpu(self) -> float:
        """Return the CPU seconds so far."""
        return usage.cpu_seconds(*self.pids)

    def resident(self) -> int:
        """Return the resident bytes."""
        return usage.resident(*self.pids)

    def peak(self) -> int:
        """Return the peak of resident bytes since ``forget_peak``, for a server of one process."""
        [pid] = self.pids
        return usage.peak(pid)

    def forget_peak(self) -> None:
        [pid] = self.pids
        usage.forget_peak(pid)
