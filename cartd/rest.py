"""The REST interface: routes, and how answers are spelt in HTTP; no logic of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from hashlib import sha256
from http import HTTPStatus
from typing import Any

from klein import Klein
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.server import Request
from werkzeug.exceptions import HTTPException

from cartd import content_disposition, openapi
from cartd.carts import Carts
from cartd.conditions import (
    CONDITIONAL,
    UNCONDITIONAL,
    Conditions,
    Decision,
    Representation,
    evaluate,
)
from cartd.downloads import Download, Downloads, NotReady, TarDescription
from cartd.errors import (
    CartdError,
    DiskUnavailable,
    FileUnreadable,
    InvalidInput,
    RangeNotSatisfiable,
    VolumeDamaged,
    VolumeNotWritable,
)
from cartd.model import Cart, CartStatus, Viewer
from cartd.ranges import ByteRange, http_date
from cartd.sending.push import ClientDisconnected
from cartd.sending.reader import SendingReader
from cartd.server import error_responses
from cartd.server.cache_control import NO_STORE, PUBLIC, REVALIDATED
from cartd.server.error_responses import RETRY_AFTER, escape_header
from cartd.server.request import LimitedRequest, header_field

INTERNAL_ERROR = "Internal error; the service's log has the cause"
OPENAPI = openapi.to_json().encode()
OPENAPI_ETAG = f'"{sha256(OPENAPI).hexdigest()}"'

Fields = tuple[tuple[bytes, bytes], ...]
"""Names and values of headers, in printable ASCII."""
HEADER_CACHE_SIZE = 1024
"""Of how many carts the headers are remembered."""

_OLD_REQUESTS = re.compile(rb"python-requests/2\.([12]?[0-9]|3[01])(\.|$)")

log = Logger()


class Rest:
    """Klein's routes over the carts (:class:`Carts`) and the downloads."""

    app = Klein()
    app.url_map.strict_slashes = False  # a URL may end in a slash, as in Pacifica Cartd

    def __init__(
        self,
        carts: Carts,
        downloads: Downloads,
        *,
        send: Callable[[SendingReader, Request], Deferred[None]],
        recovered: Callable[[], Awaitable[None]],
    ) -> None:
        """``send`` gives what is read to the client, as
        :meth:`cartd.sending.push.BaseSender.start`.

        Nothing is told of carts, and none is taken, before ``recovered()``.
        """
        self._carts = carts
        self._downloads = downloads
        self._sender = send
        self._recovered = recovered

    @app.route("/", methods=["GET"])
    def root(self, request: Request) -> bytes:
        body = json.dumps({"message": "Pacifica Cartd Interface Up and Running"}).encode()
        return _static_response(request, body, None)

    @app.route(openapi.PATH, methods=["GET"])
    def openapi_document(self, request: Request) -> bytes:
        return _static_response(request, OPENAPI, OPENAPI_ETAG, PUBLIC)

    # Klein answers a HEAD with the first route that takes it: this one stays above GET.
    @app.route("/<uid>", methods=["HEAD"])
    async def head(self, request: Request, uid: str) -> bytes:
        """Tell the status; with a ``filename``, of a ready cart, what a GET would be headed by."""
        with _errors_in_headers(request):
            name = _filename(request)
            await self._recovered()
            cart = await self._carts.find(_viewer(request), uid)
            _set_status_headers(request, cart)
            if cart.status == CartStatus.ERROR:
                return _error_response(request, 500, cart.error)
            request.setResponseCode(204)
            if cart.status != CartStatus.READY or (name is None and cart.bytes_total is None):
                return b""  # one of Pacifica's is measured before more can be told of it
            try:
                tar = await self._downloads.describe(cart, name)
            except NotReady as error:
                _set_status_headers(request, error.cart)
                return b""
            await self._set_head_headers(request, cart, tar, named=name is not None)
        return b""

    async def _set_head_headers(
        self, request: Request, cart: Cart, tar: TarDescription, *, named: bool
    ) -> None:
        conditions, held = _conditions(request), False
        if conditions is not UNCONDITIONAL:
            decision = await self._downloads.evaluate_conditions("HEAD", conditions, cart, tar)
            held = decision.status == HTTPStatus.NOT_MODIFIED
        _set_validators(request, tar)
        if held:
            _not_modified(request)
        elif named:
            request.setResponseCode(200)
            _set_download_headers(request, tar)
            _set(request, "Content-Length", str(tar.length))

    @app.route("/<uid>", methods=["GET"])
    async def get(self, request: Request, uid: str) -> bytes:
        with _errors_in_headers(request):
            name = _filename(request)
            await self._recovered()
            async with self._downloads.open(_viewer(request), uid, name) as download:
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

    async def _decide(self, request: Request, download: Download) -> Decision:
        conditions = _conditions(request)
        try:
            return await self._downloads.evaluate_conditions(
                "GET", conditions, download.cart, download
            )
        except RangeNotSatisfiable:
            _set(request, "Content-Range", f"bytes */{download.length}")
            raise

    @app.route("/<uid>", methods=["POST"])
    async def post(self, request: Request, uid: str) -> bytes:
        assert request.content is not None
        await self._recovered()
        await self._carts.post(
            _viewer(request), uid, request.content, lambda: self._check_conditions(request, uid)
        )
        request.setResponseCode(201)
        return _json_response(request, {"message": "Cart Processing has begun"})

    @app.route("/<uid>", methods=["DELETE"])
    async def delete(self, request: Request, uid: str) -> bytes:
        await self._recovered()
        await self._check_conditions(request, uid)
        await self._carts.delete(_viewer(request), uid)
        return _json_response(request, {"message": "Cart Deleted Successfully"})

    async def _check_conditions(self, request: Request, uid: str) -> None:
        """Raise PreconditionFailed if a change of the carts of ``uid`` must not be made."""
        conditions = _conditions(request)
        if conditions.has_precondition:
            method = request.method.decode("ascii")
            viewer, name = _viewer(request), _filename(request)
            await self._downloads.check_write_conditions(method, conditions, viewer, uid, name)

    async def _send(self, request: Request, download: Download, wanted: ByteRange) -> None:
        """Send the bytes; a failure breaks the connection, unless nothing was sent yet."""
        try:
            reader = await download.reader(wanted.start, wanted.stop)
            await self._sender(reader, request)
        except ClientDisconnected:
            log.debug("A client left while {uid} was sent", uid=download.cart.display_uid)
            await _abort(request)
        except VolumeDamaged as error:
            unreadable = error.path if isinstance(error, FileUnreadable) else None
            reported = self._downloads.restage(download.cart, unreadable)
            reported.addCallback(_log_damage, download.cart, error)
            if not request.startedWriting:
                told = await reported
                await self._downloads.check_ready(download.cart)
                raise told from error
            await _abort(request)
        except DiskUnavailable as error:
            if not request.startedWriting:
                raise
            log.warn(
                "Sending cart {uid} is broken off: {error}",
                uid=download.cart.display_uid,
                error=error,
            )
            await _abort(request)
        except Exception:
            if not request.startedWriting:
                raise
            log.failure("Sending cart {uid} failed", uid=download.cart.display_uid)
            await _abort(request)

    @app.handle_errors(Exception)
    def failed(self, request: Any, failure: Failure) -> bytes:
        """The one place where an error becomes an answer."""
        error = failure.value
        if isinstance(error, NotReady):
            if _conditions(request).is_conditional:
                # To a client that has a part already, a 2xx would be the rest of it, or the whole.
                return _error_response(request, 503, str(error))
            # No error: plain text, as in Pacifica Cartd, and when to ask again.
            _set(request, "Retry-After", RETRY_AFTER)
            return _response(request, 202, "text/plain", str(error).encode())
        if isinstance(error, CartdError):
            return _error_response(request, error.code, str(error), error.limit)
        if isinstance(error, HTTPException):
            # An unknown path, or one that Klein would redirect.
            return _error_response(request, 404, "Not Found")
        log.failure("{method} {uri} failed", failure, method=request.method, uri=request.uri)
        return _error_response(request, 500, INTERNAL_ERROR)


