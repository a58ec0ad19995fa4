"""The routes below ``/-/carts`` for the lists of files."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from klein import Klein
from twisted.python.failure import Failure
from twisted.web.server import Request

from cartd.carts.submit import Submissions
from cartd.errors import CartNotFound, InvalidInput
from cartd.http.api import CARTS
from cartd.http.request import failure_response
from cartd.http.routes import viewer_of
from cartd.http.streaming import send_pieces
from cartd.model import Cart, FileStatus
from cartd.status.listing import FileLists, FileQuery

MAX_FILES = 10_000
"""Files of one page."""
DEFAULT_FILES = 1000
MAX_POSITION = 2**31 - 1
MAX_ID = 2**63 - 1
T = TypeVar("T")
JSON = "application/json"
NDJSON = "application/x-ndjson"
FILE_STATUSES = {
    **{status.value: status for status in FileStatus},
    "failed": FileStatus.ERROR,
}


class CartsApi:
    """Klein routes for :class:`FileLists`."""

    app = Klein()
    app.url_map.strict_slashes = False

    def __init__(
        self,
        submissions: Submissions,
        file_lists: FileLists,
        *,
        recovered: Callable[[], Awaitable[None]],
    ) -> None:
        """All requests wait for ``recovered()``."""
        self._submissions = submissions
        self._file_lists = file_lists
        self._recovered = recovered

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

    async def _find(self, request: Request, uid: str) -> Cart:
        return await self._submissions.find(viewer_of(request), uid)

    @app.handle_errors(Exception)
    def failed(self, request: Any, failure: Failure) -> bytes:
        """Return the error response for any exception of a route."""
        return failure_response(request, failure)


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
        return values[0].decode() if values else None
    except UnicodeDecodeError:
        raise InvalidInput(f"{name}: must be UTF-8") from None


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
