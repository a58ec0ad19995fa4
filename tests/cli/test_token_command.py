"""``cartd-cmd token``: its output, and its changes of the token file."""

from __future__ import annotations

import fcntl
import grp
import os
import pwd
import re
import stat
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from cartd.auth import TokenFile, token_file
from cartd.auth.tokens import parse_entries
from cartd.errors import ConfigError
from cartd.files import try_lock
from tests.support.running_cartd import RunningCartd, running_cartd
from tests.support.without_flock import refuse


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


@pytest.fixture
def site(tmp_path: Path, tokens: Path) -> RunningCartd:
    """A configuration without a running service and without a database."""
    ini = f"[auth]\ntoken_file = {tokens}\n"
    with running_cartd(tmp_path / "cartd", archive="http://x/", ini=ini, started=False) as cartd:
        return cartd


def test_a_token_is_printed_once_and_kept_as_a_hash(site: RunningCartd, tokens: Path) -> None:
    added = site.run("cartd-cmd", "token", "add", "alice", "--admin")
    assert re.fullmatch(r"cartd_alice\.[A-Za-z0-9_-]{43}\n", added.stdout)
    assert added.stderr == "The token of alice; it is shown only once:\n"
    token = added.stdout.strip()
    [entry] = parse_entries(tokens.read_text()).values()
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
        (["add", ".x"], 2, "argument NAME: a name has 1 to 255 characters of"),
        (["add"], 2, "the following arguments are required: NAME"),
        ([], 2, "the following arguments are required: ACTION"),
        (
            ["add", "alice"],
            1,
            "cartd-cmd: alice already has a token; to replace it, revoke it first",
        ),
        (["revoke", "nobody"], 1, "tokens: 'nobody' not found"),
    ],
)
def test_a_failing_command_reports_why_and_changes_nothing(
    site: RunningCartd, tokens: Path, arguments: list[str], status: int, said: str
) -> None:
    TokenFile(tokens).add("alice", admin=False)
    before = tokens.read_text()
    done = site.run("cartd-cmd", "token", *arguments, check=False)
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert tokens.read_text() == before


def test_a_missing_token_file_setting_is_an_error(site: RunningCartd) -> None:
    site.configure("")
    done = site.run("cartd-cmd", "token", "list", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("cartd-cmd: [auth] token_file is not set")


def test_a_file_that_is_not_there_and_one_in_the_way_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"none: no such file; create it with cartd-cmd token add"
    ):
        TokenFile(tmp_path / "none").entries()
    (tmp_path / "directory").mkdir()
    with pytest.raises(ConfigError, match=r"directory: Is a directory"):
        TokenFile(tmp_path / "directory").add("alice", admin=False)
    (tmp_path / "latin").write_bytes(b"\xfc")
    with pytest.raises(ConfigError, match=r"latin: not UTF-8"):
        TokenFile(tmp_path / "latin").entries()


def test_comments_in_the_token_file_stay(tokens: Path) -> None:
    file = TokenFile(tokens)
    file.add("alice", admin=False)
    alice = tokens.read_text().rstrip("\n")
    tokens.write_text(f"# The imaging group\n\n  {alice}")  # its last line has no end
    file.add("bob", admin=False)
    assert tokens.read_text().startswith(f"# The imaging group\n\n  {alice}\nbob user sha256:")
    file.revoke("alice")
    assert re.fullmatch(r"# The imaging group\n\nbob user \S+\n", tokens.read_text())


def test_a_broken_token_file_is_not_overwritten(tokens: Path) -> None:
    tokens.write_text("alice\n")
    for change in (lambda: TokenFile(tokens).add("bob", admin=False), _revoke(tokens)):
        with pytest.raises(ConfigError, match="tokens: line 1: must be NAME ROLE HASH"):
            change()
    assert tokens.read_text() == "alice\n"


def _revoke(tokens: Path) -> Callable[[], object]:
    return lambda: TokenFile(tokens).revoke("alice")


def test_a_change_replaces_the_file_atomically(
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
    assert {path.name for path in tokens.parent.iterdir()} == {"tokens"}


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


@pytest.mark.parametrize("mode", [0o640, 0o600, 0o444])
def test_a_change_keeps_owner_group_mode_and_attributes(tokens: Path, mode: int) -> None:
    file = TokenFile(tokens)
    file.add("alice", admin=False)
    owner = (12345, 23456) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(tokens, *owner)
    tokens.chmod(mode)
    expected = attributes_given(tokens)
    file.add("bob", admin=False)
    file.revoke("alice")
    after = tokens.stat()
    assert (after.st_uid, after.st_gid) == owner
    assert stat.S_IMODE(after.st_mode) == mode | (0o040 if ACL in expected else 0)
    assert {name: os.getxattr(tokens, name) for name in os.listxattr(tokens)} == expected


ACL = "system.posix_acl_access"
NOBODYS = 2**32 - 1


def attributes_given(path: Path) -> dict[str, bytes]:
    """Set an ACL and an attribute if the file system supports them; return those that are set."""
    # As linux/posix_acl_xattr.h has it: owner, user 12345, group, mask, others.
    mode = stat.S_IMODE(path.stat().st_mode)
    entries = [
        *((1, mode >> 6, NOBODYS), (2, 4, 12345), (4, mode >> 3 & 7, NOBODYS)),
        *((16, 4, NOBODYS), (32, mode & 7, NOBODYS)),
    ]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    for name, value in {ACL: acl, "user.cartd.test": b"kept"}.items():
        with suppress(OSError):
            os.setxattr(path, name, value)
    return {name: os.getxattr(path, name) for name in os.listxattr(path)}


def test_a_default_acl_does_not_change_an_existing_file(tokens: Path) -> None:
    file = TokenFile(tokens)
    file.add("alice", admin=False)
    tokens.chmod(0o640)
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", *entry)
        for entry in [
            *((1, 7, NOBODYS), (2, 4, 12345), (4, 5, NOBODYS), (16, 5, NOBODYS), (32, 0, NOBODYS))
        ]
    )
    with suppress(OSError):  # a file system without ACLs adds none
        os.setxattr(tokens.parent, "system.posix_acl_default", acl)
    file.add("bob", admin=False)
    assert stat.S_IMODE(tokens.stat().st_mode) == 0o640
    assert ACL not in os.listxattr(tokens)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a directory to any group")
