"""Measuring: the verdict's arithmetic on made samples, and real runs whose times are not judged."""

import contextlib
import dataclasses
import hashlib
import mmap
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from kdc.core.errors import TargetError
from kdc.core.observe import Progress
from kdc.core.spec import DeviceFile
from kdc.numerics.stats import ratio_interval
from targets import site
from targets.fresh import run_fresh
from targets.job import Done, FileTiming, Job, device_of, fields_of
from targets.machine import Load, Watch, peak_bytes
from targets.measure import Settings, compare, measure
from targets.measured import Measured
from targets.proc import mapped_bytes, resident_bytes
from targets.process import Workplace
from targets.quick import memory_of, quick_latencies
from targets.ratio import judge
from targets.sweep import sweep_bytes
from targets.worker import _Subject

SHORT = Settings(seconds=0.5, processes_min=3, processes_max=3, slice_seconds=0.02)


def in_order(blocks_ns):
    """Milliseconds of all runs."""
    return [ns / 1e6 for process in blocks_ns for block in process for ns in block]


def made(times, processes=6, spread=0.002, seed=0):
    """Blocks of a file that takes `times` ns, each process with its own deviation."""
    generator = np.random.default_rng(seed)
    deviations = np.exp(generator.normal(0, spread, processes))
    return tuple(
        tuple(tuple(int(ns) for ns in times * d * generator.uniform(0.99, 1.01, 9)) for _ in range(5))
        for d in deviations
    )


@pytest.mark.parametrize(
    ("cost", "verdict"),
    [
        (0.5, "faster"),
        (0.97, "faster"),
        (1.0, "no detectable difference"),
        (1.005, "no detectable difference"),
        (1.03, "slower"),
        (2.0, "slower"),
    ],
)
def test_the_verdict_follows_the_cost(cost, verdict):
    ratio = judge(made(1e6), made(1e6 * cost, seed=1), interest=0.01)
    assert ratio.verdict == verdict
    assert ratio.ratio == pytest.approx(1 / cost, rel=0.01)
    assert ratio.low <= ratio.ratio <= ratio.high


def test_the_verdict_turns_round_when_the_files_do():
    fast, slow = made(1e6), made(1.2e6, seed=1)
    assert judge(fast, slow, 0.01).verdict == "slower"
    assert judge(slow, fast, 0.01).verdict == "faster"


def test_a_spread_between_processes_leaves_nothing_to_say():
    assert judge(made(1e6, spread=0.3), made(0.95e6, spread=0.3, seed=1), 0.01).verdict == "no detectable difference"


def exiting(hard, work=5e6, seed=0, processes=6):
    """Blocks of a file that takes 1 ms for most of 40 inputs and `work` ns for the first `hard`, each run three times."""
    generator = np.random.default_rng(seed)
    inputs = np.where(np.arange(40) < hard, work, 1e6)
    return tuple(
        tuple(tuple(int(ns) for ns in np.tile(inputs, 3) * generator.uniform(0.99, 1.01, 120)) for _ in range(5))
        for _ in range(processes)
    )


def test_a_mean_is_judged_where_the_work_depends_on_the_input():
    """Against 2 ms for every input: easy inputs take half as long, but with 16 of 40 hard ones the mean is 2.6 ms."""
    assert judge(made(2e6), exiting(16), 0.01).verdict == "faster"
    ratio = judge(made(2e6), exiting(16), 0.01, means=True)
    assert ratio.verdict == "slower"
    assert ratio.ratio == pytest.approx(2 / 2.6, rel=0.01)
    assert judge(exiting(16), made(2e6), 0.01, means=True).ratio == pytest.approx(1.3, rel=0.01)


def test_a_preempted_run_moves_a_judged_mean_by_little():
    calm = exiting(16)
    first = (calm[0][0][0] * 1000, *calm[0][0][1:])
    disturbed = ((first, *calm[0][1:]), *calm[1:])
    before, after = (judge(made(2e6), blocks, 0.01, means=True) for blocks in (calm, disturbed))
    assert after.ratio == pytest.approx(before.ratio, rel=0.001)


