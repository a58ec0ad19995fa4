"""The configuration: command line, environment and INI file, parsed into one Config."""

from cartd.config.loader import load, sqlalchemy_url
from cartd.config.parsers import (
    UNIX,
    Network,
    TlsEndpoint,
    UnixEndpoint,
    is_unix,
    parse_size,
    parse_tls_endpoint,
    parse_unix_endpoint,
)
from cartd.config.settings import Config

__all__ = [
    "UNIX",
    "Config",
    "Network",
    "TlsEndpoint",
    "UnixEndpoint",
    "is_unix",
    "load",
    "parse_size",
    "parse_tls_endpoint",
    "parse_unix_endpoint",
    "sqlalchemy_url",
]
