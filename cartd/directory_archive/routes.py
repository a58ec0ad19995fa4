"""Routes of the Archive Interface protocol, as Pacifica's service speaks it.

=======================  =========================================================================
request                  answer
=======================  =========================================================================
``GET /``                200, a JSON message that the service is running
``PUT /ID``              201; the request's Last-Modified sets the modification time; 409 if a
                         file exists, unless the archive replaces files
``HEAD /ID``             204; size, times, and ``disk`` or ``tape``, in headers
``GET /ID``              200, the bytes; 206 for a Range; ``?byte_range=START-END``, END exclusive
``POST /ID``             200; a file on tape is recalled
``PATCH /ID``            200; the file at ``{"path": OLD_PATH}`` gets this id
``DELETE /ID``           200
=======================  =========================================================================

Errors are JSON with status, message, traceback (empty) and version.
"""

from __future__ import annotations

import email.utils
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from http import HTTPStatus
from types import MappingProxyType
from typing import IO, Any, ClassVar, NoReturn
from urllib.parse import quote

from klein import Klein
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from twisted.web.server import Request
from werkzeug.exceptions import HTTPException
from werkzeug.routing import BaseConverter

from cartd.deferreds.threads import ThreadRunner
from cartd.directory_archive.directory import (
    Directory,
    FileStatus,
    OpenedFile,
    TapeLibrary,
    check_id,
)
from cartd.errors import (
    INTERNAL_ERROR,
    CartdError,
    InvalidInput,
    RangeNotSatisfiable,
    TooLarge,
    Unavailable,
    error_body,
)
from cartd.http.headers import REVALIDATED
from cartd.http.ranges import ByteRange, Conditions, Decision, evaluate_conditions, http_date
from cartd.http.request import header_field
from cartd.sending.reader import TreeReader
from cartd.sending.sender import ClientDisconnected, PushSender
from cartd.tar.virtual_tar import Slice

log = Logger()

PATCH_LIMIT = 1 << 16
"""Bytes; the limit of the body of a PATCH."""

CHUNK = 1 << 20
"""Bytes read by one call in a thread."""


class ErrorWithHeaders(CartdError):
    """An error whose response has extra headers."""

    headers: Mapping[str, str] = MappingProxyType({})


class LengthRequired(CartdError):
    """A body without a declared length (RFC 9110, section 15.5.12)."""

    code: ClassVar[int] = 411

    def __init__(self) -> None:
        super().__init__("PUT needs a Content-Length")


class OnTape(ErrorWithHeaders, Unavailable):
    """The file must be recalled before it can be read (RFC 9110, section 10.2.3)."""

    def __init__(self, archive_id: str, wait: int) -> None:
        """``wait``: seconds after which it may be on disk, an integer."""
        super().__init__(f"{archive_id} is on tape")
        self.headers = {"Retry-After": str(wait)}


class BeyondEnd(ErrorWithHeaders, RangeNotSatisfiable):
    """A range begins after the last byte of the file (RFC 9110, section 15.5.17)."""

    def __init__(self, size: int) -> None:
        super().__init__(f"the file has {size} bytes")
        self.headers = {"Content-Range": f"bytes */{size}"}


class _WholePath(BaseConverter):
    """Everything after the first slash; the syntax of ids is not checked here."""

    part_isolating = False
    regex = r"[\s\S]+"
    weight = 200


