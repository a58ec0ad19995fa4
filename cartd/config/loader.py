"""Loads the configuration from the command line, the environment and the INI file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cartd.config import parsers
from cartd.config.inifile import ConfigFile, unescape_percent
from cartd.config.settings import SETTINGS, Config, Setting
from cartd.errors import ConfigError

_LIKE_A_PASSWORD = re.compile(r":.*@", re.DOTALL)

_PROXY_VARIABLES = (
    "http_proxy",
    "HTTP_PROXY",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
)
"""Environment variables that set a proxy for curl and other clients."""


def load(
    *,
    options: Mapping[str, Any],
    environ: Mapping[str, str],
    ini: str | None,
    ini_name: str = "",
) -> Config:
    """Return the configuration; options override the environment, which overrides the file.

    ``options`` maps the names of long options to their text (a list for repeatable ones), ``ini``
    is the text of the file ``ini_name``.  An empty environment variable is ignored.  Raises
    ConfigError with one line that names the place and the reason.
    """
    file = ConfigFile(ini or "", ini_name or "configuration file")
    chosen = {
        setting.field: _value(setting, *next(_sources(setting, options, environ, file)))
        for setting in SETTINGS
    }
    return Config(**chosen, warnings=tuple(_warnings(environ, file)))


def sqlalchemy_url(url: str) -> str:
    """As :func:`cartd.config.parsers.sqlalchemy_url`, but raises ConfigError."""
    try:
        return parsers.sqlalchemy_url(url)
    except ValueError as error:
        raise ConfigError(f"database URL: {error}") from None


def _sources(
    setting: Setting, options: Mapping[str, Any], environ: Mapping[str, str], file: ConfigFile
) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield the places that set it, with the texts there, highest precedence first."""
    if setting.option and (given := options.get(setting.option)) not in (None, []):
        yield f"--{setting.option}", given if setting.repeatable else [str(given)]
    names = [(setting.environment, setting.key), (setting.pacifica_variable, setting.pacifica_key)]
    for variable, key in names:
        if variable and (text := environ.get(variable)):
            # Pacifica interpolated its environment variables like the values of its file.
            text = (
                unescape_percent(text, setting.pacifica_key)
                if key == setting.pacifica_key
                else text
            )
            yield f"environment variable {variable}", text.split() if setting.repeatable else [text]
        if key and (written := file.get(setting.section, key)) is not None:
            lines = written.splitlines() if setting.repeatable else [written]
            yield f"{file.name}: [{setting.section}] {key}", lines
    yield "default", [setting.default]


def _value(setting: Setting, place: str, texts: Sequence[str]) -> Any:
    try:
        if setting.repeatable:
            stripped = [text.strip() for text in texts]
            return tuple(setting.parse(text) for text in stripped if text not in ("", "none"))
        return setting.parse(texts[0].strip())
    except ValueError as error:
        # A URL on the wrong line may contain a password.
        raise ConfigError(f"{place}: {_LIKE_A_PASSWORD.sub(':***@', str(error))}") from None


def _warnings(environ: Mapping[str, str], file: ConfigFile) -> Iterator[str]:
    variables = [name for name in ("BROKER_URL", "BACKEND_URL") if environ.get(name)]
    places = [f"[celery] of {file.name}"] if file.has_section("celery") else []
    if places or variables:
        yield f"{' and '.join(places + variables)} ignored: cartd needs no broker and no workers"
    proxies = [name for name in _PROXY_VARIABLES if environ.get(name)]
    if proxies:
        yield f"{' and '.join(proxies)} ignored: cartd connects to the archive without a proxy"
    if file.get("database", "debug_logging") is not None:
        yield f"[database] debug_logging of {file.name} ignored: queries are not logged"
