"""nginx: an archive fast enough that cartd is the bottleneck, and a server of static files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import processes
from bench.peers import tool
from bench.server import Server

MTIME = "1795468634.25"

_CONFIGURATION = """
daemon off;
{user}
worker_processes 2;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    keepalive_timeout 600s;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    default_type application/octet-stream;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            root {archive};
            rewrite "^/[0-9]+([0-9]{{5}})$" /$1 break;
            if ($request_method = POST) {{ return 200; }}
            add_header Last-Modified {mtime};
            add_header X-Content-Length $sent_http_content_length;
            add_header X-Pacifica-Ctime {mtime};
            add_header X-Pacifica-Bytes-Per-Level "[0]";
            add_header X-Pacifica-File-Storage-Media disk;
            add_header X-Pacifica-Messsage "File was found";
        }}
        location /files/ {{ alias {files}/; }}
    }}
}}
"""


@contextmanager
def nginx(directory: Path, *, archive: Path, files: Path) -> Iterator[Server]:
    """Serve ``archive`` by the Archive Interface protocol, and ``files`` under ``/files/``."""
    directory.mkdir(parents=True, exist_ok=True)
    files.mkdir(parents=True, exist_ok=True)
    port = processes.free_port()
    (directory / "nginx.conf").write_text(
        _CONFIGURATION.format(
            user="user root;" if os.geteuid() == 0 else "",
            port=port,
            archive=archive,
            files=files,
            mtime=MTIME,
        )
    )
    command = [tool("nginx"), "-p", str(directory), "-c", "nginx.conf", "-e", "error.log"]
    with processes.running(command, directory=directory, log="nginx.log") as process:
        processes.wait_until_responding(process, port, directory / "nginx.log")
        yield Server(port, (process.pid,))
