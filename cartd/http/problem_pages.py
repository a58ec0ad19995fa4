"""The pages about the problem types, at the URLs that problem details have as their ``type``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from typing import Any

from klein import Klein
from twisted.python.failure import Failure
from twisted.web.server import Request

from cartd.errors import CartdError, Problem
from cartd.http.headers import PUBLIC, quality_of
from cartd.http.problem_types import PROBLEM_TYPES
from cartd.http.problems import PROBLEMS
from cartd.http.request import failure_response
from cartd.http.routes import set_header, static_response

HTML = "text/html; charset=utf-8"
TEXT = "text/plain; charset=utf-8"
CONTENT_SECURITY_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'"


class NoSuchProblem(CartdError):
    """There is no problem type of this name."""

    code = 404
    problem = Problem.NOT_FOUND


@dataclass(frozen=True, slots=True)
class _Page:
    body: bytes
    etag: str

    @classmethod
    def of(cls, text: str) -> _Page:
        body = text.encode()
        return cls(body, f'"{sha256(body).hexdigest()[:32]}"')


class ProblemPages:
    """Klein routes of the pages, which need no authentication."""

    app = Klein()
    app.url_map.strict_slashes = False

    @app.route(PROBLEMS, methods=["GET"])
    def all(self, request: Request) -> bytes:
        return _send(request, "")

    @app.route(f"{PROBLEMS}/<name>", methods=["GET"])
    def one(self, request: Request, name: str) -> bytes:
        return _send(request, name)

    @app.handle_errors(Exception)
    def failed(self, request: Any, failure: Failure) -> bytes:
        """Return the error response for any exception of a route."""
        return failure_response(request, failure)


def _send(request: Request, name: str) -> bytes:
    """Send a page as HTML to clients that name it in Accept, else as text."""
    html = quality_of(request.requestHeaders.getRawHeaders(b"accept", []), b"text/html") > 0
    page = (_HTML if html else _TEXT).get(name)
    if page is None:
        raise NoSuchProblem(f"There is no problem type {name[:100]}; {PROBLEMS} lists all of them")
    body = static_response(request, page.body, page.etag, PUBLIC)
    request.responseHeaders.addRawHeader(b"Vary", b"Accept")
    set_header(request, "Content-Type", HTML if html else TEXT)
    set_header(request, "Content-Security-Policy", CONTENT_SECURITY_POLICY)
    set_header(request, "X-Content-Type-Options", "nosniff")
    return body


def _as_text(problem: Problem) -> str:
    about = PROBLEM_TYPES[problem]
    return f"{problem}: {about.title}\n\n{about.meaning}\n\nWhat to do: {about.remedy}\n"


def _as_html(problem: Problem) -> str:
    about = PROBLEM_TYPES[problem]
    return (
        f"<h1>{_marked_up(about.title)}</h1>\n<p><code>{problem}</code></p>\n"
        f"<p>{_marked_up(about.meaning)}</p>\n"
        f"<p><strong>What to do:</strong> {_marked_up(about.remedy)}</p>\n"
        f"<p><a href='{PROBLEMS}'>All problems</a></p>\n"
    )


def _marked_up(text: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def _list_as_text() -> str:
    return "".join(f"{name}: {about.title}\n" for name, about in PROBLEM_TYPES.items())


def _list_as_html() -> str:
    lines = (
        f"<li><a href='{PROBLEMS}/{name}'>{_marked_up(about.title)}</a></li>\n"
        for name, about in PROBLEM_TYPES.items()
    )
    return f"<h1>Problems</h1>\n<ul>\n{''.join(lines)}</ul>\n"


def _document(title: str, content: str) -> str:
    return (
        "<!DOCTYPE html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        "<meta name='color-scheme' content='light dark'>\n"
        f"<title>{escape(title)}</title>\n</head>\n<body>\n<main>\n{content}</main>\n"
        "</body>\n</html>\n"
    )


def _pages(all_of_them: str, one: Callable[[Problem], str]) -> Mapping[str, _Page]:
    """Return the pages by the last segment of their path; that of the list is empty."""
    return {"": _Page.of(all_of_them), **{name: _Page.of(one(name)) for name in PROBLEM_TYPES}}


_TEXT = _pages(_list_as_text(), _as_text)
_HTML = _pages(
    _document("Problems", _list_as_html()),
    lambda name: _document(PROBLEM_TYPES[name].title, _as_html(name)),
)
