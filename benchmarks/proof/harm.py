"""No result that is wrong without a word, no work that is lost, no file and no port that is not ours.

python benchmarks/proof/harm.py [--again NAME ...] [--only NAME ...] [--write]
"""

import sys

from harm_rows import figures, files, integers, limits, processes, pruning, recipes, stored_steps, teachers, time_limit
from rows import prove

PARTS = (stored_steps, limits, teachers, pruning, integers, time_limit, files, processes, figures, recipes)

if __name__ == "__main__":
    sys.exit(prove("harm", [claim for part in PARTS for claim in part.CLAIMS]))
