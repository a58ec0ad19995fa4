"""What is known of a path before a route is chosen matches the routes."""

from __future__ import annotations

from contextlib import suppress
from itertools import product

import pytest
from werkzeug.exceptions import MethodNotAllowed, NotFound
from werkzeug.routing import RequestRedirect

from cartd.http import paths
from cartd.http.pages import Pages
from cartd.http.paths import PathRules, allowed_methods, is_public

METHODS = {"GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS", "TRACE"}
PATHS = [
    "", "u", "-", ".bad", "-/openapi.json", "-/x", "u/v", "-/openapi.json/x", "u/v/w",
    "-/problems", "-/problems/x", "-/problems/x/y",
    "-/carts/u", "-/carts/u/x", "x/carts/u", "-/carts/u/form", "-/static/x",
    "-/healthy", "-/ready", "-/health", "-/ready/x", "-/metrics",
]  # fmt: skip


def taken_by_routes(path: str) -> set[str]:
    taken = set()
    for app, method in product((*paths.APPS, Pages.app), METHODS):
        with suppress(MethodNotAllowed, NotFound, RequestRedirect):
            app.url_map.bind("localhost").match(f"/{path}", method=method)
            taken.add(method)
    return taken


@pytest.mark.parametrize("path", PATHS)
def test_the_methods_of_a_path_are_those_of_its_routes(path: str) -> None:
    segments = [name for name in path.split("/") if name]
    assert set(allowed_methods(segments)) == taken_by_routes(path)


@pytest.mark.parametrize(
    ("method", "path", "is_open"),
    [("GET", [], True), ("HEAD", [], True), ("GET", ["-", "openapi.json"], True),
     ("GET", ["-", "ready"], True), ("OPTIONS", ["-", "healthy"], True),
     ("GET", ["-", "health"], False), ("GET", ["-", "metrics"], False),
     ("POST", ["-", "ready"], False),
     ("POST", [], False), ("GET", ["u"], False), ("HEAD", ["u"], False),
     ("GET", ["u", "v"], False), ("GET", ["-"], False)],
)  # fmt: skip
def test_only_root_openapi_and_probes_are_public(
    method: str, path: list[str], is_open: bool
) -> None:
    assert is_public(method.encode(), path) is is_open


@pytest.mark.parametrize("public", [False, True])
def test_a_read_only_path_is_public_only_if_the_table_has_it(
    public: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = PathRules(("GET", "HEAD"), public=public)
    monkeypatch.setitem(paths._PATHS.rules, ("-", "x"), rules)

    assert allowed_methods(["-", "x"]) == ("GET", "HEAD")
    assert is_public(b"GET", ["-", "x"]) is public
    assert not is_public(b"POST", ["-", "x"])


def test_every_public_path_is_listed() -> None:
    assert {path for path, rules in paths._PATHS.rules.items() if rules.public} == {
        (),
        ("-", "openapi.json"),
        ("-", "problems"),
        ("-", "problems", "<name>"),
        ("-", "healthy"),
        ("-", "ready"),
        ("-", "static", "<name>"),
    }
