"""The routes below ``/-/carts``: status documents, and what belongs to them."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from hashlib import sha256
from http import HTTPStatus
from typing import Any

from klein import Klein
from msgspec.json import encode
from twisted.python.failure import Failure
from twisted.web.server import Request

from cartd.http.event_stream import send_events, set_stream_headers
from cartd.http.ranges import UNCONDITIONAL, Representation, evaluate_conditions
from cartd.http.request import failure_response, header_field
from cartd.http.routes import conditions_of, set_header, static_response, viewer_of
from cartd.status.document import Status
from cartd.status.documents import StatusDocuments
from cartd.status.events import Events, parse_event_id
from cartd.status.polling import LongPolls

CARTS = "/-/carts"
MAX_WAIT = 60
"""Seconds that a response is held at most: proxies end a request that takes longer."""
_SECONDS = re.compile("[0-9]{1,9}")


class Api:
    """Klein routes for :class:`StatusDocuments` and :class:`Events`."""

    app = Klein()
    app.url_map.strict_slashes = False

    def __init__(
        self,
        documents: StatusDocuments,
        events: Events,
        polls: LongPolls,
        *,
        recovered: Callable[[], Awaitable[None]],
    ) -> None:
        """All requests wait for ``recovered()``."""
        self._documents = documents
        self._events = events
        self._polls = polls
        self._recovered = recovered

    @app.route(f"{CARTS}/<uid>", methods=["GET"])
    async def status(self, request: Request, uid: str) -> bytes:
        """Send the document; with ``Prefer: wait``, when it changes (RFC 7240, section 4.3)."""
        await self._recovered()
        viewer = viewer_of(request)
        cart_id, document = await self._documents.newest_with_id(viewer, uid)
        body, etag = encoded(document)
        wait = min(preferred_wait(header_field(request, "Prefer")), MAX_WAIT)
        if wait and self._polls.has_room:
            set_header(request, "Preference-Applied", f"wait={wait}")
            if _is_known(request, etag) or (
                document.outcome is None and conditions_of(request) is UNCONDITIONAL
            ):
                await self._polls.wait(cart_id, document.version, wait)
                body, etag = encoded(await self._documents.newest(viewer, uid))
        return static_response(request, body, etag)

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


def encoded(document: Status) -> tuple[bytes, str]:
    """Return a document as JSON, and its ETag: its version, and a digest of all that it says."""
    body = encode(document)
    return body, f'"{document.version}-{sha256(body).hexdigest()[:24]}"'


def preferred_wait(prefer: str | None) -> int:
    """Return the seconds of ``wait`` in a Prefer header; 0 without a valid one.

    Of several, the first counts (RFC 7240, section 2).
    """
    for preference in (prefer or "").split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        if name.strip().lower() == "wait":
            return int(value) if _SECONDS.fullmatch(value := value.strip().strip('"')) else 0
    return 0


def _is_known(request: Request, etag: str) -> bool:
    """Whether the client has the document with this ETag."""
    known = replace(UNCONDITIONAL, if_none_match=conditions_of(request).if_none_match)
    decision = evaluate_conditions("GET", known, Representation(0, etag), now=0.0)
    return decision.status == HTTPStatus.NOT_MODIFIED
