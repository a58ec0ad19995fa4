"""Verifies a tar or a directory: against the files of a cart, or a bag against its own sums.

Every file is read once; sums are computed in threads while the next file is read.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cartd_client.contents import BAG_ALGORITHMS, Contents, FileManifest, Item, TagFile, Tally
from cartd_client.errors import ClientError, UsageError, VerificationFailed
from cartd_client.expected import MAX_LISTED, ExpectedFiles, Wanted
from cartd_client.hashing import HashPool
from cartd_client.meter import Meter
from cartd_client.model import FileEntry, FileProblem, Progress, Report
from cartd_client.names import NameRules, UnsafeName
from cartd_client.receive import Receiver, Settler, Sink, problems
from cartd_client.resume import State
from cartd_client.tar_stream import Member, TarStream
from cartd_client.tree import Tree

_BLOCK = 1 << 20
_PENDING = 64
"""Files whose sums are awaited at once."""


def verify(
    path: Path,
    expected: Iterable[FileEntry] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Verify the files of a tar, or those below a directory, against ``expected``.

    Without ``expected``, the tar or the directory must be a bag (BagIt), whose own sums count.  Of
    a directory, ``expected`` names paths below it; if it is a bag, below its ``data``.

    :raises VerificationFailed: it is no tar of a cart, or a bag whose sums contradict each other.
    :raises ClientError: it cannot be read.
    """
    pool = HashPool()
    files = ExpectedFiles.of(expected) if expected is not None else None
    try:
        if path.is_dir():
            return _Verification(pool, Meter(on_progress)).of_directory(path, files)
        return _verify_tar(path, files, pool, Meter(on_progress))
    except OSError as error:
        raise ClientError(f"Cannot read {path}: {error.strerror or error}") from error
    finally:
        pool.close()
        if files is not None:
            files.close()


def _verify_tar(path: Path, files: ExpectedFiles | None, pool: HashPool, meter: Meter) -> Report:
    contents = Contents(pool, NameRules(), files, is_bag=files is None)
    if files is None:
        contents.missing = []
    sink = Sink()
    settler = Settler(sink, contents, State("", path.name, ""), None, batches=True)
    receiver = Receiver(TarStream(), contents, sink, settler)
    with path.open("rb") as tar, _bag_only(path, contents, is_bag=files is None):
        meter.start(0, os.fstat(tar.fileno()).st_size, None if files is None else files.count)
        done = 0
        while data := tar.read(_BLOCK):
            receiver.feed(data)
            done += len(data)
            meter.update(done, receiver.files)
    try:
        receiver.close()
        settler.finish()
    finally:
        settler.stop()
    if files is None and contents.expected is None:
        raise UsageError(f"{path} is not a bag: give the files that it must have")
    known = {problem.path for problem in contents.missing}
    for wanted in contents.not_received():
        if wanted.path not in known and len(contents.missing) < MAX_LISTED:
            contents.missing.append(FileProblem(wanted.path, "it is not in the tar", "not-there"))
    report = contents.report(settler.tally, problems(settler.wrong))
    meter.update(done, receiver.files, is_last=True)
    if files is None:
        contents.close()
    return report


@contextmanager
def _bag_only(path: Path, contents: Contents, *, is_bag: bool) -> Iterator[None]:
    """Say what to do if a tar without a list of files is no bag."""
    try:
        yield
    except VerificationFailed as error:
        if is_bag and not any(tag.name == "bagit.txt" for tag in contents.tags):
            raise UsageError(f"{path} is not a bag: give the files that it must have") from error
        raise


