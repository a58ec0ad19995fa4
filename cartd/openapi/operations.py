"""The operations, with their parameters and responses."""

from __future__ import annotations

from typing import Any

from cartd.http.headers import MAX_FILENAME_BYTES
from cartd.model import UID_PATTERN
from cartd.openapi.responses import (
    CACHE_HEADERS,
    COUNT_HEADERS,
    DOWNLOAD_HEADERS,
    ERRORS,
    errors,
    head_errors,
    message_response,
)
from cartd.openapi.schemas import CONTROLS, EXAMPLE_MANIFEST, ref

_TAR = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


def _request_header(name: str, description: str, example: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "description": description,
        "schema": {"type": "string"},
        "examples": {"one": {"value": example}},
    }


PARAMETERS: dict[str, Any] = {
    "uid": {
        "name": "uid",
        "in": "path",
        "required": True,
        "description": (
            "The name of the cart, chosen by the client: unique and hard to guess, such as a UUID. "
            "Of several carts with one uid the newest is used."
        ),
        "schema": {"type": "string", "minLength": 1},
        "examples": {"one": {"value": "my-cart"}},
    },
    "newUid": {
        "name": "uid",
        "in": "path",
        "required": True,
        "description": (
            "The name of the new cart. Carts of an older service may have other names."
        ),
        "schema": {"type": "string", "pattern": f"^{UID_PATTERN}$"},
        "examples": {"one": {"value": "my-cart"}},
    },
    "filename": {
        "name": "filename",
        "in": "query",
        "description": (
            "The file name of the download and, without its '.tar', of the top folder in it: up to "
            f"{MAX_FILENAME_BYTES} bytes in UTF-8, without '/', '\\' and control characters. "
            "Default: made of the time when the cart was posted."
        ),
        "schema": {
            "type": "string",
            "minLength": 1,
            "maxLength": MAX_FILENAME_BYTES,
            "allOf": [
                {"not": {"pattern": rf"[/\\{CONTROLS}]"}},
                {"not": {"enum": [".", "..", ".tar", "..tar", "...tar"]}},
            ],
        },
        "examples": {"one": {"value": "my-data.tar"}},
    },
    "Range": _request_header(
        "Range",
        "The bytes to send: `bytes=FIRST-LAST`, `bytes=FIRST-` or `bytes=-LAST_N`. Several ranges "
        "or an invalid one get the complete tar.",
        "bytes=0-1023",
    ),
    "If-Range": _request_header(
        "If-Range",
        "The `ETag`, or the exact `Last-Modified`, of the client's part; if the tar has changed, "
        "the complete tar is sent.",
        '"88e035b47aa44fae656e675378280ce6e953faf82bb5e121ce0236f2bc5a7dcd"',
    ),
    "If-None-Match": _request_header(
        "If-None-Match",
        "The `ETag` of the client's copy, or `*`; if the tar has not changed, the response is 304, "
        "or 412 to a request that would change something.",
        '"88e035b47aa44fae656e675378280ce6e953faf82bb5e121ce0236f2bc5a7dcd"',
    ),
    "If-Match": _request_header(
        "If-Match",
        "The `ETag` of the expected tar, or `*`; if it has changed, or there is none, the response "
        "is 412 and nothing is done.",
        '"88e035b47aa44fae656e675378280ce6e953faf82bb5e121ce0236f2bc5a7dcd"',
    ),
    "If-Modified-Since": _request_header(
        "If-Modified-Since",
        "The `Last-Modified` of the client's copy; ignored with If-None-Match.",
        "Tue, 24 Nov 2026 06:30:54 GMT",
    ),
    "If-Unmodified-Since": _request_header(
        "If-Unmodified-Since",
        "The `Last-Modified` of the expected tar; ignored with If-Match.",
        "Tue, 24 Nov 2026 06:30:54 GMT",
    ),
}

_CHANGE_CONDITIONS = ("If-Match", "If-Unmodified-Since", "If-None-Match")
_READ = ("filename", *_CHANGE_CONDITIONS, "If-Modified-Since")


def _parameters(*names: str) -> list[dict[str, Any]]:
    return [ref("parameters", name) for name in names]


def _links(*operations: str) -> dict[str, Any]:
    """Return links to the next operations with the same cart."""
    return {name: {"operationId": name, "parameters": _SAME_UID} for name in operations}


_SAME_UID = {"path.uid": "$request.path.uid"}

_RESUME_LINKS = {
    "ifChanged": {
        "operationId": "downloadCart",
        "description": "Check, with the same filename, whether the tar has changed.",
        "parameters": {**_SAME_UID, "header.If-None-Match": "$response.header.ETag"},
    },
    "resume": {
        "operationId": "downloadCart",
        "description": "Resume an aborted download, with the same filename and a Range.",
        "parameters": {**_SAME_UID, "header.If-Range": "$response.header.ETag"},
    },
}

_ROOT = {
    "get": {
        "operationId": "getServiceStatus",
        "tags": ["service"],
        "summary": "Check that the service runs",
        "security": [],
        "responses": {
            "200": message_response("It runs.", "Pacifica Cartd Interface Up and Running"),
            **{code: error for code, error in errors().items() if code != "401"},
        },
    }
}

