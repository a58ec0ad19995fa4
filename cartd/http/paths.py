"""All routes of the service as one resource, and the rules for requests that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from klein import Klein
from twisted.web.resource import IResource, Resource
from twisted.web.server import Request

from cartd.http.api import Api
from cartd.http.carts import CartsApi
from cartd.http.monitoring import HEALTHY_PATH, READY_PATH, Monitoring
from cartd.http.pages import ASSET_PATH, Pages, is_browser
from cartd.http.problem_pages import ProblemPages
from cartd.http.request_limits import RequestRules, route_path
from cartd.http.routes import PUBLIC_PATHS, Rest
from cartd.model import check_uid


class Application(Protocol):
    """What has routes."""

    app: Klein


class Routes(Resource):
    """Passes requests below ``/-/`` to the first application that has their path.

    Browsers get the pages at the paths that have one.
    """

    def __init__(self, rest: Rest, *others: Application, pages: Pages) -> None:
        super().__init__()
        self.isLeaf = True
        self._rest = rest.app.resource()
        self._others = [
            (_read_routes(other.app), other.app.resource()) for other in (*others, pages)
        ]
        self._pages = pages.variants.resource()

    def render(self, request: Request) -> Any:
        path = route_path(request.postpath or ())
        chosen: IResource = next(
            (resource for paths, resource in self._others if _find(paths, path)), self._rest
        )
        if _find(_PAGE_PATHS, path):
            if len(path) != 1:  # the four requests of Pacifica Cartd stay as they are
                request.responseHeaders.addRawHeader(b"Vary", b"Accept")
            if is_browser(request):
                chosen = self._pages
        return chosen.render(request)


@dataclass(frozen=True, slots=True)
class PathRules:
    """The methods of a path, and whether they need no authentication."""

    methods: tuple[str, ...]
    public: bool


_Paths = dict[tuple[str, ...], PathRules]
_PUBLIC = PUBLIC_PATHS | {HEALTHY_PATH, READY_PATH, ASSET_PATH}
_UNKNOWN = PathRules((), public=False)


def _read_routes(app: Klein) -> _Paths:
    """Return the rules of all routes of ``app``, by the non-empty segments of their paths."""
    methods: dict[str, set[str]] = {}
    for rule in app.url_map.iter_rules():
        methods.setdefault(rule.rule, set()).update(rule.methods or ())
    return {
        tuple(name for name in path.split("/") if name): PathRules(
            tuple(sorted(found)), public=path in _PUBLIC
        )
        for path, found in methods.items()
    }


def _find(paths: _Paths, path: Sequence[str]) -> PathRules | None:
    """Return the rules of ``path``; a segment in angle brackets stands for any other segment."""
    if exact := paths.get(tuple(path)):
        return exact
    for route, rules in paths.items():
        if len(route) == len(path) and all(
            part == wanted or wanted.startswith("<")
            for part, wanted in zip(path, route, strict=True)
        ):
            return rules
    return None


APPS = (Rest.app, Api.app, CartsApi.app, Monitoring.app, ProblemPages.app)
"""The API."""
_MONITORING_PATHS = _read_routes(Monitoring.app)
_PAGE_PATHS = _read_routes(Pages.variants)
_PATHS = {path: rules for app in (*APPS, Pages.app) for path, rules in _read_routes(app).items()}
ALL_METHODS = tuple(sorted({method for rules in _PATHS.values() for method in rules.methods}))


def path_rules(path: Sequence[str]) -> PathRules:
    """Return the rules of a path, given as non-empty segments; no methods if it is unknown."""
    return _find(_PATHS, path) or _UNKNOWN


def allowed_methods(path: Sequence[str]) -> Sequence[str]:
    """Return the methods of a path, given as non-empty segments; empty if it is unknown."""
    return path_rules(path).methods


def check_post(path: Sequence[str]) -> None:
    """Check that a cart can be posted to ``path``.

    :raises InvalidInput: its uid is invalid.
    """
    if len(path) == 1:
        check_uid(path[0])


def is_public(method: bytes, path: Sequence[str]) -> bool:
    """Return whether the request needs no authentication."""
    rules = path_rules(path)
    return rules.public and method.decode("latin-1") in rules.methods


def _monitoring_methods(path: Sequence[str]) -> Sequence[str]:
    rules = _find(_MONITORING_PATHS, path)
    return () if rules is None else rules.methods


MONITORING_RULES = RequestRules(
    _monitoring_methods,
    tuple(sorted({method for rules in _MONITORING_PATHS.values() for method in rules.methods})),
)
"""The rules of an endpoint that serves nothing else."""

REQUEST_RULES = RequestRules(
    allowed_methods, ALL_METHODS, is_public=is_public, check_post=check_post
)
"""The rules for requests that follow from the routes."""
