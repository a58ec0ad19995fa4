"""Manifests: an accepted manifest agrees with JSON, stays below its root, and round-trips.

An input is a body; a leading ``!`` stands for ``require_hashsum``.
"""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote, unquote

from cartd.checksum import digest_size
from cartd.errors import InvalidInput, InvalidManifest
from cartd.manifest import (
    COMPONENT_LIMIT,
    ID_LIMIT,
    MAX_FAULTS,
    PATH_LIMIT,
    Entry,
    Manifest,
    parse,
)

WORDS = (
    b'{"fileids":[', b'],"bundle":true}', b'"id":', b'"path":"', b'"hashtype":"md5"',
    b'"hashsum":"',
    b"d41d8cd98f00b204e9800998ecf8427e", b"../", b"/./", b"//", b"%2e%2e/", b"\\u0000", b"\\ud800",
    b"\\", b"null", b"1e400", b"-0", b"1.0", b"\xef\xbb\xbf", b"\xc3\xa9", b"[[[[", b"shake_128",
    b'{"id":1,"path":"a","hashtype":"md5","hashsum":""},',
)  # fmt: skip

_SAID = re.compile(r"(\w{1,100}|fileids\[[0-9]+\](\.\w{1,100})?): [^\n]+", re.ASCII)
_POINTER = re.compile(r"#|#/\w{1,100}(/[0-9]+(/\w{1,100})?)?", re.ASCII)
_LONGEST = 300


def check(data: bytes) -> None:
    strict, body = data.startswith(b"!"), data.removeprefix(b"!")
    try:
        manifest = parse(body, require_hashsum=strict)
    except InvalidInput as error:
        said = str(error)
        assert _SAID.fullmatch(said), said
        assert said.isprintable() and len(said) <= _LONGEST, said
        if isinstance(error, InvalidManifest):
            _check_faults(error)
        return
    entries = list(manifest.entries)
    assert len(entries) == len(manifest.entries)
    for entry in entries:
        _check_entry(entry, strict)
    _check_tree([entry.path for entry in entries])
    _check_against_json(body, manifest, entries)
    _check_round_trip(manifest, entries)


def _check_faults(error: InvalidManifest) -> None:
    place, _, detail = str(error).partition(": ")
    assert 0 < len(error.faults) <= MAX_FAULTS
    assert error.faults[0].detail == detail, (place, error.faults[0])
    for fault in error.faults:
        assert _POINTER.fullmatch(fault.pointer), fault
        assert fault.detail.isprintable() and len(fault.detail) <= _LONGEST, fault


def _check_entry(entry: Entry, strict: bool) -> None:
    parts = entry.path.split("/")
    assert not {"", ".", ".."} & set(parts), entry
    assert "\0" not in entry.path
    assert len(entry.path.encode()) <= PATH_LIMIT
    assert all(len(part.encode()) <= COMPONENT_LIMIT for part in parts)
    assert PurePosixPath("/root", entry.path).is_relative_to("/root")
    assert 0 < len(entry.archive_id.encode()) <= ID_LIMIT
    for said in (entry.archive_id, unquote(entry.archive_id)):
        assert not {".", ".."} & set(said.replace("\\", "/").split("/")), entry
        assert "\0" not in said
    assert unquote(quote(entry.archive_id, safe="")) == entry.archive_id
    if entry.hash_sum or strict:
        assert re.fullmatch("[0-9a-f]+", entry.hash_sum), entry
        assert len(entry.hash_sum) == 2 * digest_size(entry.hash_type)


def _check_tree(paths: list[str]) -> None:
    """No two files may have one path, and no path may be a directory of another."""
    files = set(paths)
    assert len(files) == len(paths)
    for path in paths:
        assert not files & {str(above) for above in PurePosixPath(path).parents}, path


def _check_against_json(body: bytes, manifest: Manifest, entries: list[Entry]) -> None:
    """Python's JSON parser must read the same."""
    said: Any = json.loads(body.decode("utf-8-sig"), parse_float=_whole)
    assert manifest.bundle == said.get("bundle")
    assert len(said["fileids"]) == len(entries)
    for posted, entry in zip(said["fileids"], entries, strict=True):
        assert str(posted["id"]) == entry.archive_id
        parts = [part for part in posted["path"].split("/") if part not in ("", ".")]
        assert "/".join(parts) == entry.path
        assert posted["hashtype"] == entry.hash_type
        assert posted["hashsum"].lower() == entry.hash_sum


def _whole(digits: str) -> int | float:
    number = float(digits)
    return int(number) if number.is_integer() else number


def _check_round_trip(manifest: Manifest, entries: list[Entry]) -> None:
    files = [
        {"id": one.archive_id, "path": one.path, "hashtype": one.hash_type, "hashsum": one.hash_sum}
        for one in entries
    ]
    again = parse(json.dumps({"fileids": files, "bundle": manifest.bundle}).encode())
    assert again == manifest
    assert list(again.entries) == entries
