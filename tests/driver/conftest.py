"""What the tests of recipes share."""

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files that a good recipe names."""
    (tmp_path / "my.py").write_text("raise RuntimeError('a recipe runs no code')\n")
    (tmp_path / "w.safetensors").write_bytes(b"")
    return tmp_path
