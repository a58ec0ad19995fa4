"""Directories of the volume are swapped for links and back while the real service runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException, IncompleteRead
from pathlib import Path

from tests.support import swapper
from tests.support.archived_carts import content, in_a_thread, manifest_of, url_of
from tests.support.faulty_archive import FaultyArchive
from tests.support.running_cartd import RunningCartd, running_cartd
from tests.support.volume_parts import everything

pytest_plugins = ("tests.support.archive_fixtures",)

ROUNDS = 3
UIDS = [f"cart-{number}" for number in range(4)]
FILES = 40
SIZE = FILES * 512
CANARY = b"canary! "
INI = "[cartd]\nlru_interval = 0.2\nvolume_reserve = 0\n[archiveinterface]\nmax_attempts = 2\n"


@contextmanager
def swapping(volume: Path, outside: Path) -> Iterator[list[int]]:
    """Swap directories during the block; afterwards the list holds how often."""
    swaps: list[int] = []
    with subprocess.Popen(
        [sys.executable, swapper.__file__, str(volume), str(outside)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            yield swaps
        finally:
            out, _ = process.communicate()
            swaps.append(int(out))


def canaries(volume: Path, outside: Path) -> dict[Path, bytes]:
    """Create files with the names and sizes of the carts' files, behind the links."""
    made = {
        outside / directory / f"file-{number}": CANARY * (SIZE // FILES // len(CANARY))
        for directory in ("", "dir", *(f"{uid}/dir" for uid in UIDS))
        for number in range(FILES)
    }
    for tar in volume.glob("[0-9]*/*.tar"):
        made[outside / tar.name] = CANARY * (tar.stat().st_size // len(CANARY))
    for path, data in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return made


def got(cartd: RunningCartd, uid: str) -> bytes:
    """Return what a client receives, even if truncated."""
    with closing(HTTPConnection("127.0.0.1", cartd.port)) as connection:
        try:
            connection.request("GET", f"/{uid}")
            return connection.getresponse().read()
        except IncompleteRead as broken:
            return broken.partial
        except (ConnectionError, HTTPException):
            return b""


@in_a_thread
def test_swapped_directories_never_lead_outside_the_volume(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    bodies = {
        uid: manifest_of(archive, uid, SIZE, FILES, bundle=number % 3 == 2)
        for number, uid in enumerate(UIDS)
    }
    with running_cartd(tmp_path / "cartd", archive=url_of(archive), ini=INI) as cartd:
        for uid in UIDS:
            assert cartd.post(uid, bodies[uid]).status == 201
        for uid in UIDS:
            cartd.wait_until(uid, "ready")
        made = canaries(cartd.volume, outside)
        names = everything(outside)
        with swapping(cartd.volume, outside) as swaps:
            for _ in range(ROUNDS):
                for uid in UIDS:
                    for _ in range(4):
                        assert CANARY not in got(cartd, uid)
                    assert cartd.delete(uid).status in (200, 404)
                    assert cartd.post(uid, bodies[uid]).status == 201
        assert swaps[0] > ROUNDS * len(UIDS)
        assert everything(outside) == names
        assert {path: path.read_bytes() for path in made} == made
        # After the swapping has ended, everything works again.
        assert cartd.post("last", manifest_of(archive, "last", SIZE, FILES)).status == 201
        cartd.wait_until("last", "ready")
        assert cartd.download("last")["dir/file-1"] == content("last-1", SIZE // FILES)
        assert cartd.terminate() == 0