def _log_damage(told: CartdError, cart: Cart, damage: VolumeDamaged) -> CartdError:
    """Say in the log what was found, unless it is the volume's fault, of which the log has a line.

    Whoever asks for a cart that cannot be mended would have a line each time.
    """
    if not isinstance(told, VolumeNotWritable):
        log.warn("Cart {uid} is not sent: {error}", uid=cart.display_uid, error=damage)
    return told


async def _abort(request: Request) -> None:
    """Break the connection and wait until it is broken: then nobody can end the answer well."""
    channel: Any = request.channel
    if channel is None:
        return  # it is broken, and notifyFinish would never fire
    broken = request.notifyFinish()
    channel.transport.abortConnection()
    with suppress(Exception, CancelledError):
        await broken


def _viewer(request: Request) -> Viewer:
    """For whom the carts are looked up, and whose they become."""
    assert isinstance(request, LimitedRequest)
    return Viewer.of(request.authenticated_user)


def _conditions(request: Request) -> Conditions:
    sent = (name for name, _ in request.requestHeaders.getAllRawHeaders())
    if CONDITIONAL.isdisjoint(sent):
        return UNCONDITIONAL
    return Conditions.read(lambda name: header_field(request, name))


def _filename(request: Request) -> str | None:
    values = request.args.get(b"filename")
    if not values:
        return None
    try:
        return content_disposition.check_filename(values[0].decode())
    except UnicodeDecodeError:
        raise InvalidInput("filename: it is not UTF-8") from None


def _set_validators(request: Request, tar: TarDescription) -> None:
    """Tell of the tar what changes with it, and that a part of it can be had."""
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
    _set(request, "Cache-Control", REVALIDATED)
    _set(request, "Content-Type", "application/octet-stream")
    _set(request, "Content-Disposition", content_disposition.header_value(tar.name))


def _set_length(request: Request, selected: ByteRange, length: int) -> None:
    """Say how long the answer is; but to some clients, in chunks, only when it has ended."""
    if not _accepts_truncated_bodies(request):
        _set(request, "Content-Length", str(selected.stop - selected.start))
    if selected.partial:
        _set(request, "Content-Range", f"bytes {selected.start}-{selected.stop - 1}/{length}")


