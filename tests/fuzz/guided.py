"""``python -m tests.fuzz.guided TARGET [libFuzzer's arguments]``: one target, guided by coverage.

Atheris runs it in this process until the time is over or something is found.  It instruments all of
cartd and of its client, which therefore must not be imported before.
"""

from __future__ import annotations

import sys

import atheris

from tests.fuzz.targets import target


def main() -> None:
    name, *arguments = sys.argv[1:]
    with atheris.instrument_imports(include=["cartd", "cartd_client"]):
        check = target(name).check
    atheris.Setup([sys.argv[0], *arguments], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
