"""Runs servers for a while, and commands to their end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

STOP_SECONDS = 30.0


class MeasurementFailed(Exception):
    """A measured program failed, so that its figures would be meaningless."""


@dataclass(frozen=True, slots=True)
class Run:
    """The result of a command that succeeded."""

    seconds: float
    cpu: float
    """CPU seconds, with those of its children."""
    output: str


@contextmanager
def running(
    command: Sequence[str | Path],
    *,
    directory: Path,
    log: str,
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in ``directory``; then end it and all its children."""
    with (directory / log).open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def finished(command: Sequence[str | Path], *, directory: Path | None = None) -> Run:
    """Run a command to its end; ``MeasurementFailed`` if it fails."""
    began = time.monotonic()
    process = subprocess.Popen(
        command, cwd=directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise MeasurementFailed(
            f"{Path(command[0]).name} ended with {process.returncode}: {output.strip()}"
        )
    return Run(seconds, usage.ru_utime + usage.ru_stime, output)


def sync_disks() -> None:
    """Write all dirty pages to the disk, before a measurement begins."""
    os.sync()


def wait_for(
    condition: Callable[[], bool], what: str, *, seconds: float = 60, every: float = 0.01
) -> None:
    """Poll until ``condition()`` holds; ``MeasurementFailed`` if it does not within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise MeasurementFailed(f"{what} did not happen within {seconds:g} s")
        time.sleep(every)


def wait_until_responding(
    process: subprocess.Popen[bytes], port: int, log: Path, *, every: float = 0.01
) -> None:
    """Wait until the server responds to any request on ``port``."""

    def answers() -> bool:
        if process.poll() is not None:
            raise MeasurementFailed(
                f"{process.args!r} ended at its start:\n{log.read_text()[-2000:]}"
            )
        connection = HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", "/")
            connection.getresponse().read()
        except OSError:
            return False
        else:
            return True
        finally:
            connection.close()

    wait_for(answers, f"the start of {process.args!r}", every=every)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
