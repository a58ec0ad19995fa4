"""Downloads a cart: resumes, unpacks, and verifies it while it arrives.

::

    report = download(transport, source, Directory(Path("data")), files, Options(jobs=4))

What was received before any end of an earlier run is used again: see :mod:`cartd_client.resume`.
A service without ranges and ETags (Pacifica's) is asked for the whole again after a break.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cartd_client.contents import Contents, Item, Tally, check_names, missing_list
from cartd_client.errors import (
    CartChanged,
    ClientError,
    ExitStatus,
    NoSpace,
    UsageError,
    VerificationFailed,
)
from cartd_client.expected import MAX_LISTED, ExpectedFiles, Wanted
from cartd_client.hashing import HashPool
from cartd_client.meter import Meter, OnProgress
from cartd_client.model import (
    Directory,
    FileEntry,
    FileProblem,
    Options,
    Report,
    Source,
    Stdout,
    TarFile,
    Target,
    format_bytes,
)
from cartd_client.names import NameRules
from cartd_client.ranges import CannotResume, RangeReader, RateLimit
from cartd_client.receive import Receiver, Settler, Sink, complete, problems
from cartd_client.resume import State, boot_id, save_state
from cartd_client.tar_file import FileSink, PartFile, StdoutSink, TarAndTree
from cartd_client.tar_stream import Member, TarStream
from cartd_client.transport import Transport
from cartd_client.tree import Tree, probe_rules
from cartd_client.unpack import DirectorySink, Staging, check_existing

MAX_RESTARTS = 3
"""How often one download starts anew because the cart has changed."""
RESERVE = 16 << 20
"""Bytes of the disk that a download does not count on."""


def download(
    transport: Transport,
    source: Source,
    target: Target,
    expected: Iterable[FileEntry] | None = None,
    options: Options | None = None,
    on_progress: OnProgress | None = None,
) -> Report:
    """Download ``source`` to ``target``, and verify each file that ``expected`` lists.

    ``expected`` has the files of the cart in order; without it, only a bag is verified.  A run that
    ends early, by an error, a signal or a crash, is continued by the next one with the same
    arguments.

    :raises CartChanged: the cart is not the one of which a part is here, and
        ``options.restart`` is not set.
    :raises NoSpace: the disk is full; what was received is kept.
    :raises VerificationFailed: what arrives is not the tar of a cart.
    :raises ClientError: another one; files that are wrong or missing are in the report instead.
    """
    options = options or Options()
    if not re.fullmatch(r"[^/\\\0]+", source.filename) or source.top in ("", ".", ".."):
        raise UsageError(f"The download cannot have the name {source.filename!r}")
    place = "standard output" if isinstance(target, Stdout) else str(target.path)
    with _disk_errors(place), ExitStack() as stack:
        scratch = _scratch(target)
        files = None
        if expected is not None:
            files = ExpectedFiles.of(expected, scratch)
            stack.callback(files.close)
        backoff, restarts = transport.backoff(), 0
        while True:
            run = _Download(transport, source, files, options, on_progress, scratch)
            try:
                return run.to(target)
            except CannotResume as error:
                if isinstance(target, Stdout):
                    raise
                backoff.failed(error)
            except CartChanged:
                restarts += 1
                if not options.restart or isinstance(target, Stdout) or restarts > MAX_RESTARTS:
                    raise
                run.forget(target)


def _scratch(target: Target) -> Path | None:
    """Create the directory of the target; return it, for temporary files."""
    if isinstance(target, Stdout):
        return None
    directory = target.path if isinstance(target, Directory) else target.path.parent
    directory.mkdir(parents=True, exist_ok=True)
    return directory


class _Download:
    """One run."""

    def __init__(
        self,
        transport: Transport,
        source: Source,
        expected: ExpectedFiles | None,
        options: Options,
        on_progress: OnProgress | None,
        scratch: Path | None,
    ) -> None:
        self._source = source
        self._expected = expected
        self._options = options
        self._meter = Meter(on_progress)
        self._scratch = scratch
        self._pool = HashPool()
        query = {"filename": source.filename}
        if source.format != "tar":
            query["format"] = source.format
        self._reader = RangeReader(
            transport,
            source.url,
            query,
            jobs=options.jobs,
            limit=RateLimit(options.limit_rate),
        )
        self._stack = ExitStack()

    def to(self, target: Target) -> Report:
        """Run to the end."""
        with self._stack:
            if isinstance(target, Stdout):
                return self._to_stdout()
            if isinstance(target, Directory):
                return self._to_directory(target.path)
            return self._to_file(target.path)

    def forget(self, target: Target) -> None:
        """Remove what an earlier run has left."""
        if isinstance(target, Directory):
            staging = Staging(target.path, self._source.filename)
            staging.close(remove=True)
            target = _kept_tar(target.path, self._source) if self._options.keep_tar else Stdout()
        if isinstance(target, TarFile):
            part = PartFile(target.path)
            part.clear()
            part.close()

    # Targets

    def _to_stdout(self) -> Report:
        contents = self._contents(NameRules())
        state = self._new_state()
        sink = StdoutSink()
        settler = self._settler(sink, contents, state, None)
        self._reader.open()
        receiver = Receiver(TarStream(), contents, sink, settler)
        self._receive(receiver, sink, settler, 0)
        receiver.close()
        settler.finish()
        return self._report(contents, settler.tally, problems(settler.wrong), None)

    def _to_file(self, path: Path) -> Report:
        part = PartFile(path)
        self._stack.callback(part.close)
        contents = self._contents(NameRules())
        state = self._resumable(part.load(), path)
        end = 0
        if state is None:
            part.clear()
            state = self._new_state()
            self._begin(state, part.path.parent)
            save_state(part.state_path, state)
        else:
            self._replay_tags(state, contents, part)
            end = self._received(part, state)
            self._continue(state, end, end, part.path.parent)
        sink = FileSink(part)
        settler = self._settler(sink, contents, state, part.state_path)
        receiver = Receiver(_stream_at(state.position, state), contents, sink, settler)
        with self._clearing(lambda: part.state_path.unlink(missing_ok=True)):
            self._replay(receiver, sink, part, state.position, end)
            self._receive(receiver, sink, settler, end)
            report = self._finish(receiver, contents, sink, settler, None)
        if not report.failed:
            part.finish()
        return report

    def _to_directory(self, root: Path) -> Report:
        staging = Staging(root, self._source.filename)
        done = False
        self._stack.callback(lambda: staging.close(remove=done))
        tree = Tree(root)
        self._stack.callback(tree.close)
        rules = probe_rules(staging.path)
        part = None
        if self._options.keep_tar:
            part = PartFile(_kept_tar(root, self._source).path)
            self._stack.callback(part.close)
        contents = self._contents(rules)
        state = self._resumable(staging.load(), root)
        is_new = state is None
        if is_new:
            staging.clear()
            if part is not None:
                part.clear()
        if state is None:
            if self._expected is not None and self._check_list(tree, rules) and part is None:
                done = True
                return self._all_here(tree, rules)
            state = self._new_state()
            self._begin(state, root)
            save_state(staging.state_path, state)
        overwrite = self._options.restart
        unpacking = DirectorySink(staging, tree, contents, overwrite=overwrite)
        self._stack.callback(unpacking.close)
        report = self._unpack(unpacking, part, contents, state, is_new=is_new)
        unpacking.set_directory_times()
        done = not report.failed
        if part is not None and done:
            part.finish()
        return report

    def _unpack(
        self,
        unpacking: DirectorySink,
        part: PartFile | None,
        contents: Contents,
        state: State,
        *,
        is_new: bool,
    ) -> Report:
        staging, tree = unpacking.staging, unpacking.tree
        sink: Sink = unpacking if part is None else TarAndTree(unpacking, FileSink(part))
        settler = self._settler(sink, contents, state, staging.state_path)
        receiver = Receiver(TarStream(state.position), contents, sink, settler)
        end = position = state.position
        if not is_new:
            position, end = self._recover(state, contents, unpacking, part, receiver, settler)
            self._continue(state, end, position, tree.root)
            save_state(staging.state_path, state)
        with self._clearing(lambda: staging.state_path.unlink(missing_ok=True)):
            if part is not None:
                self._replay(receiver, sink, part, position, end)
            self._receive(receiver, sink, settler, end)
            report = self._finish(receiver, contents, sink, settler, tree)
        if report.exit_status == ExitStatus.OK:
            # It would tell of an earlier download, of which files were missing.
            tree.remove(missing_list(self._source.top, is_bag=contents.is_bag))
        return report

    # Beginning

    def _contents(self, rules: NameRules) -> Contents:
        is_bag = self._source.format == "bag"
        if self._expected is not None:
            self._expected.rewind()
        contents = Contents(
            self._pool,
            rules,
            None if is_bag else self._expected,
            is_bag=is_bag,
            top=self._source.top,
            stored_top=self._source.uid,
            scratch=self._scratch,
        )
        if is_bag:
            self._stack.callback(contents.close)
            if self._expected is not None:
                contents.missing = list(self._expected.missing)
        return contents

    def _settler(self, sink: Sink, contents: Contents, state: State, path: Path | None) -> Settler:
        settler = Settler(sink, contents, state, path, batches=state.etag is not None)
        settler.wrong = [_restored(entry) for entry in state.wrong]
        # Called in reverse order: what threads use is closed after them.
        self._stack.callback(settler.stop)
        self._stack.callback(self._pool.close)
        self._stack.callback(self._reader.close)
        return settler

    def _new_state(self) -> State:
        return State(self._source.url, self._source.filename, self._source.format)

    def _resumable(self, state: State | None, place: Path) -> State | None:
        """Return the state of an earlier run if this one continues it."""
        if state is None or state.etag is None or state.length is None:
            return None
        source = (self._source.url, self._source.filename, self._source.format)
        if (state.url, state.filename, state.format) != source:
            if self._options.restart:
                return None
            raise ClientError(
                f"{place} has a part of another download, {state.url} as {state.format}: complete"
                " that, choose another place, or restart"
            )
        return state

    def _check_list(self, tree: Tree, rules: NameRules) -> bool:
        """Check the names of all files; return whether all are there already and right."""
        assert self._expected is not None
        top = self._source.top
        if self._source.format == "bag":
            return False
        check_names(self._expected, rules, top)
        if self._options.restart:
            return False
        return check_existing(tree, self._expected, rules, top) and not self._expected.missing

    def _all_here(self, tree: Tree, rules: NameRules) -> Report:
        assert self._expected is not None
        tally = Tally()
        for wanted in self._expected:
            found = tree.status(rules.parts(f"{self._source.top}/{wanted.path}"))
            tally.add(found.st_size if found else 0, wanted.algorithm or "")
        return Report(tally.files, tally.bytes, tally.verified, tally.unverified)

    def _begin(self, state: State, directory: Path) -> None:
        self._reader.open()
        state.etag = self._reader.etag if self._reader.has_ranges else None
        state.length = self._reader.length
        self._check_space(state.length, directory)

    def _continue(self, state: State, end: int, position: int, directory: Path) -> None:
        assert state.length is not None
        self._check_space(state.length - position, directory)
        self._reader.open(end, state.etag, state.length)

    def _check_space(self, needed: int | None, directory: Path) -> None:
        if needed is None:
            needed = (self._expected.bytes if self._expected is not None else None) or 0
        if self._options.keep_tar:
            needed *= 2
        free = shutil.disk_usage(directory).free
        if needed + RESERVE > free:
            raise NoSpace(
                f"{directory} has {format_bytes(free)} free, and the download needs"
                f" {format_bytes(needed)} more: free some, or choose another disk"
            )

    # Resuming

    def _received(self, part: PartFile, state: State) -> int:
        """Return how many bytes of the tar are in the file, and were not lost by a crash."""
        assert state.length is not None
        if state.boot and state.boot == boot_id():
            return max(state.position, min(part.size, state.length))
        return state.position

    def _recover(
        self,
        state: State,
        contents: Contents,
        sink: DirectorySink,
        part: PartFile | None,
        receiver: Receiver,
        settler: Settler,
    ) -> tuple[int, int]:
        """Take up what is here; return the offsets of the unpacked files, and of the tar."""
        self._replay_tags(state, contents, sink.tree)
        if part is not None:
            end = self._received(part, state)
            if part.size < state.position:
                raise UsageError(
                    "The download was begun without keeping the tar: continue it without, or"
                    f" remove {sink.staging.path}"
                )
            if not (state.boot and state.boot == boot_id()):
                sink.forget()
                return state.position, end
        position, current, items = sink.recover(state, boot_id())
        for item in items:
            settler.add(item)
            receiver.files += not item.member.is_directory and item.tag is None
        if current is not None:
            receiver.item = current
            receiver.tar = TarStream.inside(current.member, position)
        else:
            receiver.tar = _stream_at(position, state)
        return position, max(end, position) if part is not None else position

    def _replay_tags(self, state: State, contents: Contents, place: PartFile | Tree) -> None:
        """Read the files about files again, and skip the files that were received."""
        for name, offset, size in state.tags:
            item = contents.item(Member(name, size, 0, 0, False, 0, offset))
            if isinstance(place, Tree):
                with os.fdopen(place.open(item.parts), "rb") as file:
                    data = file.read()
            else:
                data = place.read_at(offset, size)
            if item.hasher is not None:
                item.hasher.update(data)
            if item.tag is not None:
                item.tag.feed(data)
            complete(item)
        state.missing = []
        if contents.expected is not None and state.in_order:
            contents.expected.skip(state.files + sum(entry[2] is not None for entry in state.wrong))

    def _replay(self, receiver: Receiver, sink: Sink, part: PartFile, start: int, end: int) -> None:
        """Feed the bytes of the tar that are in the file; the next ones are written behind them."""
        files = sink.file_sink if isinstance(sink, TarAndTree) else sink
        assert isinstance(files, FileSink)
        files.is_replaying = True
        for data in part.read(start, end):
            receiver.feed(data)
        files.is_replaying = False

    # Receiving

    def _receive(self, receiver: Receiver, sink: Sink, settler: Settler, start: int) -> None:
        files = self._expected.count if self._expected is not None else None
        self._meter.start(start, self._reader.length, files)
        receiver.files += settler.tally.files
        position = start
        for data in self._reader.parts():
            sink.raw(data)
            receiver.feed(data)
            position += len(data)
            self._meter.update(position, receiver.files)
        if not self._reader.has_ranges and not receiver.tar.is_complete:
            raise CannotResume(
                f"The download ended at byte {position:,}, before its end, and this service cannot"
                " continue one: it has to start over"
            )
        self._meter.update(position, receiver.files, is_last=True)

    def _finish(
        self,
        receiver: Receiver,
        contents: Contents,
        sink: Sink,
        settler: Settler,
        tree: Tree | None,
    ) -> Report:
        receiver.close()
        settler.reach(receiver.tar.offset)
        settler.finish()
        if settler.wrong and self._reader.has_ranges:
            self._receive_again(receiver, sink, settler)
        return self._report(contents, settler.tally, problems(settler.wrong), tree)

    def _receive_again(self, receiver: Receiver, sink: Sink, settler: Settler) -> None:
        """Receive each wrong file once more: the network or a disk may have changed it."""
        for old, _ in list(settler.wrong):
            wanted, member = old.wanted, old.member
            if wanted is None or wanted.algorithm is None or wanted.size not in (None, member.size):
                continue
            item = Item(member, old.parts)
            item.wanted, item.is_again = wanted, True
            item.hasher = self._pool.new(wanted.algorithm)
            sink.begin(item)
            for data in self._reader.read(member.data, member.data + member.size):
                item.hasher.update(data)
                sink.write(item, memoryview(data))
            complete(item)
            sink.end(item)
            settler.add(item)
        settler.finish()

    def _report(
        self, contents: Contents, tally: Tally, failed: list[FileProblem], tree: Tree | None
    ) -> Report:
        known = {problem.path for problem in failed}
        for wanted in contents.not_received():
            if wanted.path in known or _is_there(tree, contents, wanted):
                continue
            if len(failed) < MAX_LISTED:
                failed.append(FileProblem(wanted.path, "it is not in the download", "not-received"))
        bag = contents.expected if contents.is_bag else None
        listed = self._expected.count if self._expected is not None else 0
        if bag is not None and bag.count < listed and not contents.missing:
            failed.append(
                FileProblem(
                    "manifest",
                    f"the bag has {bag.count} files, and the cart {listed}",
                    "not-received",
                )
            )
        return contents.report(tally, failed)

    @contextmanager
    def _clearing(self, clear: Callable[[], None]) -> Iterator[None]:
        """Start anew next time if what arrives is wrong as a whole."""
        try:
            yield
        except VerificationFailed:
            clear()
            raise


def _stream_at(position: int, state: State) -> TarStream:
    """Return a parser for the bytes from ``position`` on, where a member begins, or the end is."""
    return TarStream.ended(position) if position == state.length else TarStream(position)


def _kept_tar(root: Path, source: Source) -> TarFile:
    """Return where the tar is kept: beside the folder of the cart."""
    return TarFile(root / source.filename)


def _restored(entry: list[Any]) -> tuple[Item, str]:
    """Return a wrong file that a state lists."""
    fields, problem, wanted = entry
    member = Member(*fields)
    item = Item(member, tuple(part for part in member.name.split("/") if part not in ("", ".")))
    item.wanted = None if wanted is None else Wanted(*wanted)
    item.problem = str(problem)
    return item, str(problem)


def _is_there(tree: Tree | None, contents: Contents, wanted: Wanted) -> bool:
    """Whether an earlier run has given the file its name, which it does only if it is right."""
    if tree is None or contents.expected is None or contents.expected.is_in_order:
        return False
    found = tree.status(contents.rules.parts(f"{contents.top}/{wanted.path}"))
    return found is not None and wanted.size in (None, found.st_size)


@contextmanager
def _disk_errors(place: str) -> Iterator[None]:
    """Turn errors of the system into those of the client."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise NoSpace(
                f"No space for {place}: {error.strerror}; what was received is kept: free some,"
                " and run the same command again"
            ) from error
        where = (
            f" ({os.fsdecode(error.filename)})" if isinstance(error.filename, (str, bytes)) else ""
        )
        raise ClientError(f"Cannot write to {place}{where}: {error.strerror or error}") from error


_NO_SPACE = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
