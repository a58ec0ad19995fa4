"""What the client knows of a cart and of its files, and what a download takes and returns.

Documents of the service are foreign text.  What decides what the client does (``status``,
``outcome``, positions and paths) must have the right type, or the document is rejected with
:class:`~cartd_client.errors.InvalidResponse`; any other value of a wrong type counts as unknown.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple, Union
from urllib.parse import unquote, urlsplit

from cartd_client.errors import ExitStatus, InvalidResponse

MAX_TEXT = 4096
"""Characters of a text of the service that are kept."""
_MAX_NUMBER = 2**63 - 1


@dataclass(frozen=True)
class FileCounts:
    """Numbers of files of a cart."""

    total: int | None = None
    staged: int | None = None
    failed: int | None = None
    linked: int | None = None
    waiting: int | None = None
    recalling: int | None = None
    fetching: int | None = None


@dataclass(frozen=True)
class ByteCounts:
    """Bytes of the files of a cart."""

    total: int | None = None
    staged: int | None = None
    fetched: int | None = None
    linked: int | None = None


@dataclass(frozen=True)
class Rate:
    """Bytes per second."""

    recent: float | None = None
    mean: float | None = None


@dataclass(frozen=True)
class Eta:
    """When the cart is estimated to be ready, in seconds after ``Status.updated``."""

    seconds: float | None = None
    low: float | None = None
    high: float | None = None
    basis: str | None = None


@dataclass(frozen=True)
class Queue:
    """What the service stages before this cart."""

    carts_ahead: int | None = None
    files_ahead: int | None = None
    bytes_ahead: int | None = None


@dataclass(frozen=True)
class DownloadFacts:
    """The tar of a ready cart under its default name, as far as the service tells."""

    url: str | None = None
    length: int | None = None
    etag: str | None = None
    formats: tuple[str, ...] = ()
    bag: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Status:
    """The status of a cart at one time; what the service does not tell is ``None`` or empty."""

    uid: str
    status: str
    """``waiting``, ``staging``, ``bundling``, ``ready`` or ``error``."""
    outcome: str | None = None
    """``complete``, ``partial`` or ``failed``; ``None`` until the cart has ended."""
    phase: str | None = None
    message: str | None = None
    name: str | None = None
    labels: tuple[str, ...] = ()
    created: datetime | None = None
    started: datetime | None = None
    updated: datetime | None = None
    version: int | None = None
    files: FileCounts = FileCounts()
    bytes: ByteCounts = ByteCounts()
    progress: float | None = None
    """Percent, 0 to 100."""
    rate: Rate | None = None
    eta: Eta | None = None
    queue: Queue | None = None
    waiting: Mapping[str, Any] | None = None
    kept: Mapping[str, Any] | None = None
    failed: Mapping[str, Any] | None = None
    download: DownloadFacts | None = None
    document: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """The JSON document of the service; of a Pacifica Cartd, one made from its headers."""

    @property
    def is_ended(self) -> bool:
        """Whether nothing more happens by itself: ready or in error."""
        return self.status in ("ready", "error")

    @property
    def is_ready(self) -> bool:
        """Whether the cart can be downloaded; it may be partial."""
        return self.status == "ready"

    @property
    def is_partial(self) -> bool:
        """Whether the cart can be downloaded, without the files that failed."""
        return self.is_ready and (self.outcome == "partial" or bool(self.files.failed))

    @classmethod
    def from_document(cls, document: object) -> Status:
        """Return the status in a document of the service; raise InvalidResponse."""
        members = _object(document, "the status document")
        uid, status = members.get("uid"), members.get("status")
        outcome = members.get("outcome")
        if not isinstance(uid, str) or not isinstance(status, str):
            raise InvalidResponse("The status document has no uid or no status")
        if not isinstance(outcome, (str, type(None))):
            raise InvalidResponse("The status document has an outcome that is no text")
        numbers = _mapping(members.get("files")) or {}
        sizes = _mapping(members.get("bytes")) or {}
        queue = _mapping(members.get("queue"))
        return cls(
            uid=uid,
            status=status,
            outcome=outcome,
            phase=_text(members.get("phase")),
            message=_text(members.get("message")),
            name=_text(members.get("name")),
            labels=_texts(members.get("labels")),
            created=_time(members.get("created")),
            started=_time(members.get("started")),
            updated=_time(members.get("updated")),
            version=_count(members.get("version")),
            files=FileCounts(**_counts(numbers, FileCounts)),
            bytes=ByteCounts(**_counts(sizes, ByteCounts)),
            progress=_percent(members.get("progress")),
            rate=_rate(_mapping(members.get("rate"))),
            eta=_eta(_mapping(members.get("eta"))),
            queue=Queue(**_counts(queue, Queue)) if queue else None,
            waiting=_mapping(members.get("waiting")),
            kept=_mapping(members.get("kept")),
            failed=_mapping(members.get("failed")),
            download=_download(_mapping(members.get("download"))),
            document=members,
        )


class FileEntry(NamedTuple):
    """A file of a cart, as a manifest or the service's list of files has it.

    There may be millions: a tuple is made in a fraction of the time of another object.
    """

    position: int
    id: str
    path: str
    size: int | None = None
    mtime: datetime | None = None
    hash_type: str | None = None
    hash_sum: str | None = None
    """Lower-case hex; ``None`` if it is not known."""
    also_hash_type: str | None = None
    also_hash_sum: str | None = None
    status: str | None = None
    """``waiting``, ``staging``, ``staged``, ``error`` or ``deleted``; ``None`` in a manifest."""
    error: str | None = None
    problem: str | None = None

    @classmethod
    def from_document(cls, document: object) -> FileEntry:
        """Return the file in an entry of a list; raise InvalidResponse."""
        members = _object(document, "an entry of the list of files")
        position, path = _count(members.get("position")), members.get("path")
        if position is None or not isinstance(path, str) or not path:
            raise InvalidResponse("An entry of the list of files has no position or no path")
        hash_type = _text(members.get("hashtype"))
        also = _mapping(members.get("also")) or {}
        return cls(
            position=position,
            id=str(members.get("id", "")),
            path=path,
            size=_count(members.get("size")),
            mtime=_time(members.get("mtime")),
            hash_type=hash_type,
            hash_sum=_hex(members.get("hashsum")),
            also_hash_type=_text(also.get("hashtype")),
            also_hash_sum=_hex(also.get("hashsum")),
            status=_text(members.get("status")),
            error=_text(members.get("error")),
            problem=_text(members.get("problem")),
        )


# A download


@dataclass(frozen=True)
class Source:
    """What to download."""

    url: str
    """URL of the cart, without a query."""
    filename: str
    """Name of the download, ``my-data.tar``; without ``.tar`` it is the top folder in the tar."""
    format: str = "tar"
    """``tar`` or ``bag``."""

    @property
    def top(self) -> str:
        """The folder at the top of the tar."""
        return self.filename[:-4] if self.filename.endswith(".tar") else self.filename

    @property
    def uid(self) -> str:
        """The uid of the cart; it is the top folder of a tar that the service has stored."""
        return unquote(urlsplit(self.url).path.rpartition("/")[2])


@dataclass(frozen=True)
class Directory:
    """Unpack below this directory, which is created if it is missing."""

    path: Path


@dataclass(frozen=True)
class TarFile:
    """Save the tar as this file."""

    path: Path


@dataclass(frozen=True)
class Stdout:
    """Write the tar to standard output; nothing can be resumed."""


Target = Union[Directory, TarFile, Stdout]


@dataclass(frozen=True)
class Options:
    """How to download."""

    jobs: int = 1
    """Ranges at once."""
    limit_rate: float | None = None
    """Bytes per second, of all ranges together."""
    restart: bool = False
    """Whether to start anew if the cart has changed, instead of raising CartChanged."""
    keep_tar: bool = False
    """Whether to keep the tar beside the directory into which it is unpacked."""


@dataclass(frozen=True)
class Progress:
    """How far a download is."""

    bytes_done: int
    bytes_total: int | None
    files_done: int
    files_total: int | None
    rate: float | None
    """Bytes per second, recently."""


@dataclass(frozen=True)
class FileProblem:
    """A file that is missing or wrong, and why."""

    path: str
    error: str
    problem: str | None = None
    position: int | None = None
    id: str | None = None


@dataclass(frozen=True)
class Report:
    """How a download or a verification ended."""

    files: int
    bytes: int
    verified: Mapping[str, int] = field(default_factory=dict)
    """Numbers of verified files by algorithm."""
    unverified: int = 0
    """Number of files without a hash sum to compare with."""
    failed: tuple[FileProblem, ...] = ()
    """Files whose content is wrong."""
    missing: tuple[FileProblem, ...] = ()
    """Files that the cart does not have, or that are not there."""
    outcome: str = "complete"
    """``complete``, ``partial`` or ``failed``."""

    @property
    def exit_status(self) -> ExitStatus:
        """The exit status of the command that ends with this report."""
        if self.failed:
            return ExitStatus.VERIFICATION_FAILED
        return ExitStatus.PARTIAL if self.missing else ExitStatus.OK

    def summary(self) -> str:
        """Return the last line for users: ``1,200 files, 412 GB, all verified (sha256)``."""
        parts = [f"{self.files:,} {_plural(self.files, 'file')}", format_bytes(self.bytes)]
        algorithms = ", ".join(sorted(self.verified))
        count = sum(self.verified.values())
        if self.failed:
            parts.append(f"{len(self.failed):,} WRONG")
        if self.missing:
            parts.append(f"{len(self.missing):,} missing")
        if count and count >= self.files and not self.failed and not self.missing:
            parts.append(f"all verified ({algorithms})")
        elif count:
            parts.append(f"{count:,} verified ({algorithms})")
        if self.unverified:
            parts.append(f"{self.unverified:,} not verified (no hash sum)")
        return ", ".join(parts)


def format_bytes(number: float) -> str:
    """Return a number of bytes for people, in decimal units: ``412 GB``, ``1.5 MB``."""
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if number < 999.5 or unit == "PB":
            break
        number /= 1000
    return f"{number:.0f} {unit}" if unit == "B" or number >= 99.95 else f"{number:.3g} {unit}"


def _plural(number: int, noun: str) -> str:
    return noun if number == 1 else f"{noun}s"


# Values of documents


def _object(document: object, what: str) -> Mapping[str, Any]:
    if not isinstance(document, dict):
        raise InvalidResponse(f"The service sent no JSON object for {what}")
    return document


def _mapping(value: object) -> Mapping[str, Any] | None:
    return value if isinstance(value, dict) else None


def _text(value: object) -> str | None:
    return value[:MAX_TEXT] if isinstance(value, str) else None


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        return ()
    return tuple(text[:MAX_TEXT] for text in value if isinstance(text, str))


def _hex(value: object) -> str | None:
    if isinstance(value, str) and re.fullmatch("[0-9a-fA-F]+", value):
        return value.lower()
    return None


def _count(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_NUMBER:
        return value
    return None


def _counts(members: Mapping[str, Any], of: type[Any]) -> dict[str, int | None]:
    return {name: _count(members.get(name)) for name in of.__dataclass_fields__}


def _number(value: object) -> float | None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    return float(value) if 0 <= value <= _MAX_NUMBER and math.isfinite(value) else None


def _percent(value: object) -> float | None:
    number = _number(value)
    return None if number is None else min(number, 100.0)


def _time(value: object) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        time = datetime.fromisoformat(value[:-1] + "+00:00" if value.endswith("Z") else value)
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=timezone.utc)


def _rate(members: Mapping[str, Any] | None) -> Rate | None:
    if not members:
        return None
    return Rate(_number(members.get("recent")), _number(members.get("mean")))


def _eta(members: Mapping[str, Any] | None) -> Eta | None:
    if not members:
        return None
    return Eta(
        seconds=_number(members.get("seconds")),
        low=_number(members.get("low")),
        high=_number(members.get("high")),
        basis=_text(members.get("basis")),
    )


def _download(members: Mapping[str, Any] | None) -> DownloadFacts | None:
    if members is None:
        return None
    return DownloadFacts(
        url=_text(members.get("url")),
        length=_count(members.get("length")),
        etag=_text(members.get("etag")),
        formats=_texts(members.get("formats")),
        bag=_mapping(members.get("bag")),
    )
