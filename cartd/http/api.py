"""The routes below ``/-/carts``: status documents, and what belongs to them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Any

from klein import Klein
from msgspec.json import encode
from twisted.python.failure import Failure
from twisted.web.server import Request

from cartd.http.event_stream import send_events, set_stream_headers
from cartd.http.request import failure_response, header_field
from cartd.http.routes import static_response, viewer_of
from cartd.status.documents import StatusDocuments
from cartd.status.events import Events, parse_event_id

CARTS = "/-/carts"


class Api:
    """Klein routes for :class:`StatusDocuments` and :class:`Events`."""

    app = Klein()
    app.url_map.strict_slashes = False

    def __init__(
        self,
        documents: StatusDocuments,
        events: Events,
        *,
        recovered: Callable[[], Awaitable[None]],
    ) -> None:
        """All requests wait for ``recovered()``."""
        self._documents = documents
        self._events = events
        self._recovered = recovered

    @app.route(f"{CARTS}/<uid>", methods=["GET"])
    async def status(self, request: Request, uid: str) -> bytes:
        await self._recovered()
        body = encode(await self._documents.newest(viewer_of(request), uid))
        return static_response(request, body, f'"{sha256(body).hexdigest()[:32]}"')

    @app.route(f"{CARTS}/<uid>/events", methods=["GET"])
    async def events(self, request: Request, uid: str) -> bytes:
        await self._recovered()
        viewer = viewer_of(request)
        if request.method == b"HEAD":
            await self._documents.newest(viewer, uid)
            set_stream_headers(request)
            return b""
        seen = parse_event_id(header_field(request, "Last-Event-ID"))
        async with self._events.subscribe(viewer, uid, seen) as subscription:
            if subscription is None:
                request.setResponseCode(204)
            else:
                await send_events(request, subscription)
        return b""

    @app.handle_errors(Exception)
    def failed(self, request: Any, failure: Failure) -> bytes:
        """Return the error response for any exception of a route."""
        return failure_response(request, failure)
