"""A service that cannot start prints why in one line, and exits with a status that is not 0."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from cartd.store import sync
from tests.support import preloaded
from tests.support.databases import sqlite_url
from tests.support.free_ports import free_port
from tests.support.running_cartd import DEADLINE, command

TAC = str(Path(__file__).parents[2] / "cartd.tac")


def why_it_ends(
    directory: Path, *options: str, ini: str = "", program: tuple[str, ...] = (), **environment: str
) -> str:
    """Start it with ``options``; it must exit with an error.  Return its line of output."""
    (directory / "config.ini").write_text(ini)
    started = preloaded.run(
        program or (command("twistd"), "-n", "--pidfile=", "cartd", *options),
        cwd=directory,
        env={
            **os.environ,
            "CARTD_CONFIG": str(directory / "config.ini"),
            "CARTD_PORT": str(free_port()),
            "DATABASE_URL": sqlite_url(directory / "cartd.sqlite3"),
            **environment,
        },
        timeout=DEADLINE,
    )
    assert started.returncode == 1, started
    assert "Traceback" not in started.stdout, started.stdout
    [line] = started.stderr.splitlines()
    assert line.startswith("cartd: ")
    return line


@pytest.mark.parametrize(
    ("ini", "named"),
    [
        ("[cartd]\nvolume_pth = x\n", ["config.ini", "[cartd]", "volume_pth"]),
        ("[server]\nport = many\n", ["config.ini", "[server]", "port", "many"]),
    ],
    ids=["unknown key", "bad value"],
)
def test_a_fault_in_the_file_is_shown_with_its_place(
    tmp_path: Path, ini: str, named: list[str]
) -> None:
    line = why_it_ends(tmp_path, ini=ini, CARTD_PORT="")
    assert [word for word in named if word not in line] == []


def test_a_volume_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    line = why_it_ends(tmp_path, "--volume-path", str(tmp_path / "file"))
    assert "volume_path" in line
    assert str(tmp_path / "file") in line
    assert "not a directory" in line


def test_a_volume_on_which_no_lock_can_be_held_is_named(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / "holders").write_text("in the way")
    line = why_it_ends(tmp_path, "--volume-path", str(tmp_path / "volume"))
    assert "volume_path" in line
    assert str(tmp_path / "volume" / "holders") in line


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def test_a_port_that_another_program_has_is_named(tmp_path: Path, taken_port: int) -> None:
    line = why_it_ends(tmp_path, "--port", str(taken_port))
    assert str(taken_port) in line
    assert "in use" in line


def test_an_endpoint_that_is_none_is_shown(tmp_path: Path) -> None:
    assert "tcp:http" in why_it_ends(tmp_path, "--endpoint", "tcp:http")


def test_a_certificate_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere.pem"
    endpoint = f"ssl:{free_port()}:privateKey={missing}"
    line = why_it_ends(tmp_path, "--endpoint", endpoint)
    assert line == (
        f"cartd: cannot listen on {endpoint}: certKey {missing} cannot be read:"
        " No such file or directory"
    )
    ini = f"[archiveinterface]\nurl = https://archive.example/\ncert_file = {missing}\n"
    line = why_it_ends(tmp_path, ini=ini)
    assert line == f"cartd: cert_file {missing} cannot be read: No such file or directory"


def test_a_start_gives_up_on_an_unreachable_database(tmp_path: Path) -> None:
    line = why_it_ends(
        tmp_path,
        ini="[database]\nconnect_attempts = 1\nconnect_wait = 3600\n",
        DATABASE_URL=f"postgresql://nobody:secret@127.0.0.1:{free_port()}/cartd",
    )
    assert "database" in line
    assert "secret" not in line


def test_a_start_prints_what_it_waits_for(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'nowhere' / 'db'}"
    ini = "[database]\nconnect_attempts = 3\nconnect_wait = 0.1\n"
    (tmp_path / "config.ini").write_text(ini)
    why = (
        "The database cannot be used: unable to open database file:"
        f" {tmp_path / 'nowhere'} is not a directory"
    )
    for program, name in (
        ((command("twistd"), "-n", "--pidfile=", "cartd"), "cartd"),
        ((command("cartd-cmd"), "dbchk"), "cartd-cmd"),
    ):
        run = preloaded.run(
            program,
            cwd=tmp_path,
            env={**os.environ, "CARTD_CONFIG": "config.ini", "DATABASE_URL": database},
            timeout=DEADLINE,
        )
        assert run.returncode == 1
        assert run.stderr.splitlines() == [
            *[f"{name}: {why}; retrying in 0.1 s"] * 2,
            f"{name}: {why}",
        ]


@pytest.mark.parametrize(("version", "remedy"), [("2.0", "cartd-cmd dbsync"), ("4.0", "release")])
def test_a_schema_of_another_version_is_left_alone(
    tmp_path: Path, version: str, remedy: str
) -> None:
    url = sqlite_url(tmp_path / "cartd.sqlite3")
    sync(url)
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :v"), {"v": version})
    engine.dispose()
    line = why_it_ends(tmp_path)
    assert version in line
    assert remedy in line


@pytest.mark.parametrize(
    "program",
    [
        (command("twistd"), "--pidfile=", "-ny", TAC),
        (command("pacifica-cartd"), "--cpconfig", "server.conf"),
    ],
    ids=["cartd.tac", "pacifica-cartd"],
)
def test_the_other_ways_to_start_say_it_alike(tmp_path: Path, program: tuple[str, ...]) -> None:
    line = why_it_ends(tmp_path, ini="[archiveinterface]\nmax_attempts = -1\n", program=program)
    assert "max_attempts" in line
