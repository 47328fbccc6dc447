"""No two files of the tests have one name: pytest imports each by its own name, wherever it lies."""

from collections import defaultdict
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_every_file_of_the_tests_has_a_name_of_its_own():
    places = defaultdict(list)
    for path in sorted(TESTS.rglob("*.py")):
        if path.name != "conftest.py" and "cases" not in path.relative_to(TESTS).parts:  # users' projects: not imported
            places[path.name].append(str(path.relative_to(TESTS)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
