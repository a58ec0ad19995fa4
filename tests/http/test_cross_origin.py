"""Cross-origin requests of browsers: forgery protection and CORS headers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted
from twisted.web.http_headers import Headers

from cartd.auth import TokenFile
from cartd.http import paths
from cartd.http.origins import EXPOSED_HEADERS, is_forbidden
from cartd.http.routes import OPENAPI
from tests.support.cart_site import CartSite, cart_site
from tests.support.directory_archive_client import directory_archive
from tests.support.running_cartd import wait_for
from tests.support.wire import ask, assert_is_error, wire

PORTAL = "https://portal.example.org"
FILES = {"a": b"data"}
REASON = (
    "Cross-origin changes are forbidden: add the origin to [server] allowed_origins; if the"
    " origin is the service's own, let the proxy forward the Host header"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    ini = f"[server]\nallowed_origins = {PORTAL}\n"
    with cart_site(tmp_path_factory.mktemp("site"), ini=ini) as running:
        running.stage("kept", FILES)
        yield running


FORBIDDEN = {
    "cross-site": {"Sec-Fetch-Site": "cross-site"},
    "same-site": {"Sec-Fetch-Site": "same-site"},
    "an unknown site": {"Sec-Fetch-Site": "elsewhere"},
    "an empty site": {"Sec-Fetch-Site": ""},
    "cross-site, of the host": {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost:8081"},
    "another origin": {"Origin": "https://evil.example"},
    "another port": {"Origin": "http://localhost:8082"},
    "no port": {"Origin": "http://localhost"},
    "null": {"Origin": "null"},
    "an empty origin": {"Origin": ""},
    "no URL": {"Origin": "localhost:8081"},
    "no ASCII": {"Origin": "http://localhost:8081\xe9"},
    "half of a bracket": {"Origin": "http://[::1"},
    "the host as a user": {"Origin": "http://localhost:8081@evil.example"},
    "like the portal": {"Origin": f"{PORTAL}.evil.example"},
    "the portal without TLS": {"Origin": "http://portal.example.org"},
}
ALLOWED = {
    "no browser": {},
    "the user": {"Sec-Fetch-Site": "none"},
    "the same origin": {"Sec-Fetch-Site": "same-origin", "Origin": "https://proxied.example"},
    "the host": {"Origin": "http://localhost:8081"},
    "the host behind TLS": {"Origin": "https://LOCALHOST:8081"},
    "the portal": {"Origin": PORTAL},
    "the portal, cross-site": {"Origin": PORTAL, "Sec-Fetch-Site": "cross-site"},
}


def headers(given: dict[str, str]) -> Headers:
    return Headers({name.encode(): [value.encode("latin-1")] for name, value in given.items()})


@pytest.mark.parametrize("method", [b"POST", b"DELETE", b"PUT", b"PATCH", b"UNKNOWN"])
@pytest.mark.parametrize("given", FORBIDDEN.values(), ids=FORBIDDEN)
def test_cross_origin_change_is_forbidden(given: dict[str, str], method: bytes) -> None:
    assert is_forbidden(method, b"localhost:8081", headers(given), {PORTAL})


@pytest.mark.parametrize("given", ALLOWED.values(), ids=ALLOWED)
def test_same_origin_and_allowed_origins_may_change(given: dict[str, str]) -> None:
    assert not is_forbidden(b"POST", b"localhost:8081", headers(given), {PORTAL})


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS"])
@pytest.mark.parametrize("given", FORBIDDEN.values(), ids=FORBIDDEN)
def test_safe_methods_are_allowed_from_any_origin(given: dict[str, str], method: bytes) -> None:
    assert not is_forbidden(method, b"localhost:8081", headers(given), ())


def test_origin_without_host_is_cross_origin() -> None:
    for origin in ("null", "", "http://", "http://localhost"):
        assert is_forbidden(b"POST", None, headers({"Origin": origin}), ())


def test_all_repeated_origin_headers_count() -> None:
    two = Headers({b"Origin": [b"http://localhost", b"https://evil.example"]})
    assert is_forbidden(b"POST", b"localhost", two, ())
    two = Headers({b"Sec-Fetch-Site": [b"same-origin", b"cross-site"]})
    assert is_forbidden(b"POST", b"localhost", two, ())


FORM = "Origin: https://evil.example\r\nContent-Type: text/plain"
NO_CORS = "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\nOrigin: https://evil.example"


@pytest.mark.parametrize("sent", [FORM, NO_CORS, "Origin: null"])
def test_cross_origin_post_and_delete_are_rejected(site: CartSite, sent: str) -> None:
    before = len(site.cartd.log)
    body = site.manifest(FILES)
    more = f"Host: localhost:{site.port}\r\n{sent}\r\n"
    head = f"POST /forged HTTP/1.1\r\n{more}Content-Length: {len(body)}\r\n\r\n"
    assert_is_error(ask(site.port, head.encode() + body), 403, REASON)
    expecting = head.replace("Content-Length", "Expect: 100-continue\r\nContent-Length")
    assert ask(site.port, expecting.encode()).status == 403
    assert ask(site.port, f"DELETE /kept HTTP/1.1\r\n{more}\r\n".encode()).status == 403
    assert site.cartd.request("HEAD", "/forged").status == 404
    assert site.cartd.status("kept") == ("ready", "")
    assert (
        "Refused 403" not in site.cartd.log[before:]
    )  # otherwise a page could get its reader banned


def test_post_from_same_and_allowed_origins_is_accepted(site: CartSite) -> None:
    for origin in (PORTAL, f"http://localhost:{site.port}"):
        body = site.manifest(FILES)
        more = f"Host: localhost:{site.port}\r\nOrigin: {origin}\r\nContent-Length: {len(body)}"
        answer = ask(site.port, f"POST /page HTTP/1.1\r\n{more}\r\n\r\n".encode() + body)
        assert answer.status == 201


@pytest.fixture(scope="module")
def portal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[CartSite, str]]:
    """A service with tokens that allows the portal's origin, and the token of a user."""
    directory = tmp_path_factory.mktemp("portal")
    file = TokenFile(directory / "tokens")
    token = file.add("alice", admin=False)
    ini = (
        f"[server]\nallowed_origins = {PORTAL}\nmax_manifest_size = 999\n"
        f"[auth]\ntoken_file = {file.path}\n"
    )
    with cart_site(directory, ini=ini) as running:
        yield running, token


