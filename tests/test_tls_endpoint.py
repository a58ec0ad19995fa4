"""The service behind TLS, beside a plain endpoint: the same answers, and the same limits."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
import trustme

from tests.cart_site import CartSite
from tests.cartd_beside import assert_no_surprise
from tests.free_ports import free_port
from tests.running_cartd import DEADLINE, running_cartd, unpacked, wait_for
from tests.served_directory import served_directory
from tests.wire import Wire, assert_is_error

LARGE = Random(3).randbytes(24 * 2**20)


@dataclass(frozen=True, slots=True)
class Behind:
    """A site, and how it is reached over TLS."""

    site: CartSite
    port: int
    context: ssl.SSLContext

    @contextmanager
    def wire(self) -> Iterator[Wire]:
        with socket.socket() as plain:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
            plain.settimeout(DEADLINE)
            plain.connect(("127.0.0.1", self.port))
            with self.context.wrap_socket(plain, server_hostname="cartd.example") as secure:
                yield Wire(secure)


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    directory = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.issue_cert("cartd.example").private_key_and_cert_chain_pem.write_to_path(
        directory / "server.pem"
    )
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    authority.configure_trust(context)
    with running(directory, free_port(), free_port()) as (site, port):
        site.stage("large", {"large": LARGE})
        yield Behind(site, port, context)


@contextmanager
def running(directory: Path, plain: int, secure: int) -> Iterator[tuple[CartSite, int]]:
    pem = directory / "server.pem"
    endpoints = [f"tcp:{plain}:interface=127.0.0.1",
                 f"ssl:{secure}:interface=127.0.0.1:privateKey={pem}:certKey={pem}"]  # fmt: skip
    options = [option for endpoint in endpoints for option in ("--endpoint", endpoint)]
    with (
        served_directory(directory) as archive,
        running_cartd(
            directory / "cartd", archive=archive.url, options=options, port=plain
        ) as cartd,
    ):
        yield CartSite(directory, cartd, archive), secure
        assert cartd.terminate() == 0
        assert_no_surprise(cartd.log)


def test_no_newer_protocol_is_agreed_on(behind: Behind) -> None:
    with behind.wire() as connection:
        assert isinstance(connection.socket, ssl.SSLSocket)
        assert connection.socket.selected_alpn_protocol() in (None, "http/1.1")


def test_a_slow_client_gets_all_of_a_download_and_the_next_answer(behind: Behind) -> None:
    with behind.wire() as connection:
        connection.get("/large?filename=data.tar")
        wait_for(lambda: behind.site.open_files("large"))
        assert unpacked(connection.answer().body) == {"large": LARGE}
        connection.get("/nobody")
        assert connection.answer().status == 404


def test_a_client_that_leaves_in_the_middle_lets_go_of_everything(behind: Behind) -> None:
    with behind.wire() as connection:
        connection.get("/large?filename=data.tar")
        assert connection.head().status == 200
        wait_for(lambda: behind.site.open_files("large"))
    wait_for(lambda: not behind.site.open_files("large"))


def test_a_body_over_the_limit_is_refused_and_the_connection_ended(behind: Behind) -> None:
    with behind.wire() as connection:
        connection.send(b"POST /u HTTP/1.1\r\nContent-Length: 999999999999\r\n\r\n")
        message = "The body is over 256000000 bytes (server.max_manifest)"
        assert_is_error(connection.answer(), 413, message, "server.max_manifest")


def test_a_file_that_is_cut_breaks_the_connection(behind: Behind) -> None:
    behind.site.stage("cut", {"large": LARGE, "later": b"later"})
    [tree] = behind.site.on_volume("cut")
    with behind.wire() as connection:
        connection.get("/cut?filename=data.tar")
        length = int(connection.head().headers["content-length"])
        (tree / "later").unlink()
        try:
            came = len(connection.rest())
        except ssl.SSLError:  # it broke without the farewell of TLS
            came = 0
        assert came < length
    behind.site.cartd.wait_until("cut", "ready")
