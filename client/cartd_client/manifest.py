"""Manifests: read, checked and made, without a copy of a large one in memory.

The service checks a manifest completely.  The client checks what it needs itself: the entries are
the files that it expects, and their paths are those of the tar.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from cartd_client.errors import InvalidManifest
from cartd_client.model import FileEntry

NAMESPACE = uuid.UUID("5a4a7d6e-3b0c-5f57-8f8e-2d0a53d3c9a1")
"""The name space of :func:`default_uid`."""
HASH_DIGITS = {32: "md5", 40: "sha1", 56: "sha224", 64: "sha256", 96: "sha384", 128: "sha512"}
"""The hash that a sum of so many hex digits has, where it is not named."""
DEFAULT_HASH = "sha256"
"""The hash that the service computes of a file whose sum is not known."""
_BLOCK = 1 << 20
_SPACE = re.compile(r"[ \t\n\r]*")
_HEX = re.compile("[0-9a-fA-F]*")


class Manifest:
    """A manifest, in a file or in memory; the content is read when it is needed."""

    def __init__(self, source: bytes | Path) -> None:
        self._source = source

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Manifest:
        """Return the manifest in a file; raise InvalidManifest if that cannot be read."""
        manifest = cls(Path(path))
        manifest.open().close()
        return manifest

    @classmethod
    def make(cls, files: Iterable[FileEntry], **members: Any) -> Manifest:
        """Return a manifest of these files; ``members`` are its other keys, such as ``labels``."""
        text = io.BytesIO()
        write_manifest(text, files, **members)
        return cls(text.getvalue())

    def open(self) -> IO[bytes]:
        """Return the JSON as a file; raise InvalidManifest."""
        if isinstance(self._source, bytes):
            return io.BytesIO(self._source)
        try:
            return self._source.open("rb")
        except OSError as error:
            raise InvalidManifest(
                f"The manifest {self._source} cannot be read: {error.strerror}"
            ) from error

    def files(self) -> Iterator[FileEntry]:
        """Yield the files, in their order; raise InvalidManifest at the first fault.

        Paths are those in the tar: without empty components and ``.``.
        """
        with self.open() as file:
            for item in _Reader(file).items():
                if isinstance(item, FileEntry):
                    yield item

    def members(self) -> dict[str, Any]:
        """Return all keys of the manifest but the files; raise InvalidManifest."""
        with self.open() as file:
            items = _Reader(file).items()
            return dict(item for item in items if not isinstance(item, FileEntry))


def default_uid(manifest: Manifest, user: str) -> str:
    """Return a UUID of the manifest's bytes and the user: the same again for the same."""
    digest = hashlib.sha256()
    with manifest.open() as file:
        while True:
            block = file.read(_BLOCK)
            if not block:
                break
            digest.update(block)
    return str(uuid.uuid5(NAMESPACE, f"{user}\0{digest.hexdigest()}"))


def write_manifest(out: IO[bytes], files: Iterable[FileEntry], **members: Any) -> int:
    """Write a manifest, an entry a line; return the number of files."""
    count = 0
    out.write(b'{"fileids": [')
    for file in files:
        entry = {
            "id": file.id,
            "path": file.path,
            "hashtype": file.hash_type or DEFAULT_HASH,
            "hashsum": file.hash_sum or "",
        }
        out.write((",\n" if count else "\n").encode() + json.dumps(entry).encode())
        count += 1
    out.write(b"\n]")
    for key, value in members.items():
        out.write(f", {json.dumps(key)}: {json.dumps(value)}".encode())
    out.write(b"}\n")
    return count


