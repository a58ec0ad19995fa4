"""The command that makes a manifest from a table, a list, or a checksum file."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import click

from cartd_client.cli.options import CartCommand
from cartd_client.cli.session import STDIN, Session, pass_session
from cartd_client.cli.terminal import count
from cartd_client.errors import ExitStatus, InvalidManifest, UsageError
from cartd_client.manifest import (
    DEFAULT_HASH,
    parse_checksums,
    parse_entry,
    parse_table,
    write_manifest,
)
from cartd_client.model import FileEntry

KINDS = ("auto", "csv", "tsv", "list", "checksums")
_SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".tab": "tsv"}
_SUMS = re.compile(r"\\?(?:[0-9a-fA-F]{32,} [ *]|[A-Za-z0-9/_-]+ \(.*\) = [0-9a-fA-F]{32,}$)")


@click.command(cls=CartCommand)
@click.argument("source", metavar="SOURCE")
@click.option(
    "--from",
    "kind",
    type=click.Choice(KINDS),
    default="auto",
    show_default=True,
    help="What SOURCE is; auto decides by its suffix and its first line.",
)
@click.option("-o", "--output", metavar="FILE", help="Write the manifest to FILE.")
@click.option(
    "--id-prefix",
    metavar="TEXT",
    default="",
    help="What precedes the path in the archive's id of a file, for checksum files.",
)
@click.option("--name", metavar="NAME", help="Name of the cart for people.")
@click.option(
    "--label", "labels", metavar="LABEL", multiple=True, help="Label of the cart; repeatable."
)
@click.option("--bag", is_flag=True, help="Have the cart written to the volume as a BagIt bag.")
@click.option(
    "--partial", is_flag=True, help="Let the cart become ready although files fail (on_error)."
)
@click.option(
    "--max-failed",
    metavar="N|P%",
    help="So many files, or percent of them, may fail; with --partial.",
)
@pass_session
def manifest(
    session: Session,
    source: str,
    kind: str,
    output: str | None,
    id_prefix: str,
    **given: Any,
) -> ExitStatus:
    """Make a manifest from a table, a list, or a checksum file.

    SOURCE is a file, or - for standard input, in UTF-8:

    \b
      csv, tsv   a table with the columns id and path, and if known hashtype
                 and hashsum (or md5, sha1, sha256, sha512); the first row
                 has the names, or the columns are in this order
      list       a line for each file: its id, white space, its path
      checksums  the output of md5sum, sha256sum and the like, or tagged
                 lines (SHA256 (path) = sum); the id of a file is its path,
                 after --id-prefix

    \b
    Examples:
      cart manifest files.csv -o my-data.json
      cart manifest --from checksums SHA256SUMS --id-prefix proj7/ -o my-data.json
      printf '101 run1/a.dat\\n' | cart manifest - | cart fetch - --name my-data
    """
    if id_prefix and kind in ("csv", "tsv", "list"):
        raise UsageError("--id-prefix is for checksum files: tables and lists have ids")
    members = _members(given)
    with _lines(source) as lines:
        kind, lines = _kind(source, lines) if kind == "auto" else (kind, lines)
        files = _parsed(kind, lines, id_prefix)
        if output is None:
            sys.stdout.flush()
            write_manifest(sys.stdout.buffer, files, **members)
            return ExitStatus.OK
        number = _write(Path(output), files, members)
    session.result({"file": output, "files": number}, f"{count(number, 'file')} in {output}")
    return ExitStatus.OK


def _members(given: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of the manifest beside the files."""
    members: dict[str, Any] = {}
    if given["name"]:
        members["name"] = given["name"]
    if given["labels"]:
        members["labels"] = list(given["labels"])
    if given["bag"]:
        members["format"] = "bag"
    limit = given["max_failed"]
    if limit is not None and not given["partial"]:
        raise UsageError("--max-failed needs --partial")
    if limit is not None and not re.fullmatch(r"\d{1,9}|\d{1,3}(\.\d+)?%", limit):
        raise UsageError(f"--max-failed: {limit!r} is neither a number nor a percentage such as 5%")
    if given["partial"]:
        members["on_error"] = "partial"
        if limit is not None:
            members["max_failed"] = limit if limit.endswith("%") else int(limit)
    return members


@contextmanager
def _lines(source: str) -> Iterator[Iterable[str]]:
    """Open the source; its errors name it."""
    try:
        if source == STDIN:
            yield io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig", newline="")
        else:
            with Path(source).open(encoding="utf-8-sig", newline="") as file:
                yield file
    except UnicodeDecodeError as error:
        raise InvalidManifest(f"{source}: is not UTF-8: {error.reason}") from error
    except InvalidManifest as error:
        raise InvalidManifest(f"{source}: {error}") from error


def _kind(source: str, lines: Iterable[str]) -> tuple[str, Iterable[str]]:
    """Return what the source is, by its suffix or its first line; and all lines."""
    ahead = iter(lines)
    first = next((line for line in ahead if line.strip() and not line.startswith("#")), "")
    rest = chain([first], ahead)
    suffix = Path(source).suffix.lower()
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix], rest
    if _SUMS.match(first.rstrip("\r\n")):
        return "checksums", rest
    return "tsv" if "\t" in first else "csv" if "," in first else "list", rest


def _parsed(kind: str, lines: Iterable[str], id_prefix: str) -> Iterator[FileEntry]:
    if kind == "checksums":
        return parse_checksums(lines, id_prefix)
    if kind == "list":
        return _parse_list(lines)
    return parse_table(lines, "," if kind == "csv" else "\t")


def _parse_list(lines: Iterable[str]) -> Iterator[FileEntry]:
    """Yield the files of lines with an id and a path."""
    position = 0
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        if not text.strip() or text.startswith("#"):
            continue
        parts = text.split(None, 1)
        if len(parts) < 2:
            raise InvalidManifest(f"line {number}: expected an id and a path")
        entry = {"id": parts[0], "path": parts[1], "hashtype": DEFAULT_HASH, "hashsum": ""}
        yield parse_entry(entry, position)
        position += 1


def _write(path: Path, files: Iterable[FileEntry], members: dict[str, Any]) -> int:
    """Write the manifest beside its name first, so that the name never has a part of one."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            number = write_manifest(file, files, **members)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return number