def from_page(method: str, target: str, *fields: str, origin: str = PORTAL) -> bytes:
    """Return a request as a browser sends it for a script."""
    lines = [
        f"{method} {target} HTTP/1.1", "Host: cartd.example.org", f"Origin: {origin}",
        "Sec-Fetch-Mode: cors", "Sec-Fetch-Site: cross-site", *fields, "", "",
    ]  # fmt: skip
    return "\r\n".join(lines).encode()


def head_of(port: int, request: bytes) -> tuple[int, list[str]]:
    """Return status and headers of the response; a 401 has two of one name."""
    with wire(port) as connection:
        connection.send(request)
        received = b""
        while b"\r\n\r\n" not in received:
            received += connection.socket.recv(1 << 16)
    line, *fields = received.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    return int(line.split()[1]), fields


def names(value: str) -> set[str]:
    return set(value.split(", "))


def test_preflight_is_answered_without_authentication(
    portal: tuple[CartSite, str],
) -> None:
    site, _ = portal
    before = len(site.cartd.log)
    for method in ("DELETE", "POST", "GET"):
        request = from_page(
            "OPTIONS", "/mine", f"Access-Control-Request-Method: {method}",
            "Access-Control-Request-Headers: authorization,range",
        )  # fmt: skip
        response = ask(site.port, request)
        assert response.status == 204
        assert response.headers["access-control-allow-origin"] == PORTAL
        assert method in names(response.headers["access-control-allow-methods"])
        assert {"Authorization", "Range"} <= names(response.headers["access-control-allow-headers"])
        assert response.headers["access-control-max-age"] == "600"
        assert "access-control-allow-credentials" not in response.headers
    assert "Refused" not in site.cartd.log[before:]


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "*", f"{PORTAL}:444"])
def test_other_origins_get_no_cors_headers(portal: tuple[CartSite, str], origin: str) -> None:
    site, _ = portal
    preflight = "Access-Control-Request-Method: DELETE"
    for method, more in (("OPTIONS", preflight), ("GET", "Range: bytes=0-0"), ("DELETE", "X: y")):
        _, fields = head_of(site.port, from_page(method, "/mine", more, origin=origin))
        assert not [field for field in fields if field.startswith("Access-Control-")]
        assert "Vary: Origin" in fields


