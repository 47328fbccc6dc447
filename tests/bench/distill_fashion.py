"""The nightly leaderboard of distillation: Fashion-MNIST, every objective, five seeds, beside the controls.

    python tests/bench/distill_fashion.py OUT                  # two hours on two cores; goes on where it was killed
    python tests/bench/distill_fashion.py OUT --try-weights    # each method's weights chosen with a seed apart
    python tests/bench/distill_fashion.py OUT --whole          # all 54,000 training samples: a night of many cores

By default a student of 15,000 parameters sees 600 of the training samples, where a teacher has something to tell, for 20
epochs. The default objectives compete as a pipeline. The table is printed as docs/distillation.md shows it;
`OUT/leaderboard.json` holds everything. It ends with 1 where no method is shown better than both plain KD and cross-entropy
on the test split, so that a change of the default is seen.
"""

import argparse
import os
import sys
from pathlib import Path

from kdc.cli.show import observer
from kdc.cli.standings import as_markdown
from kdc.driver.leaderboard import Options, leaderboard
from kdc.driver.recipe import load_recipe
from kdc.driver.standings import REFERENCES
from passes import PASSES
from targets.proc import allowed_cores

ROOT = Path(__file__).parents[2]
RECIPE, STUDENT = Path("models/fashion_mnist/recipe.yaml"), "models/fashion_mnist/student.py:build"
SAMPLES, EPOCHS = 600, 20
TRAINING = [f"passes.0.training.{one}" for one in ("batch=32", "learning_rate=0.004", "views=2")]
PIPELINES = {"kd and dist": {"objectives": [{"kind": "labels"}, {"kind": "kd"}, {"kind": "dist"}]}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=allowed_cores())
    parser.add_argument("--try-weights", action="store_true")
    given = parser.parse_args()
    out = given.out.absolute()
    os.chdir(ROOT)  # the recipe's paths are from there
    options = Options(
        seeds=given.seeds,
        epochs=10 if given.whole else EPOCHS,
        samples=None if given.whole else SAMPLES,
        try_weights=(0.1, 1.0, 10.0) if given.try_weights else (),
        student=STUDENT,
        pipelines=PIPELINES,
    )
    with observer(quiet=False, log=None) as emit:
        board = leaderboard(load_recipe(RECIPE, {}, TRAINING, PASSES), options, out, given.jobs, emit)
    print(as_markdown(board))
    faults = [row.name for row in board.rows if row.fault is not None]
    if faults:
        print(f"a fault of kdc's own in {', '.join(faults)}", file=sys.stderr)
    choice = board.choice
    better = choice is not None and all(
        name in choice.against and choice.against[name].verdict == "better" for name in REFERENCES
    )
    return 0 if better and not faults else 1


if __name__ == "__main__":
    sys.exit(main())