class ArchiveInterface:
    """The routes for the files of one directory."""

    app = Klein()
    app.url_map.converters["whole"] = _WholePath
    app.url_map.merge_slashes = False

    def __init__(
        self,
        directory: Directory,
        threads: ThreadRunner,
        tape: TapeLibrary | None,
    ) -> None:
        self._directory = directory
        self._threads = threads
        self._tape = tape

    @app.route("/", methods=["GET"])
    def running(self, request: Request) -> bytes:
        return _message(request, message="Pacifica Archive Interface Up and Running")

    # Before GET: a rule for GET matches HEAD as well.
    @app.route("/<whole:archive_id>", methods=["HEAD"])
    async def head(self, request: Request, archive_id: str) -> bytes:
        status = await self._threads.run(self._directory.status, archive_id)
        if _allowed(request)(status).status == HTTPStatus.NOT_MODIFIED:
            return _not_modified(request, status)
        request.setResponseCode(HTTPStatus.NO_CONTENT)
        media = "disk" if self._on_disk(archive_id) else "tape"
        for name, value in status_headers(archive_id, status, media):
            request.responseHeaders.setRawHeaders(name, [value])
        return b""

    @app.route("/<whole:archive_id>", methods=["GET"])
    async def get(self, request: Request, archive_id: str) -> bytes:
        await self._require_disk(archive_id)
        byte_range = request.args.get(b"byte_range", [b""])[0].decode("latin-1")
        decide = range_selector(byte_range, _conditions(request))
        opened = await self._threads.run(self._directory.open, archive_id, decide)
        if opened.decision.status == HTTPStatus.NOT_MODIFIED:
            return _not_modified(request, opened.status)
        return await self._send(request, opened)

    @app.route("/<whole:archive_id>", methods=["PUT"])
    async def put(self, request: Request, archive_id: str) -> bytes:
        declared = request.getHeader("content-length")
        if declared is None:
            raise LengthRequired
        mtime = modified_time(request.getHeader("last-modified"))
        length = int(declared)
        content, check = _content(request), _allowed(request)
        await self._threads.run(self._directory.put, archive_id, content, length, mtime, check)
        self._forget(archive_id)
        request.setResponseCode(HTTPStatus.CREATED)
        return _message(request, message="File added to archive", total_bytes=length)

    @app.route("/<whole:archive_id>", methods=["POST"])
    async def stage(self, request: Request, archive_id: str) -> bytes:
        status = await self._threads.run(self._directory.status, archive_id)
        _allowed(request)(status)
        if self._tape is not None:
            self._tape.recall(archive_id)
        return _message(request, message="File was staged", file=archive_id)

    @app.route("/<whole:archive_id>", methods=["PATCH"])
    async def move(self, request: Request, archive_id: str) -> bytes:
        check_id(archive_id)
        body = _content(request).read(PATCH_LIMIT + 1)
        if len(body) > PATCH_LIMIT:
            raise TooLarge(f"the body of a PATCH has at most {PATCH_LIMIT} bytes")
        path = old_path(body)
        old_id = await self._threads.run(self._directory.move, archive_id, path, _allowed(request))
        self._forget(archive_id)
        self._forget(old_id)
        return _message(request, message="File Moved Successfully")

    @app.route("/<whole:archive_id>", methods=["DELETE"])
    async def delete(self, request: Request, archive_id: str) -> bytes:
        await self._threads.run(self._directory.remove, archive_id, _allowed(request))
        self._forget(archive_id)
        return _json(request, b"")

    async def _send(self, request: Request, opened: OpenedFile) -> bytes:
        """Send the head and the selected bytes; return those still to be written.

        A failure, as of a file truncated meanwhile, aborts the connection.
        """
        _describe(request, opened)
        if opened.data is not None:
            return opened.data
        start, stop = opened.decision.selected.start, opened.decision.selected.stop
        selected = Slice(opened.path, opened.status.size, start, stop - start)
        reader = TreeReader(self._directory.root, iter((selected,)))
        try:
            await PushSender(reader, self._threads, request, CHUNK).start()
        except ClientDisconnected:
            if request.channel is not None:  # the route is not cancelled yet
                await _abort(request)
        except Exception:
            log.failure("{uri}: sending failed", uri=request.uri)
            await _abort(request)
        return b""

    def _on_disk(self, archive_id: str) -> bool:
        return self._tape is None or self._tape.on_disk(archive_id)

    async def _require_disk(self, archive_id: str) -> None:
        if self._tape is not None and not self._tape.on_disk(archive_id):
            await self._threads.run(self._directory.status, archive_id)  # 404 comes first
            raise OnTape(
                archive_id, max(1, math.ceil(self._tape.seconds_until_on_disk(archive_id)))
            )

    def _forget(self, archive_id: str) -> None:
        if self._tape is not None:
            self._tape.forget(archive_id)

    @app.handle_errors(CartdError)
    def refused(self, request: IRequest, failure: Failure) -> bytes:
        error: CartdError = failure.value  # type: ignore[assignment]
        if isinstance(error, ErrorWithHeaders):
            for name, value in error.headers.items():
                request.responseHeaders.setRawHeaders(name, [value])
        return _error(request, error.code, str(error))

    @app.handle_errors(HTTPException)
    def not_routed(self, request: IRequest, failure: Failure) -> bytes:
        error: HTTPException = failure.value  # type: ignore[assignment]
        for name, value in error.get_headers():
            if name == "Allow":
                request.responseHeaders.setRawHeaders(name, [value])
        return _error(request, error.code or 500, error.description or "")

    @app.handle_errors(Exception)
    def broken(self, request: IRequest, failure: Failure) -> bytes:
        log.failure("{uri} failed", failure, uri=request.uri)
        return _error(request, 500, INTERNAL_ERROR)


