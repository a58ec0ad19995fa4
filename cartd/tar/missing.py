"""The list of the files that a partial cart lacks, as its tar contains it."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import UNSET, Struct, UnsetType, json

from cartd.model import CartFile


class MissingFile(Struct, frozen=True, kw_only=True):
    """A file that could not be staged."""

    position: int
    id: str
    path: str
    size: int | UnsetType = UNSET
    hashtype: str
    hashsum: str | UnsetType = UNSET
    problem: str | UnsetType = UNSET
    error: str


def missing_json(uid: str, files: Iterable[CartFile]) -> bytes:
    """Return the list of ``files`` as a JSON document in UTF-8, one line a file.

    The bytes depend only on the arguments.  What is not known of a file is left out.
    """
    lines = b",\n".join(json.encode(_missing(file)) for file in files)
    return b'{"uid": %b, "files": [\n%b\n]}\n' % (json.encode(uid), lines)


def _missing(file: CartFile) -> MissingFile:
    return MissingFile(
        position=file.position,
        id=file.archive_id,
        path=file.path,
        size=UNSET if file.size is None else file.size,
        hashtype=file.hash_type,
        hashsum=file.hash_sum or UNSET,
        problem=UNSET if file.problem is None else file.problem,
        error=file.error,
    )
