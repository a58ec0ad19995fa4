"""Signals: the service stops cleanly whatever it is doing, and nothing is lost."""

from __future__ import annotations

import re
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from tests.support.archive_faults import hang_after
from tests.support.cartd_with_archive import (
    assert_no_unexpected_errors,
    cartd_with_archive,
    on_the_volume,
)
from tests.support.hanging_disk import hang, hanging_disk, hangs
from tests.support.running_cartd import (
    RunningCartd,
    command,
    entry,
    manifest,
    running_cartd,
    unpacked,
    wait_for,
)
from tests.support.served_directory import served_directory

SILENT_NAME_SERVER = """
import socket, time
from pathlib import Path

look_up = socket.getaddrinfo

def look_up_slowly(host, *arguments, **more):
    if "archive.test" in str(host):
        Path("looked-up").touch()
        time.sleep(3600)
    return look_up(host, *arguments, **more)

socket.getaddrinfo = look_up_slowly

from twisted.scripts.twistd import run

run()
"""
"""A program: ``twistd`` where looking up the name of the archive takes an hour."""
NOWHERE = "http://127.0.0.1:9/"
LARGE = bytes(range(256)) * (64 * 1024)
"""16 MiB: more than all buffers between the service and its client."""
NEVER = 10**9
"""HEADs until a file is staged from tape: the test does not wait for it."""


