"""The limits of the HTTP server, per client and in total: values only."""

from __future__ import annotations

from dataclasses import dataclass, fields

from cartd.config import Config


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of the HTTP server, by the names of their settings.

    Sizes are bytes, times are seconds.
    """

    max_manifest_size: int
    temp_file_limit: int
    max_header_size: int
    max_headers: int
    header_timeout: float
    body_timeout: float
    idle_timeout: float
    keepalive_timeout: float
    stall_timeout: float
    max_connections: int
    max_connections_per_address: int

    @classmethod
    def of(cls, config: Config) -> Limits:
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})


def setting_name(limit: str) -> str:
    """Return the name of a limit's setting, for error messages."""
    return f"server.{limit}"
