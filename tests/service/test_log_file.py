"""The log as text: events of several lines, and the logger options of twistd."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, formatEventAsClassicLogText
from twisted.scripts._twistd_unix import ServerOptions
from twisted.web.http_headers import Headers

from cartd import logs
from cartd.http.access_log import AccessLog
from cartd.tracing import LogContext
from tests.support.running_cartd import command, running_cartd

EVENT = {"log_time": 1.5, "log_level": LogLevel.info, "log_namespace": "a.b"}


def test_each_line_of_many_has_the_form_of_an_event() -> None:
    text = logs.format_event({**EVENT, "log_format": "{lines}", "lines": ["one {}", "two"]})
    alone = formatEventAsClassicLogText({**EVENT, "log_format": "{x}", "x": "one {}"})
    assert text is not None and alone is not None
    first, second = text.splitlines(keepends=True)
    assert first == alone
    assert second == alone.replace("one {}", "two")


def test_every_other_event_is_as_twisted_writes_it() -> None:
    event = {**EVENT, "log_format": "one\ntwo {x}", "x": 3}
    assert logs.format_event(event) == formatEventAsClassicLogText(event)
    assert logs.format_event({**EVENT}) is None


@pytest.mark.parametrize("own", [False, True])
def test_a_logger_given_to_twistd_is_kept(own: bool) -> None:
    options = ServerOptions()
    arguments = ["--logger=twisted.logger.textFileLogObserver"] if own else []
    options.parseOptions([*arguments, "-n", "cartd"])
    assert (options["logger"] is logs.log_observer) is not own


def note(log: AccessLog, request: bytes) -> None:
    log.log_request(
        None,
        "-",
        request,
        200,
        sent=1,
        length=b"2",
        headers=Headers(),
        seconds=0.0,
        context=LogContext(),
    )


def test_requests_of_one_iteration_are_one_log_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logs, "_supports_multiline", True)
    clock = Clock()
    log = AccessLog(clock)
    with capturedLogs() as entries:
        note(log, b"first")
        note(log, b"second")
        clock.advance(0)
        note(log, b"third")
        log.close()
        log.close()
        note(log, b"after the end")
    assert [len(entry["lines"]) for entry in entries[:2]] == [2, 1]
    first, second = entries[0]["lines"]
    assert '"first"' in first and '"second"' in second
    assert "after the end" in entries[2]["line"] and len(entries) == 3
    assert clock.getDelayedCalls() == []


def test_all_lines_are_in_the_log_file_of_twistd(tmp_path: Path) -> None:
    with running_cartd(tmp_path, archive="http://127.0.0.1:9/", started=False) as cartd:
        cartd.program = (command("twistd"), "-n", "--logfile=named.log", "cartd")
        cartd.start()
        for _ in range(3):
            cartd.get("/?mark")
        assert cartd.terminate() == 0
    lines = (tmp_path / "named.log").read_text().splitlines()
    marked = [line for line in lines if "/?mark" in line]
    assert len(marked) == 3
    form = r"\d{4}-\d\d-\d\dT\S+ \[cartd\.access_log#info\] 127\.0\.0\.1 - - \[.*"
    assert all(re.fullmatch(form, line) for line in marked)
