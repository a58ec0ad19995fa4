"""Listening on a Unix socket: its mode, and the replacement of stale files."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from twisted.internet import reactor
from twisted.internet.protocol import Factory

from cartd.config import UnixEndpoint, parse_unix_endpoint
from cartd.errors import ConfigError
from cartd.files import try_lock
from cartd.http import server
from cartd.http.server import UnixSocketEndpoint
from tests.service.test_start_errors import why_it_ends
from tests.support.running_cartd import DEADLINE, RunningCartd, command, running_cartd, wait_for

UP = b'{"message": "Pacifica Cartd Interface Up and Running"}'


@contextmanager
def on_a_socket(directory: Path, more: str = "", ini: str = "") -> Iterator[RunningCartd]:
    """A service on ``http.sock`` in its directory, and on a port that the test polls."""
    nowhere = "http://127.0.0.1:9/"
    with running_cartd(directory, archive=nowhere, ini=ini, started=False) as cartd:
        cartd.options = (
            *("--endpoint", f"tcp:{cartd.port}:interface=127.0.0.1"),
            *("--endpoint", f"unix:{directory}/http.sock{more}"),
        )
        cartd.start()
        yield cartd


def ask(path: Path, before: bytes = b"") -> bytes:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(DEADLINE)
        asking.connect(str(path))
        asking.sendall(before + b"GET / HTTP/1.0\r\n\r\n")
        return b"".join(iter(lambda: asking.recv(1 << 16), b"")).partition(b"\r\n\r\n")[2]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def left_over(tmp_path: Path) -> Path:
    """The socket file of a process that ended without removing it."""
    path = tmp_path / "http.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
    return path


def test_a_service_that_was_killed_starts_again_on_its_socket(tmp_path: Path) -> None:
    with on_a_socket(tmp_path) as cartd:
        path = tmp_path / "http.sock"
        assert ask(path) == UP
        cartd.kill()
        # As in a container: both files name a running process, but a different one.
        (tmp_path / "http.sock.lock").symlink_to("1")
        (tmp_path / "twistd.pid").write_text("1")
        options = ("--port", str(cartd.port), *cartd.options)
        cartd.program = (command("twistd"), "-n", "cartd", *options)
        cartd.start()
        assert ask(path) == UP
        assert (tmp_path / "twistd.pid").read_text() == "1"
        assert cartd.terminate() == 0
        assert not path.exists()


def test_proxy_protocol_works_on_unix_socket(tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9/"
    with running_cartd(tmp_path, archive=nowhere, started=False) as cartd:
        path = tmp_path / "http.sock"
        cartd.options = (
            *("--endpoint", f"tcp:{cartd.port}:interface=127.0.0.1"),
            *("--endpoint", f"haproxy:unix:{path}"),
        )
        cartd.start()
        assert mode_of(path) == 0o600
        assert ask(path, b"PROXY TCP4 192.0.2.7 192.0.2.8 1 2\r\n") == UP
        wait_for(lambda: "] 192.0.2.7 - - [" in cartd.log)


def test_socket_of_a_running_service_is_not_replaced(tmp_path: Path) -> None:
    with on_a_socket(tmp_path / "first"):
        path = tmp_path / "first" / "http.sock"
        line = why_it_ends(tmp_path, "--endpoint", f"unix:{path}")
        assert line == f"cartd: cannot listen on unix:{path}: another process listens on it"
        assert ask(path) == UP


def test_service_stops_after_its_socket_was_removed(tmp_path: Path) -> None:
    with on_a_socket(tmp_path) as cartd:
        path = tmp_path / "http.sock"
        path.unlink()
        path.write_bytes(b"another's")
        assert cartd.terminate() == 0
        assert path.read_bytes() == b"another's"


@pytest.mark.parametrize(
    ("more", "umask", "mode"),
    [("", "077", 0o600), ("", "007", 0o660), ("", "000", 0o660), (":mode=600", "000", 0o600),
     (":mode=660", "077", 0o660), (":mode=0666:backlog=9:lockfile=1", "077", 0o666)],
)  # fmt: skip
def test_socket_mode_follows_endpoint_and_umask(
    tmp_path: Path, more: str, umask: str, mode: int
) -> None:
    endpoint = parse_unix_endpoint(f"unix:{tmp_path}/http.sock{more}")
    with listening(endpoint, int(umask, 8)):
        assert mode_of(tmp_path / "http.sock") == mode


@contextmanager
def listening(endpoint: UnixEndpoint, umask: int = 0o077) -> Iterator[None]:
    """Listen in the test's own reactor."""
    outcome: list[object] = []
    UnixSocketEndpoint(reactor, endpoint, umask).listen(Factory()).addBoth(outcome.append)
    [port] = outcome
    if failure := getattr(port, "value", None):
        raise failure
    try:
        yield
    finally:
        port.connectionLost(None)  # type: ignore[attr-defined]