def test_a_new_file_is_readable_by_the_directorys_group(tokens: Path) -> None:
    os.chown(tokens.parent, 0, 23456)
    TokenFile(tokens).add("alice", admin=False)
    made = tokens.stat()
    assert (made.st_uid, made.st_gid, stat.S_IMODE(made.st_mode)) == (0, 23456, 0o640)


def test_a_lock_timeout_names_the_directory_and_the_holder(
    tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_file, "LOCK_WAIT", 0)
    TokenFile(tokens).add("alice", admin=False)
    before = tokens.read_text()
    locked = os.open(tokens.parent, os.O_RDONLY)
    assert try_lock(locked)
    by = f"{tokens.parent} has been locked by (process {os.getpid()}|another process) for 0 s"
    with pytest.raises(ConfigError, match=rf"{tokens}: {by}.*try again"):
        TokenFile(tokens).add("bob", admin=False)
    assert tokens.read_text() == before
    os.close(locked)
    TokenFile(tokens).add("bob", admin=False)


def test_a_concurrent_edit_is_not_overwritten(
    tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = TokenFile(tokens)
    file.add("alice", admin=False)

    def edited_first(lines: list[str]) -> list[str]:
        tokens.write_text("# by hand\n")
        return lines

    monkeypatch.setattr(token_file, "_with_final_newline", edited_first)
    with pytest.raises(ConfigError, match="changed by another process in the meantime; try again"):
        file.add("bob", admin=False)
    assert tokens.read_text() == "# by hand\n"


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that all users may traverse."""
    with TemporaryDirectory() as directory:
        path = Path(directory)
        path.chmod(0o755)
        yield path


@contextmanager
def another_user(path: Path) -> Iterator[None]:
    """Run as a user who may not read ``path``; root always may."""
    path.chmod(0o600 if os.geteuid() == 0 else 0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_permission_error_names_the_account_and_the_mode(open_directory: Path) -> None:
    tokens = open_directory / "tokens"
    TokenFile(tokens).add("alice", admin=False)
    with (
        another_user(tokens),
        pytest.raises(
            ConfigError, match=r"tokens: Permission denied for \S+ \(it is \S+:\S+ 0\d00\)"
        ),
    ):
        TokenFile(tokens).entries()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
def test_a_file_unreadable_to_the_service_is_warned_of(
    open_directory: Path,
) -> None:
    tokens = open_directory / "tokens"
    ini = f"[auth]\ntoken_file = {tokens}\n"
    with running_cartd(
        open_directory / "cartd", archive="http://x/", ini=ini, started=False
    ) as site:
        site.volume.mkdir()
        os.chown(site.volume, 65534, 65534)
        warning = f"nobody, the owner of the volume, cannot read {tokens}: {tokens} is root:root"
        added = site.run("cartd-cmd", "token", "add", "alice")
        assert warning in added.stderr
        group = grp.getgrgid(pwd.getpwuid(65534).pw_gid).gr_name
        assert f"chgrp {group} {tokens} && chmod 0640 {tokens}\n" in added.stderr
        assert re.fullmatch(r"\S+\n", added.stdout)
        os.chown(tokens, 0, 65534)
        tokens.chmod(0o640)
        assert warning not in site.run("cartd-cmd", "token", "add", "bob").stderr
        assert warning not in site.run("cartd-cmd", "token", "revoke", "alice").stderr
        tokens.chmod(0o600)
        assert (
            warning.removesuffix("root") in site.run("cartd-cmd", "token", "revoke", "bob").stderr
        )


def test_tokens_are_added_and_revoked_without_locks(
    tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse)
    file = TokenFile(tokens)
    file.add("alice", admin=False)
    file.add("bob", admin=False)
    file.revoke("alice")
    assert set(file.entries()) == {"bob"}


def test_concurrent_adds_lose_no_token(tokens: Path) -> None:
    names = {f"user{number}" for number in range(12)}
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda name: TokenFile(tokens).add(name, admin=False), names))
    assert set(TokenFile(tokens).entries()) == names
