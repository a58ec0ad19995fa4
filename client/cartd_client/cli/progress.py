"""How far a command is: a bar on a terminal, lines in a log, JSON for programs, or nothing.

All are written to standard error, so that results can be redirected.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Callable

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cartd_client.cli.terminal import Terminal, count, duration, json_text, safe, wrapped
from cartd_client.model import Progress, Status, format_bytes

MODES = ("auto", "bar", "lines", "json", "none")
LINE_INTERVAL = 30.0
"""Seconds after which lines say again how far the command is."""
LINE_STEP = 0.05
"""Progress after which they do, ``LINE_PAUSE`` seconds after the last line at least."""
LINE_PAUSE = 1.0
JSON_INTERVAL = 1.0
MAX_DETAIL = 3
"""Rows below the bar for what a cart waits for, or for trouble."""
NOTE_INTERVAL = 600.0
"""Seconds after which lines say again that the same trouble lasts."""


@dataclass(frozen=True)
class Stage:
    """How far one stage of a command is, in words: the most important ones first."""

    name: str
    """``Staging``, ``Downloading`` or ``Verifying``."""
    fraction: float | None
    """0 to 1; ``None`` if it is not known."""
    facts: tuple[str, ...]
    detail: str = ""
    """What the cart waits for, or why nothing happens."""
    document: Mapping[str, Any] | None = None

    @property
    def percent(self) -> str:
        """The percentage, which is 100 only at the end."""
        if self.fraction is None:
            return ""
        return f"{100 if self.fraction >= 1 else min(99, int(self.fraction * 100))} %"


def staging(status: Status) -> Stage:
    """Return how far the service is with a cart."""
    files = status.files
    facts = []
    if files.total is not None and files.staged is not None:
        facts.append(f"{files.staged:,} of {count(files.total, 'file')}")
    if status.eta is not None and status.eta.low is not None and status.eta.high is not None:
        facts.append(f"ready in {span(status.eta.low, status.eta.high)}")
    if status.rate is not None and status.rate.recent:
        facts.append(f"{format_bytes(status.rate.recent)}/s")
    if files.failed:
        facts.append(f"{files.failed:,} failed")
    fraction = None if status.progress is None else status.progress / 100
    if fraction is None and files.total and files.staged is not None:
        fraction = files.staged / files.total
    if fraction is not None and not status.is_ended:
        fraction = min(fraction, 0.999)
    document = {
        "percent": None if fraction is None else round(fraction * 100, 1),
        "files_done": files.staged,
        "files_total": files.total,
        "bytes_done": status.bytes.staged,
        "bytes_total": status.bytes.total,
        "rate": status.rate and status.rate.recent,
        "message": status.message,
    }
    return Stage("Staging", fraction, tuple(facts), status.message or "", document)


def transfer(progress: Progress, name: str = "Downloading") -> Stage:
    """Return how far a download, or a verification, is."""
    done, total = progress.bytes_done, progress.bytes_total
    facts = [
        format_bytes(done) if total is None else f"{format_bytes(done)} of {format_bytes(total)}"
    ]
    if progress.rate:
        facts.append(f"{format_bytes(progress.rate)}/s")
        if total is not None and total > done:
            facts.append(f"{duration((total - done) / progress.rate)} left")
    if progress.files_total:
        facts.append(f"{progress.files_done:,} of {count(progress.files_total, 'file')}")
    elif progress.files_done:
        facts.append(count(progress.files_done, "file"))
    fraction = None if total is None else (done / total if total else 1.0)
    document = {
        "percent": None if fraction is None else round(fraction * 100, 1),
        "files_done": progress.files_done,
        "files_total": progress.files_total,
        "bytes_done": done,
        "bytes_total": total,
        "rate": progress.rate,
    }
    return Stage(name, fraction, tuple(facts), "", document)


def span(low: float, high: float) -> str:
    """Return a span of time: ``7 to 22 min``."""
    first, last = duration(low), duration(high)
    if first == last:
        return last
    if first.split()[1:] == last.split()[1:]:
        first = first.split()[0]
    return f"{first} to {last}"


class Display:
    """Shows nothing; the others derive from it.  Used as a context."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def show(self, stage: Stage) -> None:
        """Show how far the command is; called as often as there is news."""

    def trouble(self, text: str, delay: float) -> None:
        """Say that something has failed, and is tried again after ``delay`` seconds."""

    def close(self) -> None:
        """Remove what must not stay on the terminal.  May be called twice."""


