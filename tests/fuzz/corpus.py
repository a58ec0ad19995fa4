"""The corpora: a text file for each target, one input per line, with escaped bytes.

So changes of a corpus can be reviewed, and findings added by hand.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

PLACE = Path(__file__).parent / "corpus"


def load(name: str) -> list[bytes]:
    """Return all inputs of a target, in their order."""
    return [unescaped(line) for line in _file(name).read_text("ascii").split("\n") if line]


def save(name: str, inputs: Iterable[bytes]) -> None:
    """Write the corpus of a target: sorted, each input once."""
    lines = sorted({escaped(data) for data in inputs if data}, key=lambda line: (len(line), line))
    _file(name).write_text("".join(f"{line}\n" for line in lines), "ascii")


def escaped(data: bytes) -> str:
    """Escape as between the quotes of a bytes literal."""
    return data.decode("latin-1").encode("unicode_escape").decode("ascii")


def unescaped(line: str) -> bytes:
    return line.encode("ascii").decode("unicode_escape").encode("latin-1")


def _file(name: str) -> Path:
    return PLACE / f"{name}.txt"
