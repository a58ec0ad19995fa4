"""``cartd-cmd`` from a shell: schema, dump, purge, and exit statuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from sqlalchemy import text

from cartd.cli.main import create_parser, main
from tests.support.archived_carts import content, in_a_thread, manifest_of, stage, url_of
from tests.support.cartd_with_archive import assert_no_unexpected_errors, on_the_volume
from tests.support.faulty_archive import FaultyArchive
from tests.support.pacifica_schema import begin, make_tables
from tests.support.running_cartd import RunningCartd, command, running_cartd, unpacked
from tests.support.slow_reader import TOO_MUCH_FOR_SOCKETS, slow_reader

pytest_plugins = ("tests.support.archive_fixtures",)

COMMANDS = ("dbchk", "dbsync", "bind-volume", "fixit", "verify", "dump", "token", "purge")
NEVER = 10**9


class Shell:
    """Runs commands in this process; returns the exit status and the output."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str
    ) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self.url = url
        monkeypatch.setenv("DATABASE_URL", url)
        monkeypatch.setenv("DATABASE_CONNECT_ATTEMPTS", "1")
        monkeypatch.delenv("CARTD_CONFIG", raising=False)

    def run(self, *arguments: str) -> tuple[int, str]:
        self._monkeypatch.setattr(sys, "argv", ["cartd-cmd", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = self._capsys.readouterr()
        if isinstance(ended.value.code, str):  # as the interpreter does
            return 1, out + err + ended.value.code + "\n"
        return ended.value.code or 0, out + err


@pytest.fixture
def shell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Shell:
    monkeypatch.setenv("HOME", str(tmp_path))
    return Shell(monkeypatch, capsys, f"sqlite:///{tmp_path / 'db.sqlite3'}")


def set_version(url: str, version: str) -> None:
    with begin(url) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :v"), {"v": version})


class TestCommandLine:
    def test_help_lists_every_command_and_each_has_its_own(self, shell: Shell) -> None:
        status, said = shell.run("--help")
        assert status == 0
        assert "Exit status" in said
        for name in COMMANDS:
            assert f"    {name} " in said
            status, about = shell.run(name, "--help")
            assert status == 0
            assert f"usage: cartd-cmd {name}" in about

    @pytest.mark.parametrize(
        "line",
        [
            "",
            "unheard-of",
            "dbchk --unheard-of",
            "dbsync now",
            "fixit",
            "fixit --cartid",
            "purge --time-ago",
            "--config",
        ],
    )
    def test_a_wrong_command_line_ends_with_status_2(self, shell: Shell, line: str) -> None:
        status, said = shell.run(*line.split())
        assert status == 2
        assert "usage: " in said

    @pytest.mark.parametrize(
        ("spelt", "seconds"),
        [
            ("60 days ago", 60 * 86400),
            ("1 day ago", 86400),
            ("12 hours ago", 43200),
            ("1.5 hours ago", 5400),
            ("  2   weeks ago ", 1209600),
            ("30 minutes after", 1800),
            ("0 seconds ago", 0),
        ],
    )
    def test_a_time_is_spelt_as_for_pacifica(self, spelt: str, seconds: float) -> None:
        given = create_parser().parse_args(["purge", "--time-ago", spelt])
        assert given.time_ago == timedelta(seconds=seconds)

    def test_purge_keeps_half_a_year_by_default(self) -> None:
        assert create_parser().parse_args(["purge"]).time_ago == timedelta(days=180)

    @pytest.mark.parametrize(
        "spelt",
        [
            "",
            "60 days",
            "60",
            "days ago",
            "sixty days ago",
            "60 days hence",
            "60 fortnights ago",
            "-1 days ago",
            "nan days ago",
            "inf days ago",
            "1e300 days ago",
            "1 month ago",
            "60 days ago now",
        ],
    )
    def test_a_malformed_time_is_refused(self, shell: Shell, spelt: str) -> None:
        status, said = shell.run("purge", f"--time-ago={spelt}")
        assert status == 2
        assert f'"{spelt}" is not like "60 days ago"' in said

    def test_an_unreadable_configuration_is_one_line(self, shell: Shell, tmp_path: Path) -> None:
        (tmp_path / "wrong.ini").write_text("[cartd]\nvolume_quota = much\n")
        for name in ("missing.ini", "wrong.ini"):
            status, said = shell.run("--config", str(tmp_path / name), "dbchk")
            assert status == 1
            assert said.startswith("cartd-cmd: ")
            assert said.count("\n") == 1


class TestSchema:
    def test_without_tables_the_check_fails_and_leaves_nothing(
        self, shell: Shell, tmp_path: Path
    ) -> None:
        for more in ([], ["--equal"]):
            status, said = shell.run("dbchk", *more)
            assert (status, said.count("\n")) == (1, 1)
            assert "cartd-cmd dbsync" in said
        assert not (tmp_path / "db.sqlite3").exists()

    def test_a_synced_database_is_safe_and_equal(self, shell: Shell) -> None:
        assert shell.run("dbsync") == (0, "The database has the current schema.\n")
        assert shell.run("dbchk") == (0, "")
        assert shell.run("dbchk", "--equal") == (0, "")
        assert shell.run("dbsync")[0] == 0

    def test_an_old_database_is_not_safe_until_it_is_synced(self, shell: Shell) -> None:
        with begin(shell.url) as connection:
            make_tables(connection, "2.0")
        for name in ("dbchk", "dump", "purge"):
            status, said = shell.run(name)
            assert status == 1
            assert "version 2.0" in said
            assert "cartd-cmd dbsync" in said
        assert shell.run("dbsync")[0] == 0
        assert shell.run("dbchk", "--equal") == (0, "")

    def test_a_newer_minor_version_is_safe_but_not_equal(self, shell: Shell) -> None:
        shell.run("dbsync")
        set_version(shell.url, "3.1")
        assert shell.run("dbchk") == (0, "")
        status, said = shell.run("dbchk", "--equal")
        assert status == 1
        assert "3.1" in said
        assert "3.1" in shell.run("dbsync")[1]

    def test_a_newer_major_version_is_neither_safe_nor_synced(self, shell: Shell) -> None:
        shell.run("dbsync")
        set_version(shell.url, "4.0")
        for name in ("dbchk", "dbsync", "dump"):
            status, said = shell.run(name)
            assert (status, said.count("\n")) == (1, 1)
            assert "version 4.0" in said

    def test_an_unreachable_database_is_one_line(
        self, shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/no/such/directory/db")
        for name in ("dbchk", "dbsync", "dump"):
            status, said = shell.run(name)
            assert (status, said.count("\n")) == (1, 1)
            assert said.startswith("cartd-cmd: The database cannot be used: ")

    def test_dbchk_no_wait_tries_an_unreachable_database_once(
        self, shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/no/such/directory/db")
        monkeypatch.setenv("DATABASE_CONNECT_ATTEMPTS", "10")
        status, said = shell.run("dbchk", "--no-wait")
        assert (status, said.count("\n")) == (1, 1)


def test_a_shell_can_go_by_the_exit_statuses(tmp_path: Path) -> None:
    cartd = RunningCartd(tmp_path, "http://127.0.0.1:9/", f"sqlite:///{tmp_path / 'db'}")
    environment = {**cartd.settings(), "HOME": str(tmp_path)}
    del environment["CARTD_CONFIG"]
    check, sync = command("cartd-cmd"), command("pacifica-cartd-cmd")
    script = f"{check} dbchk || {sync} dbsync && {sync} dbchk --equal && echo equal"
    done = subprocess.run(
        script, shell=True, env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "The database has the current schema.\nequal\n"
    assert "no tables yet" in done.stderr


def age(cartd: RunningCartd, uid: str, days: int) -> None:
    """Set the last use of the cart to ``days`` ago."""
    with begin(cartd.database) as connection:
        connection.execute(
            text("UPDATE cart SET used_date = datetime('now', :ago) WHERE cart_uid = :uid"),
            {"uid": uid, "ago": f"-{days} days"},
        )


@in_a_thread
def test_purge_beside_the_service_deletes_only_unused_carts(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with running_cartd(tmp_path, archive=url_of(archive)) as cartd:
        stage(cartd, archive, "old", 1000)
        stage(cartd, archive, "older", 1000, bundle=True)
        stage(cartd, archive, "new", 1000)
        stage(cartd, archive, "read", TOO_MUCH_FOR_SOCKETS)
        for uid, days in (("old", 100), ("older", 200), ("read", 300)):
            age(cartd, uid, days)
        with slow_reader(cartd, "read") as reader:
            done = cartd.run("cartd-cmd", "purge", "--dry-run", "--time-ago", "60 days ago")
            assert done.stdout.splitlines() == [
                "would delete older (cart 2, 10,240 bytes)",
                "would delete old (cart 1, 1,000 bytes)",
            ]
            assert cartd.request("HEAD", "/older").status == 204
            done = cartd.run("cartd-cmd", "purge")
            assert done.stdout == "deleting older (cart 2, 10,240 bytes)\n"
            assert cartd.get("/older").status == 404
            done = cartd.run("cartd-cmd", "purge", "--time-ago", "60 days ago")
            assert done.stdout == "deleting old (cart 1, 1,000 bytes)\n"
            done = cartd.run("cartd-cmd", "purge", "--time-ago", "60 days ago")
            assert done.stdout == "no cart to delete\n"
            assert unpacked(reader.rest()) == {
                "dir/file-0": content("read-0", TOO_MUCH_FOR_SOCKETS)
            }
        for uid, status in (("old", 404), ("new", 200), ("read", 200)):
            assert cartd.get(f"/{uid}").status == status
        assert on_the_volume(cartd) == {"3/new/dir/file-0", "4/read/dir/file-0"}
        assert {path.name for path in (cartd.volume / "cartuids").iterdir()} == {"new", "read"}
        assert_no_unexpected_errors(cartd.log)


@in_a_thread
def test_dump_beside_the_service_is_equal_in_yaml_and_json(
    archive: FaultyArchive, tmp_path: Path
) -> None:
    with running_cartd(tmp_path, archive=url_of(archive)) as cartd:
        stage(cartd, archive, "ready", 1000, files=3)
        archive.put("tape-0", content("tape-0", 10), tape_heads=NEVER)
        cartd.post("tape", manifest_of(archive, "tape", 10))
        as_json = cartd.run("pacifica-cartd-cmd", "dump", "--json")
        as_yaml = cartd.run("cartd-cmd", "dump")
        assert as_json.stderr == as_yaml.stderr == ""
        carts = json.loads(as_json.stdout)
        assert yaml.safe_load(as_yaml.stdout) == carts
        assert [(cart["cart_uid"], cart["status"]) for cart in carts] == [
            ("tape", "staging"),
            ("ready", "ready"),
        ]
        assert carts[1]["bundle_path"] == str(cartd.volume / "1/ready")
        assert [file["file_name"] for file in carts[1]["files"]] == [
            "ready-0",
            "ready-1",
            "ready-2",
        ]
        # A reader that has left is no failure to tell of.
        piped = subprocess.run(
            f"{command('cartd-cmd')} dump | true",
            shell=True,
            env=cartd.settings(),
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert piped.stderr == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="it is about root")
def test_root_is_warned_of_another_owner_of_the_volume(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    monkeypatch.setenv("VOLUME_PATH", str(volume))
    assert shell.run("dbsync") == (0, "The database has the current schema.\n")
    os.chown(volume, 65534, 65534)
    status, said = shell.run("dbsync")
    assert status == 0
    assert "cartd-cmd: running as root, but the volume belongs to nobody: the" in said
    assert "runuser -u nobody -- cartd-cmd" in said
