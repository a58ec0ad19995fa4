"""Parses a posted manifest: from bytes to normalised entries, or an error that names the entry.

The format is Pacifica Cartd's, ``{"fileids": [{"id", "path", "hashtype", "hashsum"}], "bundle"}``,
with ``name`` and ``labels``, which are texts for people, ``format``, ``on_error`` and
``max_failed``; as in its schema, other keys are ignored.

Strategy: a manifest may have millions of entries and is parsed in a thread beside the reactor, so
this must be fast, and must never hold the interpreter's lock for long.  The entries are counted
before any is decoded.  A first pass locates them; they are then decoded, checked and digested in
batches of some thousands.  Each column of a batch is first checked as one text, and value by value
only if that finds something suspicious.  There is no container of millions of objects: the paths
are in a :class:`PathSet`.

An invalid manifest is searched for more faults, from the first batch with one: batches with a fault
are divided until the entry is found, so that this costs little more than the parsing.
"""

from __future__ import annotations

import codecs
import hashlib
import re
import sys
from bisect import bisect
from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from urllib.parse import unquote

import msgspec

from cartd.checksum import digest_size
from cartd.errors import Fault, InvalidInput, InvalidManifest
from cartd.manifest_text import (
    BLOCK,
    check_entries,
    describe_invalid_utf8,
    describe_lone_surrogate,
)
from cartd.model import MAX_LABEL, MAX_LABELS, MAX_NAME, CartFormat, short_text_fault

ID_LIMIT = 1024
"""Maximum bytes of an archive id."""
PATH_LIMIT = 3072
"""Maximum bytes of a path; the volume's own directories must fit into PATH_MAX, 4,096, too."""
COMPONENT_LIMIT = 255
"""Maximum bytes of a component of a path, the NAME_MAX of common file systems."""

MAX_FAULTS = 100
"""How many faults of a manifest are reported."""

_BATCH = 4096
_PARTS = 8
"""Into how many parts a batch with a fault is divided."""
_SORTED_AT_ONCE = 4096
_BOM = b"\xef\xbb\xbf"
_PERCENTAGE = re.compile("(100|[1-9]?[0-9])%")
_MAX_FAILED = 'must be a whole number of files, or a percentage from "0%" to "100%"'
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
    """SHA-256, hex, of the normalised entries in their order and of what the cart shall be."""
    name: str | None = field(default=None, compare=False)
    """The cart's name for people."""
    labels: tuple[str, ...] = field(default=(), compare=False)
    format: CartFormat = CartFormat.TAR
    max_failed: int | None = None
    """How many files may fail while the others become ready; none if the cart fails then."""


class _Posted(msgspec.Struct):
    fileids: list[msgspec.Raw]
    bundle: bool | None = None
    name: str | None = None
    labels: list[str] = []
    format: str = "tar"
    on_error: str = "fail"
    max_failed: int | str | None = None


class _PostedLabels(msgspec.Struct):
    labels: list[str]


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
_posted_labels = msgspec.json.Decoder(_PostedLabels)
_posted_entries = msgspec.json.Decoder(list[_PostedEntry])
_entries = msgspec.json.Decoder(Entry)
_lines = msgspec.json.Encoder()


def parse(
    body: bytes, *, require_hashsum: bool = False, max_entries: int = sys.maxsize
) -> Manifest:
    """Parse a manifest (JSON in UTF-8, with or without a byte order mark).

    The last one of duplicate keys counts.  ``require_hashsum`` rejects entries with an empty hash
    sum.  Raises only InvalidManifest, whose message begins with the place of the first fault, as
    ``fileids[3].hashtype``, and TooLarge for more than ``max_entries``.  The error has up to
    ``MAX_FAULTS`` faults; paths are compared with each other only if each entry is valid.
    """
    check_entries(body, max_entries)
    posted = _decode(body)
    labels = _labels(posted.labels)
    if posted.name is not None and (wrong := short_text_fault(posted.name, MAX_NAME)):
        raise _invalid(f"name: {wrong}")
    format_ = _format(posted.format)
    max_failed = _max_failed(posted.on_error, posted.max_failed, len(posted.fileids))
    entries = _Entries()
    all_paths = PathSet()
    digest = hashlib.sha256(_lines.encode(posted.bundle) + b"\n")
    for first in range(0, len(posted.fileids), _BATCH):
        try:
            paths, normal = _normal(
                _decode_entries(posted.fileids[first : first + _BATCH], first),
                first,
                require_hashsum,
            )
        except InvalidManifest as error:
            more = _find_faults(posted.fileids, first, require_hashsum)
            raise _with_more(error, more) from None
        all_paths.add(paths)
        lines = _lines.encode_lines(normal)
        digest.update(lines)
        entries.add(lines, len(normal))
    _check_paths(entries, all_paths)
    all_paths.clear()
    if format_ is not CartFormat.TAR or max_failed is not None:
        digest.update(_lines.encode((format_, max_failed)))
    return Manifest(
        entries, posted.bundle, digest.hexdigest(), posted.name, labels, format_, max_failed
    )