def _conditions(request: Request) -> Conditions:
    return Conditions.read(lambda name: header_field(request, name))


def _allowed(request: Request) -> Callable[[FileStatus | None], Decision]:
    return precondition_check(request.method.decode("ascii"), _conditions(request))


def _not_modified(request: Request, status: FileStatus) -> bytes:
    request.setResponseCode(HTTPStatus.NOT_MODIFIED)
    request.responseHeaders.setRawHeaders("Cache-Control", [REVALIDATED])
    request.responseHeaders.setRawHeaders("ETag", [status.etag])
    return b""


def _describe(request: Request, opened: OpenedFile) -> None:
    """Set status and headers of a response with the selected bytes of a file."""
    status, selected = opened.status, opened.decision.selected
    headers = request.responseHeaders
    headers.setRawHeaders("Content-Type", ["application/octet-stream"])
    headers.setRawHeaders("Content-Length", [str(selected.stop - selected.start)])
    headers.setRawHeaders("Cache-Control", [REVALIDATED])
    headers.setRawHeaders("Accept-Ranges", ["bytes"])
    headers.setRawHeaders("ETag", [status.etag])
    headers.setRawHeaders("Last-Modified", [http_date(status.mtime)])
    if selected.partial:
        request.setResponseCode(HTTPStatus.PARTIAL_CONTENT)
        span = f"bytes {selected.start}-{selected.stop - 1}/{status.size}"
        headers.setRawHeaders("Content-Range", [span])


async def _abort(request: Request) -> NoReturn:
    """Reset the connection.

    Never returns: the awaiting route is cancelled when the connection is lost.
    """
    channel: Any = request.channel
    if channel is not None:
        channel.transport.abortConnection()
    await Deferred[None]()
    raise AssertionError("unreachable")


def _content(request: Request) -> IO[bytes]:
    """Return the body, which is complete before a route is called."""
    assert request.content is not None
    content: IO[bytes] = request.content
    return content


def _json(request: IRequest, body: bytes) -> bytes:
    request.responseHeaders.setRawHeaders("Content-Type", ["application/json"])
    request.responseHeaders.setRawHeaders("Content-Length", [str(len(body))])
    return body


def _message(request: IRequest, **values: str | int) -> bytes:
    return _json(request, json.dumps(values).encode("ascii"))


def _error(request: IRequest, code: int, message: str) -> bytes:
    request.setResponseCode(code)
    if request.method == b"HEAD" and code == HTTPStatus.NOT_FOUND:
        request.responseHeaders.setRawHeaders("X-Pacifica-Messsage", ["File Not found"])
    return _json(request, error_body(code, message))


