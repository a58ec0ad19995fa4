"""The oracle: what clients were promised and got, to compare with the store and the volume."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import NamedTuple

from cartd.manifest import parse
from cartd.model import Cart, CartFile
from cartd.tar.missing import missing_json
from tests.simulation.archive import content, mtime


class Wanted(NamedTuple):
    """One entry of a manifest."""

    archive_id: str
    path: str
    hash_known: bool


@dataclass(frozen=True)
class Spec:
    """A manifest and the uid that it is posted under."""

    uid: str
    files: tuple[Wanted, ...]
    bundle: bool
    max_failed: int | None = None

    @property
    def body(self) -> bytes:
        entries = [
            {
                "id": one.archive_id,
                "path": one.path,
                "hashtype": "sha1",
                "hashsum": hashlib.sha1(content(one.archive_id)).hexdigest()
                if one.hash_known
                else "",
            }
            for one in self.files
        ]
        rule = {"on_error": "partial", "max_failed": self.max_failed}
        permitted = {} if self.max_failed is None else rule
        form = {"format": "bag"} if self.is_bag else {}
        return json.dumps({"fileids": entries, "bundle": self.bundle, **permitted, **form}).encode()

    @property
    def is_bag(self) -> bool:
        """Whether the manifest wants a bag on the volume."""
        return self.bundle and len(self.files) % 2 == 0

    @property
    def fingerprint(self) -> str:
        return parse(self.body).fingerprint

    def tar(self, top: str, created: float, failed: Sequence[CartFile] = ()) -> bytes:
        """Return the tar as :mod:`tarfile` writes it; directories come before their first file.

        A directory has the time of the newest file below it.  The tar of a partial cart lacks the
        ``failed`` files and has their list.  ``created`` is the Unix time at which it was posted.
        """
        lacking = {one.position for one in failed}
        there = [one for at, one in enumerate(self.files) if at not in lacking]
        left = replace(self, files=tuple(there))
        missing = missing_json(self.uid, failed) if failed else None
        out = io.BytesIO()
        with tarfile.open(mode="w", fileobj=out, format=tarfile.PAX_FORMAT) as tar:
            if self.is_bag:
                _add(tar, top, None, left._newest(top, top))
                for name, data in left._tag_files(created, missing).items():
                    _add(tar, f"{top}/{name}", data, int(created))
                top = f"{top}/data"
            elif missing is not None:
                _add(tar, f"{top}.missing.json", missing, int(created))
            for name, archive_id in left._members(top):
                if archive_id is None:
                    _add(tar, name, None, left._newest(name, top))
                else:
                    _add(tar, name, content(archive_id), mtime(archive_id))
        return out.getvalue()

    def _tag_files(self, created: float, missing: bytes | None) -> dict[str, bytes]:
        """Return the files of the bag that are none of the cart's (RFC 8493)."""
        algorithm = "sha1" if self.files else "sha512"

        def hash_of(data: bytes) -> str:
            return hashlib.new(algorithm, data).hexdigest()

        sizes = [len(content(one.archive_id)) for one in self.files]
        date = datetime.fromtimestamp(created, UTC).date()
        info = (
            f"External-Identifier: {self.uid}\nBagging-Date: {date}\n"
            f"Payload-Oxum: {sum(sizes)}.{len(sizes)}\nBag-Software-Agent: cartd\n"
        )
        lines = [f"{hash_of(content(one.archive_id))}  data/{one.path}\n" for one in self.files]
        tags = {
            "bagit.txt": b"BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n",
            "bag-info.txt": info.encode(),
            **({} if missing is None else {"missing.json": missing}),
            f"manifest-{algorithm}.txt": "".join(lines).encode(),
        }
        listed = "".join(f"{hash_of(data)}  {name}\n" for name, data in tags.items())
        return {**tags, f"tagmanifest-{algorithm}.txt": listed.encode()}

    def _newest(self, directory: str, top: str) -> int:
        below = [one for one in self.files if f"{top}/{one.path}".startswith(f"{directory}/")]
        return max((mtime(one.archive_id) for one in below), default=0)

    def _members(self, top: str) -> Iterator[tuple[str, str | None]]:
        seen = {top}
        yield top, None
        for one in self.files:
            parts = [top, *one.path.split("/")]
            for depth in range(2, len(parts)):
                directory = "/".join(parts[:depth])
                if directory not in seen:
                    seen.add(directory)
                    yield directory, None
            yield "/".join(parts), one.archive_id


def _add(tar: tarfile.TarFile, name: str, data: bytes | None, mtime: int) -> None:
    """Add a file, or a directory without ``data``."""
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
    info.mode = 0o755 if data is None else 0o644
    info.mtime, info.size = mtime, len(data or b"")
    tar.addfile(info, io.BytesIO(data or b""))


class Oracle:
    """All promises of one scenario."""

    def __init__(self) -> None:
        self.specs: dict[tuple[str, str], Spec] = {}
        """All manifests that were posted, with or without a response."""
        self.last: dict[str, Spec] = {}
        self.accepted: dict[int, Spec] = {}
        self.may_be_deleted: set[int] = set()
        self.must_be_deleted: set[int] = set()
        self.purged: set[int] = set()
        """Carts that another process may have deleted."""
        self.damaged: set[int] = set()
        """Carts with a file that the test has damaged."""
        self.violations: list[str] = []
        """Messages about broken promises."""
        self.evicts = False
        self.read = 0
        """Number of downloads read to the end."""
        self._tags: dict[str, bytes] = {}
        self._tars: dict[tuple[Spec, str, float], bytes] = {}
        """Of complete carts."""

    def post(self, spec: Spec) -> None:
        self.specs[spec.uid, spec.fingerprint] = spec
        self.last[spec.uid] = spec

    def tar_of(self, cart: Cart, top: str, failed: Sequence[CartFile] = ()) -> bytes:
        """Return the tar of a cart of which these files have failed."""
        spec = self.specs[cart.uid, cart.fingerprint or ""]
        if failed:
            return spec.tar(top, cart.created, failed)
        key = spec, cart.uid if cart.bundle else top, cart.created if spec.is_bag else 0.0
        if key not in self._tars:
            self._tars[key] = spec.tar(*key[1:])
        return self._tars[key]

    def ids_of(self, uid: str) -> set[int]:
        return {cart_id for cart_id, spec in self.accepted.items() if spec.uid == uid}

    def tagged(self, etag: str, tar: bytes) -> None:
        """Record that a client was promised ``tar`` under ``etag``."""
        if self._tags.setdefault(etag, tar) != tar:
            self.violations.append(f"two tars with the ETag {etag}")
