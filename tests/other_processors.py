"""The same files on another processor, emulated by qemu-user: what to run, and why it cannot be had here."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

SCRIPT = Path(__file__).with_name("answer_files.py")
ROOT = os.environ.get("KDC_ARM64_ROOT")
HERE = "here"
HASWELL = "Haswell"  # AVX2, no AVX-512, no VNNI
ARM64 = "arm64"


def python_on(processor: str) -> list[str]:
    """The command that is Python on a processor; that of arm64 has numpy and onnxruntime, no more."""
    if processor == HASWELL:
        return [_emulator("x86_64") or "", "-cpu", HASWELL, sys.executable]
    if processor == ARM64:
        (python,) = list(Path(ROOT or "").glob("usr/bin/python3.[0-9]*[0-9]"))[:1]
        return [_emulator("aarch64") or "", "-L", str(ROOT), str(python)]
    return [sys.executable]


def _emulator(architecture: str) -> str | None:
    return shutil.which(f"qemu-{architecture}-static") or shutil.which(f"qemu-{architecture}")


def lacks(processor: str) -> str | None:
    """Why this machine cannot emulate a processor; None where it can."""
    if processor == HERE:
        return None
    if not sys.platform.startswith("linux"):
        return "qemu-user runs on Linux"
    if _emulator("aarch64" if processor == ARM64 else "x86_64") is None:
        return "there is no qemu-user here (package qemu-user-static)"
    if processor == HASWELL and os.uname().machine != "x86_64":
        return "the Python that would be run is not x86-64's"
    if processor == ARM64 and ROOT is None:
        return "KDC_ARM64_ROOT names no arm64 root (.ci/arm64_root makes one)"
    return None


def answers_on(
    processor: str, tasks: Sequence[tuple[dict[str, object], Path]], inputs: np.ndarray, folder: Path
) -> list[np.ndarray]:
    """What files answer on a processor, one sample at a time, all in one process.

    Args: tasks: (fields of a Device, device file). inputs: [n, ...].

    Returns: for each file [n, ...].
    """
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "inputs.npy", inputs)
    job = [
        {"device": device, "path": str(path), "inputs": str(folder / "inputs.npy"), "answers": str(folder / f"{i}.npy")}
        for i, (device, path) in enumerate(tasks)
    ]
    (folder / "job.json").write_text(json.dumps(job))
    done = subprocess.run(
        [*python_on(processor), str(SCRIPT), str(folder / "job.json")],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return [np.load(folder / f"{i}.npy") for i in range(len(tasks))]
