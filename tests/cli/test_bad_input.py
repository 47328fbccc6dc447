"""What a user can get wrong: one clear message, the right exit code, no traceback, nothing destroyed."""

import fcntl
import resource
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow


def refused(done, code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("kdc: ") == 1
    assert "→" in done.stderr
    for word in words:
        assert word in done.stderr


def compress(kdc, shapes, *more: object, **options: object):
    return kdc("compress", shapes / "recipe.yaml", "--out", shapes / "run", "--quiet", *more, **options)


def edit(shapes, name: str, old: str, new: str) -> None:
    text = (shapes / name).read_text()
    assert old in text
    (shapes / name).write_text(text.replace(old, new))


def test_a_recipe_that_is_not_yaml(kdc, shapes):
    (shapes / "recipe.yaml").write_text("teacher: [")
    refused(compress(kdc, shapes), 2, "recipe.yaml:")


def test_an_unknown_key_with_its_line_and_what_was_meant(kdc, shapes):
    edit(shapes, "recipe.yaml", "budget:", "budjet:")
    refused(compress(kdc, shapes), 2, "recipe.yaml:6", "budjet", "did you mean 'budget'")


def test_a_wrong_flag(kdc):
    done = kdc("compress", "--nonsense")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "--nonsense" in done.stderr


def test_no_recipe_at_all(kdc, tmp_path):
    refused(kdc("plan"), 2, "no recipe", "--teacher")


def test_a_budget_of_nothing(kdc, shapes):
    refused(compress(kdc, shapes, "--max-latency", "0ms"), 2, "latency")


def test_a_budget_below_the_runtimes_floor_is_refused_before_training(kdc, shapes):
    done = compress(kdc, shapes, "--max-latency", "1e-7ms")
    refused(done, 3, "budget.latency_ms", "for a graph that does nothing")


def test_a_callable_that_raises_names_the_users_line(kdc, shapes):
    edit(shapes, "data.py", "rng = np", "raise OSError('no disk'); rng = np")
    refused(compress(kdc, shapes), 2, "data.py", "no disk")


def test_weights_that_do_not_fit_name_the_keys(kdc, shapes):
    refused(compress(kdc, shapes, "--set", "teacher.arguments={width: 16}"), 2, "0.weight")


def test_a_pickle_is_refused_and_never_executed(kdc, shapes):
    import pickle

    class Evil:
        def __reduce__(self):
            return (open, (str(shapes / "executed"), "w"))

    (shapes / "weights.pt").write_bytes(pickle.dumps(Evil()))
    refused(compress(kdc, shapes, "--weights", shapes / "weights.pt"), 2, "weights.pt")
    assert not (shapes / "executed").exists()


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("labels = rng.integers(0, 4, n)", "labels = rng.integers(0, 5, n)", "out of range"),
        ("cut =", "images[3] = np.nan; cut =", "NaN"),
        ("(0.6, 0.7, 0.85)", "(0.6, 0.6, 0.85)", "calibration"),
        ("cut =", "images[-1] = images[0]; cut =", "test"),
    ],
    ids=["labels out of range", "NaN", "an empty split", "leaking splits"],
)
def test_data_that_no_result_could_be_trusted_with(kdc, shapes, old, new, word):
    edit(shapes, "data.py", old, new)
    refused(compress(kdc, shapes), 2, word)
    assert not (shapes / "run").exists()


def test_a_teacher_worse_than_chance(kdc, shapes):
    edit(shapes, "recipe.yaml", "weights: teacher.safetensors", "")
    edit(shapes, "data.py", "cut =", "labels[:] = labels * 0 + (rng.random(n) < 0.1); cut =")
    refused(compress(kdc, shapes), 2, "guessing one class")


def test_an_operator_that_the_target_lacks_is_found_by_plan(kdc, shapes):
    from targets.device import PROFILES

    profile = (PROFILES / "cpu-ort.toml").read_text()
    (shapes / "chip.toml").write_text('unsupported_operators = ["GlobalAveragePool"]\n' + profile)
    done = kdc("plan", shapes / "recipe.yaml", "--target", shapes / "chip.toml")
    refused(done, 2, "GlobalAveragePool (1 times)")


def test_an_unknown_target(kdc, shapes):
    refused(kdc("plan", shapes / "recipe.yaml", "--target", "toaster"), 2, "toaster", "cpu-ort")


def test_an_output_folder_that_is_a_file(kdc, shapes):
    (shapes / "run").write_text("mine")
    refused(compress(kdc, shapes), 2, "is a file")
    assert (shapes / "run").read_text() == "mine"


def test_an_output_folder_with_something_elses_run(kdc, shapes):
    (shapes / "run").mkdir()
    (shapes / "run" / "thesis.tex").write_text("mine")
    refused(compress(kdc, shapes), 2, "not a run of kdc")
    assert [path.name for path in (shapes / "run").iterdir()] == ["thesis.tex"]


def test_two_runs_on_one_folder(kdc, shapes):
    (shapes / "run" / ".kdc").mkdir(parents=True)
    with (shapes / "run" / ".kdc" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(compress(kdc, shapes), 2, "in use by another kdc")


def test_a_full_disk(kdc, shapes):
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    done = compress(kdc, shapes, preexec_fn=small_files)
    refused(done, 2, "is full", "goes on from here")


def test_ctrl_c_says_how_to_go_on(shapes):
    command = [
        sys.executable,
        "-m",
        "kdc.cli.main",
        "compress",
        str(shapes / "recipe.yaml"),
        "--out",
        str(shapes / "run"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "prune" in line:
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command again to go on" in stderr
    assert "Traceback" not in stderr


def test_debug_shows_the_traceback(kdc, shapes):
    done = kdc("plan", shapes / "recipe.yaml", "--target", "toaster", "--debug")
    assert "Traceback" in done.stderr
