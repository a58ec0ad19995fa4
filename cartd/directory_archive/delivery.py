"""Sends a file to the client, with an injected fault if requested."""

from __future__ import annotations

from http import HTTPStatus
from io import BytesIO
from pathlib import Path
from typing import Any, NoReturn

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.web.server import Request

from cartd.deferreds.threads import ThreadRunner
from cartd.directory_archive.directory import OpenedFile
from cartd.directory_archive.faults import CorruptingReader, Fault
from cartd.http.headers import REVALIDATED, http_date
from cartd.sending.push import ClientDisconnected, PushSender
from cartd.sending.reader import Reader, TreeReader
from cartd.tar.virtual_tar import Slice

CHUNK = 1 << 20
"""Bytes read by one call in a thread."""

log = Logger()


async def deliver(
    request: Request, opened: OpenedFile, root: Path, threads: ThreadRunner, fault: Fault | None
) -> bytes:
    """Send the head and the selected bytes; return those still to be written."""
    selected = opened.decision.selected
    length = selected.stop - selected.start
    if fault is not None and length == 0:
        await disconnect(request, abort=True)
    _describe(request, opened, length)
    if fault is None and opened.data is not None:
        return opened.data
    reader = _reader(opened, root, length // 2 if fault is Fault.TRUNCATED else length)
    if fault is Fault.WRONG_BYTES:
        reader = CorruptingReader(reader)
    await _send(request, reader, threads)
    if fault is Fault.TRUNCATED:
        await disconnect(request, abort=False)
    return b""


async def disconnect(request: Request, *, abort: bool) -> NoReturn:
    """Close the connection: at once with a reset (``abort``), or after flushing.

    Never returns: the awaiting route is cancelled when the connection is lost.
    """
    channel: Any = request.channel
    if channel is not None and abort:
        channel.transport.abortConnection()
    elif channel is not None:
        channel.loseConnection()
    await Deferred[None]()
    raise AssertionError("unreachable")


def _describe(request: Request, opened: OpenedFile, length: int) -> None:
    status, selected = opened.status, opened.decision.selected
    headers = request.responseHeaders
    headers.setRawHeaders("Content-Type", ["application/octet-stream"])
    headers.setRawHeaders("Content-Length", [str(length)])
    headers.setRawHeaders("Cache-Control", [REVALIDATED])
    headers.setRawHeaders("Accept-Ranges", ["bytes"])
    headers.setRawHeaders("ETag", [status.etag])
    headers.setRawHeaders("Last-Modified", [http_date(status.mtime)])
    if selected.partial:
        request.setResponseCode(HTTPStatus.PARTIAL_CONTENT)
        span = f"bytes {selected.start}-{selected.stop - 1}/{status.size}"
        headers.setRawHeaders("Content-Range", [span])


def _reader(opened: OpenedFile, root: Path, length: int) -> Reader:
    if opened.data is not None:
        return BytesIO(opened.data[:length])
    whole = Slice(opened.path, opened.status.size, opened.decision.selected.start, length)
    return TreeReader(root, iter((whole,)))


async def _send(request: Request, reader: Reader, threads: ThreadRunner) -> None:
    """Send all of ``reader``, which the sender closes; a failure aborts the connection."""
    try:
        await PushSender(reader, threads, request, CHUNK).start()
    except ClientDisconnected:
        if request.channel is not None:  # the route is not cancelled yet
            await disconnect(request, abort=True)
    except Exception:
        log.failure("{uri}: sending failed", uri=request.uri)
        await disconnect(request, abort=True)
