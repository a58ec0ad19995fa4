"""Pacifica Cartd 0.7.0 from PyPI, with its queue in memory and its database in a file.

::

    with pacifica_cartd(tmp_path, archive.url) as url:
        Client(url).submit(manifest)

Everything runs in one process: the service on CherryPy's server, and Celery's worker in a thread.
The code of Pacifica Cartd is unchanged.  As a script it has the port as its argument.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.support.free_ports import free_port

PACKAGES = Path(sys.prefix) / "pacifica-cartd"
"""Where ``make`` has installed it."""
START_SECONDS = 60.0
_ROOT = Path(__file__).parents[2]


@contextmanager
def pacifica_cartd(directory: Path, archive: str) -> Iterator[str]:
    """Start it, with its volume, database and log in ``directory``; yield its URL."""
    assert (PACKAGES / "celery").exists(), "it is not installed: make test"
    port = free_port()
    (directory / "volume").mkdir(parents=True)
    log = directory / "pacifica-cartd.log"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(_ROOT), str(PACKAGES)]),
        "CARTD_CONFIG": str(directory / "none.ini"),
        "VOLUME_PATH": str(directory / "volume"),
        "ARCHIVE_INTERFACE_URL": archive,
        "PEEWEE_URL": f"sqlite:///{directory / 'pacifica.sqlite3'}",
        "BROKER_URL": "memory://",
        "BACKEND_URL": "cache+memory://",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.pacifica_cartd", str(port)],
            cwd=directory,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_it_answers(process, port, log)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/")
            if connection.getresponse().status == 200:
                return
        except OSError:
            # Polls another process, which reports its start in no other way.
            time.sleep(0.05)
        finally:
            connection.close()
    raise AssertionError(f"Pacifica Cartd did not start: {log.read_text(errors='replace')}")


def _main(port: int) -> None:
    # The package of that name in the environment knows only its own directory.
    packages: Any = import_module("pacifica")
    packages.__path__.append(str(PACKAGES / "pacifica"))
    cherrypy = import_module("cherrypy")
    rest = import_module("pacifica.cartd.rest")
    import_module("pacifica.cartd.orm").OrmSync.create_tables()
    app = import_module("pacifica.cartd.tasks").CART_APP
    app.conf.broker_transport_options = {"polling_interval": 0.02}
    worker = app.Worker(pool="solo", without_gossip=True, without_mingle=True)
    threading.Thread(target=worker.start, daemon=True).start()
    cherrypy.config.update(
        {
            "error_page.default": rest.error_page_default,
            "engine.autoreload.on": False,
            "server.socket_host": "127.0.0.1",
            "server.socket_port": port,
            "server.thread_pool": 4,
        }
    )
    dispatcher = cherrypy.dispatch.MethodDispatcher()
    cherrypy.quickstart(rest.CartRoot(), "/", {"/": {"request.dispatch": dispatcher}})


if __name__ == "__main__":
    _main(int(sys.argv[1]))
