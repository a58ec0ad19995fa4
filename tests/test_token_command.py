"""``cartd-cmd token``: what it prints, and what it does to the file."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cartd.auth import TokenFile
from cartd.auth.entries import parse
from cartd.errors import ConfigError
from tests.running_cartd import RunningCartd, running_cartd


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


@pytest.fixture
def site(tmp_path: Path, tokens: Path) -> RunningCartd:
    """A configuration; the service does not run, and there is no database."""
    ini = f"[auth]\nfile = {tokens}\n"
    with running_cartd(tmp_path / "cartd", archive="http://x/", ini=ini, started=False) as cartd:
        return cartd


def test_a_token_is_printed_once_and_kept_as_a_hash(site: RunningCartd, tokens: Path) -> None:
    added = site.run("cartd-cmd", "token", "add", "alice", "--admin")
    assert re.fullmatch(r"cartd_alice\.[A-Za-z0-9_-]{43}\n", added.stdout)
    assert added.stderr == "The token of alice; it is shown only now:\n"
    token = added.stdout.strip()
    [entry] = parse(tokens.read_text()).values()
    assert entry.user.admin
    assert entry.hash.matches(token.encode())
    assert token.rpartition(".")[2] not in tokens.read_text()
    assert stat.S_IMODE(tokens.stat().st_mode) == 0o600
    assert not (site.directory / "cartd.sqlite3").exists()


def test_names_are_listed_and_revoked(site: RunningCartd, tokens: Path) -> None:
    site.run("cartd-cmd", "token", "add", "bob")
    site.run("cartd-cmd", "token", "add", "alice", "--admin")
    assert site.run("cartd-cmd", "token", "list").stdout == "alice admin\nbob user\n"
    revoked = site.run("cartd-cmd", "token", "revoke", "bob")
    assert revoked.stderr == "The token of bob is revoked.\n"
    assert site.run("cartd-cmd", "token", "list").stdout == "alice admin\n"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["add", ".x"], 2, "argument NAME: a name is 1 to 255 of"),
        (["add"], 2, "the following arguments are required: NAME"),
        ([], 2, "the following arguments are required: ACTION"),
        (["add", "alice"], 1, "cartd-cmd: alice has a token; to give a new one, revoke that"),
        (["revoke", "nobody"], 1, "tokens: there is no 'nobody'"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(
    site: RunningCartd, tokens: Path, arguments: list[str], status: int, said: str
) -> None:
    TokenFile(tokens).add("alice", admin=False)
    before = tokens.read_text()
    done = site.run("cartd-cmd", "token", *arguments, check=False)
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert tokens.read_text() == before


def test_without_a_file_in_the_configuration_that_is_said(site: RunningCartd) -> None:
    site.configure("")
    done = site.run("cartd-cmd", "token", "list", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("cartd-cmd: [auth] file is not set")


def test_a_file_that_is_not_there_and_one_in_the_way_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none: there is no such file; cartd-cmd token add"):
        TokenFile(tmp_path / "none").entries()
    (tmp_path / "directory").mkdir()
    with pytest.raises(ConfigError, match=r"directory: Is a directory"):
        TokenFile(tmp_path / "directory").add("alice", admin=False)
    (tmp_path / "latin").write_bytes(b"\xfc")
    with pytest.raises(ConfigError, match=r"latin: it is not UTF-8"):
        TokenFile(tmp_path / "latin").entries()


def test_what_others_wrote_into_the_file_stays(tokens: Path) -> None:
    file = TokenFile(tokens)
    file.add("alice", admin=False)
    alice = tokens.read_text().rstrip("\n")
    tokens.write_text(f"# The imaging group\n\n  {alice}")  # its last line has no end
    file.add("bob", admin=False)
    assert tokens.read_text().startswith(f"# The imaging group\n\n  {alice}\nbob user sha256:")
    file.revoke("alice")
    assert re.fullmatch(r"# The imaging group\n\nbob user \S+\n", tokens.read_text())


def test_a_broken_file_is_not_written_over(tokens: Path) -> None:
    tokens.write_text("alice\n")
    for change in (lambda: TokenFile(tokens).add("bob", admin=False), _revoke(tokens)):
        with pytest.raises(ConfigError, match="tokens: line 1: is not NAME ROLE HASH"):
            change()
    assert tokens.read_text() == "alice\n"


def _revoke(tokens: Path) -> Callable[[], object]:
    return lambda: TokenFile(tokens).revoke("alice")


def test_a_change_replaces_the_file_and_leaves_nothing_beside_it(
    tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = TokenFile(tokens)
    file.add("alice", admin=False)
    before = tokens.stat().st_ino
    with tokens.open() as held:
        file.add("bob", admin=False)
        assert len(held.readlines()) == 1
    assert tokens.stat().st_ino != before

    def fails(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(ConfigError, match="tokens: No space left on device"):
        file.add("carol", admin=False)
    assert set(file.entries()) == {"alice", "bob"}
    assert {path.name for path in tokens.parent.iterdir()} == {"tokens", ".tokens.lock"}


def test_a_link_to_the_file_stays_one_and_so_does_its_owner(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    kept, link = tmp_path / "kept/tokens", tmp_path / "tokens"
    link.symlink_to(kept)
    TokenFile(link).add("alice", admin=False)
    owner = (12345, 23456) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(kept, *owner)
    TokenFile(link).add("bob", admin=False)
    assert link.is_symlink()
    assert set(TokenFile(kept).entries()) == {"alice", "bob"}
    assert (kept.stat().st_uid, kept.stat().st_gid) == owner


def test_two_that_add_at_once_lose_no_token(tokens: Path) -> None:
    names = {f"user{number}" for number in range(12)}
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda name: TokenFile(tokens).add(name, admin=False), names))
    assert set(TokenFile(tokens).entries()) == names
