"""The layout of a bag: BagIt 1.0 (RFC 8493) in one tar, its checksums before the files.

``TOP/bagit.txt``, ``bag-info.txt``, ``missing.json`` if files are missing, ``manifest-ALG.txt`` and
``tagmanifest-ALG.txt``; then ``TOP/data/`` with the files of the cart.  A reader of the stream
knows the hash of each file before its first byte.

Strategy: the manifest of a million files has some 100 MB, so it is not held in memory.  Its lines
are computed from the paths in the index and the hashes, which are kept as bytes; the offset of the
first line for each string of paths is kept, too, so that any range is found at once.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import floor
from sys import getsizeof
from time import gmtime, strftime
from typing import Any, Final

from msgspec import DecodeError, Struct, json

from cartd.checksum import digest_size, hash_name
from cartd.errors import NoCommonHash
from cartd.model import Cart, CartFormat, HashTypes
from cartd.tar.index import Lengths, TarIndex
from cartd.tar.layout import TOP_FOLDER, Content, HeadMember, Text
from cartd.tar.members import PATHS_PER_STRING, SEPARATOR, Columns, Members
from cartd.tar.virtual_tar import etag

BAG_LAYOUT: Final = "bag-1"
"""The version of the layout: increment it with every change to a byte of any bag."""
ALGORITHMS: Final = ("sha512", "sha256", "sha384", "sha224", "blake2b", "blake2s", "sha1", "md5")
"""Possible algorithms of a bag, in the order of preference (RFC 8493, section 2.4).

Their names are those of the RFC, in lower case without dashes, and hashlib's at the same time.
"""
PAYLOAD: Final = "data/"
_BAGIT_TXT: Final = b"BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n"
_ENCODED: Final[dict[int, str]] = {ord("%"): "%25", ord("\n"): "%0A", ord("\r"): "%0D"}
"""The characters of paths that a manifest has percent-encoded (RFC 8493, section 2.1.3)."""


@dataclass(frozen=True, slots=True)
class BagInfo:
    """What ``bag-info.txt`` says of a cart; texts of any characters."""

    uid: str
    created: float
    """Unix time at which the cart was posted."""
    name: str | None = None
    organization: str = ""


class BagFacts(Struct, frozen=True, kw_only=True):
    """What is recorded with a cart about its bag, like :class:`cartd.model.TarFacts`."""

    layout: str
    source: str
    """:attr:`TarIndex.source` of the cart, and so of its plain tar."""
    digest: str
    lengths: Lengths
    since: float
    algorithm: str
    organization: str
    """The setting that the bag was made with."""

    def length(self, top: str) -> int:
        """Return the bytes of the bag's tar below ``top``."""
        return self.lengths.length(top)

    def etag(self, top: str) -> str:
        """Return the ETag of the bag's tar below ``top``."""
        return etag(self.layout, self.digest, top)

    def dumped(self) -> str:
        """Serialize to JSON."""
        return json.encode(self).decode()


def loaded_facts(text: str | None) -> BagFacts | None:
    """Parse the result of ``BagFacts.dumped``; None if there is none, or of an unknown form."""
    try:
        return None if text is None else json.decode(text, type=BagFacts)
    except DecodeError:
        return None


def recorded_facts(cart: Cart, organization: str) -> BagFacts | None:
    """Return what is recorded about the bag of a ready cart; None if that is out of date.

    It is if the cart was staged again with other files, or if the layout or the setting
    ``organization`` has changed since; but the bag on the volume stays as it was written.
    """
    facts = loaded_facts(cart.bag)
    if facts is None or cart.tar is None or facts.source != cart.tar.digest:
        return None
    if cart.has_tar and cart.format is CartFormat.BAG:
        return facts
    return facts if (facts.layout, facts.organization) == (BAG_LAYOUT, organization) else None


def bag_facts(index: TarIndex, now: float, recorded: str | None = None) -> BagFacts:
    """Return what is recorded about a bag from ``now`` on (Unix time), given what is ``recorded``.

    The same bag keeps its date; another one has that of another second.
    """
    layout = index.layout
    assert isinstance(layout, BagLayout)
    since = now
    if (before := loaded_facts(recorded)) is not None:
        same = (before.layout, before.digest) == (BAG_LAYOUT, index.digest)
        since = before.since if same else max(now, floor(before.since) + 1.0)
    return BagFacts(
        layout=BAG_LAYOUT,
        source=index.source,
        digest=index.digest,
        lengths=index.lengths,
        since=since,
        algorithm=layout.algorithm,
        organization=layout.info.organization,
    )


def common_algorithm(kinds: Iterable[HashTypes]) -> str:
    """Return the best algorithm by which every file has a verified hash.

    :raises NoCommonHash: there is none.
    """
    common = set(ALGORITHMS).intersection(*(kind.names for kind in kinds))
    if not common:
        raise NoCommonHash(
            "The cart cannot be a bag: its files have no hash by one common algorithm. Download it"
            " as a tar, or post it again with hashes of one type"
        )
    return min(common, key=ALGORITHMS.index)


def spellings(kinds: Iterable[HashTypes], algorithm: str) -> set[str]:
    """Return the names by which the files have the algorithm, as hashlib accepts several."""
    names = {name for kind in kinds for name in (kind.hash_type, kind.also_hash_type) if name}
    return {name for name in names if hash_name(name) == algorithm}


