"""The description of the REST interface: one OpenAPI 3.1 document, made of the rules themselves.

``docs/openapi.json`` is what ``python -m cartd.openapi`` prints, and what the service
serves at :data:`PATH`.
"""

from __future__ import annotations

import json
from typing import Any

from cartd import __version__
from cartd.openapi.operations import PARAMETERS, PATHS
from cartd.openapi.responses import HEADERS, RESPONSES
from cartd.openapi.schemas import SCHEMAS

PATH = "/-/openapi.json"
"""No uid begins with ``-``, so no cart is in its way."""

_DESCRIPTION = """\
cartd stages files out of an archive, verifies them and hands them out as one tar. Post a
manifest under a uid of your choice, ask for its status with HEAD until it is `ready`, download
it, delete it.

Every error is JSON of one form, the schema `Error`; a HEAD has its headers only. So is what can go
wrong at any path: 400 for what is not HTTP, 404 for a path that is none of these, and 405 for
another method, with those that there are in `Allow`. OPTIONS of any path is answered with 204 and
the same `Allow`.

Whether a client has to say who it is depends on the service's configuration.
"""


def document() -> dict[str, Any]:
    """The document as values that JSON knows."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "cartd",
            "version": __version__,
            "summary": "Carts of files out of an archive, each as one tar",
            "description": _DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "../", "description": "The service that serves this document"}],
        "security": [{}, {"bearer": []}, {"basic": []}],
        "tags": [
            {"name": "carts", "description": "Post, watch, download and delete carts"},
            {"name": "service", "description": "About the service itself"},
        ],
        "paths": PATHS,
        "components": {
            "schemas": SCHEMAS,
            "parameters": PARAMETERS,
            "headers": HEADERS,
            "responses": RESPONSES,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "basic": {"type": "http", "scheme": "basic"},
            },
        },
    }


def to_json() -> str:
    """The document as it is served and kept."""
    return json.dumps(document(), indent=2) + "\n"