class _Reader:
    """Reads a manifest item by item, and holds no more text than a block and an item."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()
        self._text = ""
        self._at = 0
        self._ended = False

    def items(self) -> Iterator[FileEntry | tuple[str, Any]]:
        """Yield the files, and the other keys with their values."""
        found = False
        self._expect("{", "an object")
        if not self._skip("}"):
            while True:
                key = self._value("manifest")
                if not isinstance(key, str):
                    raise _invalid("manifest", "has a key that is no string")
                self._expect(":", "a colon")
                if key == "fileids":
                    if found:
                        raise _invalid("fileids", "is there twice")
                    found = True
                    yield from self._entries()
                else:
                    yield key, self._value(key)
                if not self._skip(","):
                    break
            self._expect("}", "a comma or the end of the object")
        if self._peek():
            raise _invalid("manifest", "is not JSON: there is more after its end")
        if not found:
            raise _invalid("fileids", "is missing")

    def _entries(self) -> Iterator[FileEntry]:
        self._expect("[", "a list of files")
        if self._skip("]"):
            return
        position = 0
        while True:
            yield parse_entry(self._value(f"fileids[{position}]"), position)
            position += 1
            if not self._skip(","):
                break
        self._expect("]", "a comma or the end of the list")

    def _value(self, place: str) -> Any:
        self._peek()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if not self._ended and not isinstance(error, RecursionError):
                    self._more()
                    continue
                raise _invalid(place, f"is not JSON: {error}") from None
            if end == len(self._text) and not self._ended:
                self._more()  # a number may go on
                continue
            self._at = end
            return value

    def _peek(self) -> str:
        """Skip white space; return the next character, or '' at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._more()

    def _skip(self, character: str) -> bool:
        if self._peek() != character:
            return False
        self._at += 1
        return True

    def _expect(self, character: str, what: str) -> None:
        if not self._skip(character):
            raise _invalid("manifest", f"is not one: {what} is expected")

    def _more(self) -> None:
        """Read as much again as there is, so that a large value is not scanned over and over."""
        rest = self._text[self._at :]
        try:
            block = self._file.read(max(_BLOCK, len(rest)))
            self._ended = not block
            self._text = rest + self._decode.decode(block, final=self._ended)
        except UnicodeDecodeError as error:
            raise _invalid("manifest", f"is not UTF-8: {error.reason}") from None
        except OSError as error:
            raise InvalidManifest(f"The manifest cannot be read: {error.strerror}") from error
        self._at = 0


def parse_entry(entry: object, position: int) -> FileEntry:
    """Return an entry of ``fileids``; raise InvalidManifest."""
    place = f"fileids[{position}]"
    if not isinstance(entry, dict):
        raise _invalid(place, "is no object")
    archive_id, path = entry.get("id"), entry.get("path")
    hash_type, hash_sum = entry.get("hashtype"), entry.get("hashsum")
    if isinstance(archive_id, bool) or not isinstance(archive_id, (str, int)) or archive_id == "":
        raise _invalid(f"{place}.id", "is no string or integer, or empty")
    if not isinstance(path, str):
        raise _invalid(f"{place}.path", "is missing or no string")
    if not isinstance(hash_type, str) or not hash_type:
        raise _invalid(f"{place}.hashtype", "is missing or no string")
    if not isinstance(hash_sum, str) or not _HEX.fullmatch(hash_sum):
        raise _invalid(f"{place}.hashsum", "is missing or not hexadecimal")
    return FileEntry(
        position,
        str(archive_id),
        _path(path, f"{place}.path"),
        hash_type=hash_type,
        hash_sum=hash_sum.lower() or None,
    )


def _path(path: str, place: str) -> str:
    """Return the path as it is in the tar."""
    components = [component for component in path.split("/") if component not in ("", ".")]
    if not components:
        raise _invalid(place, "names no file")
    if ".." in components or "\0" in path:
        raise _invalid(place, "has a component '..' or a NUL")
    return "/".join(components)


def _invalid(place: str, fault: str) -> InvalidManifest:
    pointer = "#" + "".join(
        f"/{key}" for key in place.replace("[", ".").replace("]", "").split(".") if key
    )
    if place == "manifest":
        pointer = "#"
    return InvalidManifest(
        f"{place}: {fault}" if place != "manifest" else f"The manifest {fault}",
        errors=[{"pointer": pointer, "detail": fault}],
    )


# Sources of a manifest

_COLUMNS: Mapping[str, Sequence[str]] = {
    "id": ("id", "file_id", "fileid", "uuid"),
    "path": ("path", "filename", "file_name", "name", "file"),
    "hashtype": ("hashtype", "hash_type", "algorithm"),
    "hashsum": ("hashsum", "hash_sum", "checksum", "hash"),
}
_TAGGED = re.compile(r"(\\?)([A-Za-z0-9/_-]+) \((.*)\) = ([0-9a-fA-F]+)", re.DOTALL)
_UNTAGGED = re.compile(r"(\\?)([0-9a-fA-F]+) [ *](.*)", re.DOTALL)
_ESCAPED = re.compile(r"\\([\\nr])")
_ESCAPES = {"\\": "\\", "n": "\n", "r": "\r"}


