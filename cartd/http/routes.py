"""The REST interface: routes and their HTTP responses, without logic of its own.

The rules that a request is checked against before its body is received are read from the routes.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import Any

from klein import Klein
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.server import Request

from cartd import __version__
from cartd.carts.description import TarDescription
from cartd.carts.download import Download, Downloads, NotReady
from cartd.carts.submit import Submissions
from cartd.errors import (
    INTERNAL_ERROR,
    CartdError,
    CartFailed,
    Conflict,
    DiskUnavailable,
    FileUnreadable,
    InvalidInput,
    Problem,
    RangeNotSatisfiable,
    VolumeDamaged,
    VolumeNotWritable,
)
from cartd.http.headers import (
    NO_STORE,
    PUBLIC,
    REVALIDATED,
    check_filename,
    content_disposition,
    escape_header,
)
from cartd.http.ranges import (
    CONDITIONAL,
    UNCONDITIONAL,
    ByteRange,
    Conditions,
    Decision,
    Representation,
    evaluate_conditions,
    http_date,
)
from cartd.http.request import (
    RETRY_AFTER,
    LimitedRequest,
    failure_response,
    header_field,
    prepare_error,
)
from cartd.model import Cart, CartFormat, CartStatus, Viewer
from cartd.page.problems import PROBLEMS
from cartd.sending.reader import SendingReader
from cartd.sending.sender import ClientDisconnected
from cartd.status.documents import StatusDocuments


def _load_openapi() -> bytes:
    """Return the OpenAPI description as it is served: ``openapi.json`` with cartd's version."""
    document = json.loads(Path(__file__).with_name("openapi.json").read_bytes())
    document["info"]["version"] = __version__
    return (json.dumps(document, indent=2) + "\n").encode()


OPENAPI_PATH = "/-/openapi.json"
"""No uid begins with ``-``, so this path cannot be that of a cart."""
PUBLIC_PATHS = frozenset({"/", OPENAPI_PATH, PROBLEMS, f"{PROBLEMS}/<name>"})
"""The paths of the routes that need no authentication."""

OPENAPI = _load_openapi()
OPENAPI_ETAG = f'"{sha256(OPENAPI).hexdigest()}"'

Fields = tuple[tuple[bytes, bytes], ...]
"""Header names and values in printable ASCII."""
MAX_RETRY_AFTER = 300
"""Seconds; a client that comes back then learns a better estimate."""
HEADER_CACHE_SIZE = 1024
"""Number of carts whose headers are cached."""
FILES_FAILED = "X-Pacifica-Files-Failed"
"""Sent with partial carts only."""

_OLD_REQUESTS = re.compile(rb"python-requests/2\.([12]?[0-9]|3[01])(\.|$)")

log = Logger()


