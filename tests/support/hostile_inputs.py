"""Hostile input by name: manifests, uids and file names."""

from __future__ import annotations

import json
from typing import Any

SHA1_OF_NOTHING = "da39a3ee5e6b4b0d3255bfef95601890afd80709"
GOOD: dict[str, Any] = {
    "id": "an-id", "path": "a/file", "hashtype": "sha1", "hashsum": SHA1_OF_NOTHING,
}  # fmt: skip


def _entries(*changes: dict[str, Any], **more: Any) -> bytes:
    """Return a manifest with a good entry for each of ``changes``, updated with its keys."""
    return json.dumps({"fileids": [{**GOOD, **change} for change in changes], **more}).encode()


def _without(key: str) -> bytes:
    entry = {name: value for name, value in GOOD.items() if name != key}
    return json.dumps({"fileids": [GOOD, entry]}).encode()


def _path(path: Any) -> bytes:
    return _entries({"path": path})


def _id(archive_id: Any) -> bytes:
    return _entries({"id": archive_id})


def _hash(hash_type: Any, hash_sum: Any) -> bytes:
    return _entries({"hashtype": hash_type, "hashsum": hash_sum})


def _two_paths(first: str, second: str) -> bytes:
    return _entries({"path": first}, {"path": second})


MANIFESTS: dict[str, tuple[bytes, str]] = {
    # invalid JSON, or a wrong schema: the body, and the beginning of the message
    "nothing": (b"", "manifest: is not JSON"),
    "a brace": (b"{", "manifest: is not JSON"),
    "words": (b"fileids", "manifest: is not JSON"),
    "NULs": (b"\0" * 64, "manifest: is not JSON"),
    "bytes": (bytes(range(128, 256)), "manifest: is not UTF-8"),
    "UTF-16": (_entries({}).decode().encode("utf-16"), "manifest: is not UTF-8"),
    "two documents": (_entries({}) * 2, "manifest: is not JSON"),
    "NaN": (b'{"fileids": NaN}', "manifest: is not JSON"),
    "100,000 brackets": (b"[" * 100_000, "manifest: "),
    "100,000 nested lists in a key": (
        b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "manifest: is nested too deeply"),
    "null": (b"null", "manifest: expected object"),
    "a list": (b"[]", "manifest: expected object"),
    "a string": (b'"x"', "manifest: expected object"),
    "no list": (b"{}", "fileids: is missing"),
    "a null list": (b'{"fileids": null}', "fileids: expected array"),
    "an object for the list": (b'{"fileids": {"id": 1}}', "fileids: expected array"),
    "a number for an entry": (b'{"fileids": [1]}', "fileids[0]: expected object"),
    "a null entry": (b'{"fileids": [null]}', "fileids[0]: expected object"),
    "bundle as a word": (_entries({}, bundle="yes"), "bundle: expected bool"),
    "bundle as a number": (_entries({}, bundle=1), "bundle: expected bool"),
    "no id": (_without("id"), "fileids[1].id: is missing"),
    "no path": (_without("path"), "fileids[1].path: is missing"),
    "no hash type": (_without("hashtype"), "fileids[1].hashtype: is missing"),
    "no hash sum": (_without("hashsum"), "fileids[1].hashsum: is missing"),
    "the last of 5,000 entries": (
        _entries(*({"path": str(n)} for n in range(4999)), {"path": ".."}), "fileids[4999].path: "),
    # ids
    "an empty id": (_id(""), "fileids[0].id: is empty"),
    "a null id": (_id(None), "fileids[0].id: expected"),
    "an id with a fraction": (_id(1.5), "fileids[0].id: expected"),
    "a true id": (_id(True), "fileids[0].id: expected"),
    "a list for an id": (_id(["1"]), "fileids[0].id: expected"),
    "an id that climbs": (_id("../../admin"), "fileids[0].id: has a segment"),
    "an id that climbs, encoded": (_id("x/%2e%2e/%2E./y"), "fileids[0].id: has a segment"),
    "an id that climbs, the other way": (_id("..\\admin"), "fileids[0].id: has a segment"),
    "an id with a NUL": (_id("1\0"), "fileids[0].id: contains a NUL"),
    "an id with a NUL, encoded": (_id("1%00"), "fileids[0].id: contains a NUL"),
    "an id of 1,025 bytes": (_id("9" * 1025), "fileids[0].id: is over 1024 bytes"),
    "an id that is half a character": (_id("\ud800"), "fileids[0].id: contains a lone surrogate"),
    # paths
    "an empty path": (_path(""), "fileids[0].path: names no file"),
    "the root": (_path("/"), "fileids[0].path: names no file"),
    "slashes and dots": (_path("/.//./"), "fileids[0].path: names no file"),
    "a path up": (_path(".."), "fileids[0].path: must not contain '..'"),
    "a path up to the volume": (_path("../../cartuids/x"), "fileids[0].path: must not contain"
    " '..'"),
    "a path far up": (_path("/" + "../" * 40 + "tmp/x"), "fileids[0].path: must not contain '..'"),
    "a path up in its middle": (_path("a/../../b"), "fileids[0].path: must not contain '..'"),
    "a path up and back": (_path("a/../b"), "fileids[0].path: must not contain '..'"),
    "a path with a NUL": (_path("a\0/../b"), "fileids[0].path: contains a NUL"),
    "a component of 256 bytes": (_path("a/" + "b" * 256), "fileids[0].path: has a component"),
    "a component of 128 two-byte characters": (
        _path("é" * 128), "fileids[0].path: has a component"),
    "a path of 4,000 bytes": (_path("/".join(["d" * 99] * 40)), "fileids[0].path: is over"),
    "a path that is half a character": (_path("\udfff"), "fileids[0].path: contains a lone"
    " surrogate"),
    "a number for a path": (_path(5), "fileids[0].path: expected str"),
    "one path twice": (_two_paths("a/b", "a/b"), "fileids[1].path: is the same"),
    "one path twice, dressed up": (_two_paths("a/b", "//a/./b"), "fileids[1].path: is the same"),
    "a file below a file": (_two_paths("a", "a/b"), "fileids[1].path: is below"),
    "a directory as a file": (_two_paths("a/b/c", "a/b"), "fileids[1].path: is a directory"),
    # hashes
    "a hash type that is none": (_hash("md6", "00"), "fileids[0].hashtype: "),
    "a hash type of no fixed length": (_hash("shake_128", "00"), "fileids[0].hashtype: "),
    "no hash type's name": (_hash("", ""), "fileids[0].hashtype: "),
    "a hash type that is a path": (_hash("../md5", ""), "fileids[0].hashtype: "),
    "a null hash type": (_hash(None, ""), "fileids[0].hashtype: expected str"),
    "the hash sum of another type": (
        _hash("md5", SHA1_OF_NOTHING), "fileids[0].hashsum: is not the 32 hex digits"),
    "a hash sum of other letters": (
        _hash("md5", "g" * 32), "fileids[0].hashsum: is not the 32 hex digits"),
    "a hash sum of spaces": (_hash("md5", " " * 32), "fileids[0].hashsum: is not the 32"),
    "a hash sum of foreign digits": (_hash("md5", "\u0661" * 32), "fileids[0].hashsum: is not"),
    "a null hash sum": (_hash("md5", None), "fileids[0].hashsum: expected str"),
}  # fmt: skip