def parse_labels(body: bytes) -> tuple[str, ...]:
    """Parse the labels of a cart, ``{"labels": [...]}``; raise only InvalidInput."""
    try:
        return _labels(_posted_labels.decode(body.removeprefix(_BOM)).labels)
    except _DECODE_ERRORS as error:
        raise InvalidInput(_reason(error, "").replace("manifest: ", "labels: ")) from None
    except InvalidManifest as error:
        raise InvalidInput(str(error)) from None


def _labels(posted: Sequence[str]) -> tuple[str, ...]:
    """Return the labels in their order, each once."""
    if len(posted) > MAX_LABELS:
        raise _invalid(f"labels: has more than {MAX_LABELS} entries")
    for position, label in enumerate(posted):
        if wrong := short_text_fault(label, MAX_LABEL):
            raise _invalid(f"labels[{position}]: {wrong}")
    return tuple(dict.fromkeys(posted))


def _format(posted: str) -> CartFormat:
    try:
        return CartFormat(posted)
    except ValueError:
        raise _invalid('format: must be "tar" or "bag"') from None


def _max_failed(on_error: str, posted: int | str | None, files: int) -> int | None:
    """Return how many of the files may fail; None if none may."""
    if on_error not in ("fail", "partial"):
        raise _invalid('on_error: must be "fail" or "partial"')
    if on_error == "fail":
        if posted is not None:
            raise _invalid('max_failed: needs "on_error": "partial"')
        return None
    if posted is None:
        return files
    if isinstance(posted, str):
        if _PERCENTAGE.fullmatch(posted) is None:
            raise _invalid(f"max_failed: {_MAX_FAILED}")
        return files * int(posted[:-1]) // 100
    if posted < 0:
        raise _invalid(f"max_failed: {_MAX_FAILED}")
    return min(posted, files)


def _decode(body: bytes) -> _Posted:
    try:
        _check_utf8(body)
        return _posted.decode(body.removeprefix(_BOM))
    except msgspec.ValidationError as error:
        raise _invalid(_reason(error, "")) from None
    except _DECODE_ERRORS as error:
        raise _invalid(describe_lone_surrogate(body) or _reason(error, "")) from None


def _check_utf8(body: bytes) -> None:
    """Raise InvalidManifest if ``body`` is not UTF-8: msgspec does not check ignored strings."""
    if body.isascii():
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(body), BLOCK):
        end = min(start + BLOCK, len(body))
        try:
            decoder.decode(body[start:end], final=end == len(body))
        except UnicodeDecodeError as error:
            # The decoder's input begins with the incomplete character of the block before.
            at = end - len(error.object) + error.start
            raise _invalid(describe_invalid_utf8(body, at)) from None


def _decode_entries(raws: Sequence[msgspec.Raw], first: int) -> list[_PostedEntry]:
    try:
        return _posted_entries.decode(b"[" + b",".join(raws) + b"]")
    except _DECODE_ERRORS as error:
        if len(raws) == 1:
            raise _invalid(_reason(error, f"fileids[{first}]")) from None
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


def _fault(position: int, key: str, reason: str) -> InvalidManifest:
    return _invalid(f"fileids[{position}].{key}: {reason}")


def _invalid(message: str) -> InvalidManifest:
    """Return the error of one fault; the message begins with its place, which has no colon."""
    place, _, detail = message.partition(": ")
    keys = [] if place == "manifest" else place.replace("[", ".").replace("]", "").split(".")
    return InvalidManifest(message, [Fault("#" + "".join(f"/{key}" for key in keys), detail)])


def _with_more(error: InvalidManifest, more: Iterable[Fault]) -> InvalidManifest:
    """Return the error with up to ``MAX_FAULTS`` faults, first its own."""
    faults = dict.fromkeys(error.faults)
    for fault in more:
        if len(faults) >= MAX_FAULTS:
            break
        faults[fault] = None
    return InvalidManifest(str(error), tuple(faults))


def _find_faults(raws: Sequence[msgspec.Raw], first: int, require_hashsum: bool) -> Iterator[Fault]:
    """Yield the faults of the entries from ``first`` on, one for each key, in their order."""
    for start in range(first, len(raws), _BATCH):
        yield from _faults_in(raws[start : start + _BATCH], start, require_hashsum)


