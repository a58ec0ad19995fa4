"""A directory served as an archive by another process, for tests that block."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

from tests.support import preloaded
from tests.support.free_ports import free_port
from tests.support.running_cartd import command, wait_for

CARTD_ARCHIVE = (command("twistd"), "-n", "--pidfile=", "cartd-archive")


@dataclass(frozen=True, slots=True)
class ServedDirectory:
    """A running archive; the file ``root / ID`` has that id."""

    port: int
    root: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def put(self, archive_id: str, data: bytes) -> None:
        (self.root / archive_id).write_bytes(data)


@contextmanager
def served_directory(
    directory: Path, *options: str, program: Sequence[str] = CARTD_ARCHIVE
) -> Iterator[ServedDirectory]:
    """Start ``program`` with its files and its log in ``directory``, and end it."""
    archive = ServedDirectory(free_port(), directory / "archive")
    archive.root.mkdir(parents=True)
    with (directory / "archive.log").open("wb") as log:
        process = preloaded.start(
            [
                *program,
                *("--root", str(archive.root), "--port", str(archive.port), *options),
            ],
            cwd=directory,
            env=os.environ,
            output=log,
        )

    def answers() -> bool:
        assert process.poll() is None, (directory / "archive.log").read_text()
        connection = HTTPConnection("127.0.0.1", archive.port, timeout=10)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    try:
        wait_for(answers)
        yield archive
    finally:
        process.kill()
        process.wait()
