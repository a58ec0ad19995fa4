"""Profiles and credentials: what counts, what is refused, and what a login writes."""

from __future__ import annotations

import stat
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from cartd_client import config
from cartd_client.errors import ExitStatus, UsageError

URL = "https://cartd.example.org/"
TOKEN = "cartd_alice." + "x" * 43
OTHER = "cartd_bob." + "y" * 43


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {
        "CARTD_CLIENT_CONFIG": str(tmp_path / "conf/client.toml"),
        "NETRC": str(tmp_path / "netrc"),
    }


@pytest.fixture
def profiles(environ: dict[str, str]) -> Callable[[str], None]:
    def write(text: str) -> None:
        path = Path(environ["CARTD_CLIENT_CONFIG"])
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    return write


@pytest.fixture
def keyring(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], str]:
    """The tokens in a keyring that takes part in the tests."""
    kept: dict[tuple[str, str], str] = {}
    module = SimpleNamespace(
        get_password=lambda service, user: kept.get((service, user)),
        set_password=lambda service, user, token: kept.update({(service, user): token}),
        get_keyring=lambda: SimpleNamespace(priority=5),
    )
    monkeypatch.setitem(sys.modules, "keyring", module)
    return kept


def secret(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


def test_the_first_source_that_is_there_counts(
    tmp_path: Path, environ: dict[str, str], profiles: Callable[[str], None]
) -> None:
    netrc = f"machine cartd.example.org login alice password {TOKEN}\n"
    secret(tmp_path / "netrc", netrc)
    environ["CARTD_URL"] = URL
    found = config.load(environ=environ)
    assert (found.token, found.credentials_from) == (TOKEN, environ["NETRC"])
    file = secret(tmp_path / "profile.token", OTHER)
    profiles(f'[profiles.lab]\nurl = "{URL}"\ntoken_file = "{file}"\nretries = 3\n')
    found = config.load(environ=environ)
    assert (found.token, found.credentials_from, found.profile) == (OTHER, file, "lab")
    assert found.options == {"retries": 3}
    environ["CARTD_TOKEN"] = "from-environment"
    assert config.load(environ=environ).token == "from-environment"
    given = secret(tmp_path / "option.token", "given\n")
    found = config.load(environ=environ, token_file=given)
    assert found.token == "given"
    assert "given" not in repr(found)


def test_the_credentials_of_a_profile_go_to_its_own_service(
    tmp_path: Path, environ: dict[str, str], profiles: Callable[[str], None]
) -> None:
    file = secret(tmp_path / "lab.token", TOKEN)
    profiles(f'[profiles.lab]\nurl = "{URL}"\ntoken_file = "{file}"\n')
    assert config.load(environ=environ).token == TOKEN
    assert config.load(environ=environ, url="https://CARTD.example.org").token == TOKEN
    assert config.load(environ=environ, url="https://cartd.example.com").token is None
    assert config.load(environ=environ, url="http://cartd.example.org").token is None


def test_files_of_a_profile_are_beside_it(
    environ: dict[str, str],
    profiles: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = f'[profiles.a]\nurl = "{URL}"\ntoken_file = "a.token"\ncacert = "/ca.pem"\n'
    profiles(text)
    secret(Path(environ["CARTD_CLIENT_CONFIG"]).with_name("a.token"), TOKEN)
    found = config.load(environ=environ)
    assert (found.token, found.cacert) == (TOKEN, "/ca.pem")
    profiles(text.replace("a.token", "~no-such-user/a.token"))
    with pytest.raises(UsageError, match="home"):
        config.load(environ=environ)
    profiles("")
    del environ["NETRC"]
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 4_000_000_000)
    assert config.load(environ=environ, url="https://elsewhere").login is None


def test_a_profile_with_a_password_must_not_be_readable_by_others(
    environ: dict[str, str], profiles: Callable[[str], None]
) -> None:
    profiles('[profiles.a]\nurl = "https://al:pw@host"\n')
    path = Path(environ["CARTD_CLIENT_CONFIG"])
    path.chmod(0o600)
    assert config.load(environ=environ).login == ("al", "pw")
    path.chmod(0o644)
    assert config.load(environ=environ, url="https://other").login is None
    if sys.platform != "win32":
        with pytest.raises(UsageError, match="chmod 600"):
            config.load(environ=environ)


def test_a_login_that_is_no_token_is_for_a_proxy(tmp_path: Path, environ: dict[str, str]) -> None:
    secret(tmp_path / "netrc", "machine host login al password pw\ndefault login x password y\n")
    assert config.load(environ=environ, url="https://host").login == ("al", "pw")
    assert config.load(environ=environ, url="https://elsewhere").login is None
    assert config.load(environ=environ, url="https://a:b@host/p").login == ("a", "b")
    assert config.load(environ=environ, url="https://a:b@host/p").url == "https://host/p/"
    assert config.load(environ=environ, url=f"https://a:{TOKEN}@host").token == TOKEN
    [note] = config.load(environ=environ, url="http://a:b@host").notes
    assert "without encryption" in note
    assert config.load(environ=environ, url="http://a:b@127.0.0.1:8081").notes == ()
    secret(tmp_path / "netrc", "machine")
    assert "is ignored" in config.load(environ=environ, url="https://host").notes[0]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_token_that_others_can_read_is_refused(
    tmp_path: Path, environ: dict[str, str], mode: int
) -> None:
    for name, text in (("token", TOKEN), ("netrc", "machine h login a password b")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(mode)
    with pytest.raises(UsageError, match=r"chmod 600 .*/token") as refused:
        config.read_token(tmp_path / "token")
    assert refused.value.exit_status == ExitStatus.USAGE
    with pytest.raises(UsageError, match=r"chmod 600 .*/netrc"):
        config.load(environ=environ, url="https://h")


@pytest.mark.parametrize("text", ["", "two words", "a\nb", "x" * 5000, "\x1b[2J", "t\u00f6ken"])
def test_a_file_without_a_token_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="must have one token"):
        config.read_token(secret(tmp_path / "token", text))
    with pytest.raises(UsageError, match="cannot be read"):
        config.read_token(tmp_path / "missing")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[profiles.a]\nurl = 1\n", "the value of 'url'"),
        ("[profiles.a]\nretries = true\n", "the value of 'retries'"),
        ("[profiles.a]\ntokenfile = 'x'\n", "unknown key 'tokenfile'"),
        ("[profiles.a\n", "is invalid"),
        ("profiles = 1\n", "is no table"),
        ('default = "b"\n[profiles.a]\n', "has no profile 'b'"),
        ("[profiles.a]\n[profiles.b]\n", "choose one by --profile: a, b"),
        ("", "give --url URL"),
        ("[profiles.a]\nurl = 'ftp://x'\n", "must begin with https"),
    ],
)
def test_a_wrong_profile_is_an_error(
    environ: dict[str, str], profiles: Callable[[str], None], text: str, fault: str
) -> None:
    profiles(text)
    with pytest.raises(UsageError, match=fault):
        config.load(environ=environ)


