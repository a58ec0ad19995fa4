"""Lists of files and of carts, of any length, in constant memory."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import parse_qsl, urlsplit

from cartd_client.errors import InvalidResponse, NotSupported, ServiceUnavailable
from cartd_client.model import FileEntry, Status
from cartd_client.transport import Transport, parse_json, quote_segment

MAX_LINE = 1 << 17
"""Bytes of one entry of a list of files."""
_PAGE = "100"


def files(transport: Transport, uid: str, failed: bool = False) -> Iterator[FileEntry]:
    """Yield the files of a cart in the order of its manifest, or only those that failed.

    A list that breaks off is continued.

    :raises NotSupported: the service does not list files.
    """
    query = {"status": "failed"} if failed else {}
    path = f"-/carts/{quote_segment(uid)}/files"
    backoff = transport.backoff()
    last = -1
    while True:
        after = {"after": str(last)} if last >= 0 else {}
        try:
            for line in _lines(transport, path, {**query, **after}):
                entry = FileEntry.from_document(parse_json(line, path))
                if entry.position <= last:
                    raise InvalidResponse("The list of files is not in the order of the manifest")
                last = entry.position
                backoff.succeeded()
                yield entry
            return
        except ServiceUnavailable as error:
            backoff.failed(error)


def _lines(transport: Transport, path: str, query: dict[str, str]) -> Iterator[bytes]:
    headers = {"Accept": "application/x-ndjson, application/problem+json;q=0.9"}
    with transport.request("GET", path, query=query, headers=headers, stream=True) as answer:
        if "ndjson" not in answer.headers.get("Content-Type", ""):
            raise NotSupported(f"{answer.url}: the service does not list files")
        rest = b""
        for part in answer.stream():
            *lines, rest = (rest + part).split(b"\n")
            if len(rest) > MAX_LINE:
                raise InvalidResponse(f"{answer.url}: a line has more than {MAX_LINE} bytes")
            yield from filter(None, lines)
        if rest:
            raise ServiceUnavailable(f"{answer.url}: the list broke off")


def carts(
    transport: Transport, status: str | None = None, label: str | None = None
) -> Iterator[Status]:
    """Yield the carts that the user may see, newest first."""
    query = {"limit": _PAGE}
    if status is not None:
        query["status"] = status
    if label is not None:
        query["label"] = label
    seen: set[str] = set()
    while True:
        page = transport.request("GET", "-/carts", query=query).json()
        entries = page.get("carts") if isinstance(page, dict) else None
        if not isinstance(entries, list):
            raise InvalidResponse("The list of carts has no carts")
        for entry in entries:
            yield Status.from_document(entry)
        following = page.get("next")
        if following is None:
            return
        # Only the query counts: a service behind a proxy may not know its own URL.
        query = dict(parse_qsl(urlsplit(str(following)).query))
        after = query.get("after", "")
        if not after or after in seen:
            raise InvalidResponse("The list of carts has no end")
        seen.add(after)