def test_a_file_with_exits_cannot_be_told_apart_from_itself():
    ratio = judge(exiting(10), exiting(10, seed=1), 0.01, means=True)
    assert ratio.verdict == "no detectable difference"
    assert ratio.ratio == pytest.approx(1, rel=0.005)


def test_measuring_until_it_is_precise_does_not_tell_equal_files_apart():
    """The rule that stops the sampling looks at the data; its verdict still errs less than one time in twenty."""
    told_apart, settings = 0, Settings()
    for seed in range(400):
        generator = np.random.default_rng(seed)
        logs = list(generator.normal(0, 0.015, settings.processes_min))
        while True:
            interval = ratio_interval(logs)
            if np.log(interval.high / interval.low) / 2 <= settings.precision or len(logs) >= 20:
                break
            logs.append(generator.normal(0, 0.015))
        told_apart += interval.low > 1 + settings.interest or interval.high < 1 / (1 + settings.interest)
    assert told_apart <= 20


def test_files_are_measured_together_and_can_be_compared_with_each_other(device, linear):
    teacher, _ = linear("teacher.onnx", 64, 64)
    students = [linear("a.onnx", 64, 32)[0], linear("b.onnx", 64, 16)[0]]
    events = []
    measured = measure(students, teacher, device, settings=SHORT, emit=events.append)
    assert measured.baseline.path == teacher.path
    assert [one.path for one in measured.candidates] == [student.path for student in students]
    assert [one.macs for one in (measured.baseline, *measured.candidates)] == [64 * 64, 64 * 32, 64 * 16]
    assert [one.parameters for one in measured.candidates] == [64 * 32, 64 * 16]
    assert measured.baseline.sha256 == hashlib.sha256(teacher.path.read_bytes()).hexdigest()
    assert measured.baseline.size_mb == teacher.path.stat().st_size / 1e6
    forth, back = measured.ratio_between(0, 1), measured.ratio_between(1, 0)
    assert forth.ratio == pytest.approx(1 / back.ratio)
    assert forth.ratio == pytest.approx(measured.ratio(1).ratio / measured.ratio(0).ratio, rel=0.2)
    assert all(isinstance(event, Progress) for event in events)
    assert len(events) == 3


def test_every_sample_is_kept_and_survives_json(device, linear):
    file, _ = linear()
    measured = measure([file], file, device, settings=SHORT)
    assert [len(one) for one in measured.samples_ns] == [3, 3]
    latency = measured.candidates[0].latency
    assert latency.n == len(in_order(measured.samples_ns[1])) >= 3 * 3 * 3
    assert latency.median_ms == pytest.approx(np.median(in_order(measured.samples_ns[1])))
    assert latency.low_ms <= latency.median_ms <= latency.high_ms
    assert latency.load_ms > 0
    assert latency.first_ms > 0
    assert Measured.model_validate_json(measured.model_dump_json()) == measured
    assert measured.skips == (False, False)
    assert latency.mean_ms is None
    older = Measured.model_validate(measured.model_dump(exclude={"skips"}))  # written before files could skip
    assert older.ratio(0) == measured.ratio(0)


def test_cold_runs_are_kept_apart_from_hot_ones(device, linear):
    small, large = linear("small.onnx", 8, 8)[0], linear("large.onnx", 64, 64)[0]
    measured = measure([small], large, device, settings=SHORT.model_copy(update={"cold_seconds": 0.1}))
    assert measured.cold is not None
    assert measured.cold.processes == 3
    assert measured.cold.swept_mb == sweep_bytes() / 1e6
    cold, hot = measured.candidates[0].cold, measured.candidates[0].latency
    assert cold.n == len(in_order(measured.cold.samples_ns[1])) >= 3 * 3 * 5
    assert cold.median_ms == pytest.approx(np.median(in_order(measured.cold.samples_ns[1])))
    assert hot.n == len(in_order(measured.samples_ns[1]))
    assert hot.median_ms == pytest.approx(np.median(in_order(measured.samples_ns[1])))
    baseline_ns, candidate_ns = measured.cold.samples_ns
    assert measured.cold_ratio(0) == judge(baseline_ns, candidate_ns, 0.01)
    comparison = measured.comparison(0)
    assert comparison.cold.samples_ns == (candidate_ns, baseline_ns)
    assert comparison.cold_ratio == measured.cold_ratio(0)
    assert Measured.model_validate_json(measured.model_dump_json()) == measured


