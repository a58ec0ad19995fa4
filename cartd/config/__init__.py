"""The configuration: command line, environment and INI file, parsed into one Config."""

from cartd.config.endpoints import TlsEndpoint, parse_tls_endpoint
from cartd.config.loader import Config, load, parse_size, sqlalchemy_url
from cartd.config.parsers import UNIX, Network, is_unix
from cartd.config.unix_endpoint import UnixEndpoint, parse_unix_endpoint

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
