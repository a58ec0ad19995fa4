"""The OpenAPI 3.1 document of the REST interface, built from the rules of the code.

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
"""No uid begins with ``-``, so this path cannot be that of a cart."""

_DESCRIPTION = """\
cartd stages files from an archive, verifies them and serves them as one tar. Post a manifest under
a uid of your choice, poll its status with HEAD until it is `ready`, download it, delete it.

Every error response is JSON with the schema `Error`; to HEAD only its headers are sent. This also
holds for errors of any path: 400 for invalid HTTP, 404 for an unknown path, and 405 for another
method, with the allowed ones in `Allow`. OPTIONS of any path returns 204 with the same `Allow`.

Whether clients must authenticate depends on the configuration of the service.
"""


def document() -> dict[str, Any]:
    """Return the document as JSON values."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "cartd",
            "version": __version__,
            "summary": "Carts of files from an archive, each as one tar",
            "description": _DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "../", "description": "The service of this document"}],
        "security": [{}, {"bearer": []}, {"basic": []}],
        "tags": [
            {"name": "carts", "description": "Post, poll, download and delete carts"},
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
    """Return the document as it is served and stored."""
    return json.dumps(document(), indent=2) + "\n"