UIDS = {
    "dots": "..", "dots, encoded": "%2e%2e", "a dot": ".", "a hidden name": ".hidden",
    "an option": "-rf", "a space": "a%20b", "a NUL": "a%00b", "a line": "a%0d%0aX-Evil:%201",
    "a backslash": "..%5c..%5cx", "an accent": "%c3%a9", "256 characters": "u" * 256,
    "8,000 characters": "u" * 8000, "a colon": "C:", "a star": "*", "a semicolon": "a;b",
    "a plus": "a+b", "twice encoded dots": "%252e%252e", "a quote": "a'--",
}  # fmt: skip
"""Each as one component of a URL."""

FILENAMES = {
    "none at all": "", "only the ending": ".tar", "a dot": ".", "dots": "..",
    "dots and .tar": "...tar", "a path": "a/b.tar", "a path, encoded": "..%2f..%2fx.tar",
    "a backslash": "a%5cb", "a NUL": "a%00b", "256 bytes": "f" * 256,
    "256 bytes of accents": "%c3%a9" * 128, "no UTF-8": "%ff%fe",
    "half a character": "%ed%a0%80", "a header": "x%0d%0aX-Evil:%201",
    "a whole answer": "x%0d%0a%0d%0aHTTP.1.1%20200%20OK%0d%0a%0d%0a%3Cscript%3E",
    "a line feed": "x%0aX-Evil:%201", "control characters": "%01%1b%5b2J%7f",
    "written from right to left": "gpj%e2%80%aerat.tar", "next line": "x%c2%85X-Evil:%201",
    "a separator of lines": "x%e2%80%a8X-Evil:%201",
}  # fmt: skip
"""Invalid names, as they are in a query."""

ODD_FILENAMES = {
    "a quote": 'x"; filename="y', "a semicolon": "x; filename=y",
    "a backslash's cousins": "x%5c%2f", "percent": "100%", "a colon": "X-Evil: 1",
    "an option": "-rf", "a tilde": "~root", "spaces": "  x  ", "foreign": "Ünï-€-日本.tar",
    "a slash's cousin": "\u2025\uff0fx", "255 bytes": "€" * 85, "two endings": "x.tar.tar",
    "a formula": "=cmd()", "a host's name": "con.tar", "dots behind": "x...", "a star": "*",
}  # fmt: skip
"""Unusual but valid names."""
