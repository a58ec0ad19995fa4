"""Pacifica's own archive interface, run as a process of its own on a free port of 127.0.0.1."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import quote

from tests.support.free_ports import free_port

START_SECONDS = 30.0

_SETTINGS = """
[global]
server.thread_pool: {threads}
engine.autoreload.on: False
[/]
request.dispatch: cherrypy.dispatch.MethodDispatcher()
"""

_MAIN = "from pacifica.archiveinterface.__main__ import main; main()"


@dataclass(frozen=True, slots=True)
class RealArchive:
    """A running archive; ``root`` is the directory that holds its files."""

    port: int
    root: Path

    @property
    def log(self) -> str:
        """Its requests, one a line."""
        return (self.root.parent / "archive.log").read_text()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def put(self, archive_id: str, data: bytes) -> None:
        """Store a file, as Pacifica's uploads do (``PUT /ID``); blocks."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("PUT", "/" + quote(archive_id, safe=""), body=data)
            answer = connection.getresponse()
            said = answer.read()
            assert answer.status == 201, (answer.status, said)
        finally:
            connection.close()

    def hold(self, archive_id: str, data: bytes, mtime: float) -> None:
        """Write a file straight into the directory: quicker than a PUT, and with a time."""
        path = self.root / archive_id
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.set_mtime(archive_id, mtime)

    def set_mtime(self, archive_id: str, mtime: float) -> None:
        """Change the time of a stored file, in Unix seconds."""
        os.utime(self.root / archive_id, (mtime, mtime))


@contextmanager
def real_archive(
    directory: Path, *, threads: int = 1, port: int | None = None
) -> Iterator[RealArchive]:
    """Start it with its files and its log in ``directory``, and stop it at the end.

    What is in the directory from another time is served again.

    Its posix backend keeps one file handle for the whole process: with more than one thread,
    requests at the same time break each other, as they do at sites that run it so.
    """
    root = directory / "archive"
    root.mkdir(parents=True, exist_ok=True)
    settings = directory / "cherrypy.conf"
    settings.write_text(_SETTINGS.format(threads=threads))
    archive = RealArchive(port or free_port(), root)
    log = directory / "archive.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", _MAIN),
                *("--address", "127.0.0.1", "--port", str(archive.port)),
                *("--type", "posix", "--prefix", str(root), "--cherrypy-config", str(settings)),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env={**os.environ, "ARCHIVEINTERFACE_CONFIG": str(directory / "none.ini")},
        )
    try:
        _wait_until_it_answers(process, archive.port, log)
        yield archive
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        connection = HTTPConnection("127.0.0.1", port, timeout=1)
        try:
            connection.request("GET", "/")
            if connection.getresponse().status == 200:
                return
        except OSError:
            # Polls another process, which reports its start in no other way.
            time.sleep(0.02)
        finally:
            connection.close()
    raise AssertionError(f"the archive interface did not start: {log.read_text()}")
