"""The routes for lists of carts and files, for labels, retries and plans."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from http import HTTPStatus
from typing import IO, Any, TypeVar

from klein import Klein
from msgspec.json import encode
from twisted.python.failure import Failure
from twisted.web.server import Request

from cartd.carts.plan import Planner
from cartd.carts.submit import Submissions
from cartd.checksum import canonical_name
from cartd.errors import CartFailed, CartNotFound, InvalidInput, Problem, TooLarge
from cartd.http.api import CARTS
from cartd.http.headers import NO_STORE
from cartd.http.ranges import Representation, evaluate_conditions
from cartd.http.request import RETRY_AFTER, failure_response, prepare_error
from cartd.http.routes import conditions_of, response, set_header, viewer_of
from cartd.http.streaming import send_pieces
from cartd.manifest import parse_labels
from cartd.model import Cart, CartStatus, FileStatus, Outcome
from cartd.status.documents import StatusDocuments
from cartd.status.listing import CartLists, CartQuery, FileLists, FileQuery

PLAN = "/-/plan"
MAX_FILES = 10_000
"""Files of one page."""
DEFAULT_FILES = 1000
MAX_CARTS = 200
"""Carts of one page."""
DEFAULT_CARTS = 50
MAX_BODY = 16 * 2**10
"""Bytes of a body that is read at once; one that is not longer is in memory."""
MAX_POSITION = 2**31 - 1
MAX_ID = 2**63 - 1
T = TypeVar("T")
JSON = "application/json"
NDJSON = "application/x-ndjson"
TEXT = "text/plain; charset=utf-8"
CHECKSUMS_VERSION = 1
"""Raised when the lines of checksum files change."""
CART_STATUSES = {
    **{status.value: status for status in CartStatus if status is not CartStatus.DELETED},
    "failed": CartStatus.ERROR,
    "partial": CartStatus.READY,
}
FILE_STATUSES = {
    **{status.value: status for status in FileStatus},
    "failed": FileStatus.ERROR,
}


class CartsApi:
    """Klein routes for :class:`CartLists`, :class:`FileLists`, :class:`Planner` and others."""

    app = Klein()
    app.url_map.strict_slashes = False

    def __init__(
        self,
        submissions: Submissions,
        documents: StatusDocuments,
        file_lists: FileLists,
        cart_lists: CartLists,
        planner: Planner,
        *,
        recovered: Callable[[], Awaitable[None]],
    ) -> None:
        """All requests wait for ``recovered()``."""
        self._submissions = submissions
        self._documents = documents
        self._file_lists = file_lists
        self._cart_lists = cart_lists
        self._planner = planner
        self._recovered = recovered

    @app.route(CARTS, methods=["GET"])
    async def carts(self, request: Request) -> bytes:
        """Send a page of carts."""
        query = CartQuery(
            limit=integer(request, "limit", 1, MAX_CARTS) or DEFAULT_CARTS,
            status=choice(request, "status", CART_STATUSES),
            partial=text(request, "status") == Outcome.PARTIAL,
            label=text(request, "label"),
            owner=text(request, "owner"),
            before=integer(request, "after", 1, MAX_ID),
        )
        await self._recovered()
        return json_response(request, await self._cart_lists.page(viewer_of(request), query))

    @app.route(f"{CARTS}/<uid>/files", methods=["GET"])
    async def files(self, request: Request, uid: str) -> bytes:
        """Send a page of files, or all of them as lines."""
        as_lines = accepts(request, NDJSON)
        limit, after = (
            integer(request, "limit", 1, MAX_FILES),
            integer(request, "after", 0, MAX_POSITION),
        )
        query = FileQuery(
            status=choice(request, "status", FILE_STATUSES),
            after=-1 if after is None else after,
            limit=limit if as_lines or limit is not None else DEFAULT_FILES,
        )
        wanted = integer(request, "cart", 0, MAX_ID)
        await self._recovered()
        cart = await self._find(request, uid)
        if wanted is not None and wanted != cart.id:
            raise CartNotFound("The cart was deleted or posted again meanwhile: begin a new list")
        request.setHeader(b"Vary", b"Accept")
        if as_lines:
            return await send_pieces(request, NDJSON, self._file_lists.lines(cart, query))
        return await send_pieces(request, JSON, self._file_lists.page(cart, query))

    @app.route(f"{CARTS}/<uid>/checksums", methods=["GET"])
    async def checksums(self, request: Request, uid: str) -> bytes:
        """Send a checksum file of a ready cart."""
        hash_type = text(request, "type")
        try:
            wanted = None if hash_type is None else canonical_name(hash_type)
        except ValueError as error:
            raise InvalidInput(f"type: {error}") from None
        await self._recovered()
        cart = await self._find(request, uid)
        if cart.status is CartStatus.ERROR:
            raise CartFailed(cart.error, cart.problem)
        if cart.status is not CartStatus.READY:
            message = "The cart is not ready, so not all checksums are known"
            return prepare_error(request, 503, message, problem=Problem.NOT_READY)
        etag = checksums_etag(cart, wanted)
        if not_modified(request, etag):
            return b""
        lines = self._file_lists.checksums(cart, wanted)
        return await send_pieces(request, TEXT, lines, etag)

    @app.route(f"{CARTS}/<uid>/labels", methods=["PUT"])
    async def labels(self, request: Request, uid: str) -> bytes:
        """Replace the labels of the newest cart."""
        assert request.content is not None
        labels = parse_labels(short_body(request.content))
        await self._recovered()
        await self._submissions.set_labels(viewer_of(request), uid, labels)
        return json_response(request, {"labels": labels})

    @app.route(f"{CARTS}/<uid>/retry", methods=["POST"])
    async def retry(self, request: Request, uid: str) -> bytes:
        """Stage the newest cart again, in error or partial; send its new status document."""
        await self._recovered()
        cart = await self._submissions.retry(viewer_of(request), uid)
        document = (await self._documents.for_carts([cart.id]))[cart.id]
        body = response(request, 202, JSON, encode(document))
        set_header(request, "Link", f'<{document.links["self"]}>; rel="monitor"')
        set_header(request, "Retry-After", RETRY_AFTER)
        return body

    @app.route(PLAN, methods=["POST"])
    async def plan(self, request: Request) -> bytes:
        """Send what a cart of the manifest would take."""
        assert request.content is not None
        await self._recovered()
        return json_response(request, await self._planner.plan(viewer_of(request), request.content))

    async def _find(self, request: Request, uid: str) -> Cart:
        return await self._submissions.find(viewer_of(request), uid)

    @app.handle_errors(Exception)
    def failed(self, request: Any, failure: Failure) -> bytes:
        """Return the error response for any exception of a route."""
        return failure_response(request, failure)


def checksums_etag(cart: Cart, wanted: str | None) -> str:
    """Return the ETag of a checksum file: a cart's hashes do not change while it is ready."""
    version = f"{CHECKSUMS_VERSION} {cart.id} {cart.updated!r} {wanted}"
    return f'"{sha256(version.encode()).hexdigest()[:32]}"'