class Rest:
    """Klein routes for :class:`Submissions` and :class:`Downloads`."""

    app = Klein()
    app.url_map.strict_slashes = False  # a URL may end in a slash, as in Pacifica Cartd

    def __init__(
        self,
        submissions: Submissions,
        downloads: Downloads,
        *,
        send: Callable[[SendingReader, Request], Deferred[None]],
        recovered: Callable[[], Awaitable[None]],
        documents: StatusDocuments,
    ) -> None:
        """``send`` sends to the client, like :meth:`cartd.sending.sender.BaseSender.start`.

        All requests for carts wait for ``recovered()``.  ``documents`` gives URLs and estimates.
        """
        self._documents = documents
        self._submissions = submissions
        self._downloads = downloads
        self._sender = send
        self._recovered = recovered

    @app.route("/", methods=["GET"])
    def root(self, request: Request) -> bytes:
        body = json.dumps({"message": "Pacifica Cartd Interface Up and Running"}).encode()
        return static_response(request, body, None)

    @app.route(OPENAPI_PATH, methods=["GET"])
    def openapi_document(self, request: Request) -> bytes:
        return static_response(request, OPENAPI, OPENAPI_ETAG, PUBLIC)

    # Klein uses the first route that accepts HEAD, so this one must precede GET.
    @app.route("/<uid>", methods=["HEAD"])
    async def head(self, request: Request, uid: str) -> bytes:
        """Send the status; for a ready cart and any query, the headers of a GET."""
        with _errors_in_headers(request):
            name, format_ = _filename(request), _format(request)
            named = name is not None or format_ is not None
            await self._recovered()
            cart = await self._submissions.find(viewer_of(request), uid)
            _set_status_headers(request, cart)
            if cart.status == CartStatus.ERROR:
                raise CartFailed(cart.error, cart.problem)
            request.setResponseCode(204)
            if cart.status != CartStatus.READY or (not named and cart.bytes_total is None):
                return b""  # a cart of Pacifica has no sizes until it is measured
            try:
                tar = await self._downloads.describe(cart, name, format_)
            except NotReady as error:
                _set_status_headers(request, error.cart)
                return b""
            except Conflict:
                if named:
                    raise
                return b""  # the status is requested, which is ready
            await self._set_head_headers(request, cart, tar, named=named)
        return b""

    async def _set_head_headers(
        self, request: Request, cart: Cart, tar: TarDescription, *, named: bool
    ) -> None:
        conditions, held = conditions_of(request), False
        if conditions is not UNCONDITIONAL:
            decision = await self._downloads.evaluate_conditions("HEAD", conditions, cart, tar)
            held = decision.status == HTTPStatus.NOT_MODIFIED
        _set_validators(request, tar)
        if held:
            _not_modified(request)
        elif named:
            request.setResponseCode(200)
            _set_download_headers(request, tar)
            set_header(request, "Content-Length", str(tar.length))

    @app.route("/<uid>", methods=["GET"])
    async def get(self, request: Request, uid: str) -> bytes:
        with _errors_in_headers(request):
            name, format_ = _filename(request), _format(request)
            await self._recovered()
            async with (
                self._progress_in_headers(request),
                self._downloads.open(viewer_of(request), uid, name, format_) as download,
            ):
                _set_status_headers(request, download.cart)
                decision = await self._decide(request, download)
                _set_validators(request, download)
                if decision.status == HTTPStatus.NOT_MODIFIED:
                    _not_modified(request)
                    return b""
                request.setResponseCode(decision.status)
                _set_download_headers(request, download)
                _set_length(request, decision.selected, download.length)
                await self._send(request, download, decision.selected)
        return b""

    @asynccontextmanager
    async def _progress_in_headers(self, request: Request) -> AsyncIterator[None]:
        """Set the link to the status, and when to come back, if a cart is not ready."""
        try:
            yield
        except NotReady as error:
            if not conditions_of(request).is_conditional:
                self._link_status(request, error.cart.uid)
                seconds = await self._documents.seconds_left(error.cart.id)
                set_header(request, "Retry-After", _retry_after(seconds))
            raise

    def _link_status(self, request: Request, uid: str) -> None:
        set_header(request, "Link", f'<{self._documents.urls(uid).status}>; rel="monitor"')

    async def _decide(self, request: Request, download: Download) -> Decision:
        conditions = conditions_of(request)
        try:
            return await self._downloads.evaluate_conditions(
                "GET", conditions, download.cart, download
            )
        except RangeNotSatisfiable:
            set_header(request, "Content-Range", f"bytes */{download.length}")
            raise

    @app.route("/<uid>", methods=["POST"])
    async def post(self, request: Request, uid: str) -> bytes:
        assert request.content is not None
        await self._recovered()
        await self._submissions.post(
            viewer_of(request), uid, request.content, lambda: self._check_conditions(request, uid)
        )
        request.setResponseCode(201)
        set_header(request, "Location", self._documents.urls(uid).cart)
        self._link_status(request, uid)
        return _json_response(request, {"message": "Cart Processing has begun"})

    @app.route("/<uid>", methods=["DELETE"])
    async def delete(self, request: Request, uid: str) -> bytes:
        await self._recovered()
        await self._check_conditions(request, uid)
        await self._submissions.delete(viewer_of(request), uid)
        return _json_response(request, {"message": "Cart Deleted Successfully"})

    async def _check_conditions(self, request: Request, uid: str) -> None:
        """Raise PreconditionFailed if the carts of ``uid`` must not be changed."""
        conditions = conditions_of(request)
        if conditions.has_precondition:
            method = request.method.decode("ascii")
            viewer, name, format_ = viewer_of(request), _filename(request), _format(request)
            await self._downloads.check_write_conditions(
                method, conditions, viewer, uid, name, format_
            )

    async def _send(self, request: Request, download: Download, wanted: ByteRange) -> None:
        """Send the bytes.  On failure abort the connection, or raise if nothing was sent yet."""
        try:
            reader = await download.reader(wanted.start, wanted.stop)
            await self._sender(reader, request)
        except ClientDisconnected:
            log.debug("{cart}: the client disconnected while it was sent", cart=download.cart)
            await abort(request)
        except VolumeDamaged as error:
            unreadable = error.path if isinstance(error, FileUnreadable) else None
            reported = self._downloads.restage(download.cart, unreadable)
            reported.addCallback(_log_damage, download.cart, error)
            if not request.startedWriting:
                result = await reported
                await self._downloads.check_ready(download.cart)
                raise result from error
            await abort(request)
        except DiskUnavailable as error:
            if not request.startedWriting:
                raise
            log.warn(
                "{cart}: sending it was aborted: {error}",
                cart=download.cart,
                error=error,
            )
            await abort(request)
        except Exception:
            if not request.startedWriting:
                raise
            log.failure("{cart}: sending it failed", cart=download.cart)
            await abort(request)

    @app.handle_errors(Exception)
    def failed(self, request: Any, failure: Failure) -> bytes:
        """Return the error response for any exception of a route."""
        error = failure.value
        if isinstance(error, NotReady):
            if conditions_of(request).is_conditional:
                # A client that resumes would mistake a 2xx for the rest of the tar.
                _remove_download_headers(request, 503)
                return prepare_error(request, 503, str(error), problem=Problem.NOT_READY)
            # Not an error: plain text, as in Pacifica Cartd, with Retry-After.
            if not request.responseHeaders.hasHeader("Retry-After"):
                set_header(request, "Retry-After", RETRY_AFTER)
            return response(request, 202, "text/plain", str(error).encode())
        code = error.code if isinstance(error, CartdError) else 500
        _remove_download_headers(request, code)
        return failure_response(request, failure)


