"""What each member of a cart's tar is, and whether it is right: by a list, or as a bag.

A plain tar has one folder at its top, and before it ``TOP.missing.json`` if files are missing.  A
bag (BagIt, RFC 8493) has its sums before its files, so that one pass verifies it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cartd_client.errors import VerificationFailed, printable
from cartd_client.expected import MAX_LISTED, ExpectedFiles, Wanted
from cartd_client.hashing import Data, Hasher, HashPool, is_known
from cartd_client.model import FileProblem, Report
from cartd_client.names import Collisions, NameRules, UnsafeName
from cartd_client.tar_stream import Member

MAX_TAG_FILE = 16 << 20
"""Bytes of a tag file that is read as a whole: all but the manifest of the files."""
MAX_LINE = 1 << 17
MISSING = ".missing.json"
"""What follows the name of the folder in that of the list of missing files."""
BAG_ALGORITHMS = ("sha512", "sha256", "sha384", "sha224", "blake2b", "blake2s", "sha1", "md5")
"""What manifests of bags may be by, the best first."""


@dataclass
class Tally:
    """What was received so far; part of the state that a resume continues from."""

    files: int = 0
    bytes: int = 0
    verified: dict[str, int] = field(default_factory=dict)
    unverified: int = 0

    def add(self, size: int, algorithm: str) -> None:
        """Count a file that is right, or has no sum to compare with (``algorithm`` empty)."""
        self.files += 1
        self.bytes += size
        if algorithm:
            self.verified[algorithm] = self.verified.get(algorithm, 0) + 1
        else:
            self.unverified += 1


class Item:
    """A file of the tar on its way."""

    __slots__ = (
        "hasher",
        "index",
        "is_again",
        "is_named",
        "is_noted",
        "member",
        "outcome",
        "parts",
        "problem",
        "tag",
        "wanted",
    )

    def __init__(self, member: Member, parts: tuple[str, ...]) -> None:
        self.member = member
        self.parts = parts
        self.wanted: Wanted | None = None
        self.tag: TagFile | None = None
        """What reads it, if it is no file of the cart but one about it."""
        self.problem: str | None = None
        self.hasher: Hasher | None = None
        self.index = 0
        self.is_again = False
        """Whether it is received again, as it was wrong."""
        self.is_noted = False
        """Whether the outcome is in the journal."""
        self.is_named = False
        """Whether the file has its name already."""
        self.outcome: str | None = None
        """The algorithm by which it is right, ``""`` without a sum; None: see :meth:`judge`."""

    def judge(self) -> None:
        """Wait for the sum, and set ``outcome`` or ``problem``."""
        if self.outcome is not None or self.problem is not None:
            return
        wanted = self.wanted
        if wanted is None or wanted.algorithm is None or self.hasher is None:
            self.outcome = ""
            return
        found = self.hasher.sums()[wanted.algorithm]
        self.hasher = None  # of the many small files of a batch, they have most of the memory
        if found == wanted.hash_sum:
            self.outcome = wanted.algorithm
        else:
            self.problem = f"its {wanted.algorithm} is {found}, not {wanted.hash_sum}"


class Contents:
    """Identifies the members of one tar, in order."""

    def __init__(
        self,
        pool: HashPool,
        rules: NameRules,
        expected: ExpectedFiles | None,
        *,
        is_bag: bool,
        top: str = "",
        stored_top: str = "",
        scratch: Path | None = None,
    ) -> None:
        """``expected``: the list of files; None: all that comes is taken, unverified.

        ``top``: the only folder at the top of the tar; without it, that of the first file.
        ``stored_top``: the folder instead if the service has the tar on its volume.
        ``scratch``: directory for a temporary file.
        """
        self.is_bag = is_bag
        self.rules = rules
        self.top = top
        self._stored_top = stored_top
        self.expected = expected
        self.missing: list[FileProblem] = list(expected.missing) if expected else []
        self.tags: list[TagFile] = []
        self._pool = pool
        self._scratch = scratch
        self._paths: set[int] = set()

    def close(self) -> None:
        """Remove temporary files."""
        if self.expected is not None:
            self.expected.close()

    def parts(self, member: Member) -> tuple[str, ...]:
        """Return the safe path of a file or a directory; raises VerificationFailed without one."""
        name = printable(member.name, 300)
        try:
            parts = self.rules.parts(member.name)
        except UnsafeName as error:
            raise VerificationFailed(
                f"{name!r} in the tar is no safe name here: {error}; nothing was written for it"
            ) from error
        is_alone = len(parts) == 1 and not member.is_directory
        if not self.top:
            self.top = parts[0][: -len(MISSING)] if is_alone else parts[0]
        if parts[0] == self._stored_top:  # a tar that is stored keeps its folder
            self.top = self._stored_top
        self._stored_top = ""  # the first member decides
        # Nothing beside the folder: DIR may be the home of a user, with other folders.
        if parts[0] != self.top and not (is_alone and parts[0] == self.top + MISSING):
            raise VerificationFailed(f"{name!r} in the tar is not in its folder {self.top!r}")
        if is_alone and parts[0] == self.top:
            raise VerificationFailed(f"{name!r} in the tar is a file, and not its folder")
        return parts

    def item(self, member: Member) -> Item:
        """Return what the file ``member`` is, ready to be hashed."""
        item = Item(member, self.parts(member))
        parts = item.parts
        item.tag = self._tag_file(parts)
        if item.tag is not None:
            self.tags.append(item.tag)
            if self.is_bag:
                item.hasher = item.tag.hasher = self._pool.new(*BAG_ALGORITHMS)
            return item
        self._expect(item, "/".join(parts[1:]))
        wanted = item.wanted
        if wanted is not None and wanted.algorithm is not None:
            item.hasher = self._pool.new(wanted.algorithm)
        return item

    def _expect(self, item: Item, path: str) -> None:
        if self.expected is None:
            if self.is_bag:
                raise VerificationFailed("The bag has files before its manifest")
            folded = hash(self.rules.fold(path))
            if folded in self._paths:
                item.problem = "the tar has another file that is the same one here"
            self._paths.add(folded)
            return
        item.wanted = self.expected.find(path)
        if item.wanted is None:
            item.problem = "it is not one of the cart's files, or occurs twice"
        elif item.wanted.size not in (None, item.member.size):
            item.problem = f"it has {item.member.size} bytes, not {item.wanted.size}"

    def _tag_file(self, parts: tuple[str, ...]) -> TagFile | None:
        if not self.is_bag:
            return MissingFiles(parts[0], self) if len(parts) == 1 else None
        if len(parts) != 2:
            return None
        name = parts[1]
        if name == "missing.json":
            return MissingFiles(name, self)
        match = re.fullmatch(r"(tag)?manifest-([a-z0-9]+)\.txt", name)
        if match and match[1]:
            return TagManifest(name, self, match[2])
        if match and is_known(match[2]) and self.expected is None:
            return FileManifest(name, self, match[2])
        return TagFile(name, self)

    def new_list(self) -> ExpectedFiles:
        """Return an empty list of files."""
        return ExpectedFiles(self._scratch)

    def not_received(self) -> Iterable[Wanted]:
        """Yield the files of the list that were not in the tar."""
        return self.expected.unseen() if self.expected is not None else ()

    def report(self, tally: Tally, failed: list[FileProblem]) -> Report:
        """Return the report of all that was received."""
        return Report(
            files=tally.files,
            bytes=tally.bytes,
            verified=dict(tally.verified),
            unverified=tally.unverified,
            failed=tuple(failed[:MAX_LISTED]),
            missing=tuple(self.missing),
            outcome="failed" if failed else "partial" if self.missing else "complete",
        )


def missing_list(top: str, *, is_bag: bool) -> tuple[str, ...]:
    """Return the path of the list of missing files."""
    return (top, "missing.json") if is_bag else (top + MISSING,)


def check_names(expected: ExpectedFiles, rules: NameRules, top: str) -> None:
    """Check that each file of the list can have its name here, and none that of another.

    :raises VerificationFailed: some cannot; the message lists the first ones.
    """
    collisions = Collisions(rules)
    wrong: list[str] = []

    def note(path: str, why: object) -> None:
        if len(wrong) < 10:
            wrong.append(f"{printable(path, 300)!r}: {why}")

    for wanted in expected:
        try:
            collisions.add((top, *_checked(rules, wanted.path, top)))
        except UnsafeName as error:
            note(wanted.path, error)
    suspects = collisions.suspects()
    if suspects:
        for wanted in expected:
            digests = collisions.digests((top, *_checked(rules, wanted.path, top)))
            if suspects.intersection(digests):
                note(wanted.path, "another file or directory has the same name here")
    if wrong:
        raise VerificationFailed(
            "The directory cannot have all files of the cart; nothing was written. Save the tar"
            " instead, or unpack on another file system: " + "; ".join(wrong),
            names=wrong,
        )


def _checked(rules: NameRules, path: str, top: str) -> tuple[str, ...]:
    return rules.parts(f"{top}/{path}")[1:]


class TagFile:
    """A file about the cart's files: it is fed with its content, then closed."""

    def __init__(self, name: str, contents: Contents) -> None:
        self.name = name
        self.contents = contents
        self.hasher: Hasher | None = None

    def feed(self, data: Data) -> None:
        """Take a part of the content."""

    def close(self) -> None:
        """Use the content; raises VerificationFailed if it is wrong."""


