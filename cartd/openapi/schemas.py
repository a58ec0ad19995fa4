"""JSON Schemas (draft 2020-12) of bodies: manifest, messages and errors."""

from __future__ import annotations

from typing import Any

from cartd import __version__
from cartd.checksum import digest_size
from cartd.manifest import COMPONENT_LIMIT, ID_LIMIT, PATH_LIMIT

HASH_TYPES = (
    *("md5", "sha1", "sha224", "sha256", "sha384", "sha512"),
    *("sha3_224", "sha3_256", "sha3_384", "sha3_512", "blake2b", "blake2s"),
)
"""Hashes of a fixed length that every Python has."""

NUL = r"\u0000"
CONTROLS = r"\u0000-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069"
"""Characters, within brackets, that ``headers.check_filename`` rejects."""
_DOT = r"(?:\.|%2[Ee])"
_SLASH = r"(?:[/\\]|%2[Ff]|%5[Cc])"


def ref(kind: str, name: str) -> dict[str, Any]:
    """Return a reference to a component of the document."""
    return {"$ref": f"#/components/{kind}/{name}"}


def _hash_sums() -> list[dict[str, Any]]:
    """Return, for each digest length, its hashes and the pattern of their sums."""
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
    "description": "One file. Unknown keys are ignored.",
    "required": ["id", "path", "hashtype", "hashsum"],
    "properties": {
        "id": {
            "description": (
                f"The file's id in the archive, 1 to {ID_LIMIT:,} bytes in UTF-8; a number has "
                "neither fraction nor exponent. NUL and segments '.' and '..' are forbidden, "
                "percent-encoded as well."
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
                f"The path of the file below the top folder: up to {PATH_LIMIT:,} bytes in UTF-8, "
                f"each component up to {COMPONENT_LIMIT}. Leading '/' and components that are "
                "empty or '.' are dropped; the rest must not be empty. No '..', no NUL."
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
                "The hash of hashsum. A service may accept more: every hash of a fixed length in "
                "its Python's hashlib."
            ),
            "enum": list(HASH_TYPES),
        },
        "hashsum": {
            "type": "string",
            "description": (
                "Hex digits of the hash, in upper or lower case. Empty if unknown: the service "
                "computes and stores it. Some services reject an empty one."
            ),
            "examples": ["d7417fc887b39e4160e442551e1e98231915cbf2"],
        },
    },
    "allOf": _hash_sums(),
}

_MANIFEST = {
    "type": "object",
    "description": (
        "The files of a cart, in the order of its tar. No two entries may have the same "
        "normalized path, and no path may be a file in one entry and a directory in another; the "
        "message of 400 names it. Unknown keys are ignored."
    ),
    "required": ["fileids"],
    "properties": {
        "fileids": {
            "type": "array",
            "description": "The files; a cart of an empty list is ready at once.",
            "items": ref("schemas", "Entry"),
        },
        "bundle": {
            "type": ["boolean", "null"],
            "description": (
                "Whether the tar is written to the volume once, instead of being generated for "
                "each download. Not allowed for a uid over 251 characters. Default: the "
                "configuration of the service."
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
    "description": "The body of every error.",
    "required": ["status", "message", "traceback", "version"],
    "properties": {
        "status": {
            "type": "string",
            "description": "The status and its phrase.",
            "pattern": "^[45][0-9]{2}( .+)?$",
        },
        "message": {"type": "string", "description": "The error, in one sentence."},
        "traceback": {"const": "", "description": "Always empty: tracebacks are logged."},
        "version": {"type": "string", "description": "The version of the service."},
        "limit": {
            "type": "string",
            "description": "The setting of the exceeded limit, if any.",
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
