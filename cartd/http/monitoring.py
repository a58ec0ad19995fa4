"""The routes for monitoring: health, for load balancers and administrators, and metrics."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from klein import Klein
from msgspec import Struct
from msgspec.json import encode
from twisted.internet.address import UNIXAddress
from twisted.python.failure import Failure
from twisted.web.server import Request
from werkzeug.exceptions import HTTPException

from cartd.errors import INTERNAL_ERROR
from cartd.http.access_log import client_address
from cartd.http.request import header_field, log_internal_error, prepare_error
from cartd.http.routes import response, set_header
from cartd.status.exposition import Exposition
from cartd.status.health import Health, Level, Readiness

HEALTHY_PATH = "/-/healthy"
READY_PATH = "/-/ready"
HEALTH_PATH = "/-/health"
METRICS_PATH = "/-/metrics"
PROBE_METHODS = ["GET", "OPTIONS"]
"""Beside HEAD, which Klein adds.  HAProxy probes with OPTIONS by default."""

_FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via")
"""Headers that proxies add."""

ADMINS_ONLY = (
    "Only administrators may read this: authenticate as one. Without [auth], only clients on the"
    " machine of the service may, and not through a proxy"
)

NO_METRICS = "There are no metrics at this address: see [metrics] in the configuration"


def may_administer(request: Any) -> bool:
    """Return whether the client may see what concerns all users: an admin, or a local process.

    For paths that are not public: so without a user, authentication is off.  Then a client counts
    as local if it connects from a loopback address or a Unix socket, and no header says that it
    is a proxy.
    """
    user = request.authenticated_user
    if user is not None:
        return bool(user.admin)
    if any(request.requestHeaders.hasHeader(name) for name in _FORWARDED):
        return False
    peer = request.getClientAddress()
    if isinstance(peer, UNIXAddress):
        return True
    address = client_address(peer)
    return address != "-" and ip_address(address).is_loopback


class Monitoring:
    """Klein routes for :class:`Health` and :class:`Exposition`."""

    app = Klein()
    app.url_map.strict_slashes = False

    def __init__(
        self, health: Health, exposition: Exposition | None, *, open_to_all: bool = False
    ) -> None:
        """``exposition``: None if there are no metrics here; ``open_to_all``: for all clients."""
        self._health = health
        self._exposition = exposition
        self._open_to_all = open_to_all

    @app.route(HEALTHY_PATH, methods=PROBE_METHODS)
    def healthy(self, request: Request) -> bytes:
        """Answer: the reactor runs, nothing else is asked."""
        return _probe_response(request, Readiness(status=Level.OK, reasons={}))

    @app.route(READY_PATH, methods=PROBE_METHODS)
    def ready(self, request: Request) -> bytes:
        return _probe_response(request, self._health.readiness())

    @app.route(HEALTH_PATH, methods=["GET"])
    def health(self, request: Request) -> bytes:
        if not may_administer(request):
            return prepare_error(request, 403, ADMINS_ONLY)
        document = self._health.document()
        return _json(request, 503 if document.status is Level.FAIL else 200, document)

    @app.route(METRICS_PATH, methods=["GET"])
    async def metrics(self, request: Any) -> bytes:
        if self._exposition is None:
            return prepare_error(request, 404, NO_METRICS)
        if not (self._open_to_all or may_administer(request)):
            return prepare_error(request, 403, ADMINS_ONLY)
        accept = header_field(request, "Accept") or ""
        body, content_type = await self._exposition.encoded(accept)
        request.access_logged = False
        set_header(request, "Vary", "Accept")
        return response(request, 200, content_type, body)

    @app.handle_errors(Exception)
    def failed(self, request: Any, failure: Failure) -> bytes:
        """Return the error response for any exception of a route."""
        if isinstance(failure.value, HTTPException):
            return prepare_error(request, 404, "Not Found")
        log_internal_error(request, failure)
        return prepare_error(request, 500, INTERNAL_ERROR)


def _probe_response(request: Any, readiness: Readiness) -> bytes:
    """Return the response to a load balancer, which asks every few seconds: no line is logged."""
    request.access_logged = False
    if request.method == b"OPTIONS":
        set_header(request, "Allow", "GET, HEAD, OPTIONS")
    return _json(request, 503 if readiness.status is Level.FAIL else 200, readiness)


def _json(request: Request, code: int, document: Struct) -> bytes:
    return response(request, code, "application/json", encode(document))