def _accepts_truncated_bodies(request: Request) -> bool:
    """Whether the client may be one of urllib3 1, and asks for the whole tar.

    With that, a body that is shorter than its Content-Length raises nothing, so Pacifica's
    downloader takes what it has of a tar for all of it when this process dies.  A chunk that is
    cut off raises; Pacifica Cartd sent chunks.  From requests 2.32 on, nearly all have urllib3 2.
    """
    return (
        request.clientproto == b"HTTP/1.1"
        and not request.requestHeaders.hasHeader(b"range")
        and _OLD_REQUESTS.match(request.getHeader(b"user-agent") or b"") is not None
    )


def _not_modified(request: Request) -> None:
    """Answer 304, with no more of the representation than caches need (RFC 9110, 15.4.5)."""
    request.setResponseCode(304)
    _set(request, "Cache-Control", REVALIDATED)
    for name in ("Accept-Ranges", "Last-Modified", "X-Pacifica-Tar-Length"):
        request.responseHeaders.removeHeader(name)


@contextmanager
def _errors_in_headers(request: Request) -> Iterator[None]:
    """Have an error told in the headers as well: some clients, and caches, read only these."""
    try:
        yield
    except NotReady as error:
        _set_status_headers(request, error.cart)
        raise
    except Exception as error:
        if not request.responseHeaders.hasHeader("X-Pacifica-Status"):
            _set(request, "X-Pacifica-Status", CartStatus.ERROR)
            told = str(error) if isinstance(error, CartdError) else INTERNAL_ERROR
            _set(request, "X-Pacifica-Message", told)
        raise


def _set_status_headers(request: Request, cart: Cart) -> None:
    told = _status_fields(
        cart.status,
        cart.message,
        (cart.files_staged, cart.files_total),
        None if cart.bytes_total is None else (cart.bytes_staged, cart.bytes_total),
    )
    _set_fields(request, told)


@lru_cache(maxsize=HEADER_CACHE_SIZE)
def _status_fields(
    status: CartStatus, message: str, files: tuple[int, int], sizes: tuple[int, int] | None
) -> Fields:
    # Pacifica's clients wait for as long as it says staging, and take any other word for the end.
    bundling = status == CartStatus.BUNDLING
    told = {
        "X-Pacifica-Status": CartStatus.STAGING if bundling else status,
        "X-Pacifica-Phase": status,
        "X-Pacifica-Message": message,
        "X-Pacifica-Files-Total": str(files[1]),
        "X-Pacifica-Files-Staged": str(files[0]),
    }
    if sizes is not None:
        told["X-Pacifica-Bytes-Total"] = str(sizes[1])
        told["X-Pacifica-Bytes-Staged"] = str(sizes[0])
    return _fields(told)


def _fields(values: Mapping[str, str]) -> Fields:
    return tuple((name.encode(), escape_header(value).encode()) for name, value in values.items())


def _set_fields(request: Request, fields: Fields) -> None:
    """Set headers whose values are spelt already: carts are asked for again and again."""
    for name, value in fields:
        request.responseHeaders.setRawHeaders(name, [value])


def _set(request: Request, name: str, value: str) -> None:
    """Set a header; what is not printable ASCII is escaped, so that nothing is smuggled in."""
    request.setHeader(name, escape_header(value))


def _static_response(
    request: Request, body: bytes, etag: str | None, cache_control: str = NO_STORE
) -> bytes:
    """Answer what is the same for all, under the conditions of the request."""
    method = request.method.decode("ascii")
    conditions = replace(_conditions(request), range=None)
    current = Representation(len(body), etag)
    # It has no date that one of theirs could be compared with.
    decision = evaluate(method, conditions, current, now=0.0)
    if decision.status == HTTPStatus.NOT_MODIFIED:
        request.setResponseCode(304)
        body = b""
    else:
        _response(request, 200, "application/json", body)
    if etag is not None:
        _set(request, "ETag", etag)
    _set(request, "Cache-Control", cache_control)
    return body


def _json_response(request: Request, answer: dict[str, str]) -> bytes:
    return _response(request, request.code, "application/json", json.dumps(answer).encode())


def _error_response(request: Request, code: int, message: str, limit: str | None = None) -> bytes:
    _remove_download_headers(request, code)
    return error_responses.prepare_error(request, code, message, limit)


def _response(request: Request, code: int, content_type: str, body: bytes) -> bytes:
    """A short answer."""
    _remove_download_headers(request, code)
    request.setResponseCode(code)
    _set(request, "Content-Type", content_type)
    _set(request, "Content-Length", str(len(body)))
    return body


def _remove_download_headers(request: Request, code: int) -> None:
    """Take back the headers of a download that was being prepared."""
    _set(request, "Cache-Control", NO_STORE)
    for name in (
        *("Content-Disposition", "Accept-Ranges", "ETag", "Last-Modified"),
        "X-Pacifica-Tar-Length",
    ):
        request.responseHeaders.removeHeader(name)
    if code != 416:
        request.responseHeaders.removeHeader("Content-Range")
