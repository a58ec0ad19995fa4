"""The configuration: command line, environment and INI file -> :class:`Config`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cartd.config import parsers
from cartd.config.inifile import ConfigFile, unescape_percent
from cartd.config.parsers import Network, parse_size
from cartd.config.setting import Setting
from cartd.config.settings import SETTINGS
from cartd.errors import ConfigError

__all__ = ["Config", "load", "parse_size", "sqlalchemy_url"]

_LIKE_A_PASSWORD = re.compile(r":.*@", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Config:
    """The parsed configuration.  Sizes are in bytes, times in seconds."""

    # [server]
    port: int
    address: str
    endpoints: tuple[str, ...]
    """Replace port and address, unless empty."""
    allowed_hosts: tuple[str, ...]
    allowed_origins: tuple[str, ...]
    shutdown_grace: float
    max_manifest_size: int
    max_entries: int
    manifest_memory: int
    temp_file_limit: int
    max_header_size: int
    max_headers: int
    header_timeout: float
    body_timeout: float
    idle_timeout: float
    keepalive_timeout: float
    stall_timeout: float
    max_download_time: float
    max_connections: int
    max_connections_per_address: int
    # [cartd]
    volume_path: Path
    umask: int
    transfer_size: int
    lru_buffer_time: float
    lru_purge: bool
    lru_interval: float
    scrub_interval: float
    retention: float
    """Seconds; 0 keeps the rows forever."""
    bundle_task: bool
    require_hashsum: bool
    volume_quota: int | None
    volume_reserve: int
    max_carts_staging: int
    # [archiveinterface]
    archive_url: str
    """Ends in ``/``."""
    archive_max_connections: int
    archive_max_attempts: int
    archive_outage_limit: float
    archive_connect_timeout: float
    archive_stall_timeout: float
    archive_min_rate: int
    """Bytes a second."""
    archive_tape_poll_rate: int
    """Requests a second."""
    archive_recall_retry_interval: float
    archive_ca_file: Path | None
    archive_cert_file: Path | None
    archive_key_file: Path | None
    # [auth]: off if neither of the first two is set
    auth_token_file: Path | None
    auth_proxy_header: str | None
    auth_trusted_proxies: tuple[Network, ...]
    auth_max_carts_staging: int | None
    auth_max_files: int | None
    auth_max_bytes: int | None
    # [database]
    database_url: str
    """In SQLAlchemy's form."""
    database_connect_attempts: int
    database_connect_wait: float
    warnings: tuple[str, ...]
    """Lines to log once at the start: what is ignored."""


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