def _log_damage(result: CartdError, cart: Cart, damage: VolumeDamaged) -> CartdError:
    """Log the damage, unless the volume is at fault, which is logged once elsewhere.

    Otherwise each request for a cart that cannot be repaired would log a line.
    """
    if not isinstance(result, VolumeNotWritable):
        log.warn("{cart} is not sent: {error}", cart=cart, error=damage)
    return result


async def abort(request: Request) -> None:
    """Abort the connection and wait until it is closed, so that the response stays incomplete."""
    channel: Any = request.channel
    if channel is None:
        return  # already closed: notifyFinish would never fire
    broken = request.notifyFinish()
    channel.transport.abortConnection()
    with suppress(Exception, CancelledError):
        await broken


def viewer_of(request: Request) -> Viewer:
    """Return the viewer, which owns new carts and whose carts are visible."""
    assert isinstance(request, LimitedRequest)
    return Viewer.of(request.authenticated_user)


def conditions_of(request: Request) -> Conditions:
    sent = (name for name, _ in request.requestHeaders.getAllRawHeaders())
    if CONDITIONAL.isdisjoint(sent):
        return UNCONDITIONAL
    return Conditions.read(lambda name: header_field(request, name))


def _retry_after(seconds: float | None) -> str:
    """Return the Retry-After for a cart that may be ready in so many seconds, if that is known."""
    if seconds is None:
        return RETRY_AFTER
    return str(round(min(max(seconds, int(RETRY_AFTER)), MAX_RETRY_AFTER)))


def _filename(request: Request) -> str | None:
    values = request.args.get(b"filename")
    if not values:
        return None
    try:
        return check_filename(values[0].decode())
    except UnicodeDecodeError:
        raise InvalidInput("filename: must be UTF-8") from None


def _format(request: Request) -> CartFormat | None:
    """Return the requested format; None without one."""
    values = request.args.get(b"format")
    if not values:
        return None
    try:
        return CartFormat(values[0].decode("latin-1"))
    except ValueError:
        raise InvalidInput(f"format: must be {' or '.join(CartFormat)}") from None


def _set_validators(request: Request, tar: TarDescription) -> None:
    """Set the validators and the length of the tar, and Accept-Ranges."""
    _set_fields(request, _validators(tar.etag, tar.last_modified, tar.length))


@lru_cache(maxsize=HEADER_CACHE_SIZE)
def _validators(etag: str, last_modified: float, length: int) -> Fields:
    return _fields(
        {
            "ETag": etag,
            "Last-Modified": http_date(last_modified),
            "Accept-Ranges": "bytes",
            "X-Pacifica-Tar-Length": str(length),
        }
    )


def _set_download_headers(request: Request, tar: TarDescription) -> None:
    set_header(request, "Cache-Control", REVALIDATED)
    set_header(request, "Content-Type", "application/octet-stream")
    set_header(request, "Content-Disposition", content_disposition(tar.name))


def _set_length(request: Request, selected: ByteRange, length: int) -> None:
    """Set Content-Length; without it, for some old clients, the response is chunked."""
    if not _accepts_truncated_bodies(request):
        set_header(request, "Content-Length", str(selected.stop - selected.start))
    if selected.partial:
        set_header(request, "Content-Range", f"bytes {selected.start}-{selected.stop - 1}/{length}")


def _accepts_truncated_bodies(request: Request) -> bool:
    """Return whether the client may use urllib3 1, and requests the complete tar.

    urllib3 1 raises no error if a body is shorter than its Content-Length, so Pacifica's downloader
    would accept a truncated tar if this process died.  It does raise for a truncated chunk, and
    Pacifica Cartd sent chunks.  Nearly all clients with requests 2.32 or later have urllib3 2.
    """
    return (
        request.clientproto == b"HTTP/1.1"
        and not request.requestHeaders.hasHeader(b"range")
        and _OLD_REQUESTS.match(request.getHeader(b"user-agent") or b"") is not None
    )


