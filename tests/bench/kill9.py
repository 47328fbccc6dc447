"""Nothing is lost: a run that is killed at random moments goes on each time and ends with an undisturbed run's bytes.

    python tests/bench/kill9.py --times 10

Runs the digits recipe once undisturbed, then again in another folder, sending SIGKILL at random moments; prints for each
kill what was stored by then, that no finished step was done again, and at the end whether student.onnx is the same file.
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


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def events(log):
    """Every event of the log's last command."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def finished(out):
    """When each stored step was written."""
    found = {}
    for entry in (out / ".kdc" / "store").glob("*/entry.json"):
        content = json.loads(entry.read_text())
        found[content["step"]] = content["written"]
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
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
        print(f"undisturbed: {seconds:.0f} s, student.onnx {sha256(whole / 'student.onnx')[:16]}", flush=True)
        repeated = 0
        before = {}
        for number in range(options.times):
            log = Path(scratch) / f"killed-{number}.jsonl"
            after = draw.uniform(0.15, 0.55) * seconds
            process = subprocess.Popen(command(killed, log), stdout=subprocess.DEVNULL)
            try:
                process.wait(after)
                ended = "ended by itself"
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                ended = "killed"
            now = finished(killed)
            again = [step for step, written in before.items() if now.get(step) != written]
            repeated += len(again)
            before = now
            epochs = [event["epoch"] for event in events(log) if event["event"] == "Epoch"]
            trained = f"epochs {epochs[0]} to {epochs[-1]}" if epochs else "no epoch"
            print(f"{number + 1}: {ended} after {after:.0f} s; {trained}; {len(now)} steps stored; done again: {again}")
        done = subprocess.run(command(killed, Path(scratch) / "last.jsonl"), check=False, stdout=subprocess.DEVNULL)
        again = [step for step, written in before.items() if finished(killed).get(step) != written]
        same = sha256(whole / "student.onnx") == sha256(killed / "student.onnx")
        print(f"last: exit {done.returncode}; done again: {again}; student.onnx is the same file: {same}")
        sys.exit(0 if same and not repeated and not again and done.returncode == 0 else 1)


if __name__ == "__main__":
    main()
