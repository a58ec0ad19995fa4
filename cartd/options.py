"""The command lines of the service, and the one place that reads the configuration file."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twisted.python import usage

from cartd import __version__
from cartd.config import Config, load
from cartd.config.settings import SETTINGS
from cartd.errors import ConfigError
from cartd.logs import install_observer
from cartd.runtime import disable_pidfile

DEFAULT_FILE = Path(".pacifica-cartd", "config.ini")
"""Relative to the home directory; the same as Pacifica Cartd's."""


class Options(usage.Options):
    """The options of ``twistd cartd`` as text, which :func:`read_config` parses."""

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
        install_observer(getattr(self, "parent", None))
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


def twistd_arguments(arguments: Sequence[str]) -> list[str]:
    """Translate Pacifica's command line into that of ``twistd``."""
    parser = ArgumentParser(
        prog="pacifica-cartd",
        description="Run the cart service in the foreground, as `twistd -n cartd` does.",
    )
    parser.add_argument("-c", "--config", metavar="FILE", help="configuration file (INI)")
    parser.add_argument("-p", "--port", metavar="PORT", help="port to listen on")
    parser.add_argument("-a", "--address", metavar="ADDRESS", help="address to listen on")
    parser.add_argument(
        "--cpconfig", metavar="FILE", help="ignored, as cartd does not use CherryPy"
    )
    args = parser.parse_args(arguments)
    options = [
        f"--{name}={value}"
        for name in ("config", "port", "address")
        if (value := getattr(args, name)) is not None
    ]
    # On Windows, twistd writes no pid file and does not know the option.
    no_pidfile = [] if os.name == "nt" else ["--pidfile="]
    return ["twistd", "--nodaemon", *no_pidfile, "cartd", *options]


def main() -> None:
    """Start the service as the command of Pacifica Cartd, ``pacifica-cartd``, does."""
    from twisted.scripts import twistd  # here, as cartd-cmd does not need it

    sys.argv = twistd_arguments(sys.argv[1:])
    twistd.run()
