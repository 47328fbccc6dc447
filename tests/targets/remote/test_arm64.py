"""An arm64 Debian under qemu-user as a device: another processor's kernels, and times that are marked as no times.

`KDC_ARM64_ROOT` names its root, which `.ci/arm64_root` makes. These tests enter it, as root, with qemu-user-static
registered for binfmt; those of `tests/targets/test_other_processors.py` need neither.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from remote_devices import folders_in, processes_with

from targets.answers import answers
from targets.measure import Settings, compare
from targets.process import Workplace

ROOT = os.environ.get("KDC_ARM64_ROOT")
BINFMT = Path("/proc/sys/fs/binfmt_misc/qemu-aarch64")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(ROOT is None, reason="KDC_ARM64_ROOT names no arm64 root"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a chroot takes root"),
    pytest.mark.skipif(not BINFMT.exists(), reason="qemu-aarch64 is not registered for binfmt"),
]


@pytest.fixture
def board(device, sshd, tmp_path):
    """The arm64 root behind sshd: its Python is what the address names."""
    python = tmp_path / "python3"
    # In a mount namespace of its own: the root's /proc is there as long as this Python is.
    python.write_text(
        "#!/bin/sh\nunset KDC_DEVICE_LOCK\nexport HOME=/root XDG_CACHE_HOME=/tmp/cache\n"
        f"exec unshare --mount sh -c 'mount --bind /proc {ROOT}/proc && "
        f'exec chroot {ROOT} /usr/bin/python3 "$@"\' sh "$@"\n'
    )
    python.chmod(0o755)
    return device.model_copy(update={"address": sshd.address(python)})


def test_an_emulated_device_is_seen_to_be_one(board, linear):
    with Workplace(None, board) as place:
        assert place._site.facts["machine"] == "aarch64"
        assert place._site.facts["emulated"]
    settings = Settings(seconds=1, processes_min=3, processes_max=3, slice_seconds=0.05)
    found = compare(linear("a.onnx", 64, 64)[0], linear("b.onnx", 8, 8)[0], board, settings=settings)
    assert found.candidate.latency.emulated
    assert found.environment["emulated"]
    assert "aarch64" in found.environment["platform"]
    assert any(note.startswith("emulated: ") for note in found.notes)
    assert folders_in(Path(ROOT, "tmp/cache")) == []
    assert processes_with("agent.pyz") == []


def test_answers_of_arm_kernels_are_the_formulas(board, linear):
    file, weight = linear("m.onnx", 64, 16)
    x = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    (y,) = answers(file, board, [x])
    np.testing.assert_allclose(y, x.astype(np.float64) @ weight.astype(np.float64), rtol=1e-4, atol=1e-5)