def parse_table(lines: Iterable[str], delimiter: str = ",") -> Iterator[FileEntry]:
    """Yield the files of a table (CSV or TSV) of ids and paths; raise InvalidManifest.

    The columns are named by the first row (``id``, ``path``, ``hashtype``, ``hashsum``, or
    ``md5``, ``sha256`` and the like for a sum).  Without such a row they are id, path, sum; or id,
    path, type, sum.
    """
    rows = csv.reader(lines, delimiter=delimiter)
    columns: dict[str, int] | None = None
    position = 0
    try:
        for row in rows:
            if not any(cell.strip() for cell in row) or row[0].startswith("#"):
                continue
            if columns is None:
                columns = _header(row)
                if columns is not None:
                    continue
                columns = _by_number(row)
            yield _from_row(row, columns, position, rows.line_num)
            position += 1
    except csv.Error as error:
        raise InvalidManifest(f"line {rows.line_num}: {error}") from error


def _header(row: Sequence[str]) -> dict[str, int] | None:
    names = {name.strip().lower(): at for at, name in enumerate(row)}
    columns = {
        key: next(names[name] for name in spellings if name in names)
        for key, spellings in _COLUMNS.items()
        if any(name in names for name in spellings)
    }
    if "id" not in columns or "path" not in columns:
        return None
    for algorithm in HASH_DIGITS.values():
        if "hashsum" not in columns and algorithm in names:
            columns["hashsum"] = names[algorithm]
    return columns


def _by_number(row: Sequence[str]) -> dict[str, int]:
    keys = {2: ("id", "path"), 3: ("id", "path", "hashsum")}.get(
        len(row), ("id", "path", "hashtype", "hashsum")
    )
    return {key: at for at, key in enumerate(keys)}


def _from_row(
    row: Sequence[str], columns: Mapping[str, int], position: int, line: int
) -> FileEntry:
    def cell(key: str) -> str:
        at = columns.get(key)
        return "" if at is None or at >= len(row) else row[at].strip()

    hash_sum = cell("hashsum")
    return _made(position, cell("id"), cell("path"), cell("hashtype"), hash_sum, f"line {line}")


def parse_checksums(lines: Iterable[str], id_prefix: str = "") -> Iterator[FileEntry]:
    """Yield the files of a checksum file, as sha256sum and its kin write it.

    The id of a file is its path, after ``id_prefix``.  Lines may be of both forms
    (``HASH  PATH`` and ``SHA256 (PATH) = HASH``), with escapes.
    """
    position = 0
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        if not text or text.startswith("#"):
            continue
        tagged, plain = _TAGGED.fullmatch(text), _UNTAGGED.fullmatch(text)
        if tagged:
            escaped, algorithm, path, hash_sum = tagged.groups()
        elif plain:
            (escaped, hash_sum, path), algorithm = plain.groups(), ""
        else:
            raise InvalidManifest(f"line {number}: is no line of a checksum file")
        if escaped:
            path = _ESCAPED.sub(lambda match: _ESCAPES[match[1]], path)
        kind = algorithm.lower().replace("-", "")
        where = f"line {number}"
        yield _made(position, id_prefix + _path(path, where), path, kind, hash_sum, where)
        position += 1


def _made(
    position: int, archive_id: str, path: str, hash_type: str, hash_sum: str, where: str
) -> FileEntry:
    if not archive_id:
        raise InvalidManifest(f"{where}: has no id")
    if not _HEX.fullmatch(hash_sum):
        raise InvalidManifest(f"{where}: the hash sum is not hexadecimal")
    if hash_sum and not hash_type:
        hash_type = HASH_DIGITS.get(len(hash_sum), "")
        if not hash_type:
            raise InvalidManifest(f"{where}: no known hash has {len(hash_sum)} digits")
    return FileEntry(
        position,
        archive_id,
        _path(path, where),
        hash_type=hash_type or DEFAULT_HASH,
        hash_sum=hash_sum.lower() or None,
    )