class PayloadManifest:
    """``manifest-ALG.txt``: a line with hash and path for each file, in the order of the tar."""

    def __init__(self, algorithm: str) -> None:
        self._bytes = digest_size(algorithm)
        self._hash = new_hash(algorithm)
        self._sums = bytearray()
        """The hashes of all files, one behind the other."""
        self._offsets = array("q", [0])
        """Where the lines for each string of paths begin, and where the last one ends."""
        self._columns = Columns()

    def add(self, members: Members) -> None:
        """Add a page of files; raises :class:`ValueError` if their ``sums`` are no hashes."""
        paths, sums = members.paths, [one for one in members.sums if one]
        if len(sums) != len(paths) or any(len(one) != 2 * self._bytes for one in sums):
            raise ValueError("not the hashes of these files")
        for first in range(0, len(paths), PATHS_PER_STRING):
            last = first + PATHS_PER_STRING
            known = bytes.fromhex("".join(sums[first:last]))
            lines = self._lines(SEPARATOR.join(paths[first:last]), known)
            self._hash.update(lines)
            self._sums += known
            self._offsets.append(self._offsets[-1] + len(lines))

    def below(self, columns: Columns) -> PayloadManifest:
        """Return itself, for the paths in ``columns``, which are those that were added."""
        self._columns = columns
        return self

    @property
    def size(self) -> int:
        return self._offsets[-1]

    @property
    def digest(self) -> str:
        """The hash by the algorithm of the bag."""
        hexadecimal: str = self._hash.hexdigest()
        return hexadecimal

    @property
    def weight(self) -> int:
        return getsizeof(self._sums) + getsizeof(self._offsets)

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        columns, offsets = self._columns, self._offsets
        place = bisect_right(offsets, start) - 1
        while start < stop:
            first, joined = columns.firsts[place], columns.joined[place]
            number = joined.count(SEPARATOR) + 1
            sums = self._sums[first * self._bytes : (first + number) * self._bytes]
            lines = self._lines(joined, sums)
            yield lines[start - offsets[place] : stop - offsets[place]]
            place += 1
            start = offsets[place]

    def _lines(self, joined: str, sums: bytes | bytearray) -> bytes:
        if "%" in joined or "\n" in joined or "\r" in joined:
            joined = joined.translate(_ENCODED)
        known = sums.hex("\n", self._bytes).split("\n")
        paths = joined.split(SEPARATOR)
        return "".join(map(f"{{}}  {PAYLOAD}{{}}\n".format, known, paths)).encode()


class BagLayout:
    """Computes the head of a bag from the files of a cart and their ``sums``."""

    version: int | str = BAG_LAYOUT
    prefix = PAYLOAD

    def __init__(self, info: BagInfo, algorithm: str, missing: Content | None = None) -> None:
        """``algorithm``: of the ``sums`` of all members."""
        self.info = info
        self.algorithm = algorithm
        self.missing = missing
        self._manifest = PayloadManifest(algorithm)

    @property
    def mtime(self) -> int:
        """When the cart was posted."""
        return max(int(self.info.created // 1), 0)

    def add(self, members: Members) -> None:
        self._manifest.add(members)

    def head(self, columns: Columns) -> Sequence[HeadMember]:
        tags: dict[str, Content] = {
            "bagit.txt": Text(_BAGIT_TXT),
            "bag-info.txt": Text(_bag_info(self.info, sum(columns.sizes), len(columns.sizes))),
        }
        if self.missing is not None:
            tags["missing.json"] = self.missing
        manifest = self._manifest.below(columns)
        listed = {name: _hash_of(content, self.algorithm) for name, content in tags.items()}
        tags[f"manifest-{self.algorithm}.txt"] = manifest
        listed[f"manifest-{self.algorithm}.txt"] = manifest.digest
        lines = "".join(f"{known}  {name}\n" for name, known in listed.items())
        tags[f"tagmanifest-{self.algorithm}.txt"] = Text(lines.encode())
        return [
            HeadMember(TOP_FOLDER),
            *(HeadMember(f"{TOP_FOLDER}{name}", content) for name, content in tags.items()),
            HeadMember(f"{TOP_FOLDER}{PAYLOAD}"),
        ]


def new_hash(algorithm: str) -> Any:
    # Not used for security, only to detect damage: so MD5 is allowed in FIPS mode, too.
    return hashlib.new(algorithm, usedforsecurity=False)


def _hash_of(content: Content, algorithm: str) -> str:
    computing = new_hash(algorithm)
    for data in content.read(0, content.size):
        computing.update(data)
    hexadecimal: str = computing.hexdigest()
    return hexadecimal


def _bag_info(info: BagInfo, size: int, files: int) -> bytes:
    """Return the text of ``bag-info.txt``; values have no line breaks, so none is folded."""
    fields = {
        "Source-Organization": info.organization,
        "External-Identifier": info.uid,
        "External-Description": info.name or "",
        "Bagging-Date": strftime("%Y-%m-%d", gmtime(info.created)),
        "Payload-Oxum": f"{size}.{files}",
        "Bag-Software-Agent": "cartd",
    }
    lines = [f"{label}: {_one_line(value)}\n" for label, value in fields.items() if value]
    return "".join(lines).encode()


def _one_line(value: str) -> str:
    """Return the value of a label without control characters and line breaks."""
    return "".join(one if one.isprintable() else " " for one in value).strip()
