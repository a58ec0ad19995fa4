"""What stands in bodies, as JSON Schema (draft 2020-12): the manifest, messages and errors."""

from __future__ import annotations

from typing import Any

from cartd import __version__
from cartd.checksum import digest_size
from cartd.manifest import COMPONENT_LIMIT, ID_LIMIT, PATH_LIMIT

HASH_TYPES = (
    *("md5", "sha1", "sha224", "sha256", "sha384", "sha512"),
    *("sha3_224", "sha3_256", "sha3_384", "sha3_512", "blake2b", "blake2s"),
)
"""Those of a fixed length that every Python has."""

NUL = r"\u0000"
CONTROLS = r"\u0000-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069"
"""Within brackets, what ``content_disposition.check_filename`` refuses wherever it stands."""
_DOT = r"(?:\.|%2[Ee])"
_SLASH = r"(?:[/\\]|%2[Ff]|%5[Cc])"


def ref(kind: str, name: str) -> dict[str, Any]:
    """A reference to one of the document's components."""
    return {"$ref": f"#/components/{kind}/{name}"}


def _hash_sums() -> list[dict[str, Any]]:
    """For each length, which hashes have it and how a sum of it looks."""
    by_digits: dict[int, list[str]] = {}
    for name in HASH_TYPES:
        by_digits.setdefault(2 * digest_size(name), []).append(name)
    return [
        {
            "if": {"properties": {"hashtype": {"enum": names}}},
            "then": {"properties": {"hashsum": {"pattern": f"^([0-9A-Fa-f]{{{digits}}})?$"}}},
        }
        for digits, names in by_digits.items()
    ]


_ENTRY = {
    "type": "object",
    "description": "One file. Other keys may be there and are read past.",
    "required": ["id", "path", "hashtype", "hashsum"],
    "properties": {
        "id": {
            "description": (
                f"The file's id in the archive, 1 to {ID_LIMIT:,} bytes in UTF-8; a number is "
                "written without fraction and exponent. It has no NUL and, encoded by % or not, "
                "no segment '.' or '..'."
            ),
            "anyOf": [
                {"type": "integer"},
                {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": ID_LIMIT,
                    "allOf": [
                        {"not": {"pattern": f"(?:^|{_SLASH}){_DOT}{{1,2}}(?:$|{_SLASH})"}},
                        {"not": {"pattern": f"{NUL}|%00"}},
                    ],
                },
            ],
            "examples": [101, "2026/b7"],
        },
        "path": {
            "type": "string",
            "description": (
                f"Where the file lies below the top folder: up to {PATH_LIMIT:,} bytes in UTF-8, "
                f"each component up to {COMPONENT_LIMIT}. Leading '/' and components that are "
                "empty or '.' are dropped; what is left must name a file. No '..', no NUL."
            ),
            "pattern": r"(?:^|/)(?:[^/.]|\.[^/])",
            "allOf": [
                {"not": {"pattern": r"(?:^|/)\.\.(?:$|/)"}},
                {"not": {"pattern": f"{NUL}|[^/]{{{COMPONENT_LIMIT + 1}}}"}},
            ],
            "examples": ["run1/weather.csv"],
        },
        "hashtype": {
            "type": "string",
            "description": (
                "The hash of hashsum. A service may take more: every hash of a fixed length that "
                "its Python's hashlib knows."
            ),
            "enum": list(HASH_TYPES),
        },
        "hashsum": {
            "type": "string",
            "description": (
                "Hex digits, as many as the hash has, in either case. Empty: the client knows "
                "none; it is computed and recorded. Some services refuse an empty one."
            ),
            "examples": ["d7417fc887b39e4160e442551e1e98231915cbf2"],
        },
    },
    "allOf": _hash_sums(),
}

_MANIFEST = {
    "type": "object",
    "description": (
        "The files of a cart, in the order in which they come in its tar. No two entries have "
        "the same path once that is normalised, and no path is a file in one entry and a "
        "directory in another; 400 says which. Other keys may be there and are read past."
    ),
    "required": ["fileids"],
    "properties": {
        "fileids": {
            "type": "array",
            "description": "The files; of an empty list the cart is ready at once.",
            "items": ref("schemas", "Entry"),
        },
        "bundle": {
            "type": ["boolean", "null"],
            "description": (
                "Whether the tar is written to the volume once, instead of being put together "
                "for each download. Not for a uid over 251 characters. Without it, the "
                "service's configuration decides."
            ),
        },
    },
}

_MESSAGE = {
    "type": "object",
    "required": ["message"],
    "properties": {"message": {"type": "string"}},
    "additionalProperties": False,
}

_ERROR = {
    "type": "object",
    "description": "What every error's body is.",
    "required": ["status", "message", "traceback", "version"],
    "properties": {
        "status": {
            "type": "string",
            "description": "The status and its phrase.",
            "pattern": "^[45][0-9]{2}( .+)?$",
        },
        "message": {"type": "string", "description": "In a sentence, what is wrong."},
        "traceback": {"const": "", "description": "Always empty: a trace goes to the log."},
        "version": {"type": "string", "description": "That of the service."},
        "limit": {
            "type": "string",
            "description": "The setting that was gone over, if one was.",
            "examples": ["server.max_manifest_size"],
        },
    },
    "additionalProperties": False,
    "examples": [
        {
            "status": "404 Not Found",
            "message": "The cart does not exist or has already been deleted",
            "traceback": "",
            "version": __version__,
        }
    ],
}

SCHEMAS: dict[str, Any] = {
    "Manifest": _MANIFEST,
    "Entry": _ENTRY,
    "Message": _MESSAGE,
    "Error": _ERROR,
}

EXAMPLE_MANIFEST = {
    "fileids": [
        {
            "id": 101,
            "path": "run1/weather.csv",
            "hashtype": "sha1",
            "hashsum": "d7417fc887b39e4160e442551e1e98231915cbf2",
        },
        {"id": "2026/b7", "path": "run1/image.raw", "hashtype": "sha256", "hashsum": ""},
    ],
    "bundle": False,
}
