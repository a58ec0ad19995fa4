"""The command line of ``twistd cartd``, and the one place that reads the configuration file."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twisted.python import usage

from cartd import __version__, log_file
from cartd.config import Config, load
from cartd.config.settings import SETTINGS
from cartd.errors import ConfigError
from cartd.pidfile import disable_pidfile

DEFAULT_FILE = Path(".pacifica-cartd", "config.ini")
"""Relative to the home directory; the same as Pacifica Cartd's."""


class Options(usage.Options):
    """The options as text, which :func:`read_config` parses."""

    synopsis = "[options]"
    longdesc = (
        "Stages files from an archive, verifies them and serves them as one tar. Settings that are"
        " not given here are read from the environment (CARTD_PORT, VOLUME_PATH,"
        " ARCHIVE_INTERFACE_URL, DATABASE_URL and others), then from the configuration file, which"
        " has more settings; docs/configuration.md lists all of them. Defaults are in parentheses."
    )
    optParameters = [  # noqa: RUF012 (Twisted's way)
        [
            "config",
            "c",
            None,
            "Configuration file (INI); also CARTD_CONFIG. (~/.pacifica-cartd/config.ini, if it"
            " exists)",
        ],
        *(
            [setting.option, setting.short, None, f"{setting.description} ({setting.default})"]
            for setting in SETTINGS
            if setting.option and not setting.repeatable
        ),
    ]

    def opt_endpoint(self, description: str) -> None:
        self.setdefault("endpoint", []).append(description)

    opt_endpoint.__doc__ = next(
        f"{setting.description} ({setting.default})"
        for setting in SETTINGS
        if setting.option == "endpoint"
    )
    opt_e = opt_endpoint

    def opt_version(self) -> None:
        """Print the version and exit."""
        sys.stdout.write(f"cartd {__version__}\n")
        sys.exit(0)

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Raise SystemExit with one line, where twistd would print all of ``--help``."""
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            raise SystemExit(f"cartd: {error} (--help lists the options)") from None
        disable_pidfile(getattr(self, "parent", None))
        log_file.install(getattr(self, "parent", None))
        # twistd has an option --umask, too: it applies to the files of cartd as well.
        given = (getattr(self, "parent", None) or {}).get("umask")
        if given is not None and self["umask"] is None:
            self["umask"] = f"{given:03o}"


def read_config(options: Mapping[str, Any], environ: Mapping[str, str]) -> Config:
    """Read the file named by option or environment, or the default one if it exists.

    Raises ConfigError with one line that names the place and the reason.
    """
    named = options.get("config") or environ.get("CARTD_CONFIG")
    path = Path(named) if named else _home(environ) / DEFAULT_FILE
    text = _read(path, required=bool(named))
    return load(options=options, environ=environ, ini=text, ini_name=str(path))


def _home(environ: Mapping[str, str]) -> Path:
    home = environ.get("HOME")
    try:
        return Path(home) if home else Path.home()
    except RuntimeError:  # the account has no home directory
        return Path()


def _read(path: Path, *, required: bool) -> str | None:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        if not required:
            return None
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
