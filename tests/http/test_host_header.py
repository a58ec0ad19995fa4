"""The Host header: validation and allowed hosts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted

from cartd.auth import TokenFile
from cartd.errors import InvalidInput
from cartd.http.origins import is_allowed_host, request_host
from tests.support.cart_site import CartSite, cart_site
from tests.support.directory_archive_client import directory_archive
from tests.support.wire import ask, assert_is_error

UP = {"message": "Pacifica Cartd Interface Up and Running"}
NAMES = ("cartd.example.org", "cartd")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    ini = f"[server]\nallowed_hosts = {' '.join(NAMES)}\n"
    with cart_site(tmp_path_factory.mktemp("site"), ini=ini) as running:
        yield running


def get(port: int, *fields: bytes, target: bytes = b"/", version: bytes = b"1.1") -> bytes:
    lines = b"".join(field + b"\r\n" for field in fields)
    return b"GET %s HTTP/%s\r\n%s\r\n" % (target, version, lines)


WRONG = {
    "none": ([], "The Host header is missing"),
    "two": ([b"Host: localhost", b"Host: localhost"], "More than one Host header"),
    **{
        name: ([b"Host: " + value], "The Host header, or the host in the target, is invalid")
        for name, value in {
            "an empty one": b"", "bytes": b"\xff\xfe", "a path": b"../../etc", "a URL": b"http://x",
            "a port that is none": b"x:port", "a user": b"user@localhost", "two in one": b"a, b",
            "a space": b"local host", "brackets": b"[localhost]", "half of a bracket": b"[::1",
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), WRONG.values(), ids=WRONG)
def test_request_without_exactly_one_host_is_rejected(
    site: CartSite, fields: list[bytes], message: str
) -> None:
    assert_is_error(ask(site.port, get(site.port, *fields)), 400, message)


def test_host_header_must_be_valid_even_with_absolute_target(site: CartSite) -> None:
    target = b"http://localhost/"
    for fields in ([], [b"Host: x y"], [b"Host: a", b"Host: b"]):
        assert ask(site.port, get(site.port, *fields, target=target)).status == 400
    user = get(site.port, b"Host: localhost", target=b"http://user@localhost/")
    assert ask(site.port, user).status == 400


KNOWN = [b"localhost", b"LocalHost:8081", b"localhost.", b"a.localhost", b"127.0.0.1", b"[::1]:1",
         b"192.0.2.7:80", b"cartd.example.org", b"CARTD.example.org.:443", b"cartd"]  # fmt: skip
UNKNOWN = [b"rebound.example", b"rebound.example:8081", b"x.cartd.example.org",
           b"127.0.0.1.example", b"localhost.example", b"notlocalhost", b"a..b", b"2130706433",
           b"0x7f.1"]  # fmt: skip


@pytest.mark.parametrize("host", KNOWN, ids=bytes.decode)
def test_addresses_and_localhost_are_allowed_hosts(site: CartSite, host: bytes) -> None:
    assert ask(site.port, get(site.port, b"Host: " + host)).json == UP
    target = b"http://%s/" % host
    rebound = get(site.port, b"Host: rebound.example", target=target)
    assert ask(site.port, rebound).json == UP


@pytest.mark.parametrize("method", [b"GET", b"DELETE", b"OPTIONS"])
@pytest.mark.parametrize("host", UNKNOWN, ids=bytes.decode)
def test_other_host_is_rejected_and_names_the_setting(
    site: CartSite, host: bytes, method: bytes
) -> None:
    answer = ask(site.port, method + b" /x HTTP/1.1\r\nHost: %s\r\n\r\n" % host)
    message = (
        f"Unknown host {host.decode()}: without authentication only IP addresses,"
        " localhost and the names in [server] allowed_hosts are allowed"
    )
    assert_is_error(answer, 421, message)
    target = get(site.port, b"Host: localhost", target=b"http://%s/" % host)
    assert ask(site.port, target).status == 421


def test_http_1_0_needs_no_host(site: CartSite) -> None:
    assert ask(site.port, get(site.port, version=b"1.0")).json == UP
    rebound = get(site.port, b"Host: rebound.example", version=b"1.0")
    assert ask(site.port, rebound).status == 421


def test_wrong_host_gets_no_100_continue(site: CartSite) -> None:
    fields = b"Host: rebound.example\r\nExpect: 100-continue\r\nContent-Length: 9"
    assert ask(site.port, b"POST /x HTTP/1.1\r\n%s\r\n\r\n" % fields).status == 421


def test_any_host_is_allowed_with_authentication(tmp_path: Path) -> None:
    TokenFile(tmp_path / "tokens").add("alice", admin=False)
    with cart_site(tmp_path, ini=f"[auth]\ntoken_file = {tmp_path / 'tokens'}\n") as site:
        assert ask(site.port, get(site.port, b"Host: any.example")).json == UP
        assert ask(site.port, get(site.port)).status == 400


def test_all_names_can_be_allowed() -> None:
    assert is_allowed_host(b"any.example:80", frozenset({"*"}))
    assert not is_allowed_host(b"any.example:80", frozenset({"other.example"}))


def test_absolute_target_takes_precedence_over_host_header() -> None:
    assert request_host(b"http://a:80/x?http://c", b"HTTP/1.1", [b"b"]) == b"a:80"
    assert request_host(b"/http://a/", b"HTTP/1.1", [b"b"]) == b"b"
    assert request_host(b"*", b"HTTP/1.0", []) is None
    with pytest.raises(InvalidInput):
        request_host(b"http://a/", b"HTTP/1.1", [])


@pytest_twisted.ensureDeferred
async def test_directory_archive_checks_the_host(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    async with directory_archive(tmp_path) as client:
        assert (await client.ask("GET", "/file", host="localhost")).status == 200
        for method in ("GET", "HEAD", "PUT", "PATCH", "POST", "DELETE"):
            body = b"" if method in ("GET", "HEAD") else b"x"
            answer = await client.ask(method, "/file", body, host="rebound.example")
            assert answer.status == 421, method
        assert (await client.ask("GET", "/file", host="a b")).status == 400
    assert (tmp_path / "file").read_bytes() == b"data"