class WholeTagFile(TagFile):
    """A tag file that is read as a whole."""

    def __init__(self, name: str, contents: Contents) -> None:
        super().__init__(name, contents)
        self.content = bytearray()

    def feed(self, data: Data) -> None:
        if len(self.content) <= MAX_TAG_FILE:
            self.content += data


class MissingFiles(WholeTagFile):
    """``missing.json``: the files that the cart does not have."""

    def close(self) -> None:
        try:
            listed = json.loads(self.content)["files"] if len(self.content) <= MAX_TAG_FILE else []
            missing = [_problem(entry) for entry in listed[:MAX_LISTED]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise VerificationFailed(f"{self.name} in the tar is invalid: {error}") from error
        if missing:
            self.contents.missing = missing
            if self.contents.expected is not None:
                self.contents.expected.absent = {problem.path for problem in missing}


def _problem(entry: dict[str, Any]) -> FileProblem:
    position, file_id = entry.get("position"), entry.get("id")
    return FileProblem(
        str(entry["path"]),
        str(entry.get("error") or "the service could not stage it"),
        str(entry["problem"]) if entry.get("problem") else None,
        position if isinstance(position, int) else None,
        None if file_id is None else str(file_id),
    )


class FileManifest(TagFile):
    """``manifest-ALG.txt`` of a bag: the sums of its files, of any number."""

    def __init__(self, name: str, contents: Contents, algorithm: str) -> None:
        super().__init__(name, contents)
        self._algorithm = algorithm
        self._list = contents.new_list()
        self._rest = b""

    def feed(self, data: Data) -> None:
        *lines, self._rest = (self._rest + bytes(data)).split(b"\n")
        if len(self._rest) > MAX_LINE:
            raise VerificationFailed(f"{self.name} in the bag has a line without end")
        for line in lines:
            path, hash_sum = _manifest_line(self.name, line)
            self._list.add(Wanted(path, None, self._algorithm, hash_sum))

    def close(self) -> None:
        if self._rest:
            self.feed(b"\n")
        self._list.rewind()
        check_names(self._list, self.contents.rules, self.contents.top)
        self.contents.expected = self._list


class TagManifest(WholeTagFile):
    """``tagmanifest-ALG.txt`` of a bag: the sums of the tag files that came before."""

    def __init__(self, name: str, contents: Contents, algorithm: str) -> None:
        super().__init__(name, contents)
        self._algorithm = algorithm

    def close(self) -> None:
        if self._algorithm not in BAG_ALGORITHMS:
            return
        sums = dict(_manifest_line(self.name, line) for line in bytes(self.content).splitlines())
        for tag in self.contents.tags:
            if tag is self or tag.hasher is None or isinstance(tag, TagManifest):
                continue
            wanted = sums.get(tag.name)
            if wanted is None:
                if isinstance(tag, FileManifest):
                    raise VerificationFailed(f"{self.name} in the bag has no sum of {tag.name}")
            elif tag.hasher.sums()[self._algorithm] != wanted:
                raise VerificationFailed(
                    f"{tag.name} in the bag is wrong: its {self._algorithm} is not {wanted}"
                )


def _manifest_line(name: str, line: bytes) -> tuple[str, str]:
    """Return path and sum in a line of a manifest (RFC 8493, 2.1.3)."""
    match = re.fullmatch(rb"([0-9A-Fa-f]+)[ \t]+\*?(.+)", line.rstrip(b"\r"), re.DOTALL)
    try:
        if not match:
            raise ValueError("not a sum and a path")
        path = re.sub(r"%(0[AaDd]|25)", lambda code: chr(int(code[1], 16)), match[2].decode())
    except ValueError as error:
        raise VerificationFailed(f"{name} in the bag has an invalid line: {error}") from error
    return path, match[1].decode().lower()


def dumped_missing(missing: list[FileProblem]) -> list[dict[str, Any]]:
    """Return missing files as JSON values, for the state of a download."""
    return [asdict(problem) for problem in missing]
