"""The service in a process of its own, used over HTTP.

::

    with running_cartd(tmp_path, archive=archive.url) as cartd:
        cartd.post("my-cart", manifest([entry(101, "a/b", b"data")]))
        cartd.wait_until("my-cart", "ready")
        tar = cartd.download("my-cart")

It can be stopped, killed and restarted on the same store and volume.  Everything here blocks: with
an archive in the test's own reactor, use ``threads.deferToThread``.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cartd.store import sync
from tests.support import preloaded
from tests.support.free_ports import free_port

DEADLINE = 60.0
"""Seconds after which a wait fails."""
STOP_DEADLINE = 75.0
"""Seconds that a stop may take: its limit with the default settings is 60."""
POLL_INTERVAL = 0.02


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete response; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(slots=True)
class RunningCartd:
    """Directory, store and volume of a service, and its process."""

    directory: Path
    archive: str
    database: str
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    program: tuple[str, ...] = ()
    """The program to start instead of ``twistd -n cartd``; its environment contains the port."""
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | preloaded.Process | None = None
    fresh: bool = False
    """Whether to start a fresh Python, or a program that is no Python script."""

    @property
    def volume(self) -> Path:
        return self.directory / "volume"

    @property
    def log(self) -> str:
        return (self.directory / "cartd.log").read_text(errors="replace")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def twistd(self) -> tuple[str, ...]:
        """The default command line."""
        return (
            *(command("twistd"), "-n", f"--pidfile={self.directory / 'cartd.pid'}"),
            *("cartd", "--port", str(self.port), *self.options),
        )

    def settings(self) -> dict[str, str]:
        """Return the environment of the service, and of the commands beside it."""
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith("CARTD")},
            "CARTD_CONFIG": str(self.directory / "config.ini"),
            "VOLUME_PATH": str(self.volume),
            "ARCHIVE_INTERFACE_URL": self.archive,
            "DATABASE_URL": self.database,
            "CARTD_PORT": str(self.port),
            **self.environment,
        }

    def configure(self, ini: str) -> None:
        """Write the configuration file for the next start."""
        (self.directory / "config.ini").write_text(ini)

    def start(self) -> None:
        """Start the process and wait until it responds."""
        with (self.directory / "cartd.log").open("ab") as log:
            program, directory, settings = (
                self.program or self.twistd,
                self.directory,
                self.settings(),
            )
            if self.fresh:
                self.process = subprocess.Popen(
                    program, cwd=directory, env=settings, stdout=log, stderr=subprocess.STDOUT
                )
            else:
                self.process = preloaded.start(program, cwd=directory, env=settings, output=log)
        process = self.process

        def answers() -> bool:
            assert process.poll() is None, self.log
            try:
                return self.get("/").status == 200
            except OSError:
                return False

        wait_for(answers)

    def kill(self) -> None:
        """Kill it in the middle of whatever it does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        (self.directory / "cartd.pid").unlink(missing_ok=True)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, and do not wait."""
        assert self.process is not None
        self.process.send_signal(number)

    def ended(self) -> int:
        """Wait until it has ended; return its exit status.

        If it does not end, the error has its log, and what its threads do.
        """
        assert self.process is not None
        try:
            return self.process.wait(STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            if isinstance(self.process, preloaded.Process):
                self.send(preloaded.LOG_STACKS)
                with suppress(AssertionError):  # not if it is within a system call of the disk
                    wait_for(lambda: preloaded.STACKS in self.log)
            raise AssertionError(f"The service has not ended:\n{self.log}") from None

    def terminate(self) -> int:
        """Stop it by SIGTERM; return its exit status."""
        self.send(signal.SIGTERM)
        return self.ended()

    def listens(self) -> bool:
        """Whether it accepts connections."""
        with socket.socket() as connecting:
            return connecting.connect_ex(("127.0.0.1", self.port)) == 0

    # Requests

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """One request on a connection of its own; ``if_range`` is the header If-Range."""
        return ask(self.port, method, path, body, **headers)

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, None, **headers)

    def post(self, uid: str, body: bytes) -> Answer:
        return self.request("POST", f"/{uid}", body)

    def delete(self, uid: str) -> Answer:
        return self.request("DELETE", f"/{uid}")

    def status(self, uid: str) -> tuple[str, str]:
        """Return the cart's status and message."""
        headers = self.request("HEAD", f"/{uid}").headers
        return headers["x-pacifica-status"], headers["x-pacifica-message"]

    def staged(self, uid: str) -> int:
        """Return how many files of the cart are staged."""
        return int(self.request("HEAD", f"/{uid}").headers["x-pacifica-files-staged"])

    def wait_until(self, uid: str, *statuses: str) -> str:
        """Wait until the cart has one of ``statuses``; return its message."""
        seen: list[tuple[str, str]] = [("", "")]

        def is_there() -> bool:
            seen[0] = self.status(uid)
            ended = seen[0][0] in ("ready", "error") and seen[0][0] not in statuses
            assert not ended, seen[0]
            return seen[0][0] in statuses

        wait_for(is_there)
        return seen[0][1]

    def download(self, uid: str, filename: str = "data.tar") -> dict[str, bytes]:
        """Return the files of the cart by their paths below the top folder."""
        answer = self.get(f"/{uid}?filename={filename}")
        assert answer.status == 200, answer
        return unpacked(answer.body)

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run an admin command beside the service, as a shell would."""
        given = [command(arguments[0]), *arguments[1:]]
        done = preloaded.run(given, cwd=self.directory, env=self.settings(), timeout=DEADLINE)
        if check:
            done.check_returncode()
        return done


def ask(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
    """One request on a connection of its own; ``if_range`` is the header If-Range."""
    connection = HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    try:
        spelt = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, spelt)
        answer = connection.getresponse()
        read = answer.read()
        names = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, names, read)
    finally:
        connection.close()


@contextmanager
def running_cartd(
    directory: Path,
    *,
    archive: str,
    database: str = "",
    options: Iterable[str] = (),
    ini: str = "",
    port: int | None = None,
    started: bool = True,
    fresh: bool = False,
    **environment: str,
) -> Iterator[RunningCartd]:
    """Start the service in ``directory``, unless ``started`` is false, and end it afterwards.

    Started with the defaults, it finds a database whose tables exist already.
    """
    directory.mkdir(exist_ok=True)
    file = directory / "cartd.sqlite3"
    if started and not (database or fresh or file.exists()):
        file.write_bytes(_tables())
    cartd = RunningCartd(
        directory,
        archive,
        database or f"sqlite:///{file}",
        tuple(options),
        environment,
        port=port or free_port(),
        fresh=fresh,
    )
    cartd.configure(ini)
    try:
        if started:
            cartd.start()
        yield cartd
    finally:
        if cartd.process is not None and cartd.process.poll() is None:
            cartd.kill()


@cache
def _tables() -> bytes:
    """Return a SQLite file with cartd's tables and no carts."""
    with TemporaryDirectory() as directory:
        file = Path(directory) / "cartd.sqlite3"
        sync(f"sqlite:///{file}")
        return file.read_bytes()


def command(name: str) -> str:
    """Return the path of a command in the tests' environment."""
    return str(Path(sys.executable).with_name(name))


def entry(
    archive_id: str | int, path: str, data: bytes, hash_type: str = "sha1"
) -> dict[str, object]:
    """Return one entry of a manifest, with the hash sum of ``data``."""
    return {
        "id": archive_id,
        "path": path,
        "hashtype": hash_type,
        "hashsum": hashlib.new(hash_type, data).hexdigest(),
    }


def manifest(entries: Iterable[Mapping[str, object]], **more: object) -> bytes:
    return json.dumps({"fileids": list(entries), **more}).encode()


def unpacked(tar: bytes) -> dict[str, bytes]:
    """Return the files of a tar by their paths below its top folder."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        files = {}
        for member in opened:
            content = opened.extractfile(member)
            if content is not None:
                files[member.name.partition("/")[2]] = content.read()
        return files


def wait_for(condition: Any) -> None:
    """Poll until ``condition()`` holds; fail at the deadline."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "what was waited for did not come"
        time.sleep(POLL_INTERVAL)