_CART_HEADERS = {
    "X-Pacifica-Status": ref("headers", "Status"),
    "X-Pacifica-Phase": ref("headers", "Phase"),
    "X-Pacifica-Message": ref("headers", "Message"),
    **COUNT_HEADERS,
}

_HEAD = {
    "operationId": "getCartStatus",
    "tags": ["carts"],
    "summary": "Get the status of a cart, in headers only",
    "description": (
        "With a `filename`, the response for a ready cart is that of a GET, without the tar. "
        "Preconditions are ignored unless the cart is ready."
    ),
    "parameters": _parameters(*_READ),
    "responses": {
        **head_errors(404, 412),
        "200": {
            "description": "The cart is ready, and a GET of this URL has these headers.",
            "headers": {**_CART_HEADERS, **DOWNLOAD_HEADERS},
            "links": _links("downloadCart", "deleteCart"),
        },
        "204": {
            "description": "The cart is not in error.",
            "headers": {
                **_CART_HEADERS,
                "ETag": ref("headers", "ETagOfReady"),
                "Last-Modified": ref("headers", "LastModifiedOfReady"),
                "X-Pacifica-Tar-Length": ref("headers", "TarLengthOfReady"),
            },
            "links": _links("downloadCart", "deleteCart"),
        },
        "304": {
            "description": "The client's copy of the tar is current.",
            "headers": {**_CART_HEADERS, **CACHE_HEADERS},
        },
        "404": {
            "description": ERRORS[404][1],
            "headers": {
                "X-Pacifica-Status": ref("headers", "StatusError"),
                "X-Pacifica-Message": ref("headers", "Message"),
            },
        },
        "500": {
            "description": "The cart is in error, as its message explains, or the service failed.",
            "headers": {
                "X-Pacifica-Status": ref("headers", "StatusError"),
                "X-Pacifica-Message": ref("headers", "Message"),
            },
        },
    },
}

_GET = {
    "operationId": "downloadCart",
    "tags": ["carts"],
    "summary": "Download the tar of a cart, or a range of it",
    "parameters": _parameters(*_READ, "Range", "If-Range"),
    "responses": {
        "200": {
            "description": "The tar.",
            "headers": {**_CART_HEADERS, **DOWNLOAD_HEADERS},
            "content": _TAR,
            "links": _RESUME_LINKS,
        },
        "202": {
            "description": (
                "The cart is not ready. Poll with HEAD, then retry. A request with Range or a "
                "precondition gets 503."
            ),
            "headers": {**_CART_HEADERS, "Retry-After": ref("headers", "RetryAfter")},
            "content": {
                "text/plain": {
                    "schema": {"const": "The cart is not ready for download."},
                    "example": "The cart is not ready for download.",
                }
            },
        },
        "206": {
            "description": "The requested bytes.",
            "headers": {
                **_CART_HEADERS,
                **DOWNLOAD_HEADERS,
                "Content-Range": ref("headers", "ContentRange"),
            },
            "content": _TAR,
        },
        "304": {
            "description": "The client's copy of the tar is current.",
            "headers": {**_CART_HEADERS, **CACHE_HEADERS},
        },
        **errors(404, 412, 416),
        "500": ref("responses", "CartInError"),
    },
}

_POST = {
    "operationId": "postCart",
    "tags": ["carts"],
    "summary": "Create a cart from a manifest",
    "description": (
        "Posting the same manifest again while its cart is staging or ready changes nothing, so a "
        "client may simply retry. Any other manifest creates a new cart."
    ),
    "parameters": _parameters("newUid", *_CHANGE_CONDITIONS),
    "requestBody": {
        "required": True,
        "description": "The manifest, in UTF-8. The content type is ignored.",
        "content": {
            "application/json": {
                "schema": ref("schemas", "Manifest"),
                "examples": {"two files": {"value": EXAMPLE_MANIFEST}},
            }
        },
    },
    "responses": {
        "201": message_response(
            "The manifest was checked and stored; staging has begun.",
            "Cart Processing has begun",
            links=_links("getCartStatus", "downloadCart", "deleteCart"),
        ),
        **errors(412, 413, 415, 501, 507),
    },
}

_DELETE = {
    "operationId": "deleteCart",
    "tags": ["carts"],
    "summary": "Delete all carts of a uid",
    "description": "Running downloads are completed; staging stops.",
    "parameters": _parameters(*_CHANGE_CONDITIONS),
    "responses": {
        "200": message_response(
            "The carts are deleted.",
            "Cart Deleted Successfully",
            links=_links("getCartStatus", "downloadCart"),
        ),
        **errors(404, 412),
    },
}

_DESCRIPTION = {
    "get": {
        "operationId": "getApiDescription",
        "tags": ["service"],
        "summary": "Get this document",
        "responses": {
            "200": {
                "description": "An OpenAPI 3.1 document.",
                "content": {
                    "application/json": {
                        "schema": {"type": "object", "required": ["openapi", "info", "paths"]},
                        "example": {"openapi": "3.1.0", "info": {}, "paths": {}},
                    }
                },
            },
            **errors(),
        },
    }
}

PATHS: dict[str, Any] = {
    "/": _ROOT,
    "/{uid}": {
        "parameters": [ref("parameters", "uid")],
        "head": _HEAD,
        "get": _GET,
        "post": _POST,
        "delete": _DELETE,
    },
    "/-/openapi.json": _DESCRIPTION,
}
