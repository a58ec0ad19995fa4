"""What shows progress: when lines are written, what JSON says, and what fits on a terminal."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from cartd_client.cli.progress import (
    BarDisplay,
    Display,
    JsonDisplay,
    LineDisplay,
    Stage,
    display,
    span,
    staging,
    transfer,
)
from cartd_client.cli.terminal import Terminal
from cartd_client.model import ByteCounts, Eta, FileCounts, Progress, Rate, Status
from tests.support.cart_command import validator

GB = 10**9
STAGING = Status(
    "my-cart",
    "staging",
    message="Waiting for tape: 210 of 1,200 files",
    progress=48.7,
    files=FileCounts(total=1200, staged=581, failed=1),
    bytes=ByteCounts(total=412 * GB, staged=198 * GB),
    rate=Rate(81e6),
    eta=Eta(730, 430, 1300),
)
DOWNLOAD = Progress(198 * GB, 412 * GB, 581, 1200, 81e6)


class Recorded:
    """A terminal that is none, and a clock."""

    def __init__(self) -> None:
        self.written = io.StringIO()
        with redirect_stderr(self.written):
            self.terminal = Terminal()
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    @property
    def lines(self) -> list[str]:
        """What was written since the last look, without the times."""
        lines = self.written.getvalue().splitlines()
        self.written.seek(0)
        self.written.truncate()
        return lines


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


@pytest.fixture
def lines(recorded: Recorded) -> Iterator[LineDisplay]:
    with LineDisplay(recorded.terminal, recorded.clock) as shown:
        assert isinstance(shown, LineDisplay)
        yield shown


def downloaded(percent: float) -> Stage:
    return transfer(Progress(int(percent * 1000), 100_000, 0, None, None))


def test_a_stage_says_the_most_important_facts_first() -> None:
    assert staging(STAGING).facts == (
        "581 of 1,200 files",
        "ready in 7 to 22 min",
        "81 MB/s",
        "1 failed",
    )
    assert transfer(DOWNLOAD).facts == (
        "198 GB of 412 GB",
        "81 MB/s",
        "44 min left",
        "581 of 1,200 files",
    )


def test_what_is_not_known_is_not_shown() -> None:
    assert staging(Status("my-cart", "staging")).facts == ()
    stage = transfer(Progress(5000, None, 0, None, None))
    assert (stage.facts, stage.fraction, stage.percent) == (("5 kB",), None, "")


def test_a_cart_and_a_download_are_at_100_percent_only_at_their_end() -> None:
    almost = Status("my-cart", "staging", progress=100.0)
    assert staging(almost).percent == "99 %"
    assert downloaded(99.99).percent == "99 %"
    assert downloaded(100).percent == "100 %"
    assert transfer(Progress(0, 0, 0, 0, None)).percent == "100 %", "an empty cart"


def test_a_span_of_time_has_its_unit_once() -> None:
    assert span(430, 1300) == "7 to 22 min"
    assert span(30, 1300) == "30 s to 22 min"
    assert span(30, 30) == "30 s"
    assert span(3600 * 30, 86400 * 4) == "30 h to 4 d"


def test_lines_are_written_each_5_percent_or_30_seconds(
    recorded: Recorded, lines: LineDisplay
) -> None:
    def written(percent: float, now: float) -> int:
        recorded.now = now
        lines.show(downloaded(percent))
        return len(recorded.lines)

    rising = enumerate((0, 1, 4.9, 5, 5.1, 9.9, 12))
    assert [written(percent, now) for now, percent in rising] == [1, 0, 0, 1, 0, 0, 1]
    assert [written(50, now) for now in (6.9, 7)] == [0, 1], "at most one a second"
    assert [written(50, now) for now in (36, 37, 38, 66, 67)] == [0, 1, 0, 0, 1]
    recorded.now = 96
    lines.repeat()
    assert not recorded.lines
    recorded.now = 97
    lines.repeat()
    assert len(recorded.lines) == 1, "a silent service is not a silent log"


def test_a_line_says_what_the_cart_waits_for(recorded: Recorded, lines: LineDisplay) -> None:
    lines.show(staging(STAGING))
    lines.show(transfer(DOWNLOAD))
    lines.show(staging(Status("my-cart", "staging")))

    first, second, third = recorded.lines
    assert third[20:] == "Staging", "a Pacifica Cartd tells no more"
    assert first[20:] == (
        "Staging: 48 %, 581 of 1,200 files, ready in 7 to 22 min, 81 MB/s, 1 failed."
        " Waiting for tape: 210 of 1,200 files"
    )
    assert second[20:].startswith("Downloading: 48 %, 198 GB of 412 GB"), "a new stage at once"


def test_lines_say_each_10_minutes_that_trouble_lasts(
    recorded: Recorded, lines: LineDisplay
) -> None:
    counts = []
    for recorded.now in (0, 60, 599, 600, 601):
        lines.trouble("http://x: Connection refused", 60)
        counts.append(len(recorded.lines))
    lines.show(downloaded(1))
    lines.trouble("http://x: Connection refused", 60)

    assert counts == [1, 0, 0, 1, 0]
    assert len(recorded.lines) == 2, "after progress, trouble is news again"


def test_foreign_text_in_a_line_cannot_move_the_cursor(
    recorded: Recorded, lines: LineDisplay
) -> None:
    lines.show(Stage("Staging", None, (), "a\x1b[2J\u202eb\nc"))

    [line] = recorded.lines
    assert line.endswith("a\\x1b[2J\\u202eb\\nc")


def test_json_lines_conform_to_the_schema_and_come_once_a_second(recorded: Recorded) -> None:
    shown = JsonDisplay(recorded.terminal, recorded.clock)
    for recorded.now, percent in ((0.0, 1), (0.5, 2), (1.0, 3), (1.1, 100), (1.2, 100)):
        shown.show(downloaded(percent))
    shown.show(staging(STAGING))
    shown.trouble("refused", 2.04)
    documents = [json.loads(line) for line in recorded.lines]

    for document in documents:
        validator("progressLine").validate(document)
    assert [document.get("percent") for document in documents] == [1, 3, 100, 48.7, None]
    assert documents[-1] == {"event": "retry", "detail": "refused", "delay": 2.0}


@given(
    width=st.integers(20, 300),
    detail=st.text(max_size=200),
    number=st.integers(0, 2**63),
    wide=st.sampled_from(["", "数据" * 30]),
)
def test_no_row_below_a_bar_is_wider_than_the_terminal(
    width: int, detail: str, number: int, wide: str
) -> None:
    stage = transfer(Progress(number, number + 1, number, number, 1.0))
    rows = rendered(Stage(stage.name, stage.fraction, stage.facts, wide + detail), width)

    assert max(map(cell_len, rows)) <= width


def rendered(stage: Stage, width: int) -> list[str]:
    """Return the rows of a bar on a terminal of that width."""
    written = io.StringIO()
    recorded = Recorded()
    recorded.terminal.err = Console(file=written, width=width, force_terminal=True)
    bar = BarDisplay(recorded.terminal)
    bar._stage = stage
    Console(file=written, width=width, color_system=None).print(bar._rendered())
    return written.getvalue().split("\n")[:-1]


def test_a_narrow_terminal_shows_fewer_facts_and_a_part_of_a_long_detail() -> None:
    stage = replace(transfer(DOWNLOAD), detail="The archive is unavailable. " * 20)
    wide, narrow = rendered(stage, 100), rendered(stage, 44)

    assert wide[1] == "198 GB of 412 GB, 81 MB/s, 44 min left, 581 of 1,200 files"
    assert narrow[1] == "198 GB of 412 GB, 81 MB/s, 44 min left"
    assert [len(wide), len(narrow)] == [5, 5]
    assert narrow[-1].endswith("\u2026")


def test_progress_is_a_bar_only_on_a_terminal_that_can_draw(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kind(mode: str, *, quiet: bool = False) -> type[Display]:
        with display(mode, recorded.terminal, quiet=quiet) as shown:
            return type(shown)

    assert kind("auto") is kind("bar") is kind("lines") is LineDisplay
    assert kind("json") is JsonDisplay
    assert kind("none") is kind("auto", quiet=True) is Display
    recorded.terminal.err = Console(file=io.StringIO(), force_terminal=True)
    assert kind("auto") is kind("bar") is BarDisplay
    monkeypatch.setenv("TERM", "dumb")
    assert kind("auto") is kind("bar") is LineDisplay
