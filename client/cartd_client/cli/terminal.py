"""Standard output and standard error: safe text, colours, columns, and JSON.

Names and messages of a service are foreign text.  Nothing of it reaches a terminal that the
terminal would obey: control characters and those that reorder text are escaped.
"""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import IO, Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

MIN_WIDTH = 20
_OBEYED = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def safe(text: str) -> str:
    """Return foreign text on one line, with what a terminal obeys, or cannot show, escaped."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Terminal:
    """Where the command writes: results to ``out``, progress and errors to ``err``."""

    def __init__(self, *, colour: bool = True) -> None:
        for stream in (sys.stdout, sys.stderr):
            # A name that the encoding lacks must not end the command, nor become another name.
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure is not None:
                reconfigure(errors="backslashreplace")
        colour = colour and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self.out = _console(sys.stdout, colour)
        self.err = _console(sys.stderr, colour)

    @property
    def width(self) -> int | None:
        """Columns of the terminal of standard output; ``None`` if it is none."""
        return max(self.out.width, MIN_WIDTH) if self.out.is_terminal else None

    def line(self, text: str = "", style: str = "") -> None:
        """Write one line of results; the terminal folds it, so that it can be copied."""
        if self.out.is_terminal:
            self.out.print(Text(safe(text), style=style), soft_wrap=True)
        else:
            self.out.file.write(safe(text) + "\n")  # 20 times as fast, for lists of a million

    def paragraph(self, text: str, style: str = "", indent: int = 0) -> None:
        """Write text, wrapped at words to the terminal; on one line if there is none."""
        for row in wrapped(safe(text), self.width, indent):
            self.out.print(Text(row, style=style), soft_wrap=True)

    def facts(self, rows: Iterable[tuple[str, str | Text]]) -> None:
        """Write names and values as two columns; the values are wrapped."""
        named = list(rows)
        indent = max((cell_len(name) for name, _ in named), default=0) + 2
        for name, value in named:
            style = value.style if isinstance(value, Text) else ""
            text = safe(str(value))
            for number, row in enumerate(wrapped(text, self.width, indent)):
                shown = Text(name.ljust(indent) if number == 0 else " " * indent, style="bold")
                self.out.print(
                    shown.append(row.lstrip(), style=style or "not bold"), soft_wrap=True
                )

    def table(self, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Write columns; on a terminal that is too narrow, a paragraph for each row."""
        cells = [[safe(cell) for cell in row] for row in rows]
        widths = [
            max(cell_len(row[column]) for row in [list(heads), *cells])
            for column in range(len(heads))
        ]
        if self.width is not None and sum(widths) + 2 * (len(widths) - 1) > self.width:
            for first, *others in cells:
                self.out.print(Text(first, style="bold"), soft_wrap=True)
                self.paragraph(", ".join(cell for cell in others if cell), indent=2)
            return
        for number, row in enumerate([list(heads), *cells]):
            padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths))
            style = "bold" if number == 0 else ""
            self.out.print(Text("  ".join(padded).rstrip(), style=style), soft_wrap=True)

    def note(self, text: str, style: str = "") -> None:
        """Write a line to standard error, above a progress bar if there is one."""
        width = max(self.err.width, MIN_WIDTH) if self.err.is_terminal else None
        for row in wrapped(safe(text), width, 0):
            self.err.print(Text(row, style=style), soft_wrap=True)


def _console(stream: IO[str], colour: bool) -> Console:
    return Console(
        file=stream,
        no_color=not colour,
        color_system="auto" if colour else None,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=None,
        force_jupyter=False,
    )


def wrapped(text: str, width: int | None, indent: int) -> list[str]:
    """Return ``text`` as lines of ``width`` columns, indented; as one line if that is ``None``.

    Long words, such as URLs and paths, are kept whole: the terminal folds them.
    """
    room = 0 if width is None else width - indent
    if width is None or cell_len(text) <= room or room < MIN_WIDTH // 2:
        return [" " * indent + text]
    lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]
    return [" " * indent + line for line in lines]


def json_text(document: Any) -> str:
    """Return ``document`` as JSON that any encoding of standard output can carry."""
    return json.dumps(document, default=_as_json)


def _as_json(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)


# Numbers for people


def count(number: int, noun: str) -> str:
    """Return ``1 file`` or ``1,200 files``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: float) -> str:
    """Return ``45 s``, ``12 min``, ``2 h 5 min`` or ``3 d 4 h``."""
    whole = max(0, round(seconds))
    if whole < 100:
        return f"{whole} s"
    minutes = round(whole / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def moment(time: datetime, now: datetime) -> str:
    """Return a time in the zone of this computer, and how long ago it was."""
    text = time.astimezone().strftime("%Y-%m-%d %H:%M")
    past = (now - time).total_seconds()
    return f"{text} ({duration(past)} ago)" if past >= 0 else text
