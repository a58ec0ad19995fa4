"""Errors as problem details: below ``/-/`` always, elsewhere for clients that ask for them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import jsonschema_rs
import pytest

from cartd import __version__
from cartd.auth import TokenFile
from cartd.errors import CartdError, Problem
from cartd.http.problem_types import PROBLEM_TYPES
from cartd.http.problems import ErrorFacts, ProblemDetails, serialize
from cartd.http.routes import OPENAPI
from tests.support import problems_page
from tests.support.cart_site import CartSite, cart_site
from tests.support.running_cartd import entry, manifest
from tests.support.wire import WireAnswer, ask, assert_is_error, wire

PROBLEM = "application/problem+json"
COMPONENTS = json.loads(OPENAPI)["components"]
SCHEMA = jsonschema_rs.Draft202012Validator(
    {"$ref": "#/components/schemas/Problem", "components": COMPONENTS}
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    ini = "[server]\nmax_manifest_size = 100000\n"
    with cart_site(tmp_path_factory.mktemp("site"), ini=ini) as running:
        running.stage("ready", {"a": b"data"})
        running.cartd.post("failed", manifest([entry("no-such-id", "gone", b"")]))
        running.cartd.wait_until("failed", "error")
        yield running


def request(method: str, target: str, *fields: str, host: str = "localhost") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *fields, "", ""]
    return "\r\n".join(lines).encode("latin-1")


def assert_problem(answer: WireAnswer, status: int, name: str, **members: Any) -> dict[str, Any]:
    """Check a problem and the members that are given; return all of them."""
    assert answer.status == status, answer
    assert answer.headers["content-type"] == PROBLEM
    assert answer.headers["cache-control"] == "no-store"
    said: dict[str, Any] = answer.json
    SCHEMA.validate(said)
    assert said["type"].endswith(f"/-/problems/{name}")
    assert (said["title"], said["status"]) == (PROBLEM_TYPES[Problem(name)].title, status)
    assert said["detail"]
    assert said["instance"] == f"urn:request:{answer.headers['x-request-id']}"
    assert {key: said.get(key) for key in members} == members
    return said


BELOW = {
    "unknown path": (request("GET", "/-/x"), 404, "not-found"),
    "unknown path, encoded": (request("GET", "/%2D/x"), 404, "not-found"),
    "absolute form": (request("GET", "http://localhost/-/x"), 404, "not-found"),
    "not UTF-8": (request("GET", "/-/%ff"), 400, "invalid-request"),
    "method": (request("DELETE", "/-/openapi.json"), 405, "invalid-request"),
    "method in lower case": (request("get", "/-/openapi.json"), 400, "invalid-request"),
    "unknown cart": (request("GET", "/-/carts/nobody"), 404, "no-such-cart"),
    "unknown problem": (request("GET", "/-/problems/nothing"), 404, "not-found"),
    "unknown host": (
        request("GET", "/-/openapi.json", host="evil.example"),
        421,
        "unknown-host",
    ),
    "two hosts": (request("GET", "/-/x", "Host: other"), 400, "invalid-request"),
    "another site": (
        request("POST", "/-/x", "Origin: https://evil.example"),
        403,
        "cross-site",
    ),
    "a large head": (request("GET", "/-/x", *["X: y"] * 600), 431, "limit-exceeded"),
    "a large body": (request("GET", "/-/carts/u", "Content-Length: 9999999"), 413,
                     "limit-exceeded"),
    "a coded body": (request("GET", "/-/carts/u", "Content-Encoding: br", "Content-Length: 1"),
                     415, "invalid-request"),
    "an unknown coding": (request("GET", "/-/carts/u", "Transfer-Encoding: gzip"), 501,
                          "invalid-request"),
    "an invalid header": (request("GET", "/-/x", ": y"), 400, "invalid-request"),
}  # fmt: skip


@pytest.mark.parametrize(("sent", "status", "name"), BELOW.values(), ids=BELOW)
@pytest.mark.parametrize("accept", [(), ("Accept: application/json",)], ids=["any", "JSON"])
def test_errors_below_the_dash_are_problems(
    site: CartSite, sent: bytes, status: int, name: str, accept: tuple[str, ...]
) -> None:
    if accept:
        sent = sent.replace(b"\r\n", b"\r\nAccept: application/json\r\n", 1)
    assert_problem(ask(site.port, sent), status, name)


ASKED = f"Accept: {PROBLEM}"
OLD = {
    "no cart": (request("GET", "/nobody", ASKED), 404, "no-such-cart", {"cart": "nobody"}),
    "no cart to delete": (request("DELETE", "/nobody", ASKED), 404, "no-such-cart", {}),
    "failed": (request("GET", "/failed", ASKED), 500, "cart-failed",
               {"cart": "failed", "cause": "/-/problems/file-not-in-archive"}),
    "range": (request("GET", "/ready", ASKED, "Range: bytes=999999-"), 416,
              "range-not-satisfiable", {}),
    "condition": (request("GET", "/ready", ASKED, 'If-Match: "x"'), 412, "precondition-failed",
                  {}),
    "file name": (request("GET", "/ready?filename=a%2Fb", ASKED), 400, "invalid-request", {}),
    "uid": (request("POST", "/.u", ASKED, "Content-Length: 2"), 400, "invalid-uid", {}),
    "no JSON": (request("POST", "/u", ASKED, "Content-Length: 2") + b"{]", 400,
                "invalid-manifest", {"cart": "u"}),
    "path": (request("GET", "/a/b", ASKED), 404, "not-found", {}),
    "method": (request("PUT", "/u", ASKED), 405, "invalid-request", {}),
    "too long": (request("POST", "/u", ASKED, "Content-Length: 999999"), 413, "limit-exceeded",
                 {"limit": "server.max_manifest_size"}),
    "another site": (request("POST", "/u", ASKED, "Sec-Fetch-Site: cross-site"), 403,
                     "cross-site", {}),
    "another host": (request("GET", "/u", ASKED, host="evil.example"), 421, "unknown-host", {}),
}  # fmt: skip


@pytest.mark.parametrize(("sent", "status", "name", "members"), OLD.values(), ids=OLD)
def test_old_routes_send_problems_on_request(
    site: CartSite, sent: bytes, status: int, name: str, members: dict[str, str]
) -> None:
    answer = ask(site.port, sent)
    said = assert_problem(answer, status, name, **members)
    # The sentence, the other headers and the form for all others do not depend on it.
    plain = ask(site.port, sent.replace(f"{ASKED}\r\n".encode(), b""))
    assert_is_error(plain, status, said["detail"], said.get("limit"))
    differing = {"content-type", "content-length", "date", "x-request-id"}
    assert {name: value for name, value in answer.headers.items() if name not in differing} == {
        name: value for name, value in plain.headers.items() if name not in differing
    }


def test_file_cart_and_response_have_one_vocabulary(site: CartSite) -> None:
    name = "file-not-in-archive"
    document = ask(site.port, request("GET", "/-/carts/failed")).json
    assert document["problem"] == name
    assert [one["problem"] for one in document["failed"]["first"]] == [name]
    [listed] = ask(site.port, request("GET", "/-/carts/failed/files?status=error")).json["files"]
    assert listed["problem"] == name
    said = ask(site.port, request("GET", "/failed", ASKED)).json
    assert said["cause"] == f"/-/problems/{name}"


def test_all_faults_of_a_manifest_are_told(site: CartSite) -> None:
    posted = manifest([entry("", "a", b""), entry("1", "..", b""), entry("2", "b", b"")])
    sent = request("POST", "/u", ASKED, f"Content-Length: {len(posted)}") + posted
    said = assert_problem(ask(site.port, sent), 400, "invalid-manifest", cart="u")
    assert said["detail"] == "fileids[1].path: must not contain '..'"
    assert said["errors"] == [
        {"pointer": "#/fileids/1/path", "detail": "must not contain '..'"},
        {"pointer": "#/fileids/0/id", "detail": "is empty"},
    ]


def test_retry_of_a_cart_that_has_not_failed_is_a_conflict(site: CartSite) -> None:
    sent = request("POST", "/-/carts/ready/retry", "Content-Length: 0")
    assert_problem(ask(site.port, sent), 409, "conflict", cart="ready")


ACCEPT = {
    "application/problem+json": True,
    "Application/Problem+JSON": True,
    "application/problem+json;q=0.5": True,
    "application/json, application/problem+json": True,
    "application/json;q=0.1, application/problem+json;q=0.2": True,
    "text/html, application/problem+json; q=0.001, */*": True,
    "application/json, application/problem+json;q=0.9": False,
    "application/problem+json;q=0": False,
    "application/problem+json;q=0.000": False,
    "application/json": False,
    "application/*": False,
    "*/*": False,
    "application/problem+xml": False,
    "application/problem+jsonx, xapplication/problem+json": False,
    ",;q=,;;=": False,
    "": False,
}


@pytest.mark.parametrize("accept", ACCEPT)
def test_only_clients_that_name_problems_get_them(site: CartSite, accept: str) -> None:
    answer = ask(site.port, request("GET", "/nobody", f"Accept: {accept}"))
    if ACCEPT[accept]:
        assert_problem(answer, 404, "no-such-cart")
    else:
        message = "The cart does not exist or has already been deleted"
        body = {"status": "404 Not Found", "message": message, "traceback": ""}
        assert answer.body == json.dumps({**body, "version": __version__}).encode()
        assert answer.headers["content-type"] == "application/json"


def test_head_has_the_headers_of_a_problem(site: CartSite) -> None:
    for target in ("/-/carts/nobody", "/-/x"):
        got = ask(site.port, request("GET", target))
        answer = ask(site.port, request("HEAD", target), to_head=True)
        assert (answer.status, answer.headers["content-type"]) == (404, PROBLEM)
        assert answer.headers["content-length"] == got.headers["content-length"]


def test_missing_token_is_a_problem(tmp_path: Path) -> None:
    file = TokenFile(tmp_path / "tokens")
    file.add("alice", admin=False)
    ini = f"[auth]\ntoken_file = {file.path}\n[server]\npublic_url = https://carts.example/x\n"
    with cart_site(tmp_path, ini=ini) as site:
        for sent in (
            request("GET", "/-/carts/u"),
            request("GET", "/u", ASKED),
            request("POST", "/u", ASKED, "Content-Length: 2"),
            request("GET", "/-/carts/u", "Authorization: Bearer wrong"),
        ):
            said = assert_problem(ask_any(site.port, sent), 401, "unauthenticated")
            assert said["type"] == "https://carts.example/x/-/problems/unauthenticated"
        page = ask(site.port, request("GET", "/-/problems/unauthenticated"))
        assert page.status == 200
        # The pages that need no token load what they need below the path of the proxy.
        for path in ("/-/problems/unauthenticated", "/-/carts"):
            html = ask_any(site.port, request("GET", path, "Accept: text/html")).body.decode()
            paths = re.findall('(?:href|src)="(/[^"]*)', html)
            assert len(paths) > 5 and all(one.startswith("/x/") for one in paths), path


def ask_any(port: int, sent: bytes) -> WireAnswer:
    """As :func:`ask`, for a 401, which has one header twice."""
    with wire(port) as connection:
        connection.send(sent)
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.socket.recv(1 << 16)
        head, _, body = head.partition(b"\r\n\r\n")
        line, *fields = head.decode().split("\r\n")
        headers = {
            name.lower(): value for name, value in (field.split(": ", 1) for field in fields)
        }
        while len(body) < int(headers["content-length"]):
            body += connection.socket.recv(1 << 16)
    return WireAnswer("HTTP/1.1", int(line.split()[1]), headers, body)


def problem(target: bytes = b"/-/x", base: str = "", **facts: Any) -> dict[str, Any]:
    content_type, body = serialize(
        ErrorFacts(**{"code": 503, "message": "Why", **facts}), target, (), base
    )
    assert content_type == PROBLEM.encode()
    said: dict[str, Any] = json.loads(body)
    SCHEMA.validate(said)
    return said


def test_members_are_absent_if_unknown() -> None:
    assert problem() == {
        "type": "/-/problems/unavailable",
        "title": "The service cannot answer now",
        "status": 503,
        "detail": "Why",
    }
    full = problem(
        b"/-/carts/my%20cart/files",
        "https://carts.example/",
        code=429,
        limit="cartd.max_carts",
        retry_after=2,
        request_id="a b",
        cause="no-space",
    )
    assert full["type"] == "https://carts.example/-/problems/limit-exceeded"
    assert full["cause"] == "https://carts.example/-/problems/no-space"
    assert (full["cart"], full["retry_after"]) == ("my cart", 2)
    assert full["instance"].endswith("a%20b")


@pytest.mark.parametrize("target", [b"/-/carts/" + b"a" * 256, b"/-/x", b"/-/carts", b"*", b""])
def test_no_cart_without_a_possible_uid(target: bytes) -> None:
    _, body = serialize(ErrorFacts(code=404, message="Why"), target, [PROBLEM.encode()], "")
    assert "cart" not in json.loads(body)


def test_services_without_pages_never_send_problems() -> None:
    facts = ErrorFacts(code=404, message="Why")
    assert serialize(facts, b"/-/x", [PROBLEM.encode()], None)[0] == b"application/json"


# --- the vocabulary -----------------------------------------------------------------------------


def test_names_code_and_documentation_agree() -> None:
    assert set(PROBLEM_TYPES) == set(Problem)
    assert len({about.title for about in PROBLEM_TYPES.values()}) == len(PROBLEM_TYPES)
    assert problems_page.PAGE.read_text("utf-8") == problems_page.page(), "run make docs"


def test_schema_is_that_of_the_code() -> None:
    fields = ProblemDetails.__struct_fields__
    assert tuple(COMPONENTS["schemas"]["Problem"]["properties"]) == fields


def kinds(error: type[CartdError]) -> Iterator[type[CartdError]]:
    yield error
    for kind in error.__subclasses__():
        yield from kinds(kind)


def test_every_error_has_a_problem() -> None:
    elsewhere = ("tests.", "cartd.directory_archive.")
    for kind in kinds(CartdError):
        assert isinstance(kind.problem, Problem)
        if 400 <= kind.code != 500 and not kind.__module__.startswith(elsewhere):
            assert kind.problem is not Problem.INTERNAL_ERROR, kind


@pytest.mark.parametrize("name", Problem)
def test_every_type_has_its_page(site: CartSite, name: Problem) -> None:
    about = PROBLEM_TYPES[name]
    text = ask(site.port, request("GET", f"/-/problems/{name}"))
    assert text.headers["content-type"] == "text/plain; charset=utf-8"
    assert text.body.decode().startswith(f"{name}: {about.title}\n")
    html = ask(site.port, request("GET", f"/-/problems/{name}", "Accept: text/html,*/*;q=0.8"))
    assert html.headers["content-type"] == "text/html; charset=utf-8"
    assert f"<title>{escape(about.title, quote=False)} \u2013 cartd</title>" in html.body.decode()
    for answer in (text, html):
        assert answer.status == 200
        assert answer.headers["vary"] == "Accept"
        assert answer.headers["cache-control"] == "public, max-age=3600"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")


def test_all_types_are_listed(site: CartSite) -> None:
    for accept in ("*/*", "text/html"):
        body = ask(site.port, request("GET", "/-/problems", f"Accept: {accept}")).body.decode()
        assert all(name in body and about.title in body for name, about in PROBLEM_TYPES.items())


@pytest.mark.parametrize("path", ["/-/problems", "/-/problems/", "/-/problems/no-space"])
def test_links_lead_to_pages(site: CartSite, path: str) -> None:
    page = ask(site.port, request("GET", path, "Accept: text/html")).body.decode()
    links = {urljoin(path, link) for link in re.findall('(?:href|src)="([^"#]*)', page)}
    assert links
    assert all(ask(site.port, request("GET", link)).status == 200 for link in links)


def test_page_is_not_sent_again(site: CartSite) -> None:
    first = ask(site.port, request("GET", "/-/problems"))
    again = ask(site.port, request("GET", "/-/problems", f"If-None-Match: {first.headers['etag']}"))
    assert (again.status, again.body) == (304, b"")
