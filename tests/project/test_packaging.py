"""The distributions have every file that cartd needs."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_data_file_of_a_package_is_installed() -> None:
    [declared] = [
        ast.literal_eval(node.value)
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text("utf-8")))
        if isinstance(node, ast.keyword) and node.arg == "package_data"
    ]
    there = {
        path.relative_to(ROOT)
        for path in (ROOT / "cartd").rglob("[!.]*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert there == {
        Path(package.replace(".", "/"), name) for package in declared for name in declared[package]
    }
