"""Loads the configuration from the command line, the environment and the INI file.

Names in the INI file that are unknown are errors; Pacifica's syntax is accepted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from configparser import (
    ConfigParser,
    DuplicateOptionError,
    DuplicateSectionError,
    MissingSectionHeaderError,
    ParsingError,
)
from configparser import Error as IniError
from difflib import get_close_matches
from typing import Any

from cartd.config import parsers
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


IGNORED_SECTIONS = {"celery"}
"""Sections of Pacifica that have no meaning here."""

_KEYS: dict[str, set[str]] = {"database": {"debug_logging"}}
for _setting in SETTINGS:
    _keys = _KEYS.setdefault(_setting.section, set())
    _keys.update(key for key in (_setting.key, _setting.pacifica_key) if key)

_REFERENCE = re.compile(r"%(?:%|\(([^)]+)\)s)")
_MAX_DEPTH = 10


class ConfigFile:
    """A parsed INI file.  Raises ConfigError, with one line, for bad syntax or an unknown name."""

    def __init__(self, text: str, name: str) -> None:
        self.name = name
        self._parser = ConfigParser(interpolation=None)
        try:
            self._parser.read_string(text)
        except IniError as error:
            raise ConfigError(f"{name}: {_reason(error)}") from None
        for section in self._parser.sections():
            self._refuse_unknown(section)

    def has_section(self, section: str) -> bool:
        return self._parser.has_section(section)

    def get(self, section: str, key: str) -> str | None:
        """Return the value with its references expanded, or None if it is not set."""
        if not self._parser.has_option(section, key):
            return None
        try:
            return _interpolate(self._parser[section][key], key, self._parser[section], 0)
        except LookupError as error:
            raise ConfigError(f"{self.name}: [{section}] {key}: {error.args[0]}") from None

    def _refuse_unknown(self, section: str) -> None:
        if section in IGNORED_SECTIONS:
            return
        if section not in _KEYS:
            hint = _suggestion(section, [*_KEYS, *IGNORED_SECTIONS], "[{}]")
            raise ConfigError(f"{self.name}: section [{section}] is unknown{hint}")
        for key in self._parser[section]:
            # [DEFAULT] may have any key, for references in other values.
            if key not in _KEYS[section] and key not in self._parser.defaults():
                hint = _suggestion(key, _KEYS[section], "{}") or _other_section(key)
                raise ConfigError(f"{self.name}: [{section}] {key} is unknown{hint}")


def unescape_percent(text: str, key: str | None) -> str:
    """Replace Pacifica's ``%%`` by a percent sign.

    In ``peewee_url`` the sign is percent-encoded: SQLAlchemy decodes the password of a URL, peewee
    does not.
    """
    return text.replace("%%", _percent_sign(text, key))


def _percent_sign(text: str, key: str | None) -> str:
    return "%25" if key == "peewee_url" and "@" in text else "%"


def _interpolate(text: str, key: str, others: Mapping[str, str], depth: int) -> str:
    """Expand ``%%`` and ``%(key)s`` as configparser does; any other ``%`` is literal."""
    if depth > _MAX_DEPTH:
        raise LookupError("refers to itself")
    sign = _percent_sign(text, key)

    def replace(mark: re.Match[str]) -> str:
        if mark[1] is None:
            return sign
        if (other := others.get(mark[1])) is None:
            # In a URL, even a malformed one, what looks like it may be part of a password.
            name = "..." if "@" in text or key.endswith("url") else mark[1]
            raise LookupError(f"refers to %({name})s, which does not exist; write %% for a %")
        return _interpolate(other, key, others, depth + 1)

    return _REFERENCE.sub(replace, text)


def _suggestion(word: str, known: Iterable[str], form: str) -> str:
    near = get_close_matches(word.lower(), sorted(known), n=1, cutoff=0.5)
    return f"; did you mean {form.format(near[0])}?" if near else ""


def _other_section(key: str) -> str:
    sections = sorted(section for section, keys in _KEYS.items() if key in keys)
    return f"; it belongs in [{sections[0]}]" if sections else ""


def _reason(error: IniError) -> str:
    """Return one line without the text of the file, which may contain a password."""
    if isinstance(error, DuplicateOptionError):
        return f"line {error.lineno}: [{error.section}] {error.option} occurs twice"
    if isinstance(error, DuplicateSectionError):
        return f"line {error.lineno}: section [{error.section}] occurs twice"
    if isinstance(error, MissingSectionHeaderError):
        return f"line {error.lineno}: a key before the first [section]"
    if isinstance(error, ParsingError):
        return f"line {error.errors[0][0]}: is neither [section] nor key = value"
    return "is not an INI file"