class LineDisplay(Display):
    """A line each 30 seconds or 5 %, and at each new stage: for log files and dumb terminals."""

    def __init__(self, terminal: Terminal, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(terminal)
        self._clock = clock
        self._lock = threading.Lock()
        self._stage: Stage | None = None
        self._shown: Stage | None = None
        self._shown_at = self._trouble_at = float("-inf")
        self._closed = threading.Event()
        threading.Thread(target=self._repeat, name="progress", daemon=True).start()

    def show(self, stage: Stage) -> None:
        with self._lock:
            self._stage = stage
            self._trouble_at = float("-inf")
            if self._is_due(stage):
                self._write(stage)

    def trouble(self, text: str, delay: float) -> None:
        with self._lock:
            if self._clock() - self._trouble_at < NOTE_INTERVAL:
                return
            self._trouble_at = self._clock()
            self._print(f"{text}; trying again in {duration(delay)}")

    def close(self) -> None:
        self._closed.set()

    def repeat(self) -> None:
        """Write the line again if nothing was written for 30 seconds."""
        with self._lock:
            is_due = self._clock() - self._shown_at >= LINE_INTERVAL
            if self._stage is not None and is_due and not self._closed.is_set():
                self._write(self._stage)

    def _is_due(self, stage: Stage) -> bool:
        shown = self._shown
        if shown is None or shown.name != stage.name or shown.detail != stage.detail == "":
            return True
        since = self._clock() - self._shown_at
        if since >= LINE_INTERVAL:
            return True
        if since < LINE_PAUSE:
            return False
        if stage.fraction is None or shown.fraction is None:
            return stage.fraction != shown.fraction
        steps = int(stage.fraction / LINE_STEP + 1e-9) - int(shown.fraction / LINE_STEP + 1e-9)
        return steps != 0

    def _write(self, stage: Stage) -> None:
        self._shown, self._shown_at = stage, self._clock()
        said = ", ".join(part for part in (stage.percent, *stage.facts) if part)
        text = f"{stage.name}: {said}" if said else stage.name
        self._print(f"{text}. {stage.detail}" if stage.detail else text)

    def _print(self, text: str) -> None:
        self.terminal.err.print(
            Text(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {safe(text)}"), soft_wrap=True
        )

    def _repeat(self) -> None:
        while not self._closed.wait(LINE_INTERVAL):
            self.repeat()


class JsonDisplay(Display):
    """A JSON object a line: ``progress``, at most one a second and stage, and ``retry``."""

    def __init__(self, terminal: Terminal, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(terminal)
        self._clock = clock
        self._shown: Stage | None = None
        self._shown_at = float("-inf")

    def show(self, stage: Stage) -> None:
        shown, now = self._shown, self._clock()
        is_new = shown is None or shown.name != stage.name
        if not is_new and stage.fraction != 1 and now - self._shown_at < JSON_INTERVAL:
            return
        if shown is not None and shown == stage:
            return
        self._shown, self._shown_at = stage, now
        known = {key: value for key, value in (stage.document or {}).items() if value is not None}
        self._write({"event": "progress", "stage": stage.name.lower(), **known})

    def trouble(self, text: str, delay: float) -> None:
        self._write({"event": "retry", "detail": text, "delay": round(delay, 1)})

    def _write(self, document: Mapping[str, Any]) -> None:
        self.terminal.err.file.write(json_text(document) + "\n")
        self.terminal.err.file.flush()


class BarDisplay(Display):
    """A bar with the facts below it, as many as fit; it leaves nothing on the terminal."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__(terminal)
        self._stage: Stage | None = None
        self._live = Live(
            get_renderable=self._rendered,
            console=terminal.err,
            refresh_per_second=4,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def show(self, stage: Stage) -> None:
        is_first, self._stage = self._stage is None, stage
        if is_first:
            self._live.start(refresh=True)

    def trouble(self, text: str, delay: float) -> None:
        said = f"Trying again in {duration(delay)}: {text}"
        if self._stage is None:
            self.show(Stage("Connecting", None, (), said))
        else:
            self._stage = replace(self._stage, detail=said)

    def close(self) -> None:
        self._live.stop()

    def _rendered(self) -> Group | Text:
        return Text() if self._stage is None else Group(_Bar(self._stage))


class _Bar:
    """A stage, for the width of the terminal."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        stage = self._stage
        # The ^C that a terminal writes after the last row must not begin another one.
        width = max(1, options.max_width - len("^C"))
        row = Table.grid(padding=(0, 1, 0, 0), expand=True)
        row.add_column(no_wrap=True)
        row.add_column(ratio=1)
        row.add_column(no_wrap=True, justify="right", width=len("100 %"))
        bar = ProgressBar(
            total=None if stage.fraction is None else 1.0,
            completed=stage.fraction or 0.0,
            pulse=stage.fraction is None,
        )
        row.add_row(Text(stage.name, style="bold"), bar, Text(stage.percent))
        yield row
        yield Text(_fitting(stage.facts, width), no_wrap=True)
        if stage.detail:
            ends = "..." if options.ascii_only else "\u2026"
            rows = wrapped(safe(stage.detail), width, 0)
            if len(rows) > MAX_DETAIL:
                rows[MAX_DETAIL - 1 :] = [rows[MAX_DETAIL - 1] + ends]
            for text in rows:
                cut = (
                    set_cell_size(text, width - len(ends)) + ends
                    if cell_len(text) > width
                    else text
                )
                yield Text(cut, style="dim", no_wrap=True)


def _fitting(facts: tuple[str, ...], width: int) -> str:
    """Return as many of the first facts as fit into ``width`` columns."""
    text = ""
    for fact in facts:
        longer = f"{text}, {fact}" if text else fact
        if cell_len(longer) > width and text:
            break
        text = longer
    return set_cell_size(text, width).rstrip() if cell_len(text) > width else text


def display(mode: str, terminal: Terminal, *, quiet: bool) -> Display:
    """Return the display of a mode of :data:`MODES`.

    ``auto`` is a bar on a terminal that can move its cursor, else lines; nothing if ``quiet``.
    A bar that was asked for becomes lines where it cannot be drawn.
    """
    can_draw = terminal.err.is_terminal and not terminal.err.is_dumb_terminal
    if mode == "none" or (mode == "auto" and quiet):
        return Display(terminal)
    if mode == "json":
        return JsonDisplay(terminal)
    if mode in ("auto", "bar") and can_draw:
        return BarDisplay(terminal)
    return LineDisplay(terminal)