def _faults_in(raws: Sequence[msgspec.Raw], first: int, require_hashsum: bool) -> Iterator[Fault]:
    try:
        _normal(_posted_entries.decode(b"[" + b",".join(raws) + b"]"), first, require_hashsum)
    except (*_DECODE_ERRORS, InvalidManifest):
        pass
    else:
        return
    if len(raws) == 1:
        yield from _faults_of(raws[0], first, require_hashsum)
        return
    step = -(-len(raws) // _PARTS)
    for offset in range(0, len(raws), step):
        yield from _faults_in(raws[offset : offset + step], first + offset, require_hashsum)


def _faults_of(raw: msgspec.Raw, position: int, require_hashsum: bool) -> Iterator[Fault]:
    try:
        posted = _decode_entries([raw], position)
    except InvalidManifest as error:
        yield from error.faults
        return
    for check in (
        lambda: _ids(posted, position),
        lambda: _paths(posted, position),
        lambda: _hashes(posted, position, require_hashsum),
    ):
        try:
            check()
        except InvalidManifest as error:
            yield from error.faults


def _normal(
    posted: Sequence[_PostedEntry], first: int, require_hashsum: bool
) -> tuple[list[str], list[Entry]]:
    """Return paths and entries of a batch, whose first one has that position, normalised.

    :raises InvalidManifest: one of them breaks a rule.
    """
    paths = _paths(posted, first)
    hashes = _hashes(posted, first, require_hashsum)
    return paths, list(map(Entry, _ids(posted, first), paths, *hashes))


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


def _check_paths(entries: Collection[Entry], paths: PathSet) -> None:
    """Raise InvalidManifest if two of the entries, whose paths are ``paths``, cannot coexist."""
    clashes = dict.fromkeys(islice(paths.files_as_directories(), MAX_FAULTS))
    if len(paths) == len(entries) and not clashes:
        return
    faults = chain(_duplicate_paths(entries), _files_and_directories(entries, list(clashes)))
    raise _with_more(next(faults), chain.from_iterable(error.faults for error in faults))


def _duplicate_paths(entries: Iterable[Entry]) -> Iterator[InvalidManifest]:
    first: dict[str, int] = {}
    for position, entry in enumerate(entries):
        other = first.setdefault(entry.path, position)
        if other != position:
            yield _fault(position, "path", f"is the same as that of fileids[{other}]")


def _files_and_directories(
    entries: Iterable[Entry], clashes: Sequence[str]
) -> Iterator[InvalidManifest]:
    """Yield a fault for each path of ``clashes``, which is a file and a directory."""
    wanted = frozenset(clashes)
    files: dict[str, int] = {}
    below: dict[str, int] = {}
    missing = tuple(f"{path}/" for path in clashes)
    for position, entry in enumerate(entries):
        if entry.path in wanted:
            files.setdefault(entry.path, position)
        if missing and entry.path.startswith(missing):
            found = [start for start in missing if entry.path.startswith(start)]
            below |= {start[:-1]: position for start in found}
            missing = tuple(start for start in missing if start not in found)
    for path in clashes:
        if files[path] < below[path]:
            yield _fault(below[path], "path", f"is below the file of fileids[{files[path]}]")
        else:
            reason = f"is a directory in the path of fileids[{below[path]}]"
            yield _fault(files[path], "path", reason)


class PathSet:
    """Normalised paths of files, and the directories that contain them.

    Strategy: to grow, sort or free a set of a million strings holds the interpreter's lock for a
    tenth of a second; so the set is partitioned into many small ones.
    """

    def __init__(self) -> None:
        self._files = _PartitionedSet()
        self._directories = _PartitionedSet()

    def add(self, paths: Sequence[str]) -> None:
        self._files.update(paths)
        self._directories.update({path[: path.rfind("/") + 1] for path in paths})

    def __len__(self) -> int:
        """The number of different paths."""
        return len(self._files)

    def files_as_directories(self) -> Iterator[str]:
        """Yield the paths that are both a file and a directory of another path."""
        return _files_as_directories(self._files, self._directories)

    def clear(self) -> None:
        """Empty the set step by step; its destruction would free all of it at once."""
        self._files.clear()
        self._directories.clear()


class _PartitionedSet(Collection[str]):
    """A set of strings, partitioned by hash."""

    # A prime, as each set uses the last bits of the hash.
    _PARTS = 251

    def __init__(self) -> None:
        self._parts: list[set[str]] = [set() for _ in range(self._PARTS)]

    def update(self, texts: Iterable[str]) -> None:
        parts = self._parts
        for text in texts:
            parts[hash(text) % self._PARTS].add(text)

    def clear(self) -> None:
        """Empty the set, partition by partition."""
        for part in self._parts:
            part.clear()

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self._parts)

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __contains__(self, text: object) -> bool:
        return text in self._parts[hash(text) % self._PARTS]


def _files_as_directories(files: Container[str], directories: Collection[str]) -> Iterator[str]:
    """Yield those of ``files`` that are also one of ``directories`` or their parents.

    Such a file is itself in one of the directories.  In sorted order, with their final ``/``, each
    directory follows its parents, and the nearest parent is on top of the stack: only its first
    component below that parent has to be checked.  So the work grows with the length of the text,
    not with its depth.
    """
    stack = [""]
    found = ""
    for directory in _in_order(directories):
        while not directory.startswith(stack[-1]):
            stack.pop()
        step = directory[: directory.find("/", len(stack[-1]))]
        if step in files and step != found:
            found = step
            yield step
        stack.append(directory)


def _in_order(texts: Collection[str]) -> Iterator[str]:
    """Yield ``texts`` sorted, in batches of some thousands, which are split by a sample."""
    bounds = sorted(islice(texts, 0, None, _SORTED_AT_ONCE))
    between: list[list[str]] = [[] for _ in range(len(bounds) + 1)]
    for text in texts:
        between[bisect(bounds, text)].append(text)
    for some in between:
        yield from sorted(some)
