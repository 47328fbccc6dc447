"""Nothing is lost: a run that is killed at random moments goes on each time and ends with an undisturbed run's bytes.

    python tests/bench/kill9.py --times 10
    python tests/bench/kill9.py --times 10 --recipe tests/bench/kill9_full.yaml --inside search
    python tests/bench/kill9.py --times 10 --recipe tests/bench/kill9_full.yaml --inside route

Runs a recipe once undisturbed, then again in another folder, sending SIGKILL at random moments (of the named step, once
it has begun); prints for each kill what was stored by then, that no finished step was done again, and at the end whether
every file of the student is the same.
"""

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPE = Path(__file__).parents[2] / "models" / "digits" / "recipe.yaml"
FILES = ("student.onnx", "weights.safetensors", "structure.json", "cascade")


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def results(out):
    """SHA-256 of each file of the student by its name."""
    paths = [path for name in FILES for path in ([out / name] if (out / name).is_file() else (out / name).glob("*"))]
    return {str(path.relative_to(out)): sha256(path) for path in sorted(paths)}


def events(log):
    """Every event of the log's last command."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def seconds_of(log, step):
    """How long a step took, from its log."""
    times = {event["event"]: event["at"] for event in events(log) if event.get("step") == step}
    return times["StepFinished"] - times["StepStarted"]


def wait_for(log, step, process):
    """Until the step has begun, or the process has ended."""
    while process.poll() is None:
        lines = log.read_text().splitlines() if log.exists() else []
        if any('"StepStarted", "at"' in line and f'"step": "{step}"' in line for line in lines):
            return
        time.sleep(0.05)


def finished(out):
    """When each stored step was written."""
    found = {}
    for entry in (out / ".kdc" / "store").glob("*/entry.json"):
        content = json.loads(entry.read_text())
        found[content["step"]] = content["written"]
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--inside", help="a step; the kills come while it runs")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        whole, killed = Path(scratch) / "whole", Path(scratch) / "killed"

        def command(out, log):
            return [
                sys.executable, "-m", "kdc.cli.main", "compress", str(options.recipe), "--out", str(out), "--quiet",
                "--log", str(log),
            ]  # fmt: skip

        began = time.monotonic()
        subprocess.run(command(whole, Path(scratch) / "whole.jsonl"), check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - began
        print(f"undisturbed: {seconds:.0f} s, {len(results(whole))} files", flush=True)
        first, last = 0.15 * seconds, 0.55 * seconds
        if options.inside:
            inside = seconds_of(Path(scratch) / "whole.jsonl", options.inside)
            print(f"{options.inside}: {inside:.0f} s of them", flush=True)
            first, last = 0.02 * inside, 2.5 * inside / options.times  # it loses what came after its last checkpoint
        repeated, stopped = 0, 0
        before = {}
        for number in range(options.times):
            log = Path(scratch) / f"killed-{number}.jsonl"
            after = draw.uniform(first, last)
            process = subprocess.Popen(command(killed, log), stdout=subprocess.DEVNULL)
            if options.inside:
                wait_for(log, options.inside, process)
            try:
                process.wait(after)
                ended = "ended by itself"
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                ended = "killed"
                stopped += 1
            now = finished(killed)
            again = [step for step, written in before.items() if now.get(step) != written]
            repeated += len(again)
            before = now
            seen = events(log)
            at = [event["step"] for event in seen if event["event"] == "StepStarted"][-1:]
            epochs = [event["epoch"] for event in seen if event["event"] == "Epoch"]
            trained = f"{len(epochs)} epochs ended" if epochs else "no epoch ended"
            print(
                f"{number + 1}: {ended} after {after:.1f} s in {at}; {trained}; {len(now)} steps stored; "
                f"done again: {again}",
                flush=True,
            )
        done = subprocess.run(command(killed, Path(scratch) / "last.jsonl"), check=False, stdout=subprocess.DEVNULL)
        again = [step for step, written in before.items() if finished(killed).get(step) != written]
        same = results(whole) == results(killed)
        print(f"last: exit {done.returncode}; killed {stopped} times; done again: {again}; the same files: {same}")
        sys.exit(0 if same and not repeated and not again and done.returncode == 0 else 1)


if __name__ == "__main__":
    main()