def test_a_login_is_written_and_found_again(tmp_path: Path, environ: dict[str, str]) -> None:
    path = Path(environ["CARTD_CLIENT_CONFIG"])
    place = config.save_login(URL, TOKEN, use_keyring=False, environ=environ)
    assert config.load(environ=environ).token == TOKEN
    if sys.platform != "win32":
        assert {stat.S_IMODE(file.stat().st_mode) for file in (path, Path(place))} == {0o600}
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    kept = '# mine\ndefault = "lab" # this\n\n[profiles.lab]\nurl = "http://old"\n# why\njobs = 4\n'
    path.write_text(kept + '\n[profiles.other]\nurl = "https://other"\n')
    config.save_login(URL, OTHER, profile="lab", use_keyring=False, environ=environ)
    config.save_login("https://new", None, profile="new", environ=environ)
    found = config.load(environ=environ)
    assert (found.url, found.token, found.options) == (URL, OTHER, {"jobs": 4})
    assert config.load(environ=environ, profile="new").url == "https://new/"
    text = path.read_text()
    assert all(part in text for part in ("# mine", "# why", "[profiles.other]", "# this"))
    assert list(path.parent.glob(".*")) == []
    path.write_text('profiles = { lab = { url = "https://inline" } }\n')
    with pytest.raises(UsageError, match="edit it by hand"):
        config.save_login(URL, TOKEN, profile="lab", use_keyring=False, environ=environ)
    with pytest.raises(UsageError, match="name"):
        config.save_login(URL, TOKEN, profile="a]b", environ=environ)


def test_a_keyring_is_used_if_there_is_one(
    environ: dict[str, str],
    keyring: dict[tuple[str, str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert config.save_login(URL, TOKEN, environ=environ) == "the keyring"
    assert keyring == {("cartd-client", URL): TOKEN}
    assert TOKEN not in Path(environ["CARTD_CLIENT_CONFIG"]).read_text()
    found = config.load(environ=environ)
    assert (found.token, found.credentials_from) == (TOKEN, "the keyring")
    keyring.clear()
    assert "has no token" in config.load(environ=environ).notes[0]
    monkeypatch.setitem(sys.modules, "keyring", None)
    assert "cannot be read" in config.load(environ=environ).notes[0]
    assert config.save_login(URL, TOKEN, environ=environ).endswith("default.token")
    with pytest.raises(UsageError, match=r"pip install cartd-client\[keyring\]"):
        config.save_login(URL, TOKEN, use_keyring=True, environ=environ)
