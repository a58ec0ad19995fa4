"""The answers: headers, and one response for each error, whatever the operation."""

from __future__ import annotations

from typing import Any

from cartd.model import UNFINISHED, CartStatus
from cartd.openapi.schemas import ref

PHASES = sorted([*UNFINISHED, CartStatus.READY])
"""Where a cart that is not in error may stand."""
STATUSES = [phase for phase in PHASES if phase is not CartStatus.BUNDLING]
"""What clients are told of it: they wait while it is staging, and for nothing else."""


def _header(description: str, schema: dict[str, Any], *, required: bool = True) -> dict[str, Any]:
    return {"description": description, "required": required, "schema": schema}


def _count(description: str, *, required: bool = True) -> dict[str, Any]:
    return _header(description, {"type": "integer", "minimum": 0}, required=required)


_ETAG = {"type": "string", "pattern": '^"[^"]+"$'}

HEADERS: dict[str, Any] = {
    "Status": _header("Where the cart stands.", {"type": "string", "enum": STATUSES}),
    "Phase": _header(
        "The status, but bundling while the tar is written to the volume.",
        {"type": "string", "enum": PHASES},
    ),
    "StatusError": _header(
        "Not the cart's status unless the answer is 500: ask again.",
        {"const": str(CartStatus.ERROR)},
    ),
    "Message": _header(
        "What a cart that is staged waits for, or what is wrong; else empty. What is not printable "
        "ASCII is escaped as in Python.",
        {"type": "string"},
    ),
    "FilesTotal": _count("How many files the cart has."),
    "FilesStaged": _count("How many of them are on the volume."),
    "BytesTotal": _count("Their bytes; there once the archive has told all.", required=False),
    "BytesStaged": _count("How many of those are on the volume.", required=False),
    "ETag": _header("Names these very bytes.", _ETAG),
    "ETagOfReady": _header("That of a GET of this URL, once it is ready.", _ETAG, required=False),
    "LastModifiedOfReady": _header(
        "That of a GET of this URL, once it is ready.", {"type": "string"}, required=False
    ),
    "LastModified": _header("Since when the tar has these bytes.", {"type": "string"}),
    "TarLength": _count("The bytes of the whole tar."),
    "TarLengthOfReady": _count("The bytes of the whole tar, once it is ready.", required=False),
    "ContentLength": _count("The bytes of this answer."),
    "ContentDisposition": _header(
        "The name of the tar (RFC 6266).", {"type": "string", "pattern": "^attachment; filename"}
    ),
    "AcceptRanges": _header("A part can be asked for.", {"const": "bytes"}),
    "ContentRange": _header(
        "Which bytes these are, and of how many.",
        {"type": "string", "pattern": "^bytes [0-9]+-[0-9]+/[0-9]+$"},
    ),
    "UnsatisfiedRange": _header(
        "Of how many bytes one may ask.", {"type": "string", "pattern": r"^bytes \*/[0-9]+$"}
    ),
    "CacheControl": _header(
        "Who may keep the answer: its receiver, who asks again before each use.",
        {"const": "private, no-cache, no-transform"},
    ),
    "RetryAfter": _count("Seconds after which to ask again."),
    "AcceptEncoding": _header("The content codings that are taken.", {"const": "identity"}),
    "Allow": _header("The methods that there are.", {"type": "string"}),
    "WWWAuthenticate": _header("How to say who one is (RFC 9110, 11.6.1).", {"type": "string"}),
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
    400: ("BadRequest", "The request breaks a rule. Nothing was changed.", {}),
    401: (
        "Unauthorized",
        "The service wants to know who asks.",
        {"WWW-Authenticate": ref("headers", "WWWAuthenticate")},
    ),
    404: ("NotFound", "There is no such cart, or it is not the client's.", {}),
    405: ("MethodNotAllowed", "The method is not known here.", {"Allow": ref("headers", "Allow")}),
    408: ("RequestTimeout", "The request did not come in time.", {}),
    412: ("PreconditionFailed", "A condition of the request does not hold; nothing was done.", {}),
    413: ("ContentTooLarge", "The body is over a limit; the connection is closed.", {}),
    415: (
        "UnsupportedMediaType",
        "The body has a Content-Encoding; send it as it is.",
        {"Accept-Encoding": ref("headers", "AcceptEncoding")},
    ),
    416: (
        "RangeNotSatisfiable",
        "None of the bytes asked for exists.",
        {"Content-Range": ref("headers", "UnsatisfiedRange")},
    ),
    429: ("TooManyRequests", "The client has as much under way as it may.", _RETRY),
    431: ("HeadTooLarge", "The head of the request is over a limit.", {}),
    500: ("InternalError", "The service failed; its log has the cause.", {}),
    501: ("NotImplemented", "The body has a transfer coding other than chunked.", {}),
    503: (
        "Unavailable",
        "Not now: the database or the volume is away, or the service stops.",
        _RETRY,
    ),
    507: ("NoRoom", "The service has no room for the body.", {}),
}
"""By status: the name of the response, when it comes, and its headers."""

COMMON_ERRORS = (400, 401, 408, 429, 431, 500, 503)
"""What any request may be answered with."""

_JSON_ERROR = {"application/json": {"schema": ref("schemas", "Error")}}

RESPONSES: dict[str, Any] = {
    name: {"description": description, "headers": headers, "content": _JSON_ERROR}
    for name, description, headers in ERRORS.values()
}
RESPONSES["CartInError"] = {
    "description": "The cart is in error, and the message says why; or the service failed.",
    "content": _JSON_ERROR,
}


def errors(*more: int) -> dict[str, Any]:
    """References for the errors that any request may meet, and these."""
    return {
        str(code): ref("responses", ERRORS[code][0]) for code in sorted({*COMMON_ERRORS, *more})
    }


def head_errors(*more: int) -> dict[str, Any]:
    """The same for a HEAD, whose answer has no body."""
    return {
        str(code): {"description": ERRORS[code][1], "headers": ERRORS[code][2]}
        for code in sorted({*COMMON_ERRORS, *more})
    }


def message_response(description: str, message: str, **more: Any) -> dict[str, Any]:
    """A success that says ``message``."""
    content = {"schema": ref("schemas", "Message"), "example": {"message": message}}
    return {"description": description, "content": {"application/json": content}, **more}