def test_without_cold_runs_nothing_is_said_of_them(device, linear):
    measured = measure([linear()[0]], linear()[0], device, settings=SHORT)
    assert (measured.cold, measured.cold_ratio(0)) == (None, None)
    assert measured.candidates[0].cold is None


def test_every_timed_run_of_a_cold_block_follows_a_sweep():
    done = []
    subject = _Subject.__new__(_Subject)
    subject.batches, subject.run = [["a"], ["b"], ["c"]], lambda batch: done.append(*batch)
    assert len(subject.block(1, 1, 2, 2, lambda: done.append("sweep"))) == 4
    assert done == ["b", *["sweep", "b", "sweep", "c"] * 2]
    done.clear()
    subject.block(0, 0, 2)
    assert done == ["a", "b"]


def test_one_file_alone_has_no_ratio(device, linear):
    file, _ = linear()
    comparison = compare(file, None, device, settings=SHORT)
    assert comparison.baseline is None
    assert comparison.ratio is None
    assert comparison.candidate.path == file.path
    assert comparison.environment["onnxruntime"]


def test_real_samples_are_what_is_run(device, linear):
    file, _ = linear(inputs=8)
    assert quick_latencies([file], device, [np.zeros((4, 8), np.float32)], seconds=0.02)[0] > 0
    with pytest.raises(TargetError, match=r"takes float32 \[batch, 8\], the samples are float32 \[4, 9\]"):
        quick_latencies([file], device, [np.zeros((4, 9), np.float32)], seconds=0.02)


def test_a_file_that_is_missing_is_named(device, tmp_path):
    nowhere = DeviceFile(tmp_path / "nowhere.onnx", "onnxruntime")
    with pytest.raises(TargetError, match=r"nowhere\.onnx: there is no such file"):
        compare(nowhere, None, device, settings=SHORT)
    with pytest.raises(TargetError, match=r"nowhere\.onnx: there is no such file"):
        quick_latencies([nowhere], device)


def test_peak_memory_counts_the_models_weights(device, linear):
    small, _ = linear("small.onnx", 8, 8)
    large, weight = linear("large.onnx", 2000, 2000)
    measured = measure([small], large, device, settings=SHORT)
    assert measured.baseline.peak_memory_mb > weight.nbytes / 1e6
    assert measured.candidates[0].peak_memory_mb < measured.baseline.peak_memory_mb


def test_what_is_mapped_of_a_folders_files_is_counted_and_no_more(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    sizes = {tmp_path / "weights.bin": 5 * mmap.PAGESIZE, inner / "below.bin": 3 * mmap.PAGESIZE}
    sizes[tmp_path / "library.so.1"] = 7 * mmap.PAGESIZE
    for path, size in sizes.items():
        path.write_bytes(bytes(size))
    assert mapped_bytes(tmp_path) == 0
    with contextlib.ExitStack() as stack:
        for path, size in sizes.items():
            file = stack.enter_context(path.open("rb"))
            stack.enter_context(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))
        assert mapped_bytes(tmp_path) == 5 * mmap.PAGESIZE
    assert mapped_bytes(tmp_path) == 0


def job(device, file, **changes):
    return Job(
        **{"device": fields_of(device), "files": (file,), "inputs": None, "seed": (0,), "cores": None, **changes}
    )


