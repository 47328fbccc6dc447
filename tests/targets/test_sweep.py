"""The caches' sizes are read from Linux's files, and a sweep touches all of its buffer on every core."""

import os

import numpy as np
import pytest

from targets.sweep import Sweep, last_level_bytes, sweep_bytes


def caches(root, *levels):
    for number, (kind, size) in enumerate(levels):
        folder = root / f"sys/devices/system/cpu/cpu0/cache/index{number}"
        folder.mkdir(parents=True)
        (folder / "type").write_text(f"{kind}\n")
        (folder / "size").write_text(f"{size}\n")
    return root


def test_the_last_level_is_the_largest_that_holds_data(tmp_path):
    caches(tmp_path, ("Data", "32K"), ("Instruction", "64M"), ("Unified", "1024K"), ("Unified", "12M"))
    assert last_level_bytes(tmp_path) == 12 * 2**20
    assert sweep_bytes(tmp_path) == 24 * 2**20


@pytest.mark.parametrize("levels", [(), (("Unified", ""),), (("Unified", "many"),), (("Instruction", "32K"),)])
def test_a_cache_that_is_not_told_is_none_and_64_mib_are_swept(tmp_path, levels):
    caches(tmp_path, *levels)
    assert last_level_bytes(tmp_path) is None
    assert sweep_bytes(tmp_path) == 64 * 2**20


def test_a_sweep_reads_and_writes_all_of_its_buffer():
    sweep = Sweep(size=800)
    sweep()
    sweep()
    assert [buffer.tolist() for buffer in sweep.buffers] == [[2] * 100]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system pins no threads")
def test_every_core_is_swept_and_the_model_s_thread_stays_where_it_was():
    allowed = os.sched_getaffinity(0)
    cores = (min(allowed), max(allowed))  # of a machine with one core: twice the same
    sweep = Sweep(cores, size=80)
    sweep()
    assert np.array_equal(sweep.buffers, np.ones((2, 10)))
    assert os.sched_getaffinity(0) == allowed