def test_allowed_origin_can_read_every_response_header(portal: tuple[CartSite, str]) -> None:
    site, token = portal
    bearer = f"Authorization: Bearer {token}"
    body = site.manifest(FILES).decode()
    ready = from_page("HEAD", "/mine", bearer)

    def is_ready() -> bool:
        answer = ask(site.port, ready, to_head=True)
        return answer.headers["x-pacifica-status"] == "ready"

    asked = [
        (201, from_page("POST", "/mine", bearer, f"Content-Length: {len(body)}")
         + body.encode()),
        (200, from_page("GET", "/mine?filename=a.tar", bearer)),
        (206, from_page("GET", "/mine?filename=a.tar", bearer, "Range: bytes=0-9")),
        (416, from_page("GET", "/mine?filename=a.tar", bearer, "Range: bytes=99999999-")),
        (304, from_page("GET", "/mine?filename=a.tar", bearer, "If-None-Match: *")),
        (401, from_page("GET", "/mine")),
        (401, from_page("POST", "/mine", "Content-Length: 9")),
        (400, from_page("POST", "/.bad", bearer, "Content-Length: 9")),
        (404, from_page("DELETE", "/nobody", bearer)),
        (405, from_page("PUT", "/mine", bearer)),
        (413, from_page("POST", "/mine", bearer, "Content-Length: 1000")),
        (415, from_page("POST", "/mine", bearer, "Content-Length: 9", "Content-Encoding: br")),
        (431, from_page("GET", "/mine", *["X: y"] * 600)),
    ]  # fmt: skip
    for status, request in asked:
        answered, fields = head_of(site.port, request)
        assert answered == status, fields
        assert f"Access-Control-Allow-Origin: {PORTAL}" in fields
        assert "Vary: Origin" in fields
        [exposed] = [field for field in fields if field.startswith("Access-Control-Expose-Headers")]
        readable = names(exposed.partition(": ")[2].lower()) | ALWAYS_READABLE
        sent = {name.lower() for name, colon, _ in (field.partition(":") for field in fields)}
        assert {name for name in sent if name not in NOT_FOR_PAGES} <= readable
        if status == 201:
            wait_for(is_ready)


ALWAYS_READABLE = {"cache-control", "content-language", "content-length", "content-type",
                   "expires", "last-modified", "pragma"}  # fmt: skip
"""CORS-safelisted (Fetch standard, section 2.2.2)."""
NOT_FOR_PAGES = {"connection", "server", "x-accel-buffering", "transfer-encoding", "vary",
                 "access-control-allow-origin", "access-control-expose-headers"}  # fmt: skip


NEW = ["/-/carts/kept", "/-/carts/kept/labels", "/-/carts/kept/retry", "/-/carts/kept/form",
       "/-/plan", "/-/x"]  # fmt: skip


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("target", NEW)
@pytest.mark.parametrize("sent", [FORM, NO_CORS, "Origin: null", "Sec-Fetch-Site: same-site"])
def test_nothing_below_the_dash_is_changed_for_another_site(
    site: CartSite, method: str, target: str, sent: str
) -> None:
    more = f"Host: localhost:{site.port}\r\n{sent}\r\nContent-Length: 2"
    answer = ask(site.port, f"{method} {target} HTTP/1.1\r\n{more}\r\n\r\n{{}}".encode())
    assert answer.status == 403
    said = answer.json
    assert (said["type"], said["detail"]) == ("/-/problems/cross-site", REASON)
    assert site.cartd.status("kept") == ("ready", "")


