"""The operations: what can be asked for, with which parameters, and what comes of it."""

from __future__ import annotations

from typing import Any

from cartd.content_disposition import MAX_BYTES
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
from cartd.uids import UID_PATTERN

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
            "The name of the cart, which the client chooses; one that nobody guesses or takes by "
            "accident, such as a UUID. Of several carts of one uid the newest answers."
        ),
        "schema": {"type": "string", "minLength": 1},
        "examples": {"one": {"value": "my-cart"}},
    },
    "newUid": {
        "name": "uid",
        "in": "path",
        "required": True,
        "description": (
            "The name of the new cart. Carts that an older service has left may have others."
        ),
        "schema": {"type": "string", "pattern": f"^{UID_PATTERN}$"},
        "examples": {"one": {"value": "my-cart"}},
    },
    "filename": {
        "name": "filename",
        "in": "query",
        "description": (
            "The name of the download and, without its '.tar', the top folder in it: any name of "
            f"a file of up to {MAX_BYTES} bytes in UTF-8, without '/', '\\' and NUL. Without it, "
            "the name is made of the time at which the cart was posted."
        ),
        "schema": {
            "type": "string",
            "minLength": 1,
            "maxLength": MAX_BYTES,
            "allOf": [
                {"not": {"pattern": rf"[/\\{CONTROLS}]"}},
                {"not": {"enum": [".", "..", ".tar", "..tar", "...tar"]}},
            ],
        },
        "examples": {"one": {"value": "my-data.tar"}},
    },
    "Range": _request_header(
        "Range",
        "Which bytes to send, as `bytes=FIRST-LAST`, `bytes=FIRST-` or `bytes=-LAST_N`. More than "
        "one range, or what is none, is answered with the whole.",
        "bytes=0-1023",
    ),
    "If-Range": _request_header(
        "If-Range",
        "The `ETag`, or the exact `Last-Modified`, of what the client has; if the tar is another "
        "now, the whole is sent.",
        '"88e035b47aa44fae656e675378280ce6e953faf82bb5e121ce0236f2bc5a7dcd"',
    ),
    "If-None-Match": _request_header(
        "If-None-Match",
        "The `ETag` of what the client has, or `*`; if the tar is still the same, 304 says so, and "
        "412 to a request that would change something.",
        '"88e035b47aa44fae656e675378280ce6e953faf82bb5e121ce0236f2bc5a7dcd"',
    ),
    "If-Match": _request_header(
        "If-Match",
        "The `ETag` of the tar that is meant, or `*`; if there is another one now, or none, 412 "
        "says so and nothing is done.",
        '"88e035b47aa44fae656e675378280ce6e953faf82bb5e121ce0236f2bc5a7dcd"',
    ),
    "If-Modified-Since": _request_header(
        "If-Modified-Since",
        "The `Last-Modified` of what the client has; looked at where there is no If-None-Match.",
        "Tue, 24 Nov 2026 06:30:54 GMT",
    ),
    "If-Unmodified-Since": _request_header(
        "If-Unmodified-Since",
        "The `Last-Modified` of the tar that is meant; looked at where there is no If-Match.",
        "Tue, 24 Nov 2026 06:30:54 GMT",
    ),
}

_CHANGE_CONDITIONS = ("If-Match", "If-Unmodified-Since", "If-None-Match")
_READ = ("filename", *_CHANGE_CONDITIONS, "If-Modified-Since")


def _parameters(*names: str) -> list[dict[str, Any]]:
    return [ref("parameters", name) for name in names]


def _links(*operations: str) -> dict[str, Any]:
    """What can be done next with the same cart."""
    return {name: {"operationId": name, "parameters": _SAME_UID} for name in operations}


_SAME_UID = {"path.uid": "$request.path.uid"}

_RESUME_LINKS = {
    "ifChanged": {
        "operationId": "downloadCart",
        "description": "Ask, with the same filename, whether it is still the same tar.",
        "parameters": {**_SAME_UID, "header.If-None-Match": "$response.header.ETag"},
    },
    "goOn": {
        "operationId": "downloadCart",
        "description": "Go on, with the same filename and a Range, where a download broke.",
        "parameters": {**_SAME_UID, "header.If-Range": "$response.header.ETag"},
    },
}

_ROOT = {
    "get": {
        "operationId": "getServiceStatus",
        "tags": ["service"],
        "summary": "Say that the service runs",
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
    "summary": "Tell the status of a cart, in headers alone",
    "description": (
        "With a `filename`, a ready cart is answered as a GET is, without the tar; the conditions "
        "are looked at only if the cart is ready."
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
            "description": "The client has this very tar.",
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
            "description": "The cart is in error, and the message says why; or the service failed.",
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
    "summary": "Download the tar of a cart, or a part of it",
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
                "The cart is not ready. Wait with HEAD, then ask again. A request with Range or a "
                "condition is answered with 503."
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
            "description": "The bytes that were asked for.",
            "headers": {
                **_CART_HEADERS,
                **DOWNLOAD_HEADERS,
                "Content-Range": ref("headers", "ContentRange"),
            },
            "content": _TAR,
        },
        "304": {
            "description": "The client has this very tar.",
            "headers": {**_CART_HEADERS, **CACHE_HEADERS},
        },
        **errors(404, 412, 416),
        "500": ref("responses", "CartInError"),
    },
}

_POST = {
    "operationId": "postCart",
    "tags": ["carts"],
    "summary": "Make a cart of a manifest",
    "description": (
        "To post the very same manifest again while its cart is staged or ready changes nothing: "
        "a client whose connection broke may simply do so. Any other makes a new cart."
    ),
    "parameters": _parameters("newUid", *_CHANGE_CONDITIONS),
    "requestBody": {
        "required": True,
        "description": "The manifest, in UTF-8. Any other content type, or none, does as well.",
        "content": {
            "application/json": {
                "schema": ref("schemas", "Manifest"),
                "examples": {"two files": {"value": EXAMPLE_MANIFEST}},
            }
        },
    },
    "responses": {
        "201": message_response(
            "The whole manifest was checked and recorded; the cart is staged from here on.",
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
    "description": "Running downloads end first; staging stops.",
    "parameters": _parameters(*_CHANGE_CONDITIONS),
    "responses": {
        "200": message_response(
            "They are deleted.",
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
        "summary": "Give this document",
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
