"""The service behind TLS, beside a plain endpoint: the same answers, and the same limits."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import pytest
import trustme

from tests.support.running_cartd import unpacked, wait_for
from tests.support.tls_site import LARGE, TlsSite, tls_site
from tests.support.wire import assert_is_error


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsSite]:
    with tls_site(tmp_path_factory.mktemp("tls"), trustme.CA()) as running:
        running.site.stage("large", {"large": LARGE})
        yield running


def test_alpn_does_not_negotiate_http2(behind: TlsSite) -> None:
    with behind.wire() as connection:
        assert isinstance(connection.socket, ssl.SSLSocket)
        assert connection.socket.selected_alpn_protocol() in (None, "http/1.1")


def test_a_slow_client_receives_all_and_the_next_response(behind: TlsSite) -> None:
    with behind.wire() as connection:
        connection.get("/large?filename=data.tar")
        wait_for(lambda: behind.site.open_files("large"))
        assert unpacked(connection.answer().body) == {"large": LARGE}
        connection.get("/nobody")
        assert connection.answer().status == 404


def test_client_disconnect_releases_everything(behind: TlsSite) -> None:
    with behind.wire() as connection:
        connection.get("/large?filename=data.tar")
        assert connection.head().status == 200
        wait_for(lambda: behind.site.open_files("large"))
    wait_for(lambda: not behind.site.open_files("large"))


def test_body_over_the_limit_is_rejected_and_closed(behind: TlsSite) -> None:
    with behind.wire() as connection:
        connection.send(
            b"POST /u HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999999\r\n\r\n"
        )
        message = "The body exceeds 256000000 bytes (server.max_manifest_size)"
        assert_is_error(connection.answer(), 413, message, "server.max_manifest_size")


def test_a_file_that_is_cut_breaks_the_connection(behind: TlsSite) -> None:
    behind.site.stage("cut", {"large": LARGE, "later": b"later"})
    [tree] = behind.site.on_volume("cut")
    with behind.wire() as connection:
        connection.get("/cut?filename=data.tar")
        length = int(connection.head().headers["content-length"])
        (tree / "later").unlink()
        try:
            came = len(connection.rest())
        except ssl.SSLError:  # it was aborted, without close_notify
            came = 0
        assert came < length
    behind.site.cartd.wait_until("cut", "ready")