def test_a_process_that_dies_is_an_error_with_its_last_words(device, linear, tmp_path):
    file, _ = linear()
    with Workplace(None, device) as place, pytest.raises(TargetError, match=r"exit code 1\n[\s\S]*FileNotFoundError"):
        place.run(job(device, file, inputs=tmp_path / "gone.npz"))


def test_an_interrupt_leaves_no_process_behind(device, linear, monkeypatch):
    started = []

    def interrupted(self, *_):
        started.append(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with Workplace(None, device) as place:
        with pytest.raises(KeyboardInterrupt):
            place.run(job(device, linear()[0], slice_seconds=60.0))
        assert not place.path.joinpath("result.json").exists()
    assert started[0].wait(timeout=10) != 0


def test_a_measuring_process_has_nothing_in_it_but_numpy_and_the_runtime():
    code = """if True:
        import sys
        before = set(sys.modules)
        import targets.worker, targets.onnxruntime
        targets.onnxruntime.RUNTIME.prepare()
        there = {name for name, module in sys.modules.items() if module is not None}  # None: an import that is blocked
        print(*sorted({name.split(".")[0] for name in there - before} - sys.stdlib_module_names))
    """
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["kdc", "numpy", "onnxruntime", "targets"]


def test_a_job_and_its_result_come_back_from_json_as_they_were(device, linear):
    asked = job(device, linear()[0], cores=(1,), skips=(True,), mode="inputs")
    assert Job.from_json(asked.as_json()) == asked
    read = device_of(Job.from_json(asked.as_json()).device)
    assert (read.runtime, read.threads, read.quantization.activations) == ("onnxruntime", 1, "uint8")
    found = Done(timings=(FileTiming(1, 2, 3, True, ((4, 5), (6,))),), inputs_ns=((7, 8),), pinned=True)
    assert Done.from_json(found.as_json()) == found


def test_a_process_that_hangs_is_killed_and_reported(device, linear):
    with Workplace(None, device) as place, pytest.raises(TargetError, match=r"not done after 0 s, and was killed"):
        place.run(job(device, linear()[0], limit_seconds=0.05))


@pytest.mark.parametrize(
    ("last_words", "how", "do"),
    [("exit 3", "exit code 3\noops", "try another version of the runtime"),
     ("kill -SEGV $$", "signal 11\noops", "try another version of the runtime"),
     ("kill -KILL $$", "signal 9\noops", "want of memory")],
)  # fmt: skip
def test_a_worker_that_crashes_is_told_with_its_files_and_what_to_do(device, linear, tmp_path, last_words, how, do):
    file, _ = linear()
    with pytest.raises(TargetError) as caught:
        run_fresh(job(device, file), tmp_path, ["sh", "-c", f"echo oops >&2; {last_words}"], {})
    told = str(caught.value)
    assert all(part in told for part in (str(file.path), how, do))


def test_a_runtime_that_hangs_is_killed_in_the_settings_time_and_measuring_goes_on(
    device, linear, monkeypatch, tmp_path
):
    file, _ = linear()
    hangs = tmp_path / "python"
    hangs.write_text("#!/bin/sh\nexec sleep 60\n")
    hangs.chmod(0o755)
    with monkeypatch.context() as patched:
        patched.setattr(site.sys, "executable", str(hangs))
        with pytest.raises(TargetError, match=r"linear\.onnx was not done after 1 s, and was killed[\s\S]*--timeout"):
            compare(file, None, device, settings=SHORT.model_copy(update={"timeout_seconds": 1.0}))
    assert compare(file, None, device, settings=SHORT).candidate.latency.n > 0


def test_a_worker_ends_with_its_parent():
    """However that came to its end: here it is killed, and can tell nobody."""
    worker = (
        "import time; from targets.tied import end_with_parent; end_with_parent(); print(flush=True); time.sleep(60)"
    )
    parent = """if True:
        import subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
        child.stdout.readline()
        print(child.pid, flush=True)
        child.wait()
    """
    process = subprocess.Popen([sys.executable, "-c", parent, worker], stdout=subprocess.PIPE)
    child = int(process.stdout.readline())
    assert running(child)
    process.kill()
    process.communicate()
    end = time.monotonic() + 20
    while running(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not running(child)


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_users_folder_named_targets_does_not_stand_in_for_ours(device, linear, tmp_path, monkeypatch):
    folder = tmp_path / "project" / "targets"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(folder.parent)
    assert quick_latencies([linear()[0]], device, seconds=0.02)[0] > 0


def test_the_environment_says_what_the_figures_hold_for():
    found = Watch(1, {"runtime": "1.0"}).environment()
    expected = {
        "cpu",
        "cores",
        "governor",
        "clock_max_mhz",
        "temperature_c",
        "load_average",
        "platform",
        "python",
        "flags",
    }
    assert expected <= found.keys()
    assert found["runtime"] == "1.0"
    assert found["cpu"]


def test_a_busy_machine_is_noted():
    load = Load()
    load.busy = [80.0, 90.0]
    assert load.notes()[0] == "noisy machine: other work kept the measuring core 85% busy"


def test_noise_is_told_once_for_the_whole_time_and_other_flags_of_the_start_stay():
    watch = Watch(1, {})
    flags = ("noisy machine: at its start", "the clock's governor is powersave")
    watch.before = dataclasses.replace(watch.before, flags=flags)
    watch.load.busy = [90.0]
    told = [note for note in watch.notes() if "hypervisor" not in note]
    assert told == [flags[1], "noisy machine: other work kept the measuring core 90% busy"]


def test_a_peak_is_at_least_what_is_resident():
    assert peak_bytes() >= resident_bytes() > 10**6


def test_the_peak_of_a_file_is_the_largest_of_five_processes():
    class Place:
        def __init__(self):
            self.peaks = iter([3, 9, 2, 8, 1, 7, 5, 6, 4, 3])

        def job(self, files, device, seed):
            return Job(device, tuple(files), inputs=None, seed=seed, cores=None)

        def run_all(self, jobs):
            return [Done(peak_bytes=next(self.peaks)) for _ in jobs]

    found = memory_of(["file", "other", "file"], ["hash", "another", "hash"], {}, Place())
    assert {sha256: done.peak_bytes for sha256, done in found.items()} == {"hash": 9, "another": 7}


def test_jobs_that_time_nothing_run_at_once_and_none_outlives_one_that_fails(tmp_path, monkeypatch):
    """Each stands in for a worker: it waits for another's sign, fails, or would wait for ever."""
    program = tmp_path / "worker.py"
    program.write_text(
        "import json, sys, time\nfrom pathlib import Path\n"
        "request, result = map(Path, sys.argv[1:])\nseed = json.loads(request.read_text())['seed'][0]\n"
        f"signs = Path({str(tmp_path)!r})\n(signs / f'sign{{seed}}').touch()\n"
        "if seed < 2:\n"
        "    while not (signs / f'sign{1 - seed}').exists(): time.sleep(0.01)\n"
        f"    result.write_text({Done().as_json()!r})\n"
        "elif seed == 2: sys.exit('no')\n"
        "else: time.sleep(600)\n"
    )
    monkeypatch.setattr(site, "allowed_cores", lambda: 2)

    def run(job, folder, command, environment, started):
        return run_fresh(job, folder, [sys.executable, str(program)], environment, started)

    monkeypatch.setattr(site, "run_fresh", run)
    here = site.Here(None, tmp_path)

    def jobs(*seeds):
        return [Job(device={}, files=(), inputs=None, seed=(seed,), cores=None) for seed in seeds]

    assert len(here.run_all(jobs(0, 1))) == 2
    began = time.monotonic()
    with pytest.raises(TargetError, match="ended with exit code 1"):
        here.run_all(jobs(2, 3))
    assert time.monotonic() - began < 60
