"""Parses a posted manifest: from bytes to normalised entries, or an error that names the entry.

The format is Pacifica Cartd's, ``{"fileids": [{"id", "path", "hashtype", "hashsum"}], "bundle"}``;
as in its schema, other keys are ignored.

Strategy: a manifest may have millions of entries and is parsed in a thread beside the reactor, so
this must be fast, and must never hold the interpreter's lock for long.  A first pass locates the
entries; they are then decoded, checked and digested in batches of some thousands.  Each column of a
batch is first checked as one text, and value by value only if that finds something suspicious.
There is no container of millions of objects.
"""

from __future__ import annotations

import codecs
import hashlib
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from urllib.parse import unquote

import msgspec

from cartd.checksum import digest_size
from cartd.entry_count import check_entries
from cartd.errors import InvalidInput
from cartd.path_set import PathSet
from cartd.unicode_errors import describe_invalid_utf8, describe_lone_surrogate

ID_LIMIT = 1024
"""Maximum bytes of an archive id."""
PATH_LIMIT = 3072
"""Maximum bytes of a path; the volume's own directories must fit into PATH_MAX, 4,096, too."""
COMPONENT_LIMIT = 255
"""Maximum bytes of a component of a path, the NAME_MAX of common file systems."""

_BATCH = 4096
_BLOCK = 1 << 20
_BOM = b"\xef\xbb\xbf"
_DROPPED = frozenset({"", "."})
_DOTS = frozenset({".", ".."})


