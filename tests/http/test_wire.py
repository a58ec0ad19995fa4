"""Unusual and invalid requests: each gets the right response."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.support.cart_site import CartSite, cart_site
from tests.support.wire import ask, assert_is_error, wire

FILES = {"a/one": b"first"}
NOT_HTTP = "Invalid HTTP request"
UP = {"message": "Pacifica Cartd Interface Up and Running"}
END = b" HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    with cart_site(tmp_path_factory.mktemp("site")) as running:
        running.stage("my-cart", FILES)
        yield running


@pytest.mark.parametrize("method", ["PUT", "PATCH", "TRACE", "CONNECT", "FROBNICATE"])
@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/", "GET, HEAD, OPTIONS"), ("/my-cart", "DELETE, GET, HEAD, OPTIONS, POST")],
)
def test_unknown_method_is_405_with_allow(
    site: CartSite, method: str, path: str, allowed: str
) -> None:
    answer = ask(site.port, f"{method} {path}".encode() + END)
    assert_is_error(answer, 405, "Method not allowed")
    assert answer.headers["allow"] == allowed


def test_post_and_delete_of_root_are_rejected(site: CartSite) -> None:
    for method in (b"POST", b"DELETE"):
        assert ask(site.port, method + b" /" + END).headers["allow"] == "GET, HEAD, OPTIONS"
    assert site.cartd.status("my-cart") == ("ready", "")


ONE_CART = ["/my-cart", "/my-cart/", "//my-cart", "/my%2Dcart", "/%6d%79-cart", "/my-cart?",
            "/my-cart?unknown=1", "http://localhost/my-cart",
            "HTTPS://[::1]:99/my-cart"]  # fmt: skip


@pytest.mark.parametrize("target", ONE_CART)
def test_a_cart_is_found_however_its_url_is_written(site: CartSite, target: str) -> None:
    answer = ask(site.port, f"HEAD {target}".encode() + END, to_head=True)
    assert (answer.status, answer.headers["x-pacifica-status"]) == (204, "ready")


@pytest.mark.parametrize("target", ["http://127.0.0.1", "http://LOCALHOST./", "//"])
def test_the_root_is_found_however_its_url_is_written(site: CartSite, target: str) -> None:
    assert ask(site.port, f"GET {target}".encode() + END).json == UP


UNKNOWN = ["/my-cart/x", "/my-cart/x/", "/a//b", "/my-cart%2Fx", "/cartuids/my-cart", "/1/my-cart"]


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize("path", UNKNOWN)
def test_a_path_of_more_than_a_uid_is_not_found(site: CartSite, method: str, path: str) -> None:
    assert_is_error(ask(site.port, f"{method} {path}".encode() + END), 404, "Not Found")


NO_TARGET = ["my-cart", "xmy-cart", "ftp://x/my-cart", "http:///my-cart", "?filename=x"]


@pytest.mark.parametrize("target", NO_TARGET)
def test_target_that_is_not_a_path_is_rejected(site: CartSite, target: str) -> None:
    answer = ask(site.port, f"DELETE {target}".encode() + END)
    assert_is_error(answer, 400, "The path does not begin with /")
    assert site.cartd.status("my-cart") == ("ready", "")


NOT_TEXT = ["/%ff", "/my-cart%c3", "/%ed%a0%80", "/\x80"]


@pytest.mark.parametrize("target", NOT_TEXT)
def test_path_that_is_not_utf8_is_rejected(site: CartSite, target: str) -> None:
    raw = target.encode("latin-1")
    assert_is_error(ask(site.port, b"GET " + raw + END), 400, "The path is not UTF-8")
    head = ask(site.port, b"HEAD " + raw + END, to_head=True)
    assert (head.status, head.headers["content-type"]) == (400, "application/json")


POST = b"POST /u HTTP/1.1\r\nHost: localhost\r\n"
NOISE = {
    "a word": b"GARBAGE\r\n\r\n",
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\n",
    "HTTP/11": b"GET / HTTP/11\r\n\r\n",
    "a space in the path": b"GET /a b HTTP/1.1\r\n\r\n",
    "a NUL in the path": b"GET /a\0b HTTP/1.1\r\n\r\n",
    "a byte that no target has": b"GET /\xff HTTP/1.1\r\n\r\n",
    "a method that is none": b"G(T / HTTP/1.1\r\n\r\n",
    "a header that is none": b"GET / HTTP/1.1\r\nnonsense\r\n\r\n",
    "a header with a space in its name": b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    "a header with a NUL": b"GET / HTTP/1.1\r\nX: \0\r\n\r\n",
    "a length that is none": POST + b"Content-Length: x\r\n\r\n",
    "a length below zero": POST + b"Content-Length: -1\r\n\r\n",
    "a length of 5,000 digits": POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
    "two lengths": POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
    "a length and chunks": POST + b"Content-Length: 5\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a chunk that is none": POST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
}


@pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE.keys())
def test_non_http_is_rejected_with_json_and_closed(site: CartSite, noise: bytes) -> None:
    with wire(site.port) as connection:
        connection.send(noise)
        answer = connection.answer()
        assert_is_error(answer, 400, NOT_HTTP)
        assert answer.headers["connection"] == "close"
        assert connection.rest() == b""
    assert site.cartd.request("HEAD", "/u").status == 404
    assert site.cartd.get("/").status == 200


def test_keepalive_connection_serves_several_requests(site: CartSite) -> None:
    with wire(site.port) as connection:
        for _ in range(3):
            connection.get("/my-cart?filename=x")
            assert connection.answer().status == 200
            connection.get("/nobody")
            assert connection.answer().status == 404
            connection.get("/ready?filename=/")
            assert connection.answer().status == 400


def test_pipelined_requests_are_answered_in_order(site: CartSite) -> None:
    body = site.manifest(FILES)
    with wire(site.port) as connection:
        connection.send(
            b"GET /my-cart?filename=x" + END
            + b"POST /in-a-row HTTP/1.1\r\nHost: localhost\r\n"
            + b"Content-Length: %d\r\n\r\n" % len(body)
            + body
            + b"HEAD /in-a-row" + END
            + b"DELETE /in-a-row" + END
            + b"GET /in-a-row" + END
            + b"GET /" + END
        )  # fmt: skip
        heads = {2}
        answers = [connection.answer(to_head=number in heads) for number in range(6)]
    assert [answer.status for answer in answers] == [200, 201, 204, 200, 404, 200]
    assert answers[0].body.startswith(b"x/\0") and answers[5].json == UP


def test_http_1_0_connection_is_closed_after_the_response(site: CartSite) -> None:
    for header in (b"", b"Connection: keep-alive\r\n"):
        with wire(site.port) as connection:
            connection.send(b"GET /my-cart?filename=x HTTP/1.0\r\n" + header + b"\r\n")
            answer = connection.answer()
            assert (answer.version, answer.status) == ("HTTP/1.0", 200)
            assert answer.body.startswith(b"x/\0")
            assert connection.rest() == b""


def test_a_connection_is_closed_when_the_client_asks_for_it(site: CartSite) -> None:
    with wire(site.port) as connection:
        connection.get("/", "Connection: close")
        answer = connection.answer()
        assert (answer.json, answer.headers["connection"]) == (UP, "close")
        assert connection.rest() == b""


def test_upgrade_header_is_ignored(site: CartSite) -> None:
    with wire(site.port) as connection:
        connection.get("/", "Upgrade: websocket", "Connection: Upgrade")
        assert connection.answer().json == UP


def test_each_request_is_one_line_of_the_log(site: CartSite) -> None:
    for _ in range(3):
        site.cartd.request("HEAD", "/my-cart?mark")
    lines = [line for line in site.cartd.log.splitlines() if "/my-cart?mark" in line]
    assert len(lines) == 3
    assert all(re.search(r'"HEAD /my-cart\?mark HTTP/1\.1" 204 -', line) for line in lines)


def test_connections_to_the_archive_leave_no_lines_in_the_log(site: CartSite) -> None:
    site.stage("quiet", {str(number): b"x" for number in range(40)})
    assert "HTTP11ClientFactory" not in site.cartd.log
