"""A server that is measured: where it listens, and what its processes take."""

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
        """CPU seconds so far."""
        return usage.cpu_seconds(*self.pids)

    def resident(self) -> int:
        """Bytes in RAM now."""
        return usage.resident(*self.pids)

    def peak(self) -> int:
        """The most bytes in RAM since ``forget_peak``; of a server of one process."""
        [pid] = self.pids
        return usage.peak(pid)

    def forget_peak(self) -> None:
        [pid] = self.pids
        usage.forget_peak(pid)