@contextmanager
def download_of(cartd: RunningCartd, uid: str) -> Iterator[socket.socket]:
    """A client that has read only the first byte of the response."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        client.settimeout(60)
        client.connect(("127.0.0.1", cartd.port))
        client.sendall(
            f"GET /{uid} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        assert client.recv(1) == b"H"
        yield client


def rest_of(client: socket.socket) -> bytes:
    """Return what is received until the connection is closed or aborted."""
    pieces = []
    try:
        while piece := client.recv(1 << 20):
            pieces.append(piece)
    except ConnectionResetError:
        pass
    return b"".join(pieces)


def stops_listening(cartd: RunningCartd, number: signal.Signals = signal.SIGTERM) -> None:
    """Request a stop, and wait until it has begun."""
    cartd.send(number)
    wait_for(lambda: not cartd.listens())


def post_large(cartd: RunningCartd) -> None:
    """Stage a large cart."""
    cartd.post("large", manifest([entry("large", "large", LARGE)]))
    cartd.wait_until("large", "ready")


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name
)
def test_an_idle_service_ends_well(tmp_path: Path, number: signal.Signals) -> None:
    with running_cartd(tmp_path / "cartd", archive=NOWHERE) as cartd:
        cartd.send(number)
        assert cartd.ended() == 0
        assert_no_unexpected_errors(cartd.log)
        assert not list(cartd.volume.glob("holders/*"))


@pytest_twisted.ensureDeferred
async def test_staging_is_resumed_at_the_next_start(tmp_path: Path) -> None:
    async with cartd_with_archive(tmp_path) as (cartd, archive):
        archive.put("1", b"one")
        archive.put("2", b"two", tape_heads=NEVER)
        entries = [entry("1", "a/one", b"one"), entry("2", "two", b"two")]
        await deferToThread(cartd.post, "mine", manifest(entries))
        await deferToThread(wait_for, lambda: on_the_volume(cartd) == {"1/mine/a/one"})
        assert await deferToThread(cartd.terminate) == 0
        archive.put("2", b"two")
        await deferToThread(cartd.start)
        await deferToThread(cartd.wait_until, "mine", "ready")
        got = await deferToThread(cartd.download, "mine")
        assert got == {"a/one": b"one", "two": b"two"}
        assert len(archive.seen("GET", "1")) == 1


@pytest_twisted.ensureDeferred
async def test_a_service_in_the_middle_of_a_transfer_stops_at_once(tmp_path: Path) -> None:
    async with cartd_with_archive(tmp_path) as (cartd, archive):
        archive.put("1", LARGE)
        archive.fault("1", hang_after(3 << 20), method="GET", times=None)
        await deferToThread(cartd.post, "mine", manifest([entry("1", "one", LARGE)]))
        await deferToThread(wait_for, lambda: any(cartd.volume.glob("incoming/1/*")))
        assert await deferToThread(cartd.terminate) == 0
        await archive.until(lambda: archive.open_connections == 0)
        assert on_the_volume(cartd) == set()


@pytest_twisted.ensureDeferred
async def test_a_running_download_comes_to_its_end(tmp_path: Path) -> None:
    async with cartd_with_archive(tmp_path) as (cartd, archive):
        archive.put("large", LARGE)

        def scenario() -> bytes:
            post_large(cartd)
            with download_of(cartd, "large") as client:
                stops_listening(cartd)
                return rest_of(client)

        head, _, tar = (await deferToThread(scenario)).partition(b"\r\n\r\n")
        assert b" 200 OK" in head
        assert unpacked(tar) == {"large": LARGE}
        assert await deferToThread(cartd.ended) == 0


@pytest_twisted.ensureDeferred
async def test_a_download_that_takes_too_long_is_broken(tmp_path: Path) -> None:
    async with cartd_with_archive(tmp_path, "[server]\nshutdown_grace = 0.2\n") as (
        cartd,
        archive,
    ):
        archive.put("large", LARGE)

        def scenario() -> bytes:
            post_large(cartd)
            with download_of(cartd, "large") as client:
                assert cartd.terminate() == 0
                return rest_of(client)

        assert len(await deferToThread(scenario)) < len(LARGE)
        assert "Aborting 1 downloads" in cartd.log


@pytest_twisted.ensureDeferred
async def test_a_second_signal_breaks_running_downloads_at_once(tmp_path: Path) -> None:
    async with cartd_with_archive(tmp_path, "[server]\nshutdown_grace = 3600\n") as (
        cartd,
        archive,
    ):
        archive.put("large", LARGE)

        def scenario() -> bytes:
            post_large(cartd)
            with download_of(cartd, "large") as client:
                stops_listening(cartd, signal.SIGINT)
                cartd.send(signal.SIGTERM)
                assert cartd.ended() == 0
                return rest_of(client)

        assert len(await deferToThread(scenario)) < len(LARGE)


@pytest_twisted.ensureDeferred
async def test_no_cart_is_taken_while_the_service_stops(tmp_path: Path) -> None:
    async with cartd_with_archive(tmp_path) as (cartd, archive):
        archive.put("large", LARGE)

        def ask(kept: HTTPConnection, method: str, path: str, body: bytes | None = None) -> int:
            kept.request(method, path, body)
            answer = kept.getresponse()
            answer.read()
            return answer.status

        def scenario() -> None:
            post_large(cartd)
            kept = HTTPConnection("127.0.0.1", cartd.port, timeout=60)
            assert ask(kept, "GET", "/") == 200
            with download_of(cartd, "large") as client:
                stops_listening(cartd)
                late = manifest([entry("large", "late", LARGE)])
                assert ask(kept, "POST", "/late", late) == 503
                assert ask(kept, "HEAD", "/large") == 204
                assert ask(kept, "HEAD", "/late") == 404
                rest_of(client)
            assert cartd.ended() == 0

        await deferToThread(scenario)


def test_every_way_to_start_it_starts_the_same_service(tmp_path: Path) -> None:
    tac = str(Path(__file__).parents[2] / "cartd.tac")
    with running_cartd(tmp_path / "cartd", archive=NOWHERE, fresh=True) as cartd:
        cartd.post("mine", manifest([entry("1", "a", b"a")]))
        for program in (
            (command("twistd"), "--pidfile=", "-ny", tac),
            (command("pacifica-cartd"), "--port", str(cartd.port), "--cpconfig", "server.conf"),
        ):
            assert cartd.terminate() == 0
            cartd.program = program
            cartd.start()
            assert cartd.status("mine")[0] == "staging"
        assert cartd.terminate() == 0
        assert_no_unexpected_errors(cartd.log)


@pytest.mark.parametrize(
    "limits", [{"waits": 0.2}, {"limit": 0.5}], ids=["each step", "all together"]
)
def test_a_stop_with_a_hanging_disk_ends_and_logs_it(
    tmp_path: Path, limits: dict[str, float]
) -> None:
    ini = "[server]\nshutdown_grace = 0\n"
    with (
        served_directory(tmp_path / "archive") as archive,
        running_cartd(tmp_path / "cartd", archive=archive.url, ini=ini, started=False) as cartd,
    ):
        archive.put("large", LARGE)
        cartd.program = hanging_disk(cartd.twistd, **limits)
        cartd.start()
        post_large(cartd)
        with download_of(cartd, "large"):
            hang(cartd)
            wait_for(lambda: hangs(cartd))
            assert cartd.terminate() == 0
        [line] = [line for line in cartd.log.splitlines() if "operations that hang" in line]
        assert "#error] The service exits without waiting for operations that hang" in line
        assert re.search(r"disk that does not respond: \d+ in cartd\.\w+", line), line


def test_a_stop_waits_for_no_name_server(tmp_path: Path) -> None:
    archive, directory = "http://archive.test/", tmp_path / "cartd"
    with running_cartd(directory, archive=archive, started=False, fresh=True) as cartd:
        cartd.program = (sys.executable, "-c", SILENT_NAME_SERVER, *cartd.twistd[1:])
        cartd.start()
        assert cartd.post("mine", manifest([entry("1", "file", b"data")])).status == 201
        wait_for((directory / "looked-up").exists)
        assert cartd.terminate() == 0
        assert_no_unexpected_errors(cartd.log)
