"""cartd itself, as ``twistd -n cartd`` in a process of its own, and its archive with tapes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import processes
from bench.processes import MeasurementFailed
from bench.server import Server

TWISTD = Path(sys.executable).with_name("twistd")


@contextmanager
def cartd(directory: Path, archive_url: str) -> Iterator[Server]:
    """Run it with volume and SQLite database in ``directory``, which may be in use already."""
    with timed_cartd(directory, archive_url) as (server, _):
        yield server


@contextmanager
def timed_cartd(
    directory: Path, archive_url: str, *, every: float = 0.01
) -> Iterator[tuple[Server, float]]:
    """Run it, and measure the seconds until its first response, polled each ``every`` seconds."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "cartd.pid").unlink(missing_ok=True)
    port = processes.free_port()
    command = [
        *(str(TWISTD), "-n", "--pidfile=cartd.pid", "cartd", "--port", str(port)),
        *("--archive", archive_url, "--volume-path", "volume"),
        *("--database", "sqlite:///cartd.sqlite3"),
    ]
    log = directory / "cartd.log"
    environment = {"CARTD_CONFIG": str(directory / "none.ini")}
    (directory / "none.ini").touch()
    began = time.monotonic()
    with processes.running(
        command, directory=directory, log=log.name, environment=environment
    ) as process:
        processes.wait_until_responding(process, port, log, every=every)
        yield Server(port, (process.pid,)), time.monotonic() - began
        if process.poll() is not None:
            raise MeasurementFailed(f"cartd ended by itself: {log.read_text()[-2000:]}")
    _assert_no_trace(log)


@contextmanager
def tape_archive(directory: Path, files: Path, *, rate: float) -> Iterator[Server]:
    """Run cartd's own archive with all ``files`` on tape, from where it reads ``rate`` a second."""
    directory.mkdir(parents=True)
    port = processes.free_port()
    command = [
        *(str(TWISTD), "-n", "--pidfile=", "cartd-archive", "--port", str(port)),
        *("--root", str(files), "--tape-delay", "0", "--tape-rate", f"{rate:g}"),
    ]
    log = directory / "archive.log"
    with processes.running(command, directory=directory, log=log.name) as process:
        processes.wait_until_responding(process, port, log)
        yield Server(port, (process.pid,))


def _assert_no_trace(log: Path) -> None:
    text = log.read_text(errors="replace")
    if "Traceback" in text or "Unhandled" in text:
        raise MeasurementFailed(f"cartd logged a trace: see {log}")
