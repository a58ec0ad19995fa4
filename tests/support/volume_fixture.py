"""Fixtures: a prepared volume whose calls run in the calling thread.

Use with ``pytest_plugins = ("tests.support.volume_fixture",)`` in a test module.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cartd.volume import Volume
from tests.support.volume_parts import InThisThread


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "volume"


@pytest.fixture
def volume(root: Path) -> Volume:
    volume = Volume(root, InThisThread())
    volume.prepare()
    return volume
