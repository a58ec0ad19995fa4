"""Response headers, and one response per error status."""

from __future__ import annotations

from typing import Any

from cartd.model import UNFINISHED, CartStatus
from cartd.openapi.schemas import ref

PHASES = sorted([*UNFINISHED, CartStatus.READY])
"""The phases of a cart that is not in error."""
STATUSES = [phase for phase in PHASES if phase is not CartStatus.BUNDLING]
"""The statuses sent to clients, which poll only while a cart is staging."""


def _header(description: str, schema: dict[str, Any], *, required: bool = True) -> dict[str, Any]:
    return {"description": description, "required": required, "schema": schema}


def _count(description: str, *, required: bool = True) -> dict[str, Any]:
    return _header(description, {"type": "integer", "minimum": 0}, required=required)


_ETAG = {"type": "string", "pattern": '^"[^"]+"$'}

HEADERS: dict[str, Any] = {
    "Status": _header("The status of the cart.", {"type": "string", "enum": STATUSES}),
    "Phase": _header(
        "The status, or bundling while the tar is written to the volume.",
        {"type": "string", "enum": PHASES},
    ),
    "StatusError": _header(
        "The cart's status only if the response is 500; else retry.",
        {"const": str(CartStatus.ERROR)},
    ),
    "Message": _header(
        "What a staging cart waits for, or the error; else empty. All but printable ASCII is "
        "escaped as in Python.",
        {"type": "string"},
    ),
    "FilesTotal": _count("Number of files of the cart."),
    "FilesStaged": _count("Number of its files on the volume."),
    "BytesTotal": _count("Bytes of its files; present once all sizes are known.", required=False),
    "BytesStaged": _count("Bytes of its files on the volume.", required=False),
    "ETag": _header("Identifies exactly these bytes.", _ETAG),
    "ETagOfReady": _header(
        "The value of a GET of this URL; present if the cart is ready.", _ETAG, required=False
    ),
    "LastModifiedOfReady": _header(
        "The value of a GET of this URL; present if the cart is ready.",
        {"type": "string"},
        required=False,
    ),
    "LastModified": _header("When the tar last changed.", {"type": "string"}),
    "TarLength": _count("Bytes of the complete tar."),
    "TarLengthOfReady": _count(
        "Bytes of the complete tar; present if the cart is ready.", required=False
    ),
    "ContentLength": _count("Bytes of this response."),
    "ContentDisposition": _header(
        "The file name of the tar (RFC 6266).",
        {"type": "string", "pattern": "^attachment; filename"},
    ),
    "AcceptRanges": _header("Ranges are supported.", {"const": "bytes"}),
    "ContentRange": _header(
        "The range of these bytes, and the length of the tar.",
        {"type": "string", "pattern": "^bytes [0-9]+-[0-9]+/[0-9]+$"},
    ),
    "UnsatisfiedRange": _header(
        "The length of the tar.", {"type": "string", "pattern": r"^bytes \*/[0-9]+$"}
    ),
    "CacheControl": _header(
        "Only the client may store the response, and must revalidate it before each use.",
        {"const": "private, no-cache, no-transform"},
    ),
    "RetryAfter": _count("Seconds to wait before a retry."),
    "AcceptEncoding": _header("The accepted content codings.", {"const": "identity"}),
    "Allow": _header("The allowed methods.", {"type": "string"}),
    "WWWAuthenticate": _header("How to authenticate (RFC 9110, 11.6.1).", {"type": "string"}),
}

DOWNLOAD_HEADERS = {
    "ETag": ref("headers", "ETag"),
    "Last-Modified": ref("headers", "LastModified"),
    "Content-Length": ref("headers", "ContentLength"),
    "Content-Disposition": ref("headers", "ContentDisposition"),
    "Accept-Ranges": ref("headers", "AcceptRanges"),
    "Cache-Control": ref("headers", "CacheControl"),
    "X-Pacifica-Tar-Length": ref("headers", "TarLength"),
}

CACHE_HEADERS = {"ETag": ref("headers", "ETag"), "Cache-Control": ref("headers", "CacheControl")}

COUNT_HEADERS = {
    "X-Pacifica-Files-Total": ref("headers", "FilesTotal"),
    "X-Pacifica-Files-Staged": ref("headers", "FilesStaged"),
    "X-Pacifica-Bytes-Total": ref("headers", "BytesTotal"),
    "X-Pacifica-Bytes-Staged": ref("headers", "BytesStaged"),
}

_RETRY = {"Retry-After": ref("headers", "RetryAfter")}

ERRORS: dict[int, tuple[str, str, dict[str, Any]]] = {
    400: ("BadRequest", "The request is invalid. Nothing was changed.", {}),
    401: (
        "Unauthorized",
        "The client must authenticate.",
        {"WWW-Authenticate": ref("headers", "WWWAuthenticate")},
    ),
    404: ("NotFound", "There is no such cart, or it is not the client's.", {}),
    405: ("MethodNotAllowed", "The method is not allowed.", {"Allow": ref("headers", "Allow")}),
    408: ("RequestTimeout", "The request was not complete in time.", {}),
    412: ("PreconditionFailed", "A precondition of the request is false; nothing was done.", {}),
    413: ("ContentTooLarge", "The body exceeds a limit; the connection is closed.", {}),
    415: (
        "UnsupportedMediaType",
        "The body has a Content-Encoding; send it unencoded.",
        {"Accept-Encoding": ref("headers", "AcceptEncoding")},
    ),
    416: (
        "RangeNotSatisfiable",
        "The range selects no byte.",
        {"Content-Range": ref("headers", "UnsatisfiedRange")},
    ),
    429: ("TooManyRequests", "The client has reached a limit.", _RETRY),
    431: ("HeadTooLarge", "The head of the request exceeds a limit.", {}),
    500: ("InternalError", "Internal error; see the log of the service.", {}),
    501: ("NotImplemented", "The body has a transfer coding other than chunked.", {}),
    503: (
        "Unavailable",
        "Unavailable for now: the database or the volume does not work, or the service stops.",
        _RETRY,
    ),
    507: ("NoSpace", "The service has no disk space for the body.", {}),
}
"""By status: the name of the response, its description and its headers."""

COMMON_ERRORS = (400, 401, 408, 429, 431, 500, 503)
"""Statuses that any request may get."""

_JSON_ERROR = {"application/json": {"schema": ref("schemas", "Error")}}

RESPONSES: dict[str, Any] = {
    name: {"description": description, "headers": headers, "content": _JSON_ERROR}
    for name, description, headers in ERRORS.values()
}
RESPONSES["CartInError"] = {
    "description": "The cart is in error, as its message explains, or the service failed.",
    "content": _JSON_ERROR,
}


def errors(*more: int) -> dict[str, Any]:
    """Return references to the common errors and to ``more``."""
    return {
        str(code): ref("responses", ERRORS[code][0]) for code in sorted({*COMMON_ERRORS, *more})
    }


def head_errors(*more: int) -> dict[str, Any]:
    """Return the same for HEAD, whose responses have no body."""
    return {
        str(code): {"description": ERRORS[code][1], "headers": ERRORS[code][2]}
        for code in sorted({*COMMON_ERRORS, *more})
    }


def message_response(description: str, message: str, **more: Any) -> dict[str, Any]:
    """Return a success response with ``message``."""
    content = {"schema": ref("schemas", "Message"), "example": {"message": message}}
    return {"description": description, "content": {"application/json": content}, **more}
