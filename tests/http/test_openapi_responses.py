"""The responses of the running service match its OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from cartd.http.routes import OPENAPI
from tests.api_check.running import check, prepare
from tests.support.cart_site import CartSite, cart_site
from tests.support.running_cartd import entry

DOCUMENT = schemathesis.openapi.from_dict(json.loads(OPENAPI))
CONFORMS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
DESCRIBED_HEADERS = {
    name.lower()
    for path in DOCUMENT.raw_schema["paths"].values()
    for method in ("head", "get", "post", "delete")
    for response in path.get(method, {}).get("responses", {}).values()
    for name in response.get("headers", {})
} | {
    name.lower()
    for response in DOCUMENT.raw_schema["components"]["responses"].values()
    for name in response.get("headers", {})
}
ANY_RESPONSE = {
    *("cache-control", "connection", "content-length", "content-type", "date", "server"),
    "x-request-id",
}
"""Header fields that any response may have."""
LIMIT = 1_000_000
LISTED = f"[server]\nmax_manifest_size = {LIMIT}\n[page]\nlist = on\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    directory = tmp_path_factory.mktemp("site")
    with cart_site(
        directory, ini=f"[server]\nmax_manifest_size = {LIMIT}\n[page]\nlist = on\n"
    ) as running:
        prepare(running)
        yield running


@pytest.fixture(scope="module")
def tapes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CartSite]:
    """A site whose files are never recalled from tape."""
    with cart_site(tmp_path_factory.mktemp("tapes"), "--tape-delay=1e8") as running:
        yield running


def ask(site: CartSite, method: str, path: str, status: int, **request: Any) -> Any:
    """Send a documented request, and check the response against the document."""
    operation = DOCUMENT[path][method]
    if "body" in request:
        request["media_type"] = "application/json"
    case = operation.Case(**request)
    response = case.call(base_url=site.cartd.url)
    assert response.status_code == status, response.content
    assert str(status) in operation.responses.status_codes
    case.validate_response(response, checks=CONFORMS)
    assert {name.lower() for name in response.headers} <= DESCRIBED_HEADERS | ANY_RESPONSE
    return response


def test_the_service_returns_the_document(site: CartSite) -> None:
    answer = site.cartd.get("/-/openapi.json")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.body == OPENAPI
    assert site.cartd.request("HEAD", "/-/openapi.json").headers["content-length"] == str(
        len(answer.body)
    )
    assert site.cartd.delete("-/openapi.json").status == 405
    ask(site, "GET", "/-/openapi.json", 200)


def test_the_root_answers_as_described(site: CartSite) -> None:
    ask(site, "GET", "/", 200)


@pytest.mark.parametrize(("uid", "status"), [("known-ready", 204), ("known-error", 500),
    ("nobody", 404), (".old", 404)])  # fmt: skip
def test_a_head_is_answered_as_described(site: CartSite, uid: str, status: int) -> None:
    ask(site, "HEAD", "/{uid}", status, path_parameters={"uid": uid})


@pytest.mark.parametrize(
    ("uid", "headers", "status"),
    [
        ("known-ready", {}, 200),
        ("known-bundled", {}, 200),
        ("known-ready", {"Range": "bytes=0-9"}, 206),
        ("known-ready", {"Range": "bytes=99999999-"}, 416),
        ("known-ready", {"If-None-Match": "*"}, 304),
        ("known-ready", {"If-Match": '"other"'}, 412),
        ("known-error", {}, 500),
        ("nobody", {}, 404),
        (".old", {}, 404),
    ],
)
def test_a_download_is_answered_as_described(
    site: CartSite, uid: str, headers: dict[str, str], status: int
) -> None:
    ask(site, "GET", "/{uid}", status, path_parameters={"uid": uid}, headers=headers)


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ({"filename": "x.tar"}, {}, 200),
        ({}, {"If-None-Match": "*"}, 304),
        ({"filename": "x.tar"}, {"If-Match": '"other"'}, 412),
        ({"filename": "a/b"}, {}, 400),
    ],
)
def test_a_head_of_a_tar_is_answered_as_described(
    site: CartSite, query: dict[str, str], headers: dict[str, str], status: int
) -> None:
    uid = {"uid": "known-ready"}
    ask(site, "HEAD", "/{uid}", status, path_parameters=uid, query=query, headers=headers)


def test_a_cart_that_is_not_ready_is_answered_as_described(tapes: CartSite) -> None:
    posted: Any = {"fileids": [entry("1", "a", b"data")]}
    tapes.archive.put("1", b"data")
    uid = {"uid": "taped"}
    ask(tapes, "POST", "/{uid}", 201, path_parameters=uid, body=posted)
    ask(tapes, "HEAD", "/{uid}", 204, path_parameters=uid)
    ask(tapes, "GET", "/{uid}", 202, path_parameters=uid)
    ask(tapes, "GET", "/{uid}", 503, path_parameters=uid, headers={"Range": "bytes=5-"})
    ask(tapes, "DELETE", "/{uid}", 412, path_parameters=uid, headers={"If-Match": '"other"'})
    ask(
        tapes,
        "POST",
        "/{uid}",
        412,
        path_parameters=uid,
        headers={"If-None-Match": "*"},
        body=posted,
    )


def test_a_post_and_a_deletion_are_answered_as_described(site: CartSite) -> None:
    uid = {"uid": "mine"}
    ask(site, "POST", "/{uid}", 201, path_parameters=uid, body={"fileids": []})
    ask(site, "POST", "/{uid}", 400, path_parameters=uid, body={"fileids": 1})
    ask(site, "POST", "/{uid}", 400, path_parameters={"uid": ".bad"}, body={"fileids": []})
    ask(site, "POST", "/{uid}", 413, path_parameters=uid, body={"fileids": [], "a": "b" * LIMIT})
    ask(site, "DELETE", "/{uid}", 200, path_parameters=uid)
    ask(site, "DELETE", "/{uid}", 404, path_parameters=uid)


def test_schemathesis_finds_no_failures(tmp_path: Path) -> None:
    # A site of its own: the list of carts tells schemathesis which there are to be deleted.
    with cart_site(tmp_path, ini=LISTED) as site:
        prepare(site)
        outcome = check(site, "--max-examples=6", "--generation-deterministic")
    assert outcome.status == 0, outcome.report
    known = {(method, status) for method, path, status in outcome.seen if path == "/{uid}"}
    assert known >= {("POST", 201), ("POST", 400), ("GET", 400), ("DELETE", 200), ("DELETE", 404),
                     ("PATCH", 405)}  # fmt: skip
    # Which of the known carts are asked for, and before they are deleted, is a matter of chance.
    assert known & {("HEAD", status) for status in (200, 204, 304, 500)}
    assert known & {("GET", status) for status in (200, 206, 304, 416, 500)}
    assert outcome.seen["GET", "/-/openapi.json", 200]
