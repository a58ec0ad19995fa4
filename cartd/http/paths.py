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
        self._others = [(PathTable(other.app), other.app.resource()) for other in (*others, pages)]
        self._pages = pages.variants.resource()

    def render(self, request: Request) -> Any:
        path = route_path(request.postpath or ())
        chosen: IResource = self._rest
        if path[:1] == _OURS:
            found = (resource for paths, resource in self._others if paths.find(path))
            chosen = next(found, chosen)
        if _PAGES.find(path):
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


_PUBLIC = PUBLIC_PATHS | {HEALTHY_PATH, READY_PATH, ASSET_PATH}
_OURS = ["-"]
"""The first segment of the paths that are not Pacifica Cartd's; no uid begins so."""
_UNKNOWN = PathRules((), public=False)


class PathTable:
    """The rules of paths, which are given as their non-empty segments."""

    def __init__(self, *apps: Klein) -> None:
        """Read the routes of all applications."""
        methods: dict[str, set[str]] = {}
        for app in apps:
            for rule in app.url_map.iter_rules():
                methods.setdefault(rule.rule, set()).update(rule.methods or ())
        self.rules = {
            tuple(name for name in path.split("/") if name): PathRules(
                tuple(sorted(found)), public=path in _PUBLIC
            )
            for path, found in methods.items()
        }
        self._patterns: dict[int, list[tuple[str, ...]]] = {}
        """By number of segments, the paths with a segment that stands for any."""
        for path in self.rules:
            if any(map(_is_any, path)):
                self._patterns.setdefault(len(path), []).append(path)

    def find(self, path: Sequence[str]) -> PathRules | None:
        """Return the rules of ``path``, or None if it is unknown."""
        if exact := self.rules.get(tuple(path)):
            return exact
        for pattern in self._patterns.get(len(path), ()):
            if len(path) == 1 or all(map(_matches, path, pattern)):
                return self.rules[pattern]
        return None

    @property
    def methods(self) -> tuple[str, ...]:
        """All methods of all paths."""
        return tuple(sorted({method for one in self.rules.values() for method in one.methods}))


def _is_any(segment: str) -> bool:
    return segment.startswith("<")


def _matches(segment: str, pattern: str) -> bool:
    return segment == pattern or _is_any(pattern)


APPS = (Rest.app, Api.app, CartsApi.app, Monitoring.app, ProblemPages.app)
"""The API."""
_MONITORING = PathTable(Monitoring.app)
_PAGES = PathTable(Pages.variants)
_PATHS = PathTable(*APPS, Pages.app)


def path_rules(path: Sequence[str]) -> PathRules:
    """Return the rules of a path, given as non-empty segments; no methods if it is unknown."""
    return _PATHS.find(path) or _UNKNOWN


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
    rules = _MONITORING.find(path)
    return () if rules is None else rules.methods


MONITORING_RULES = RequestRules(
    _monitoring_methods,
    _MONITORING.methods,
)
"""The rules of an endpoint that serves nothing else."""

REQUEST_RULES = RequestRules(
    allowed_methods, _PATHS.methods, is_public=is_public, check_post=check_post
)
"""The rules for requests that follow from the routes."""