def _not_modified(request: Request) -> None:
    """Set 304, with only the headers that caches need (RFC 9110, section 15.4.5)."""
    request.setResponseCode(304)
    set_header(request, "Cache-Control", REVALIDATED)
    for name in ("Accept-Ranges", "Last-Modified", "X-Pacifica-Tar-Length"):
        request.responseHeaders.removeHeader(name)


@contextmanager
def _errors_in_headers(request: Request) -> Iterator[None]:
    """Set the status headers for an error, too: some clients and caches read only these."""
    try:
        yield
    except NotReady as error:
        _set_status_headers(request, error.cart)
        raise
    except Conflict:
        raise  # of the request: the cart is not in error
    except Exception as error:
        if not request.responseHeaders.hasHeader("X-Pacifica-Status"):
            set_header(request, "X-Pacifica-Status", CartStatus.ERROR)
            message = str(error) if isinstance(error, CartdError) else INTERNAL_ERROR
            set_header(request, "X-Pacifica-Message", message)
        raise


def _set_status_headers(request: Request, cart: Cart) -> None:
    fields = _status_fields(
        cart.status,
        cart.message,
        (cart.files_staged, cart.files_total),
        None if cart.bytes_total is None else (cart.bytes_staged, cart.bytes_total),
    )
    _set_fields(request, fields)
    if cart.is_partial:
        set_header(request, FILES_FAILED, str(cart.files_failed))
    else:  # it may have been set before the cart was found damaged
        request.responseHeaders.removeHeader(FILES_FAILED)


@lru_cache(maxsize=HEADER_CACHE_SIZE)
def _status_fields(
    status: CartStatus, message: str, files: tuple[int, int], sizes: tuple[int, int] | None
) -> Fields:
    # Pacifica's clients poll while the status is staging, and stop at any other.
    bundling = status == CartStatus.BUNDLING
    fields = {
        "X-Pacifica-Status": CartStatus.STAGING if bundling else status,
        "X-Pacifica-Phase": status,
        "X-Pacifica-Message": message,
        "X-Pacifica-Files-Total": str(files[1]),
        "X-Pacifica-Files-Staged": str(files[0]),
    }
    if sizes is not None:
        fields["X-Pacifica-Bytes-Total"] = str(sizes[1])
        fields["X-Pacifica-Bytes-Staged"] = str(sizes[0])
    return _fields(fields)


def _fields(values: Mapping[str, str]) -> Fields:
    return tuple((name.encode(), escape_header(value).encode()) for name, value in values.items())


def _set_fields(request: Request, fields: Fields) -> None:
    """Set headers that are encoded already: clients poll, so these are cached."""
    for name, value in fields:
        request.responseHeaders.setRawHeaders(name, [value])


def set_header(request: Request, name: str, value: str) -> None:
    """Set a header; escapes all but printable ASCII, against header injection."""
    request.setHeader(name, escape_header(value))


def static_response(
    request: Request, body: bytes, etag: str | None, cache_control: str = NO_STORE
) -> bytes:
    """Return a static response, subject to the conditions of the request."""
    method = request.method.decode("ascii")
    conditions = replace(conditions_of(request), range=None)
    current = Representation(len(body), etag)
    # It has no date, so ``now`` is not used.
    decision = evaluate_conditions(method, conditions, current, now=0.0)
    if decision.status == HTTPStatus.NOT_MODIFIED:
        request.setResponseCode(304)
        body = b""
    else:
        response(request, 200, "application/json", body)
    if etag is not None:
        set_header(request, "ETag", etag)
    set_header(request, "Cache-Control", cache_control)
    return body


def _json_response(request: Request, answer: dict[str, str]) -> bytes:
    return response(request, request.code, "application/json", json.dumps(answer).encode())


def response(request: Request, code: int, content_type: str, body: bytes) -> bytes:
    """Set status and headers of a short response; return its body."""
    _remove_download_headers(request, code)
    request.setResponseCode(code)
    set_header(request, "Content-Type", content_type)
    set_header(request, "Content-Length", str(len(body)))
    return body


def _remove_download_headers(request: Request, code: int) -> None:
    """Remove the headers of a download that was being prepared."""
    set_header(request, "Cache-Control", NO_STORE)
    for name in (
        *("Content-Disposition", "Accept-Ranges", "ETag", "Last-Modified"),
        "X-Pacifica-Tar-Length",
    ):
        request.responseHeaders.removeHeader(name)
    if code != 416:
        request.responseHeaders.removeHeader("Content-Range")