class Entry(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One normalised entry.  (A Struct, for there may be millions: see the module's note.)"""

    archive_id: str
    path: str
    """Relative, no empty, ``.`` or ``..`` component."""
    hash_type: str
    hash_sum: str
    """Lower-case hex; empty if the client sent none."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A parsed manifest."""

    entries: Collection[Entry] = field(compare=False)
    """In the client's order; manifests are compared by ``fingerprint``."""
    bundle: bool | None
    """Whether a tar is to be written; none if the client sent no value."""
    fingerprint: str
    """SHA-256, hex, of the normalised entries in their order and of ``bundle``."""


class _Posted(msgspec.Struct):
    fileids: list[msgspec.Raw]
    bundle: bool | None = None


class _PostedEntry(msgspec.Struct, gc=False):
    id: int | str
    path: str
    hashtype: str
    hashsum: str


class _Entries(Collection[Entry]):
    """Entries, kept as the JSON lines that are digested, and decoded at each iteration."""

    def __init__(self) -> None:
        self._batches: list[bytes] = []
        self._length = 0

    def add(self, lines: bytes, length: int) -> None:
        self._batches.append(lines)
        self._length += length

    def __iter__(self) -> Iterator[Entry]:
        return chain.from_iterable(map(_entries.decode_lines, self._batches))

    def __len__(self) -> int:
        return self._length

    def __contains__(self, entry: object) -> bool:
        return any(entry == mine for mine in self)


_DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_posted = msgspec.json.Decoder(_Posted)
_posted_entries = msgspec.json.Decoder(list[_PostedEntry])
_entries = msgspec.json.Decoder(Entry)
_lines = msgspec.json.Encoder()


def parse(
    body: bytes, *, require_hashsum: bool = False, max_entries: int = sys.maxsize
) -> Manifest:
    """Parse a manifest (JSON in UTF-8, with or without a byte order mark).

    The last one of duplicate keys counts.  ``require_hashsum`` rejects entries with an empty hash
    sum.  Raises only InvalidInput, whose message begins with the place of the fault, as
    ``fileids[3].hashtype``, and TooLarge for more than ``max_entries``.
    """
    check_entries(body, max_entries)
    posted = _decode(body)
    entries = _Entries()
    all_paths = PathSet()
    digest = hashlib.sha256(_lines.encode(posted.bundle) + b"\n")
    for first in range(0, len(posted.fileids), _BATCH):
        batch = _decode_entries(posted.fileids[first : first + _BATCH], first)
        paths = _paths(batch, first)
        all_paths.add(paths)
        hashes = _hashes(batch, first, require_hashsum)
        normal = list(map(Entry, _ids(batch, first), paths, *hashes))
        lines = _lines.encode_lines(normal)
        digest.update(lines)
        entries.add(lines, len(normal))
    if len(all_paths) != len(entries):
        raise _duplicate_path(entries)
    if (clash := all_paths.file_as_directory()) is not None:
        raise _file_and_directory(entries, clash)
    all_paths.clear()
    return Manifest(entries, posted.bundle, digest.hexdigest())


def _decode(body: bytes) -> _Posted:
    try:
        _check_utf8(body)
        return _posted.decode(body.removeprefix(_BOM))
    except msgspec.ValidationError as error:
        raise InvalidInput(_reason(error, "")) from None
    except _DECODE_ERRORS as error:
        raise InvalidInput(describe_lone_surrogate(body) or _reason(error, "")) from None


def _check_utf8(body: bytes) -> None:
    """Raise InvalidInput if ``body`` is not UTF-8: msgspec does not check ignored strings."""
    if body.isascii():
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(body), _BLOCK):
        end = min(start + _BLOCK, len(body))
        try:
            decoder.decode(body[start:end], final=end == len(body))
        except UnicodeDecodeError as error:
            # The decoder's input begins with the incomplete character of the block before.
            at = end - len(error.object) + error.start
            raise InvalidInput(describe_invalid_utf8(body, at)) from None


def _decode_entries(raws: Sequence[msgspec.Raw], first: int) -> list[_PostedEntry]:
    try:
        return _posted_entries.decode(b"[" + b",".join(raws) + b"]")
    except _DECODE_ERRORS as error:
        if len(raws) == 1:
            raise InvalidInput(_reason(error, f"fileids[{first}]")) from None
    # Decode them one by one, to find the position of the invalid one.
    return [_decode_entries([raw], first + offset)[0] for offset, raw in enumerate(raws)]


def _reason(error: Exception, entry: str) -> str:
    """Return the place and reason of an error of msgspec; ``entry`` is the place, if known."""
    if isinstance(error, RecursionError):
        return f"{entry or 'manifest'}: is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"{entry or 'manifest'}: is not UTF-8"
    if not isinstance(error, msgspec.ValidationError):
        fault = str(error).removeprefix("JSON is malformed: ")
        return f"{entry or 'manifest'}: is not JSON: {fault}"
    what, _, where = str(error).partition(" - at `$")
    where = where.rstrip("`")
    place = entry + where.removeprefix("[0]") if entry else where.removeprefix(".")
    if missing := re.fullmatch("Object missing required field `(.+)`", what):
        return f"{place}.{missing[1]}: is missing".removeprefix(".")
    return f"{place or 'manifest'}: {what[:1].lower()}{what[1:].replace('`', '')}"


def _fault(position: int, key: str, reason: str) -> InvalidInput:
    return InvalidInput(f"fileids[{position}].{key}: {reason}")


def _ids(posted: Sequence[_PostedEntry], first: int) -> list[str]:
    ids = [str(entry.id) for entry in posted]
    text = "/".join(["", *ids, ""])
    if (
        not all(ids)
        or 4 * max(map(len, ids)) > ID_LIMIT
        or any(odd in text for odd in ("%", "\\", "\0", "/./", "/../"))
    ):
        for position, archive_id in enumerate(ids, first):
            _check_id(archive_id, position)
    return ids


def _check_id(archive_id: str, position: int) -> None:
    """Reject an id that could address anything but a file of the archive.

    The id is percent-encoded in the URL; a server may decode it twice, or treat ``\\`` as ``/``.
    """
    if not archive_id:
        raise _fault(position, "id", "is empty")
    if len(archive_id.encode()) > ID_LIMIT:
        raise _fault(position, "id", f"is over {ID_LIMIT} bytes")
    for text in (archive_id, unquote(archive_id)):
        if "\0" in text:
            raise _fault(position, "id", "contains a NUL")
        if not _DOTS.isdisjoint(text.replace("\\", "/").split("/")):
            raise _fault(position, "id", "has a segment '.' or '..'")


def _paths(posted: Sequence[_PostedEntry], first: int) -> list[str]:
    paths = [entry.path.lstrip("/") for entry in posted]
    text = "/".join(["", *paths, ""])
    longest = max(map(len, paths)) * (1 if text.isascii() else 4)
    if longest > COMPONENT_LIMIT or any(odd in text for odd in ("//", "\0", "/./", "/../")):
        return [_path(path, position) for position, path in enumerate(paths, first)]
    return paths


def _path(path: str, position: int) -> str:
    if "\0" in path:
        raise _fault(position, "path", "contains a NUL")
    components = path.split("/")
    if not _DROPPED.isdisjoint(components):
        components = [component for component in components if component not in _DROPPED]
    if not components:
        raise _fault(position, "path", "names no file")
    if ".." in components:
        raise _fault(position, "path", "must not contain '..'")
    normal = "/".join(components)
    encoded = normal.encode()
    if len(encoded) > PATH_LIMIT:
        raise _fault(position, "path", f"is over {PATH_LIMIT} bytes")
    if max(map(len, encoded.split(b"/"))) > COMPONENT_LIMIT:
        raise _fault(position, "path", f"has a component over {COMPONENT_LIMIT} bytes")
    return normal


def _hashes(
    posted: Sequence[_PostedEntry], first: int, require_hashsum: bool
) -> tuple[list[str], list[str]]:
    types = [sys.intern(entry.hashtype) for entry in posted]
    sums = [entry.hashsum for entry in posted]
    digits = {name: 2 * _digest_size(name, first + types.index(name)) for name in set(types)}
    # All of the right length, and hex when joined: then each of them is hex.
    if len(digits) > 1 or set(map(len, sums)) != {*digits.values()} or not _is_hex("".join(sums)):
        columns = zip(types, sums, strict=True)
        for index, (hash_type, hash_sum) in enumerate(columns):
            if hash_sum or require_hashsum:
                sums[index] = _hash_sum(hash_sum, digits[hash_type], first + index)
    return types, sums


def _digest_size(hash_type: str, position: int) -> int:
    try:
        return digest_size(hash_type)
    except ValueError as error:
        raise _fault(position, "hashtype", str(error)) from None


def _is_hex(text: str) -> bool:
    """Whether ``text`` is lower-case hex only (``fromhex`` skips white space)."""
    try:
        return bytes.fromhex(text).hex() == text
    except ValueError:
        return False


def _hash_sum(hash_sum: str, digits: int, position: int) -> str:
    if not hash_sum:
        raise _fault(position, "hashsum", "is empty, and this service requires hash sums")
    lower = hash_sum.lower()
    if len(lower) != digits or not _is_hex(lower):
        raise _fault(position, "hashsum", f"is not the {digits} hex digits of its hashtype")
    return lower


def _duplicate_path(entries: Iterable[Entry]) -> InvalidInput:
    first: dict[str, int] = {}
    for position, entry in enumerate(entries):
        other = first.setdefault(entry.path, position)
        if other != position:
            return _fault(position, "path", f"is the same as that of fileids[{other}]")
    raise AssertionError("no path is there twice")


def _file_and_directory(entries: Iterable[Entry], path: str) -> InvalidInput:
    file = next(at for at, entry in enumerate(entries) if entry.path == path)
    below = next(at for at, entry in enumerate(entries) if entry.path.startswith(path + "/"))
    if file < below:
        return _fault(below, "path", f"is below the file of fileids[{file}]")
    return _fault(file, "path", f"is a directory in the path of fileids[{below}]")
