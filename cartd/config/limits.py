"""Settings of the section ``[server]`` that limit clients.

The error of a client that exceeds one has its name, ``server.max_entries`` for example.
"""

from __future__ import annotations

from cartd.config import parsers
from cartd.config.setting import Setting

LIMITS = (
    Setting(
        "max_manifest_size",
        "server",
        "max_manifest_size",
        "256 MB",
        parsers.positive_size,
        "size",
        "Maximum size of a manifest.",
    ),
    Setting(
        "max_entries",
        "server",
        "max_entries",
        "5000000",
        parsers.integer(1, 1_000_000_000),
        "entries",
        "Maximum number of entries in a manifest.",
    ),
    Setting(
        "manifest_memory",
        "server",
        "manifest_memory",
        "32 MB",
        parsers.positive_size,
        "size",
        "Maximum total size of the manifests that are parsed and stored at the same time;"
        " further ones wait. Parsing takes about three times this size in memory.",
    ),
    Setting(
        "temp_file_limit",
        "server",
        "temp_file_limit",
        "2 GB",
        parsers.positive_size,
        "size",
        "Maximum total size of the temporary files of all requests in progress.",
    ),
    Setting(
        "max_header_size",
        "server",
        "max_header_size",
        "16 Kb",
        parsers.positive_size,
        "size",
        "Maximum size of a request's head: the request line and all headers.",
    ),
    Setting(
        "max_headers",
        "server",
        "max_headers",
        "500",
        parsers.integer(1, 1_000_000),
        "headers",
        "Maximum number of headers in a request.",
    ),
    Setting(
        "header_timeout",
        "server",
        "header_timeout",
        "60",
        parsers.positive_seconds,
        "seconds",
        "Maximum time for a complete request head, from the connection or from the first byte"
        " of a later request.",
    ),
    Setting(
        "body_timeout",
        "server",
        "body_timeout",
        "3600",
        parsers.positive_seconds,
        "seconds",
        "Maximum time for a complete request body.",
    ),
    Setting(
        "idle_timeout",
        "server",
        "idle_timeout",
        "60",
        parsers.positive_seconds,
        "seconds",
        "Maximum gap within a request body.",
    ),
    Setting(
        "keepalive_timeout",
        "server",
        "keepalive_timeout",
        "75",
        parsers.positive_seconds,
        "seconds",
        "How long an idle connection is kept open for the next request. Must be longer than a"
        " proxy in front keeps it, which is 60 s in most.",
    ),
    Setting(
        "stall_timeout",
        "server",
        "stall_timeout",
        "600",
        parsers.positive_seconds,
        "seconds",
        "Maximum time for a client to receive each 64 KiB of a download; until then the cart"
        " stays pinned.",
    ),
    Setting(
        "max_download_time",
        "server",
        "max_download_time",
        "86400",
        parsers.seconds,
        "seconds",
        "Maximum duration of a download; until then the cart stays pinned. 0 is no limit.",
    ),
    Setting(
        "max_connections",
        "server",
        "max_connections",
        "4000",
        parsers.integer(1, 1_000_000),
        "connections",
        "Maximum number of client connections.",
    ),
    Setting(
        "max_connections_per_address",
        "server",
        "max_connections_per_address",
        "2000",
        parsers.integer(1, 1_000_000),
        "connections",
        "Maximum number of client connections from one address; for IPv6, from one /64 network.",
    ),
)
