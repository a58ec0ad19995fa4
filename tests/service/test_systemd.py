"""The real service notifies its service manager."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.cartd_with_archive import assert_no_unexpected_errors
from tests.support.notify_socket import NotifySocket
from tests.support.running_cartd import running_cartd


def test_ready_status_watchdog_and_stop(tmp_path: Path) -> None:
    with (
        NotifySocket(tmp_path / "notify") as manager,
        running_cartd(
            tmp_path / "cartd",
            archive="http://127.0.0.1:9/",
            NOTIFY_SOCKET=manager.address,
            WATCHDOG_USEC="100000",
        ) as cartd,
    ):
        manager.until("READY=1")
        # It is ready for requests.
        assert cartd.get("/-/ready").status == 200
        [*_, status] = manager.until("STATUS=0 carts staging, 0 downloads")
        assert re.fullmatch("STATUS=[^\n]*", status)
        manager.until("WATCHDOG=1")
        manager.until("WATCHDOG=1")
        assert cartd.terminate() == 0
        manager.until("STOPPING=1")
        assert not any(message.startswith("READY") for message in manager.arrived())
        assert_no_unexpected_errors(cartd.log)