def modified_time(header: str | None) -> float:
    """Return the Unix time in a ``Last-Modified`` request header; now if there is none.

    It is an HTTP date (RFC 9110, section 5.6.7) or, as in responses to HEAD, decimal seconds.
    """
    if header is None:
        return time.time()
    try:
        seconds = float(header)
    except ValueError:
        seconds = _http_date(header)
    if not math.isfinite(seconds):
        raise InvalidInput(f"Last-Modified: {header!r} is not a time")
    return seconds


def _http_date(text: str) -> float:
    parsed = email.utils.parsedate_tz(text)
    if parsed is None:
        raise InvalidInput(f"Last-Modified: {text!r} is not a time")
    try:
        return float(email.utils.mktime_tz(parsed))
    except (OverflowError, ValueError) as error:
        raise InvalidInput(f"Last-Modified: {text!r} is not a time") from error


def range_selector(
    byte_range: str | None, conditions: Conditions
) -> Callable[[FileStatus], Decision]:
    """Return a function that selects the bytes of a GET, for when the file is open.

    ``byte_range`` is Pacifica's parameter ``START-END``, END exclusive, and overrides the header;
    the response is 200, and bytes beyond the end of the file are left out.

    A date in If-Range never matches: clients set the date of a file, so it does not identify the
    bytes (RFC 9110, section 8.8.2.2).
    """
    span = _byte_range(byte_range) if byte_range else None
    if span is not None:
        conditions = replace(conditions, range=None)

    def decide(status: FileStatus) -> Decision:
        try:
            decision = evaluate_conditions(
                "GET", conditions, status.representation, now=time.time()
            )
        except RangeNotSatisfiable as error:
            raise BeyondEnd(status.size) from error
        if decision.status == HTTPStatus.NOT_MODIFIED:
            return Decision(HTTPStatus.NOT_MODIFIED, ByteRange(0, 0, partial=False))
        if span is None:
            return decision
        start, stop = (min(place, status.size) for place in span)
        return Decision(HTTPStatus.OK, ByteRange(start, stop, partial=False))

    return decide


def precondition_check(
    method: str, conditions: Conditions
) -> Callable[[FileStatus | None], Decision]:
    """Return a function that checks the conditions of ``method`` against the current file."""

    def check(status: FileStatus | None) -> Decision:
        current = None if status is None else status.representation
        return evaluate_conditions(method, conditions, current, now=time.time())

    return check


def _byte_range(text: str) -> tuple[int, int]:
    start, dash, stop = text.partition("-")
    if not (dash and _is_number(start) and _is_number(stop) and int(start) <= int(stop)):
        raise InvalidInput(f"byte_range is START-END, not {text!r}")
    return int(start), int(stop)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20


def status_headers(archive_id: str, status: FileStatus, media: str) -> Iterator[tuple[str, str]]:
    """Yield the headers of HEAD; Pacifica's clients use the misspelt one, too."""
    yield "X-Pacifica-Messsage", "File was found"
    yield "X-Pacifica-Message", "File was found"
    yield "X-Pacifica-File", quote(archive_id, safe="/ !$&'()*+,;=:@~")
    yield "X-Content-Length", str(status.size)
    yield "Last-Modified", str(status.mtime)
    yield "ETag", status.etag
    yield "X-Pacifica-Ctime", str(status.ctime)
    yield "X-Pacifica-Bytes-Per-Level", f"({status.size},)"
    yield "X-Pacifica-File-Storage-Media", media
    yield "Content-Type", "application/json"


def old_path(body: bytes) -> str:
    """Return the ``path`` in the JSON body of a PATCH."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidInput("the body is not JSON") from error
    path = value.get("path") if isinstance(value, dict) else None
    if not isinstance(path, str):
        raise InvalidInput('the body is {"path": OLD_PATH}, OLD_PATH a string')
    return path
