"""The pages about the problem types, at the URLs that problem details have as their ``type``."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from klein import Klein
from twisted.python.failure import Failure
from twisted.web.server import Request

from cartd.errors import CartdError, Problem
from cartd.http.headers import PUBLIC, quality_of
from cartd.http.problem_types import PROBLEM_TYPES
from cartd.http.request import failure_response
from cartd.http.routes import set_header, static_response
from cartd.page.layout import HEADERS, HTML, Page, Visitor, prefix_of, rendered
from cartd.page.problems import PROBLEMS, problem_page, problems_page

TEXT = "text/plain; charset=utf-8"


class NoSuchProblem(CartdError):
    """There is no problem type of this name."""

    code = 404
    problem = Problem.NOT_FOUND


@dataclass(frozen=True, slots=True)
class _Body:
    data: bytes
    etag: str

    @classmethod
    def of(cls, data: bytes) -> _Body:
        return cls(data, f'"{sha256(data).hexdigest()[:32]}"')


class ProblemPages:
    """Klein routes of the pages, which need no authentication and are the same for all clients."""

    app = Klein()
    app.url_map.strict_slashes = False

    def __init__(self, public_url: str | None = None) -> None:
        """``public_url``: the address of the service, if it is not the one that clients use."""
        visitor = Visitor("", prefix=prefix_of(public_url), auth=True)
        # By the last segment of the path, which is empty for the list.
        self._html = {name: _Body.of(rendered(page, visitor)) for name, page in _pages().items()}
        self._text = {name: _Body.of(text.encode()) for name, text in _texts().items()}

    @app.route(PROBLEMS, methods=["GET"])
    def all(self, request: Request) -> bytes:
        return self._send(request, "")

    @app.route(f"{PROBLEMS}/<name>", methods=["GET"])
    def one(self, request: Request, name: str) -> bytes:
        return self._send(request, name)

    @app.handle_errors(Exception)
    def failed(self, request: Any, failure: Failure) -> bytes:
        """Return the error response for any exception of a route."""
        return failure_response(request, failure)

    def _send(self, request: Request, name: str) -> bytes:
        """Send a page as HTML to clients that name it in Accept, else as text."""
        accepted = request.requestHeaders.getRawHeaders(b"accept", [])
        html = quality_of(accepted, b"text/html") > 0
        found = (self._html if html else self._text).get(name)
        if found is None:
            raise NoSuchProblem(
                f"There is no problem type {name[:100]}; {PROBLEMS} lists all of them"
            )
        body = static_response(request, found.data, found.etag, PUBLIC)
        request.responseHeaders.addRawHeader(b"Vary", b"Accept")
        for header, value in HEADERS:
            set_header(request, header, value)
        set_header(request, "Content-Type", HTML if html else TEXT)
        return body


def _pages() -> dict[str, Page]:
    return {
        "": problems_page({name: about.title for name, about in PROBLEM_TYPES.items()}),
        **{
            name: problem_page(name, about.title, about.meaning, about.remedy)
            for name, about in PROBLEM_TYPES.items()
        },
    }


def _texts() -> dict[str, str]:
    return {
        "": "".join(f"{name}: {about.title}\n" for name, about in PROBLEM_TYPES.items()),
        **{
            name: f"{name}: {about.title}\n\n{about.meaning}\n\nWhat to do: {about.remedy}\n"
            for name, about in PROBLEM_TYPES.items()
        },
    }