class _Verification:
    """Reads the files below a directory."""

    def __init__(self, pool: HashPool, meter: Meter) -> None:
        self._pool = pool
        self._meter = meter
        self._tally = Tally()
        self._failed: list[FileProblem] = []
        self._missing: list[FileProblem] = []
        self._pending: deque[Item] = deque()
        self._done = 0

    def of_directory(self, path: Path, files: ExpectedFiles | None) -> Report:
        """Verify all; ``files`` None: by the manifest of the bag."""
        is_bag = (path / "bagit.txt").is_file()
        tree = Tree(path)
        try:
            if files is not None:
                below: tuple[str, ...] = ("data",) if is_bag and (path / "data").is_dir() else ()
                self._missing += files.missing
                self._read_all(tree, files, below)
            elif is_bag:
                contents = Contents(self._pool, NameRules(), None, is_bag=True)
                contents.top = path.name
                try:
                    self._of_bag(tree, path, contents)
                finally:
                    contents.close()
            else:
                raise UsageError(f"{path} is not a bag: give the files that it must have")
        finally:
            tree.close()
        outcome = "failed" if self._failed else "partial" if self._missing else "complete"
        tally = self._tally
        return Report(
            files=tally.files,
            bytes=tally.bytes,
            verified=tally.verified,
            unverified=tally.unverified,
            failed=tuple(self._failed[:MAX_LISTED]),
            missing=tuple(self._missing[:MAX_LISTED]),
            outcome=outcome,
        )

    def _of_bag(self, tree: Tree, path: Path, contents: Contents) -> None:
        names = sorted(entry.name for entry in path.iterdir())
        algorithm = next((name for name in BAG_ALGORITHMS if f"manifest-{name}.txt" in names), None)
        if algorithm is None:
            raise VerificationFailed(f"{path} has no manifest of a known algorithm")
        # Manifests of sums last: they name the others.
        for name in sorted(names, key=lambda name: name.startswith("tagmanifest-")):
            if (path / name).is_file():
                self._read_tag(tree, contents, name, algorithm)
        assert contents.expected is not None
        listed = {wanted.path for wanted in contents.expected}
        self._read_all(tree, contents.expected, ())
        for above, _, found in os.walk(path / "data"):
            for name in found:
                below = (Path(above) / name).relative_to(path).as_posix()
                if below not in listed:
                    self._failed.append(FileProblem(below, "it is not in the manifest"))

    def _read_tag(self, tree: Tree, contents: Contents, name: str, algorithm: str) -> None:
        member = Member(f"{contents.top}/{name}", 0, 0, 0, False, 0, 0)
        tag: TagFile | None = contents.item(member).tag
        if tag is None:
            return
        if isinstance(tag, FileManifest) and name != f"manifest-{algorithm}.txt":
            contents.tags.remove(tag)
            tag = TagFile(name, contents)
            tag.hasher = self._pool.new(*BAG_ALGORITHMS)
            contents.tags.append(tag)
        with os.fdopen(tree.open((name,)), "rb") as file:
            while data := file.read(_BLOCK):
                tag.feed(data)
                if tag.hasher is not None:
                    tag.hasher.update(data)
        if tag.hasher is not None:
            tag.hasher.finish()
        tag.close()

    def _read_all(self, tree: Tree, files: ExpectedFiles, below: tuple[str, ...]) -> None:
        self._meter.start(0, files.bytes, files.count)
        for wanted in files:
            self._read(tree, wanted, below)
            self._meter.update(self._done, self._tally.files)
            if len(self._pending) > _PENDING:
                self._judge(self._pending.popleft())
        while self._pending:
            self._judge(self._pending.popleft())
        self._meter.update(self._done, self._tally.files, is_last=True)

    def _read(self, tree: Tree, wanted: Wanted, below: tuple[str, ...]) -> None:
        try:
            parts = (*below, *NameRules().parts(wanted.path))
            found = tree.status(parts)
        except (UnsafeName, VerificationFailed) as error:
            self._failed.append(FileProblem(wanted.path, str(error)))
            return
        if found is None:
            self._missing.append(FileProblem(wanted.path, "it is not there", "not-there"))
            return
        problem = None
        if not stat.S_ISREG(found.st_mode):
            problem = "it is not a regular file"
        elif wanted.size not in (None, found.st_size):
            problem = f"it has {found.st_size} bytes, not {wanted.size}"
        if problem is not None:
            self._failed.append(FileProblem(wanted.path, problem, "wrong-content"))
            return
        item = Item(Member(wanted.path, found.st_size, 0, 0, False, 0, 0), parts)
        item.wanted = wanted
        if wanted.algorithm is not None:
            item.hasher = self._pool.new(wanted.algorithm)
            with os.fdopen(tree.open(parts), "rb", buffering=0) as file:
                while data := file.read(_BLOCK):
                    item.hasher.update(data)
                    self._done += len(data)
            item.hasher.finish()
        self._pending.append(item)

    def _judge(self, item: Item) -> None:
        item.judge()
        if item.outcome is None:
            self._failed.append(
                FileProblem(item.member.name, item.problem or "it is wrong", "wrong-content")
            )
        else:
            self._tally.add(item.member.size, item.outcome)
