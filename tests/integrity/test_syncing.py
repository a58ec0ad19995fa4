"""The volume is synced while there are dirty rows; the store records what is on the disk."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue

import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock

from cartd.deferreds.threads import DedicatedThread
from cartd.errors import Unavailable, VolumeUnavailable
from cartd.integrity.recovery import FINAL_SYNC_TIMEOUT, MAX_REST, SYNC_INTERVAL, Syncing
from cartd.store import Durability
from cartd.store.durability import DirtyRows
from cartd.volume import file_system
from cartd.volume.file_system import FileSystem, SyncFailed
from tests.support.databases import the_reactor
from tests.support.volume_parts import HeldThreads, begin, in_the_loop, logged

ME = "me"


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@contextmanager
def mounted(directory: Path, image: str = "image") -> Iterator[Path]:
    """Mount a separate file system; needs root."""
    volume, device = directory / "volume", directory / image
    volume.mkdir(exist_ok=True)
    if not device.exists():
        with device.open("wb") as opened:
            opened.truncate(4 << 20)
        run("mkfs.ext4", "-q", str(device))
    run("mount", "-o", "loop", str(device), str(volume))
    try:
        yield volume
    finally:
        if volume.is_mount():
            run("umount", str(volume))


def opened(volume: Path) -> str | None:
    """Return the id of the file system's page cache."""
    found = FileSystem(volume)
    found.open()
    found.close()
    return found.page_cache


class DirtyRowStore(Durability):
    """Dirty rows: ids and their carts.  Fails ``failing`` times."""

    def __init__(self) -> None:
        self.rows: dict[int, int] = {}
        self.known: str | None = None
        """The recorded id of the page cache."""
        self.failing = 0
        self.asked = 0

    def mark_dirty(self, *rows: int, cart_id: int = 1) -> None:
        self.rows |= dict.fromkeys(rows, cart_id)

    def _asked(self) -> None:
        self.asked += 1
        if self.failing:
            self.failing -= 1
            raise Unavailable("The database is unavailable")

    async def dirty_rows(self, holder: str) -> DirtyRows:
        self._asked()
        assert holder == ME
        dirty: DirtyRows = {}
        for row, cart_id in self.rows.items():
            dirty.setdefault(cart_id, []).append(row)
        return dirty

    async def record_synced(
        self, rows: Sequence[int], *, holder: str = "", cache: str | None = None
    ) -> None:
        self._asked()
        assert holder == ME
        for row in rows:
            del self.rows[row]
        self.known = cache

    async def forget_page_cache(self, holder: str) -> None:
        self._asked()
        assert holder == ME
        self.known = None


class Disk(FileSystem):
    """Fails ``fails`` times."""

    def __init__(self) -> None:
        self.syncs = 0
        self.fails = 0
        self.is_open = False

    def open(self) -> None:
        self.is_open = True

    def close(self) -> None:
        self.is_open = False

    def sync(self) -> None:
        self.syncs += 1
        if self.fails:
            self.fails -= 1
            raise SyncFailed("broken")