def at(path: Path) -> UnixEndpoint:
    return UnixEndpoint(path, None, 50)


def test_stale_socket_is_replaced(left_over: Path) -> None:
    before = left_over.stat().st_ino
    with listening(at(left_over)):
        assert left_over.stat().st_ino != before or mode_of(left_over) == 0o600
    assert not left_over.exists()


def test_socket_with_full_backlog_counts_as_in_use(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))
        with pytest.raises(ConfigError, match="another process listens on it"), listening(at(path)):
            pass
    assert path.exists()


def test_file_that_is_not_a_socket_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"kept")
    link = tmp_path / "link"
    link.symlink_to(path)
    for taken in (path, link):
        with pytest.raises(ConfigError, match="is not a socket"), listening(at(taken)):
            pass
    assert path.read_bytes() == b"kept" and link.is_symlink()


def test_datagram_socket_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "datagrams"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(path))
        refused = pytest.raises(ConfigError, match="listens on it: Protocol wrong type")
        with refused, listening(at(path)):
            pass
    assert path.exists()


def test_failing_probe_is_reported(left_over: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_connect", lambda path: errno.EACCES)
    refused = pytest.raises(ConfigError, match="listens on it: Permission denied")
    with refused, listening(at(left_over)):
        pass
    assert left_over.exists()


STARTING = textwrap.dedent("""
    import sys
    from pathlib import Path
    from twisted.internet import reactor
    from twisted.internet.protocol import Factory
    from cartd.config import UnixEndpoint
    from cartd.http.server import UnixSocketEndpoint

    print("ready", flush=True)
    sys.stdin.readline()
    outcome = []
    endpoint = UnixSocketEndpoint(reactor, UnixEndpoint(Path(sys.argv[1]), None, 50), 0o077)
    endpoint.listen(Factory()).addBoth(outcome.append)
    print(getattr(outcome[0], "value", "listening"), flush=True)
    sys.stdin.readline()
""")


def test_of_concurrent_starts_one_listens(left_over: Path) -> None:
    starts = [
        subprocess.Popen(
            [sys.executable, "-c", STARTING, str(left_over)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )
        for _ in range(4)
    ]  # fmt: skip
    try:
        for start in starts:
            assert start.stdout is not None and start.stdout.readline() == "ready\n"
        for start in starts:
            assert start.stdin is not None
            start.stdin.write("go\n")
        said = sorted(start.stdout.readline() for start in starts if start.stdout)
        assert said == ["another process listens on it\n"] * 3 + ["listening\n"]
    finally:
        for start in starts:
            start.communicate()


def test_a_directory_that_stays_locked_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "LOCK_TIMEOUT", 0.0)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        assert try_lock(descriptor)
        refused = pytest.raises(ConfigError, match="is locked by another process")
        with refused, listening(at(tmp_path / "http.sock")):
            pass
    finally:
        os.close(descriptor)
    with listening(at(tmp_path / "http.sock")):
        pass


def test_bind_failure_is_reported(tmp_path: Path) -> None:
    line = why_it_ends(tmp_path, "--endpoint", f"unix:{tmp_path}/none/http.sock")
    path = f"unix:{tmp_path}/none/http.sock"
    assert line == f"cartd: cannot listen on {path}: No such file or directory"


@pytest.mark.parametrize(
    "endpoint",
    ["unix:", "unix:/a:mode=rw", "unix:/a:mode=999", "unix:/a:mode=1777", "unix:/a:x=y",
     "unix:/a:backlog=many", "haproxy:unix:/a:mode=8"],
)  # fmt: skip
def test_invalid_endpoint_is_rejected(endpoint: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_unix_endpoint(endpoint.removeprefix("haproxy:"))


def test_world_writable_socket_with_proxy_header_is_warned_about(tmp_path: Path) -> None:
    ini = "[auth]\nproxy_header = X-Remote-User\ntrusted_proxies = unix\n"
    with on_a_socket(tmp_path, ":mode=666", ini=ini) as cartd:
        wait_for(lambda: "may impersonate any user with proxy_header" in cartd.log)
        assert mode_of(tmp_path / "http.sock") == 0o666
        cartd.terminate()
        cartd.options = (*cartd.options[:3], f"unix:{tmp_path}/http.sock:mode=660")
        before = len(cartd.log)
        cartd.start()
        assert "Every local account" not in cartd.log[before:]
