"""The command line, and the choice of the configuration file."""

from __future__ import annotations

from pathlib import Path

import pytest

from cartd import __version__
from cartd.config import Config
from cartd.config.settings import SETTINGS
from cartd.errors import ConfigError
from cartd.options import Options, read_config


def parsed(*arguments: str) -> Options:
    options = Options()
    options.parseOptions(list(arguments))
    return options


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home directory with the default configuration file."""
    file = tmp_path / "home" / ".pacifica-cartd" / "config.ini"
    file.parent.mkdir(parents=True)
    file.write_text("[server]\nport = 1\n", encoding="utf-8")
    return tmp_path / "home"


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """Another file, in UTF-8 with a byte order mark."""
    file = tmp_path / "named.ini"
    file.write_text("[server]\nport = 2\n[cartd]\nvolume_path = /ü\n", encoding="utf-8-sig")
    return file


def read(home: Path, *arguments: str, **environ: str) -> Config:
    return read_config(parsed(*arguments), {"HOME": str(home), **environ})


def refusal(home: Path, *arguments: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(home, *arguments, **environ)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- options ------------------------------------------------------------------------------------


def test_every_option_of_the_table_is_accepted(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        *["--port", "8082", "--address=::1", "--endpoint", "tcp:1", "--endpoint=unix:/a"],
        *["--volume-path", "/v", "--archive", "https://a", "--database", "sqlite:///d"],
    )
    assert (config.port, config.address, config.endpoints) == (8082, "::1", ("tcp:1", "unix:/a"))
    assert config.volume_path == Path("/v")
    assert (config.archive_url, config.database_url) == ("https://a/", "sqlite:///d")


def test_the_short_options_are_accepted(tmp_path: Path, named: Path) -> None:
    config = read(tmp_path, "-p", "8082", "-a", "::1", "-e", "tcp:1", "-etcp:2", "-c", str(named))
    assert (config.port, config.address, config.endpoints) == (8082, "::1", ("tcp:1", "tcp:2"))
    assert config.volume_path == Path("/ü")


def test_without_options_environment_and_file_decide(home: Path) -> None:
    assert read(home).port == 1
    assert read(home, CARTD_PORT="3").port == 3
    assert read(home, "-p", "4", CARTD_PORT="3").port == 4


def test_the_help_explains_every_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    text = " ".join(str(parsed()).split())
    for setting in SETTINGS:
        if setting.option:
            assert f"--{setting.option}=" in text
            assert f"{setting.description} ({setting.default})" in text
    assert "~/.pacifica-cartd/config.ini" in text
    assert "DATABASE_URL" in text


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_end_well(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed(argument)
    assert not caught.value.code
    expected = {"--help": "--volume-path=", "--version": f"cartd {__version__}\n"}
    assert expected[argument] in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["--prot", "1"], ["--port"], ["extra"]], ids=["unknown", "no value", "argument"]
)
def test_a_wrong_command_line_ends_with_one_line(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed(*arguments)
    # A text as the code: Python prints it on standard error, and the exit status is 1.
    assert isinstance(caught.value.code, str)
    assert caught.value.code.startswith("cartd: ")
    assert "\n" not in caught.value.code


def test_a_wrong_value_is_refused_with_the_option(home: Path) -> None:
    assert refusal(home, "--port", "x").startswith("--port: 'x' is not")


# --- the file -----------------------------------------------------------------------------------


def test_option_goes_before_environment_before_the_default_place(
    home: Path, named: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.ini"
    other.write_text("[server]\nport = 3\n", encoding="utf-8")
    assert read(home).port == 1
    assert read(home, CARTD_CONFIG="").port == 1
    assert read(home, CARTD_CONFIG=str(named)).port == 2
    assert read(home, "--config", str(other), CARTD_CONFIG=str(named)).port == 3


def test_the_file_at_the_default_place_may_be_missing(tmp_path: Path) -> None:
    assert read(tmp_path).port == 8081


def test_a_named_file_may_not_be_missing(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.ini")
    expected = f"{missing}: no such file"
    assert refusal(tmp_path, "--config", missing) == expected
    assert refusal(tmp_path, CARTD_CONFIG=missing) == expected


def test_an_unreadable_file_is_refused_with_its_name(tmp_path: Path) -> None:
    assert refusal(tmp_path, "-c", str(tmp_path)).startswith(f"{tmp_path}: cannot be read: ")
    latin = tmp_path / "latin.ini"
    latin.write_bytes("[cartd]\nvolume_path = /ü\n".encode("latin-1"))
    assert refusal(tmp_path, "-c", str(latin)) == f"{latin}: cannot be read: not UTF-8"
    assert "cannot be read" in refusal(tmp_path, CARTD_CONFIG="a\0b")


def test_an_error_in_the_file_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "cartd.ini"
    file.write_text("[server]\nprot = 1\n", encoding="utf-8")
    assert refusal(tmp_path, "-c", str(file)).startswith(f"{file}: [server] prot is unknown")