def test_allowed_origin_may_send_every_method_of_a_path(portal: tuple[CartSite, str]) -> None:
    site, _ = portal
    for path, rules in paths._PATHS.rules.items():
        target = "/" + "/".join(path).replace("<", "").replace(">", "")
        if "OPTIONS" in rules.methods:
            continue  # a probe, which is no page
        for method in rules.methods:
            request = from_page(
                "OPTIONS", target, f"Access-Control-Request-Method: {method}",
                "Access-Control-Request-Headers: authorization,prefer,last-event-id",
            )  # fmt: skip
            _, fields = head_of(site.port, request)
            headers = dict(field.split(": ", 1) for field in fields)
            assert method in names(headers["Access-Control-Allow-Methods"]), target
            allowed = names(headers["Access-Control-Allow-Headers"])
            assert {"Authorization", "Prefer", "Last-Event-ID"} <= allowed


REBOUND = ["GET /-/carts/kept", "GET /-/carts/kept/files", "GET /-/carts/kept/events", "GET /kept",
           "DELETE /kept", "POST /kept", "GET /", "GET /-/problems", "OPTIONS /kept"]  # fmt: skip


@pytest.mark.parametrize("line", REBOUND)
def test_page_with_a_rebound_name_can_do_nothing(site: CartSite, line: str) -> None:
    # The browser takes the name for the page's own, and so sends what it sends to its own site.
    own = "Host: evil.example\r\nOrigin: http://evil.example\r\nSec-Fetch-Site: same-origin"
    answer = ask(site.port, f"{line} HTTP/1.1\r\n{own}\r\n\r\n".encode())
    assert answer.status == 421
    said = answer.json
    assert (said.get("detail") or said["message"]).startswith("Unknown host evil.example")
    assert site.cartd.status("kept") == ("ready", "")


def test_host_of_the_public_url_is_allowed(tmp_path: Path) -> None:
    ini = "[server]\npublic_url = https://Carts.example:8443/cartd/\n"
    with cart_site(tmp_path, ini=ini) as public:
        for host, status in (
            ("carts.example", 200),
            ("CARTS.example.:8443", 200),
            ("carts.example:1", 200),
            ("localhost", 200),
            ("x.carts.example", 421),
            ("example", 421),
        ):
            request = f"GET /-/problems HTTP/1.1\r\nHost: {host}\r\n\r\n"
            assert ask(public.port, request.encode()).status == status, host


def test_every_header_of_openapi_is_exposed() -> None:
    described = {
        name
        for path in json.loads(OPENAPI)["paths"].values()
        for operation in path.values()
        if isinstance(operation, dict)
        for response in operation["responses"].values()
        for name in response.get("headers", {})
    }
    assert {name.lower() for name in described} - NOT_FOR_PAGES <= {
        *ALWAYS_READABLE,
        *(name.lower() for name in EXPOSED_HEADERS),
    }


def test_without_allowed_origins_no_cors_headers_are_sent(tmp_path: Path) -> None:
    with cart_site(tmp_path) as plain:
        request = from_page("OPTIONS", "/x", "Access-Control-Request-Method: GET")
        response = ask(plain.port, request.replace(b"cartd.example.org", b"localhost"))
        assert response.status == 204
        assert not {"vary", "access-control-allow-origin"} & response.headers.keys()


@pytest_twisted.ensureDeferred
async def test_directory_archive_rejects_cross_origin_changes(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_bytes(b"data")
    async with directory_archive(tmp_path) as client:
        for method, body in (
            ("PUT", b"evil"), ("PATCH", b'{"path": "x"}'), ("POST", b""), ("DELETE", b"")
        ):  # fmt: skip
            for given in ({"sec_fetch_site": "cross-site"}, {"origin": "https://evil.example"}):
                assert (await client.ask(method, "/file", body, **given)).status == 403
        assert (await client.ask("PUT", "/new", b"new")).status == 201
    assert (tmp_path / "file").read_bytes() == b"data"