def not_modified(request: Request, etag: str) -> bool:
    """Set status and headers of a 304 if the client has what ``etag`` names; else return False.

    :raises PreconditionFailed: a condition of the request does not hold.
    """
    conditions = replace(conditions_of(request), range=None)
    decision = evaluate_conditions(
        request.method.decode("ascii"), conditions, Representation(0, etag), now=0.0
    )
    if decision.status != HTTPStatus.NOT_MODIFIED:
        return False
    request.setResponseCode(304)
    set_header(request, "ETag", etag)
    set_header(request, "Cache-Control", NO_STORE)
    return True


def json_response(request: Request, document: object) -> bytes:
    return response(request, 200, JSON, encode(document))


def short_body(body: IO[bytes]) -> bytes:
    """Return a body of at most ``MAX_BODY`` bytes.

    :raises TooLarge: it is longer.
    """
    size = body.seek(0, os.SEEK_END)
    body.seek(0)
    if size > MAX_BODY:
        raise TooLarge(f"The body exceeds {MAX_BODY} bytes")
    return body.read()


def accepts(request: Request, media_type: str) -> bool:
    """Return whether the client names ``media_type`` in Accept (RFC 9110, section 12.5.1)."""
    for value in request.requestHeaders.getRawHeaders("accept", []):
        for item in value.split(","):
            name, *parameters = (part.strip().lower() for part in item.split(";"))
            if name == media_type:
                return not any(_is_zero(parameter) for parameter in parameters)
    return False


def _is_zero(parameter: str) -> bool:
    name, _, value = parameter.partition("=")
    return name == "q" and value.strip("0.") == ""


def text(request: Request, name: str) -> str | None:
    """Return the first value of a parameter of the query."""
    values: Sequence[bytes] = (request.args or {}).get(name.encode(), ())
    try:
        value = values[0].decode() if values else None
    except UnicodeDecodeError:
        raise InvalidInput(f"{name}: must be UTF-8") from None
    if value is not None and "\0" in value:
        raise InvalidInput(f"{name}: must not contain NUL")
    return value


def integer(request: Request, name: str, least: int, most: int) -> int | None:
    """Return a parameter that is a whole number."""
    value = text(request, name)
    if value is None:
        return None
    digits = value.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        raise InvalidInput(f"{name}: must be a whole number from {least} to {most}")
    if not least <= int(value) <= most:
        raise InvalidInput(f"{name}: must be from {least} to {most}")
    return int(value)


def choice(request: Request, name: str, values: Mapping[str, T]) -> T | None:
    """Return the meaning of a parameter that is one of ``values``."""
    value = text(request, name)
    if value is None:
        return None
    if value not in values:
        raise InvalidInput(f"{name}: must be one of {', '.join(sorted(values))}")
    return values[value]
