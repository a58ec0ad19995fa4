"""The limits of what a client may take, as settings of the section ``[server]``.

Who goes over one is told its name, ``server.max_entries`` for example.
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
        "The largest manifest that is taken.",
    ),
    Setting(
        "max_entries",
        "server",
        "max_entries",
        "5000000",
        parsers.integer(1, 1_000_000_000),
        "entries",
        "How many entries a manifest may have.",
    ),
    Setting(
        "manifest_memory",
        "server",
        "manifest_memory",
        "32 MB",
        parsers.positive_size,
        "size",
        "How many bytes of manifests are read and entered at the same time; others wait for them."
        " Each takes about three times its size of memory.",
    ),
    Setting(
        "temp_file_limit",
        "server",
        "temp_file_limit",
        "2 GB",
        parsers.positive_size,
        "size",
        "How many bytes of temporary files all requests under way may take.",
    ),
    Setting(
        "max_header_size",
        "server",
        "max_header_size",
        "16 Kb",
        parsers.positive_size,
        "size",
        "How long the head of a request may be, its first line and all headers.",
    ),
    Setting(
        "max_headers",
        "server",
        "max_headers",
        "500",
        parsers.integer(1, 1_000_000),
        "headers",
        "How many headers a request may have.",
    ),
    Setting(
        "header_timeout",
        "server",
        "header_timeout",
        "60",
        parsers.positive_seconds,
        "seconds",
        "How long a client may take from connecting, or from the first byte of a later"
        " request, to the end of the request's head.",
    ),
    Setting(
        "body_timeout",
        "server",
        "body_timeout",
        "3600",
        parsers.positive_seconds,
        "seconds",
        "How long a client may take for the whole body of a request.",
    ),
    Setting(
        "idle_timeout",
        "server",
        "idle_timeout",
        "60",
        parsers.positive_seconds,
        "seconds",
        "How long a client may pause within the body of a request.",
    ),
    Setting(
        "keepalive_timeout",
        "server",
        "keepalive_timeout",
        "75",
        parsers.positive_seconds,
        "seconds",
        "How long a connection is kept open for the next request; longer than a proxy in front"
        " keeps it, which is 60 s in most.",
    ),
    Setting(
        "stall_timeout",
        "server",
        "stall_timeout",
        "600",
        parsers.positive_seconds,
        "seconds",
        "How long a client may take for each 64 KiB of a download; until then its cart is pinned.",
    ),
    Setting(
        "max_download_time",
        "server",
        "max_download_time",
        "86400",
        parsers.seconds,
        "seconds",
        "How long one download may take, whatever its client takes of it; until then its cart is"
        " pinned. 0: for ever.",
    ),
    Setting(
        "max_connections",
        "server",
        "max_connections",
        "4000",
        parsers.integer(1, 1_000_000),
        "connections",
        "How many clients may be connected.",
    ),
    Setting(
        "max_connections_per_address",
        "server",
        "max_connections_per_address",
        "2000",
        parsers.integer(1, 1_000_000),
        "connections",
        "How many clients may be connected from one address; of IPv6, from one network (/64).",
    ),
)
