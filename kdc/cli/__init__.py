"""The command line: one file a verb."""

import time

BEGAN = time.monotonic()  # of the program: a limit on its time counts what it imports, too
