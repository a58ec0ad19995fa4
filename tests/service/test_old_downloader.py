"""Pacifica's downloader on the requests and urllib3 that Debian 12 and RHEL 9 have.

That urllib3 takes a body that is shorter than its Content-Length for whole.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from random import Random

import pytest

from tests.support.cart_site import CartSite, cart_site
from tests.support.running_cartd import DEADLINE, wait_for
from tests.support.wire import wire

OLD = Path(sys.prefix) / "old-requests"
"""Where ``make test`` puts them."""
PROGRAM = """
import socket, sys, urllib3
from urllib3.connection import HTTPConnection
from pacifica.downloader import Downloader
assert urllib3.__version__.startswith("1.26."), urllib3
# Little is on its way, and most of the cart with the service, when that dies.
HTTPConnection.default_socket_options = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)]
url, into = sys.argv[1:]
Downloader()._download_from_url(into, url, "data")
"""
MANY = 20_000
"""Files of nothing but a header: wherever their tar is cut, it is cut between two of them."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    with cart_site(tmp_path_factory.mktemp("site")) as running:
        yield running


@contextmanager
def downloader(site: CartSite, uid: str, into: Path) -> Iterator[subprocess.Popen[str]]:
    assert (OLD / "urllib3").is_dir(), f"{OLD} is not there: make test makes it"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, f"{site.cartd.url}/{uid}", str(into)],
        env={**os.environ, "PYTHONPATH": str(OLD), "no_proxy": "127.0.0.1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def plant(site: CartSite, uid: str) -> None:
    """A ready cart whose tar Pacifica Cartd has written: many files without staging them."""
    site.stage(uid, {"x": b""}, bundle=True)
    [tar] = site.on_volume(uid)
    tar.unlink()
    with tarfile.open(tar, "w") as opened:
        for number in range(MANY):
            opened.addfile(tarfile.TarInfo(f"data/{number:05}"))
    with closing(sqlite3.connect(site.cartd.directory / "cartd.sqlite3")) as database, database:
        database.execute(
            "UPDATE cart SET fingerprint = NULL, tar_layout = NULL, tar_digest = NULL,"
            " tar_lengths = NULL, tar_date = NULL, volume_bytes = ? WHERE cart_uid = ?",
            (tar.stat().st_size, uid),
        )


def test_it_unpacks_a_cart(site: CartSite, tmp_path: Path) -> None:
    files = {"small": b"x", "large": Random(1).randbytes(9_000_000), "d/empty": b""}
    site.stage("cart", files)
    with downloader(site, "cart", tmp_path) as process:
        _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert {path: (tmp_path / "data" / path).read_bytes() for path in files} == files


def test_it_fails_when_the_service_is_killed_during_a_cart(site: CartSite, tmp_path: Path) -> None:
    plant(site, "planted")
    with downloader(site, "planted", tmp_path) as process:
        wait_for(lambda: process.poll() is not None or (tmp_path / "data/00000").exists())
        process.send_signal(signal.SIGSTOP)
        site.cartd.kill()
        process.send_signal(signal.SIGCONT)
        _, errors = process.communicate()
    site.cartd.start()
    assert 0 < len(list((tmp_path / "data").iterdir())) < MANY
    assert process.returncode == 1, "it has taken a part for the whole"
    assert "ProtocolError" in errors


AGENT = "User-Agent: python-requests/"
CHUNKED = ["2.0.0", "2.9.1", "2.25.1", "2.28.2", "2.31.0", "2.31"]
WITH_A_LENGTH = ["2.32.0", "2.32.3", "2.100.0", "3.0.0", "1.2.3", "2", "2.", "2.x"]


def headers_for(site: CartSite, agent: str, *more: str) -> dict[str, str]:
    with wire(site.port) as connection:
        connection.get("/known?filename=data", f"{AGENT}{agent}", *more)
        return connection.head().headers


def test_only_such_clients_get_chunks_and_only_of_the_whole(site: CartSite) -> None:
    site.stage("known", {"a": b"data"})
    for agent in CHUNKED:
        headers = headers_for(site, agent)
        assert headers["transfer-encoding"] == "chunked", agent
        assert "content-length" not in headers and headers["x-pacifica-tar-length"] == "10240"
        assert headers_for(site, agent, "Range: bytes=0-9")["content-length"] == "10"
    for agent in WITH_A_LENGTH:
        headers = headers_for(site, agent)
        assert headers["content-length"] == "10240", agent
        assert "transfer-encoding" not in headers
    head = site.cartd.request("HEAD", "/known?filename=data", user_agent="python-requests/2.28.2")
    assert (head.status, head.headers["content-length"]) == (200, "10240")


def test_chunked_tar_ends_and_the_connection_is_reused(
    site: CartSite,
) -> None:
    site.stage("chunked", {"a": Random(2).randbytes(3_000_000)})
    whole = site.cartd.get("/chunked?filename=data").body
    for _ in range(2):
        connection = HTTPConnection("127.0.0.1", site.port, timeout=DEADLINE)
        with closing(connection):
            for _ in range(2):
                agent = {"User-Agent": "python-requests/2.28.2"}
                connection.request("GET", "/chunked?filename=data", headers=agent)
                assert connection.getresponse().read() == whole
    lines = [line for line in site.cartd.log.splitlines() if "GET /chunked?filename=data" in line]
    assert all(f'" 200 {len(whole)} ' in line for line in lines[1:])


def test_a_client_of_http_1_0_gets_a_length(site: CartSite) -> None:
    site.stage("older", {"a": b"data"})
    with wire(site.port) as connection:
        agent = f"{AGENT}2.28.2"
        connection.send(f"GET /older HTTP/1.0\r\nHost: localhost\r\n{agent}\r\n\r\n".encode())
        answer = connection.answer()
    assert (answer.headers["content-length"], len(answer.body)) == ("10240", 10240)


def test_a_reader_of_chunks_that_stops_stops_the_sender(site: CartSite) -> None:
    site.stage("slow", {"a": bytes(60_000_000)})
    with wire(site.port, receive_buffer=4096) as connection:
        connection.get("/slow?filename=data", f"{AGENT}2.28.2")
        connection.head()
        wait_for(lambda: site.open_files("slow") != [])
        before = site.process().memory_info().rss
        for _ in range(20):
            assert site.cartd.get("/").status == 200
        assert site.process().memory_info().rss < before + 32 * 2**20
        assert site.open_files("slow") != []
    wait_for(lambda: site.open_files("slow") == [])
