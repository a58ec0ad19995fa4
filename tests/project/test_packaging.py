"""The distributions have every file that cartd and its client need, and find what they need."""

from __future__ import annotations

import ast
import tomllib
from importlib.metadata import requires, version
from pathlib import Path

from packaging.requirements import Requirement

import cartd_client

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


def test_every_data_file_of_the_client_is_installed() -> None:
    settings = tomllib.loads((ROOT / "client/pyproject.toml").read_text("utf-8"))
    declared = settings["tool"]["setuptools"]["package-data"]["cartd_client"]
    package = ROOT / "client/cartd_client"
    there = {
        path.relative_to(package).as_posix()
        for path in package.rglob("[!.]*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert there == set(declared)


def test_the_client_is_installed_with_the_versions_that_it_wants() -> None:
    assert version("cartd-client") == cartd_client.__version__
    wanted = [Requirement(line) for line in requires("cartd-client") or ()]
    assert {need.name for need in wanted} == {
        *("click", "keyring", "platformdirs", "rich", "tomli", "urllib3")
    }
    for need in wanted:
        if need.marker is None or need.marker.evaluate({"python_version": "3.9", "extra": ""}):
            assert need.specifier.contains(version(need.name)), need