class Bench:
    """Syncing on a disk that writes on demand; ``revalidated``: rows given to ``revalidate``."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.store = DirtyRowStore()
        self.disk = Disk()
        self.threads = HeldThreads()
        self.revalidated: list[DirtyRows] = []
        self.revalidation_fails = 0
        self.volume_unavailable = False
        self.syncing = Syncing(
            self.store,
            ME,
            self.disk,
            self.threads,
            check_volume=self._check_volume,
            revalidate=self._revalidate,
            clock=self.clock,
        )

    async def _check_volume(self) -> None:
        if self.volume_unavailable:
            raise VolumeUnavailable("it has lost its mark")

    async def _revalidate(self, dirty: Mapping[int, Sequence[int]]) -> None:
        if self.revalidation_fails:
            self.revalidation_fails -= 1
            raise Unavailable("The database is unavailable")
        self.revalidated.append({cart_id: list(rows) for cart_id, rows in dirty.items()})
        for rows in dirty.values():
            for row in rows:
                del self.store.rows[row]

    def write(self) -> None:
        """Let the disk finish the running sync."""
        self.threads.run_all()

    def times_of_syncs(self, seconds: float) -> list[float]:
        """Advance the clock with rows to sync at all times; return the times of the syncs."""
        begun, times = self.clock.seconds(), []
        while self.clock.seconds() - begun < seconds:
            self.store.mark_dirty(99)
            self.clock.advance(1)
            if self.threads.held:
                times.append(self.clock.seconds() - begun)
                self.write()
        return times


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.syncing.start()
    return bench


def test_dirty_rows_from_before_a_sync_are_clean_after_it(bench: Bench) -> None:
    assert bench.disk.is_open
    bench.store.mark_dirty(1, 2)
    bench.clock.advance(SYNC_INTERVAL)
    bench.store.mark_dirty(3)
    assert set(bench.store.rows) == {1, 2, 3}
    bench.write()
    assert set(bench.store.rows) == {3}
    bench.clock.advance(SYNC_INTERVAL)
    bench.write()
    assert bench.store.rows == {}
    assert bench.disk.syncs == 2


def test_the_page_cache_is_recorded_unless_a_sync_may_fail() -> None:
    bench = Bench()
    bench.disk.page_cache = "this boot"
    bench.syncing.start()
    assert bench.store.known == "this boot"
    bench.store.mark_dirty(1)
    bench.clock.advance(SYNC_INTERVAL)
    assert bench.store.known is None
    bench.write()
    assert bench.store.known == "this boot"
    bench.store.mark_dirty(2)
    bench.disk.fails = 1
    bench.clock.advance(SYNC_INTERVAL)
    with logged():
        bench.write()
    assert bench.store.known is None
    bench.clock.advance(2 * SYNC_INTERVAL)
    assert bench.store.known == "this boot"
    stopped = begin(bench.syncing.stop())
    assert (stopped, bench.store.known) == ([None], None)


def test_an_unknown_page_cache_is_not_recorded(bench: Bench) -> None:
    bench.store.mark_dirty(1)
    bench.clock.advance(SYNC_INTERVAL)
    bench.write()
    assert bench.store.known is None


def test_an_unavailable_volume_is_not_synced(bench: Bench) -> None:
    bench.store.mark_dirty(1)
    bench.volume_unavailable = True
    bench.clock.pump([SYNC_INTERVAL] * 3)
    assert bench.threads.made == 0
    bench.volume_unavailable = False
    bench.clock.advance(SYNC_INTERVAL)
    bench.write()
    assert bench.store.rows == {}


def test_without_anything_to_sync_the_disk_is_left_alone(bench: Bench) -> None:
    bench.clock.pump([SYNC_INTERVAL] * 5)
    assert bench.store.asked == 6
    assert bench.threads.made == 0


def test_syncs_do_not_overlap_and_a_slow_disk_pauses_as_long(
    bench: Bench,
) -> None:
    bench.store.mark_dirty(1)
    bench.clock.pump([SYNC_INTERVAL] * 8)
    assert bench.threads.made == 1
    bench.write()
    assert bench.store.rows == {}
    worked = 7 * SYNC_INTERVAL
    assert bench.times_of_syncs(worked + 3 * SYNC_INTERVAL)[0] >= worked


def test_a_failed_sync_leads_to_revalidation(bench: Bench) -> None:
    bench.disk.fails = 1
    bench.store.mark_dirty(1, 2)
    bench.store.mark_dirty(3, cart_id=7)
    bench.clock.advance(SYNC_INTERVAL)
    bench.store.mark_dirty(4)  # it may have been a part of what failed
    with logged() as events:
        bench.write()
    assert bench.revalidated == [{1: [1, 2, 4], 7: [3]}]
    assert bench.store.rows == {}
    assert [event["log_level"].name for event in events] == ["error"]
    bench.store.mark_dirty(5)
    bench.clock.pump([SYNC_INTERVAL] * 3)
    bench.write()
    assert bench.store.rows == {}
    assert len(bench.revalidated) == 1


def test_revalidation_is_retried_before_the_next_sync(
    bench: Bench,
) -> None:
    bench.disk.fails = 1
    bench.revalidation_fails = 1
    bench.store.mark_dirty(1)
    bench.clock.advance(SYNC_INTERVAL)
    with logged():
        bench.write()
    assert set(bench.store.rows) == {1}
    bench.clock.pump([SYNC_INTERVAL] * 3)
    assert bench.revalidated == [{1: [1]}]
    assert bench.threads.made == 1


def test_failing_syncs_back_off_and_are_logged_once(
    bench: Bench,
) -> None:
    bench.disk.fails = 10**9
    with logged() as events:
        times = bench.times_of_syncs(3 * MAX_REST)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps == sorted(gaps)
    assert gaps[0] == 2 * SYNC_INTERVAL
    assert gaps[-1] == MAX_REST
    assert [event["log_level"].name for event in events] == ["error"]
    bench.disk.fails = 0
    bench.times_of_syncs(MAX_REST)
    assert len(bench.times_of_syncs(10 * SYNC_INTERVAL)) == 10


def test_an_unavailable_store_is_updated_at_the_next_sync(bench: Bench) -> None:
    bench.store.mark_dirty(1)
    bench.clock.advance(SYNC_INTERVAL)
    bench.store.failing = 1
    with logged():
        bench.write()
    assert set(bench.store.rows) == {1}
    bench.clock.advance(SYNC_INTERVAL)
    bench.write()
    assert bench.store.rows == {}


class TestStop:
    def test_stop_syncs_dirty_rows(self, bench: Bench) -> None:
        bench.store.mark_dirty(1)
        stopped = begin(bench.syncing.stop())
        assert stopped == []
        bench.write()
        assert stopped == [None]
        assert bench.store.rows == {}
        assert not bench.disk.is_open
        assert not bench.clock.getDelayedCalls()

    def test_stop_waits_for_the_running_sync_then_syncs_again(self, bench: Bench) -> None:
        bench.store.mark_dirty(1)
        bench.clock.advance(SYNC_INTERVAL)
        bench.store.mark_dirty(2)
        stopped = begin(bench.syncing.stop())
        assert bench.threads.made == 1
        bench.threads.run_one()
        assert set(bench.store.rows) == {2}
        bench.write()
        assert stopped == [None]
        assert bench.store.rows == {}

    def test_stop_does_not_mask_a_failed_running_sync(self, bench: Bench) -> None:
        bench.disk.fails = 1
        bench.store.mark_dirty(1)
        bench.clock.advance(SYNC_INTERVAL)
        stopped = begin(bench.syncing.stop())
        with logged():
            bench.write()
        assert stopped == [None]
        assert bench.revalidated == [{1: [1]}]

    def test_it_does_not_touch_a_disk_that_has_everything(self, bench: Bench) -> None:
        assert begin(bench.syncing.stop()) == [None]
        assert bench.threads.made == 0

    @pytest.mark.parametrize("under_way", [False, True])
    def test_a_disk_that_hangs_does_not_keep_it(self, bench: Bench, under_way: bool) -> None:
        bench.store.mark_dirty(1)
        if under_way:
            bench.clock.advance(SYNC_INTERVAL)
        with logged() as events:
            stopped = begin(bench.syncing.stop())
            bench.clock.advance(FINAL_SYNC_TIMEOUT)
        assert stopped == [None]
        assert set(bench.store.rows) == {1}
        assert [event["log_level"].name for event in events] == ["warn"]
        bench.write()
        assert set(bench.store.rows) == {1}
        assert not bench.clock.getDelayedCalls()

    def test_stop_ends_although_the_store_is_unavailable(self, bench: Bench) -> None:
        bench.store.mark_dirty(1)
        bench.store.failing = 10**9
        with logged() as events:
            assert begin(bench.syncing.stop()) == [None]
        assert [event["log_level"].name for event in events] == ["warn"]


class TestTheFileSystem:
    def test_it_is_synced(self, tmp_path: Path) -> None:
        file_system = FileSystem(tmp_path)
        file_system.open()
        file_system.sync()
        file_system.close()

    def test_a_sync_error_carries_the_reason(self, tmp_path: Path) -> None:
        file_system = FileSystem(tmp_path)
        lowest = os.dup(0)
        os.close(lowest)
        file_system.open()
        os.close(lowest)
        with pytest.raises(SyncFailed, match="Bad file descriptor"):
            file_system.sync()

    def test_its_memory_is_another_after_another_boot(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with mounted(tmp_path) as volume:
            first, again = opened(volume), opened(volume)
            (tmp_path / "boot_id").write_text("another\n")
            monkeypatch.setattr(file_system, "BOOT_ID", tmp_path / "boot_id")
            assert first == again is not None
            assert opened(volume) not in (first, None)

    def test_its_memory_is_another_after_another_mount(self, tmp_path: Path) -> None:
        with mounted(tmp_path) as volume:
            first = opened(volume)
        with mounted(tmp_path) as volume:
            assert opened(volume) not in (first, None)

    def test_the_page_cache_is_unknown_without_mount_information(self) -> None:
        assert opened(Path("/proc")) is None

    def test_a_sync_fails_after_a_remount(self, tmp_path: Path) -> None:
        with mounted(tmp_path) as volume:
            found = FileSystem(volume)
            found.open()
            before = found.page_cache
            run("umount", "--lazy", str(volume))
            with mounted(tmp_path, image="other"):
                with pytest.raises(SyncFailed, match="remounted"):
                    found.sync()
                assert found.page_cache not in (before, None)
                found.sync()
                found.close()

    def test_what_was_let_go_of_is_not_synced(self, tmp_path: Path) -> None:
        file_system = FileSystem(tmp_path)
        file_system.open()
        file_system.close()
        with pytest.raises(SyncFailed):
            file_system.sync()


class TestDedicatedThread:
    @in_the_loop
    async def test_it_returns_the_result_of_the_work(self) -> None:
        assert await DedicatedThread(the_reactor()).run(max, 3, 4) == 4
        with pytest.raises(ZeroDivisionError):
            await DedicatedThread(the_reactor()).run(divmod, 1, 0)

    @in_the_loop
    async def test_a_hanging_sync_does_not_block_others(self) -> None:
        hanging = threading.Event()
        threads: SimpleQueue[threading.Thread] = SimpleQueue()

        def hang() -> None:
            threads.put(threading.current_thread())
            hanging.wait()

        thread_runner = DedicatedThread(the_reactor())
        held = thread_runner.run(hang)
        thread = await thread_runner.run(threads.get)
        assert thread.daemon
        held.cancel()
        with pytest.raises(CancelledError):
            await held
        hanging.set()
        thread.join()
