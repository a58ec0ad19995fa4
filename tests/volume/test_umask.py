"""Files of cartd are private to its account unless the site sets another umask."""

from __future__ import annotations

from pathlib import Path

import pytest
from twisted.scripts._twistd_unix import ServerOptions

from cartd.options import read_config
from tests.support.archived_carts import in_a_thread, stage, url_of
from tests.support.faulty_archive import FaultyArchive
from tests.support.running_cartd import RunningCartd, command, running_cartd

pytest_plugins = ("tests.support.archive_fixtures",)


def modes(cartd: RunningCartd) -> dict[str, int]:
    """Return the modes of everything on the volume except links, and of the database files."""
    made = [
        cartd.volume,
        *(path for path in cartd.volume.rglob("*") if not path.is_symlink()),
        *cartd.directory.glob("*.sqlite3*"),
    ]
    return {str(path.relative_to(cartd.directory)): path.stat().st_mode & 0o777 for path in made}


def staged_modes(cartd: RunningCartd, archive: FaultyArchive) -> dict[str, int]:
    stage(cartd, archive, "tree", 100)
    stage(cartd, archive, "tar", 100, bundle=True)
    found = modes(cartd)
    assert {"volume/1/tree/dir/file-0", "volume/2/tar.tar"} < set(found)
    assert sum("sqlite3" in path for path in found) == 3
    assert any(path.endswith(".lock") for path in found)
    return found


@in_a_thread
def test_by_default_files_are_private(archive: FaultyArchive, tmp_path: Path) -> None:
    with running_cartd(tmp_path, archive=url_of(archive), started=False) as cartd:
        cartd.start()
        assert {mode & 0o077 for mode in staged_modes(cartd, archive).values()} == {0}
        cartd.terminate()
        (cartd.volume / ".cartd-volume").unlink()
        cartd.run("cartd-cmd", "bind-volume")
        assert (cartd.volume / ".cartd-volume").exists()
        assert {mode & 0o077 for mode in modes(cartd).values()} == {0}


@in_a_thread
def test_a_umask_of_the_site_lets_others_read(archive: FaultyArchive, tmp_path: Path) -> None:
    ini = "[cartd]\numask = 022\n"
    # The service itself creates the database.
    with running_cartd(tmp_path, archive=url_of(archive), ini=ini, started=False) as cartd:
        cartd.start()
        found = staged_modes(cartd, archive)
        assert found.pop("volume/incoming") == 0o700
        assert {path for path, mode in found.items() if mode not in (0o755, 0o644)} == set()
        assert (
            cartd.volume / "cartuids" / "tree" / "dir" / "file-0"
        ).stat().st_mode & 0o044 == 0o044


@in_a_thread
def test_the_umask_of_cartd_overrides_that_of_twistd(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with running_cartd(tmp_path, archive=url_of(archive)) as cartd:
        cartd.terminate()
        program = (command("twistd"), "-n", "--pidfile=", "--umask=000", "cartd", "--umask", "027")
        cartd.program = program
        cartd.start()
        stage(cartd, archive, "mine", 100)
        found = modes(cartd)
        assert found["volume/1"] == 0o750
        assert found["volume/1/mine/dir/file-0"] == 0o640


@in_a_thread
def test_files_of_twistd_obey_it_too(archive: FaultyArchive, tmp_path: Path) -> None:
    with running_cartd(tmp_path, archive=url_of(archive), started=False) as cartd:
        named = ("--pidfile=named.pid", "--logfile=named.log")
        cartd.program = (command("twistd"), "-n", *named, "cartd", "--umask", "027")
        cartd.start()
        for name in ("named.pid", "named.log"):
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o640, name


@pytest.mark.parametrize(
    ("line", "mask"),
    [
        (["-n", "cartd"], 0o077),
        (["-n", "--umask", "022", "cartd"], 0o022),
        (["-n", "--umask", "022", "cartd", "--umask", "007"], 0o007),
    ],
)
def test_the_umask_option_of_twistd_applies_to_cartd(line: list[str], mask: int) -> None:
    options = ServerOptions()
    options.parseOptions(line)
    assert read_config(options.subOptions, {"HOME": "/nonexistent"}).umask == mask
