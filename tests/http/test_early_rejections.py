"""Requests that are rejected by their head, before the body is requested."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin
from urllib.request import urlopen

import pytest

from cartd.auth import TokenFile
from tests.support.cart_site import CartSite, cart_site
from tests.support.gateways import haproxy_state, running_haproxy, running_nginx
from tests.support.running_cartd import wait_for
from tests.support.wire import ask, assert_is_error, wire

MOST = 9999


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    with cart_site(
        tmp_path_factory.mktemp("site"), ini=f"[server]\nmax_manifest_size = {MOST}\n"
    ) as running:
        yield running


@pytest.fixture(scope="module")
def authenticated_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    directory = tmp_path_factory.mktemp("authenticated_site")
    TokenFile(directory / "tokens").add("alice", admin=False)
    with cart_site(directory, ini=f"[auth]\ntoken_file = {directory / 'tokens'}\n") as running:
        yield running


BAD_UID = "uid: must be 1 to 255 characters of A-Z a-z 0-9 . _ ~ - and not begin with . or -"
GZIP = "Content-Encoding is not supported: send the body unencoded, without that header"
DECIDED = {
    "an unknown method": ("PUT /x", "Content-Length: 9", 405, "Method not allowed"),
    "nothing to post to": ("POST /", "Content-Length: 9", 405, "Method not allowed"),
    "an unknown path": ("POST /a/b", "Content-Length: 9", 404, "Not Found"),
    "a bad uid": ("POST /.bad", "Content-Length: 9", 400, BAD_UID),
    "a long body": (
        "POST /x", f"Content-Length: {MOST + 1}", 413,
        f"The body exceeds {MOST} bytes (server.max_manifest_size)"),
    "gzip": ("POST /x", "Content-Length: 9\r\nContent-Encoding: gzip", 415, GZIP),
    "two codings": ("POST /x", "Content-Length: 9\r\nContent-Encoding: identity, BR", 415, GZIP),
    "gzip in chunks": (
        "POST /x", "Transfer-Encoding: chunked\r\nContent-Encoding: deflate", 415, GZIP),
    "an unknown transfer coding": (
        "POST /x", "Transfer-Encoding: gzip, chunked", 501,
        "The only supported transfer coding is chunked"),
    "a transfer coding of old": (
        "POST /x", "Content-Length: 9\r\nTransfer-Encoding: identity", 501,
        "The only supported transfer coding is chunked"),
    "chunks in HTTP/1.0": (
        "POST /x HTTP/1.0", "Transfer-Encoding: chunked", 400,
        "Transfer-Encoding is not allowed in HTTP/1.0"),
    "a small letter": ("post /x", "Content-Length: 9", 400,
                       "The method must be in upper case"),
}  # fmt: skip


@pytest.mark.parametrize(("line", "fields", "status", "message"), DECIDED.values(), ids=DECIDED)
def test_early_response_is_sent_before_100_continue(
    site: CartSite, line: str, fields: str, status: int, message: str
) -> None:
    with wire(site.port) as connection:
        more = "Host: localhost\r\nExpect: 100-continue"
        version = "" if "HTTP/" in line else " HTTP/1.1"
        connection.send(f"{line}{version}\r\n{more}\r\n{fields}\r\n\r\n".encode())
        answer = connection.answer()  # a 100 Continue would come first
        limit = "server.max_manifest_size" if status == 413 else None
        assert_is_error(answer, status, message, limit)
        assert answer.headers["connection"] == "close"
        if status == 415:
            assert answer.headers["accept-encoding"] == "identity"
        if status == 405:
            assert "OPTIONS" in answer.headers["allow"]
        assert connection.rest() == b""
    assert site.cartd.request("HEAD", "/x").status == 404


def test_accepted_body_gets_100_continue(site: CartSite) -> None:
    body = site.manifest({"a": b"data"})
    head = f"POST /asked HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    with wire(site.port) as connection:
        connection.send(
            f"{head}Expect: 100-continue\r\nContent-Encoding: identity\r\n\r\n".encode()
        )
        assert connection.head().status == 100
        connection.send(body)
        assert connection.answer().status == 201


def test_request_without_body_gets_no_100_continue(site: CartSite) -> None:
    head = b"GET / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n\r\n"
    assert ask(site.port, head).status == 200


ALLOWED = {
    "/": "GET, HEAD, OPTIONS",
    "*": "DELETE, GET, HEAD, OPTIONS, POST, PUT",
    "/a-cart": "DELETE, GET, HEAD, OPTIONS, POST",
    "/.bad": "DELETE, GET, HEAD, OPTIONS, POST",
    "/-/openapi.json": "GET, HEAD, OPTIONS",
    "/a/b": "OPTIONS",
}


@pytest.mark.parametrize("target", ALLOWED)
def test_options_needs_no_authentication_and_is_not_a_rejection(
    authenticated_site: CartSite, target: str
) -> None:
    before = len(authenticated_site.cartd.log)
    with wire(authenticated_site.port) as connection:
        for _ in range(2):  # the connection stays usable
            connection.send(f"OPTIONS {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            answer = connection.answer()
            assert (answer.status, answer.headers["allow"]) == (204, ALLOWED[target])
            assert "content-length" not in answer.headers
    assert ask(authenticated_site.port, f"OPTIONS {target} HTTP/1.0\r\n\r\n".encode()).status == 204
    assert "Refused" not in authenticated_site.cartd.log[before:]


def test_haproxy_health_check_succeeds(authenticated_site: CartSite, tmp_path: Path) -> None:
    before = len(authenticated_site.cartd.log)
    server = f"  option httpchk\n  server s1 127.0.0.1:{authenticated_site.port} check inter 100ms"
    with running_haproxy(tmp_path, server) as control:
        wait_for(lambda: haproxy_state(control)["s1"]["check_status"].startswith("L7"))
        state = haproxy_state(control)["s1"]
    assert (state["status"], state["check_status"], state["check_code"]) == ("UP", "L7OK", "204")
    assert "Refused" not in authenticated_site.cartd.log[before:]


@pytest.mark.parametrize("prefix", ["/", "/cartd/", "/a/b/"])
def test_openapi_server_url_works_below_a_prefix(
    authenticated_site: CartSite, tmp_path: Path, prefix: str
) -> None:
    location = f"location {prefix} {{ proxy_pass http://127.0.0.1:{authenticated_site.port}/; }}"
    with running_nginx(tmp_path, location) as port:
        url = f"http://127.0.0.1:{port}{prefix}-/openapi.json"
        with urlopen(url) as answer:
            document = json.load(answer)
        server = urljoin(url, document["servers"][0]["url"])
        assert server == f"http://127.0.0.1:{port}{prefix}"
        with urlopen(server) as answer:
            assert json.load(answer)["message"] == "Pacifica Cartd Interface Up and Running"
