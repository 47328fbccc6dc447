"""A project of a user's own, small enough to be compressed in seconds: `shapes`, four kinds of 8x8 pictures."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

os.environ.setdefault("COLUMNS", "80")
torch.set_num_threads(2)
# A job in a shell's background ignores Ctrl-C, and so would every process that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collectstart(collector: pytest.Collector) -> None:
    """What a file draws when it is imported does not depend on the files before it."""
    _seed(collector.nodeid)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Nor what a test draws on the tests before it."""
    _seed(item.nodeid)


def _seed(name: str) -> None:
    seed = zlib.crc32(name.encode())
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


TEACHER = """
import torch
from torch import nn


def build(width=32):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4),
    )
"""

DATA = '''
import numpy as np


def load(n=600, seed=0):
    """Noise with a bright bar: top, bottom, left or right."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    images = rng.standard_normal((n, 1, 8, 8)).astype(np.float32)
    for image, label in zip(images[:, 0], labels):
        bar = image[[0, -1][label], :] if label < 2 else image[:, [0, -1][label - 2]]
        bar += 3
    cut = [int(n * share) for share in (0.6, 0.7, 0.85)]
    parts = zip(("train", "calibration", "validation", "test"), np.split(images, cut), np.split(labels, cut))
    return {name: (x, y) for name, x, y in parts}
'''

RECIPE = """
teacher:
  build: teacher.py:build
  weights: teacher.safetensors
data: data.py:load
budget:
  max_drop: 100
passes:
  - prune:
      keep_macs: 0.2
      alignment: 4
      training: {epochs: 3, batch: 32}
  - quantize
"""


@pytest.fixture(scope="session")
def shapes_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher's weights, trained once a session."""
    path = tmp_path_factory.mktemp("weights") / "teacher.safetensors"
    train_teacher(TEACHER + DATA, path, epochs=12, learning_rate=3e-3)
    return path


def train_teacher(source: str, path: Path, *, epochs: int, learning_rate: float) -> None:
    """Train what `build` in this source makes on what its `load` gives, and save the weights."""
    from safetensors.torch import save_file

    names: dict = {}
    exec(source, names)
    images, labels = names["load"]()["train"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = names["build"]().train()
        optimizer = torch.optim.AdamW(model.parameters(), learning_rate)
        for _ in range(epochs):
            for x, y in zip(torch.tensor(images).split(60), torch.tensor(labels).split(60), strict=True):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
    save_file(model.state_dict(), path)


@pytest.fixture
def shapes(tmp_path: Path, shapes_weights: Path) -> Path:
    """A folder with teacher.py, its weights, data.py and recipe.yaml."""
    folder = tmp_path / "shapes"
    folder.mkdir()
    (folder / "teacher.py").write_text(TEACHER)
    (folder / "data.py").write_text(DATA)
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "teacher.safetensors").write_bytes(shapes_weights.read_bytes())
    return folder


@pytest.fixture
def kdc(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the program as a user does: a process of its own, in a folder of its own."""

    def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kdc.cli.main", *map(str, arguments)]
        environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1"}
        return subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=600, check=False, **options
        )  # type: ignore[call-overload]

    return run
